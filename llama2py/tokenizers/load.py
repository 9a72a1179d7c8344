"""Load a vocabulary from a file of any format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..engine.parameters import as_path
from ..errors import TokenizerError
from ..formats import sniff
from ..formats.input_file import InputFile, read_whole
from . import llama2c
from .tokenizer import Tokenizer

_USUAL_PADDING = 16  # at most one of 16 ids is padding
_ANY = "a tokenizer.bin, .model, .json or GGUF"


def load_tokenizer(
    path: str | Path,
    vocab_size: int | None = None,
    padded: bool = False,
    gguf_pairs: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """Read a tokenizer.bin, .model or .json, or the vocabulary in a GGUF file.

    Parameters
    ----------
    path : str or Path
        The file. Its format is detected by content, not by name.
    vocab_size : int, optional
        The number of ids that the model has. By default, any number is accepted.
    padded : bool
        Whether the model may have another number of ids than the tokenizer. Pass True for a
        tokenizer that belongs to the model, whose embedding may be padded to a round number of rows
        (see `Tokenizer.padded`), or lack rows for the last tokens.
    gguf_pairs : mapping of str to value, optional
        The metadata of a GGUF file that is already open. The file is then not parsed again.

    Raises
    ------
    TokenizerError
        If the file is missing or malformed, or its vocabulary size does not match the model's.
    """
    path = as_path("path", path)
    tokenizer = _read(path) if gguf_pairs is None else _from_pairs(path, gguf_pairs)
    if vocab_size is None or len(tokenizer) == vocab_size:
        return tokenizer
    if padded:
        return _resized(path, tokenizer, vocab_size)
    raise TokenizerError(
        f"{path}: this tokenizer has {len(tokenizer)} tokens, the model has {vocab_size};"
        " pass the model's own with -z FILE or tokenizer=FILE"
    )


def _resized(path: Path, tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return a tokenizer for a model with another number of ids."""
    n_tokens, warning = len(tokenizer), ""
    if vocab_size < n_tokens:
        if tokenizer.adds_bos and tokenizer.bos_id >= vocab_size:
            raise TokenizerError(
                f"{path}: texts begin with token {tokenizer.bos_id}, but the model has only"
                f" {vocab_size} tokens: the name of BOS is wrong"
            )
        warning = (
            f"the tokenizer has {n_tokens} tokens and the model {vocab_size}: a text that holds one"
            " of the others is an error"
        )
    else:
        tokenizer = tokenizer.padded(vocab_size)
        if vocab_size - n_tokens > vocab_size // _USUAL_PADDING:
            warning = (
                f"the tokenizer has only {n_tokens} tokens and the model {vocab_size}: this may be"
                " the tokenizer of another model"
            )
    if warning:
        tokenizer.notes += (warning,)
        tokenizer.warnings += (warning,)
    return tokenizer


def _read(path: Path) -> Tokenizer:
    """Read a file of any format. The reader of a format is imported only when it is needed."""
    file = InputFile(path, TokenizerError, _ANY)
    try:
        kind = sniff.kind_of(file.read(0, sniff.HEAD))
    finally:
        file.close()
    if kind == sniff.GGUF:
        from ..formats.gguf_metadata import read_gguf_metadata

        return _from_pairs(path, read_gguf_metadata(path, TokenizerError).pairs)
    if kind == sniff.SENTENCEPIECE:
        from . import sentencepiece

        data = read_whole(
            path, sentencepiece.MAX_FILE_SIZE, TokenizerError, "sentencepiece's tokenizer.model"
        )
        config = None
        if path.name == "tokenizer.model":
            from .tokenizer_config import read_tokenizer_config

            config = read_tokenizer_config(path.parent)
        return _named(path, sentencepiece.parse_sentencepiece, data, config)
    if kind == sniff.RANKS:
        from . import tiktoken

        data = read_whole(path, tiktoken.MAX_FILE_SIZE, TokenizerError, "Llama 3's tokenizer.model")
        return _named(path, tiktoken.parse_ranks, data)
    if kind == sniff.JSON:
        from . import huggingface

        return huggingface.read_tokenizer_json(path)
    # A tokenizer.bin has no magic number: any other file may be one.
    try:
        data = read_whole(path, llama2c.MAX_FILE_SIZE, TokenizerError, "a tokenizer.bin")
        return _named(path, llama2c.parse_tokenizer_bin, data)
    except TokenizerError:
        if kind is None or kind == sniff.TOKENIZER_BIN:
            raise
        raise TokenizerError(f"{path}: this is {kind}, expected {_ANY}") from None


def _from_pairs(path: Path, pairs: Mapping[str, Any]) -> Tokenizer:
    from .gguf import tokenizer_of_pairs

    return _named(path, tokenizer_of_pairs, pairs)


def _named(path: Path, parse: Any, *found: Any) -> Tokenizer:
    """Parse the contents of a file, and add the name of the file to an error."""
    try:
        tokenizer: Tokenizer = parse(*found)
    except TokenizerError as error:
        if str(error).startswith(f"{path}: "):  # the file cannot be read
            raise
        raise TokenizerError(f"{path}: {error}") from None
    return tokenizer

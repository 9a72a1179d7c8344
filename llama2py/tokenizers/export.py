"""A vocabulary out of wherever it lies, as a file of its own."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..checkpoint.open import HUGGINGFACE_TOKENIZERS, first_file
from ..errors import CheckpointError, TokenizerError
from ..formats.atomic_write import replacing
from ..hub import find_model
from .load import fits_tokenizer_bin, load_tokenizer, write_tokenizer_bin
from .merge_tokenizer import Characters, MergeTokenizer
from .output import pieces_of, sentencepiece_model, tokenizer_json
from .scores import to_scores
from .tokenizer import EOS, Tokenizer

_log = logging.getLogger(__name__)


def export_tokenizer(source: Path, output: Path) -> Tokenizer:
    """Write a vocabulary in another format.

    Parameters
    ----------
    source : Path
        A tokenizer.bin, .model or .json, a GGUF file, or a directory with one of the first three;
        or the name of a downloaded one, see `find_model`.
    output : Path
        A name that ends in ``.bin`` (llama2.c's format), ``.json`` (Hugging Face's) or ``.model``
        (sentencepiece's).

    Returns
    -------
    Tokenizer
        What was written.

    Raises
    ------
    TokenizerError
        If the source cannot be read, the output cannot be written, or its format cannot hold the
        vocabulary: a .bin has no special tokens, and neither it nor a .model has merges.
    """
    try:
        source = find_model(source)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None
    if os.path.isdir(source):  # a name that no file can have is none
        found = first_file(source, HUGGINGFACE_TOKENIZERS)
        if found is None:
            expected = " or ".join(HUGGINGFACE_TOKENIZERS)
            raise TokenizerError(f"{source}: no tokenizer in it, expected {expected}")
        source = found
    if output.suffix not in (".bin", ".json", ".model"):
        raise TokenizerError(f"{output}: the name ends otherwise, expected .bin, .json or .model")
    read = tokenizer = load_tokenizer(source)
    try:
        if output.suffix == ".bin":
            tokenizer = with_scores(read, source)
            data = b""
        else:
            make = tokenizer_json if output.suffix == ".json" else sentencepiece_model
            data = make(tokenizer)
    except TokenizerError as error:
        raise TokenizerError(f"{output}: {error}") from None
    warn_of_spaces(output, read, output.suffix[1:])
    if output.suffix == ".bin":
        write_tokenizer_bin(tokenizer, output)
    else:
        with replacing(output, TokenizerError) as out:
            out.write(data)
    return tokenizer


def with_scores(tokenizer: Tokenizer, path: Path | None) -> Tokenizer:
    """What of a vocabulary a tokenizer.bin holds.

    Parameters
    ----------
    tokenizer : Tokenizer
        Any.
    path : Path, optional
        Its file. Where a tokenizer.model of the same tokens lies beside it, that has the scores.

    Raises
    ------
    TokenizerError
        Without a file's name: if no scores do what its merges do, or it has special tokens.
    """
    sibling = None if path is None else path.with_name("tokenizer.model")
    if not fits_tokenizer_bin(tokenizer) and sibling not in (None, path) and sibling.is_file():
        other = load_tokenizer(sibling)
        lost = any(token > EOS for token in tokenizer.specials.ids())
        same = len(other) == len(tokenizer) and pieces_of(other) == pieces_of(tokenizer)
        if same and not lost and fits_tokenizer_bin(other):
            return other
    scored = to_scores(tokenizer)
    if not fits_tokenizer_bin(scored):
        raise TokenizerError(
            "the vocabulary has special tokens, an EOS or a BOS of its own kind,"
            " expected a format that holds them: hf, gguf or tokenizer.json"
        )
    return scored


def warn_of_spaces(target: Path, tokenizer: Tokenizer, format: str) -> None:
    """Log what `other_spaces` tells of what is written."""
    for told in other_spaces(tokenizer, format):
        _log.warning("%s: %s", target, told)


def other_spaces(tokenizer: Tokenizer, format: str) -> list[str]:
    """Where a vocabulary puts spaces that another format means otherwise, each in a sentence.

    Parameters
    ----------
    tokenizer : Tokenizer
        Any.
    format : str
        ``'gguf'``, ``'json'``, ``'model'`` or ``'bin'``.
    """
    each, once, behind = tokenizer.prefix_each, False, list(tokenizer.specials.added)
    if isinstance(tokenizer, MergeTokenizer):
        if not isinstance(tokenizer.kind, Characters) or format == "json":
            return []  # said as it is
        each, once = tokenizer.kind.prefix == "each", tokenizer.kind.prefix_once
        behind += () if each else tokenizer.specials.control
    told = []
    if behind and each != (format != "model"):
        there, here = ("no", "one") if each else ("a", "none")
        told.append(f"there {there} space comes behind special tokens in a text, here {here}")
    if once:
        told.append("there a text that begins with a space gets another one, here none")
    return told

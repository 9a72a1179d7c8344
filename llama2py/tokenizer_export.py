"""A vocabulary out of wherever it lies, as a file of its own."""

from __future__ import annotations

import os
from pathlib import Path

from .checkpoint.directory import OF_HUGGINGFACE, first_there
from .errors import CheckpointError, TokenizerError
from .files import replacing
from .hub import find_model
from .tokenizer import Tokenizer
from .tokenizer_files import fits_tokenizer_bin, load_tokenizer, write_tokenizer_bin
from .tokenizer_output import pieces_of, sentencepiece_model, tokenizer_json
from .tokenizer_scores import to_scores


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
        found = first_there(source, OF_HUGGINGFACE)
        if found is None:
            expected = " or ".join(OF_HUGGINGFACE)
            raise TokenizerError(f"{source}: no tokenizer in it, expected {expected}")
        source = found
    if output.suffix not in (".bin", ".json", ".model"):
        raise TokenizerError(f"{output}: the name ends otherwise, expected .bin, .json or .model")
    tokenizer = load_tokenizer(source)
    try:
        if output.suffix == ".bin":
            tokenizer = with_scores(tokenizer, source)
            data = b""
        else:
            make = tokenizer_json if output.suffix == ".json" else sentencepiece_model
            data = make(tokenizer)
    except TokenizerError as error:
        raise TokenizerError(f"{output}: {error}") from None
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
        Its file. Where a tokenizer.model of as many tokens lies beside it, that has the scores.

    Raises
    ------
    TokenizerError
        Without a file's name: if no scores do what its merges do, or it has special tokens.
    """
    if not fits_tokenizer_bin(tokenizer):
        other = sentencepiece_sibling(tokenizer, path)
        if other is not None and fits_tokenizer_bin(other):
            return other
    scored = to_scores(tokenizer)
    if not fits_tokenizer_bin(scored):
        raise TokenizerError(
            "the vocabulary has special tokens, an EOS or a BOS of its own kind,"
            " expected a format that holds them: hf, gguf or tokenizer.json"
        )
    return scored


def sentencepiece_sibling(tokenizer: Tokenizer, path: Path | None) -> Tokenizer | None:
    """The vocabulary of a tokenizer.model beside a file, where it has the same tokens."""
    sibling = None if path is None else path.with_name("tokenizer.model")
    if sibling is None or sibling == path or not sibling.is_file():
        return None
    other = load_tokenizer(sibling)
    return other if pieces_of(other) == pieces_of(tokenizer) else None

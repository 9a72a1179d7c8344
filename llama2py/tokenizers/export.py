"""Write a vocabulary, from wherever it is stored, to a file of its own."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from .._data import builtin_model
from ..checkpoint.open import HUGGINGFACE_TOKENIZERS, first_file
from ..engine.parameters import as_path
from ..errors import CheckpointError, TokenizerError
from ..formats.atomic_write import replacing
from ..hub import find_model
from .huggingface import tokenizer_config, tokenizer_json
from .llama2c import fits_tokenizer_bin, write_tokenizer_bin
from .load import load_tokenizer
from .merge_tokenizer import Characters, MergeTokenizer
from .scores_and_merges import texts_of, to_scores
from .sentencepiece import sentencepiece_model
from .tokenizer import EOS, PLAIN, Tokenizer
from .tokenizer_config import CONFIG

_log = logging.getLogger(__name__)


def export_tokenizer(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> Tokenizer:
    """Write a vocabulary in another format, and check that it can be read.

    A tokenizer.json does not say which tokens begin and end a text. If the names of its tokens do
    not either, a tokenizer_config.json is written beside it.

    Parameters
    ----------
    source : str or path-like
        A tokenizer.bin, .model or .json, a GGUF file, or a directory that contains one of the first
        three; or the name of a downloaded model, see `find_model`.
    output : str or path-like
        A name that ends in ``.bin`` (llama2.c's format), ``.json`` (Hugging Face's) or ``.model``
        (sentencepiece's).

    Returns
    -------
    Tokenizer
        The vocabulary that was written.

    Raises
    ------
    TokenizerError
        If the source cannot be read, the output cannot be written, or its format cannot hold the
        vocabulary: a .bin has no special tokens, and neither a .bin nor a .model has merges.
    """
    as_path("source", source)
    output = as_path("output", output)
    try:
        source = find_model(source)
        if source == builtin_model():
            source = source.with_suffix(".tokenizer.bin")
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None
    if os.path.isdir(source):  # False for a name that no file can have
        found = first_file(source, HUGGINGFACE_TOKENIZERS)
        if found is None:
            expected = " or ".join(HUGGINGFACE_TOKENIZERS)
            raise TokenizerError(f"{source}: the directory has no tokenizer, expected {expected}")
        source = found
    if output.suffix not in (".bin", ".json", ".model"):
        raise TokenizerError(f"{output}: the name must end in .bin, .json or .model")
    read = tokenizer = load_tokenizer(source)
    try:
        if output.suffix == ".bin":
            tokenizer = for_tokenizer_bin(read, source)
            data = b""
        else:
            make = tokenizer_json if output.suffix == ".json" else sentencepiece_model
            data = make(tokenizer)
    except TokenizerError as error:
        raise TokenizerError(f"{output}: {error}") from None
    warn_of_space_changes(output, read, output.suffix[1:])
    if output.suffix == ".bin":
        write_tokenizer_bin(tokenizer, output)
        return tokenizer
    with replacing(output, TokenizerError) as out:
        out.write(data)
        out.flush()
        needs_config = _check(Path(out.name), output, tokenizer)
    if needs_config:
        with replacing(output.with_name(CONFIG), TokenizerError) as out:
            out.write(tokenizer_config(tokenizer))
    return tokenizer


def _check(written: Path, output: Path, tokenizer: Tokenizer) -> bool:
    """Read a file that is about to get its name; return whether it needs a tokenizer_config.json.

    Raises
    ------
    TokenizerError
        If the file cannot be read, or another tokenizer_config.json would give it other tokens.
    """
    config = output.with_name(CONFIG)
    try:
        found = load_tokenizer(written)
    except TokenizerError as error:
        if output.suffix == ".json" and not config.exists():
            return True
        reason = str(error).replace(str(written), str(output))
        raise TokenizerError(f"the file would not load: {reason}") from None
    if conventions_of(found) == conventions_of(tokenizer):
        return False
    if config.exists():
        raise TokenizerError(
            f"{output}: {config} would give the vocabulary another BOS or EOS: choose another"
            " folder, or remove that file"
        )
    return True


def conventions_of(tokenizer: Tokenizer) -> tuple[int, int, bool]:
    """Return BOS, EOS, and whether a text begins with BOS."""
    return tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos


def for_tokenizer_bin(tokenizer: Tokenizer, path: Path | None) -> Tokenizer:
    """Return the equivalent vocabulary that a tokenizer.bin can hold.

    Parameters
    ----------
    tokenizer : Tokenizer
        Any vocabulary.
    path : Path, optional
        The file of the vocabulary. The scores come from a tokenizer.model beside it, if there is
        one with the same tokens.

    Raises
    ------
    TokenizerError
        Without a file name: if no scores are equivalent to the merges, or there are special tokens.
    """
    sibling = None if path is None else path.with_name("tokenizer.model")
    if not fits_tokenizer_bin(tokenizer) and sibling not in (None, path) and sibling.is_file():
        other = load_tokenizer(sibling)
        loses_specials = any(token > EOS for token in tokenizer.specials.ids())
        is_same = len(other) == len(tokenizer) and texts_of(other) == texts_of(tokenizer)
        if is_same and not loses_specials and fits_tokenizer_bin(other):
            return other
    scored = to_scores(tokenizer)
    if not fits_tokenizer_bin(scored):
        raise TokenizerError(
            "a tokenizer.bin cannot hold this vocabulary's special tokens, its EOS, or that its"
            " texts begin without BOS or a space: write it as hf, gguf or tokenizer.json"
        )
    return scored


def warn_of_space_changes(target: Path, tokenizer: Tokenizer, format: str) -> None:
    """Log a warning for each of the `space_changes` of a file that is written."""
    for change in space_changes(tokenizer, format):
        _log.warning("%s: %s", target, change)


def space_changes(tokenizer: Tokenizer, format: str) -> list[str]:
    """Return the places where another format puts spaces that the vocabulary does not, or reverse.

    Parameters
    ----------
    tokenizer : Tokenizer
        Any vocabulary.
    format : {'gguf', 'json', 'model', 'bin'}
        The format that it is written in.

    Returns
    -------
    list of str
        A sentence for each.
    """
    changes = []
    if format != "json" and _has_rules(tokenizer):
        changes.append(
            "this format finds special tokens wherever a text has them, the source only where"
            " normalized, single_word, lstrip or rstrip say so"
        )
    if (
        format == "gguf"
        and isinstance(tokenizer, MergeTokenizer)
        and tokenizer.has_unknown
        and tokenizer.lacks_bytes
    ):
        changes.append(
            "this format leaves out bytes that the vocabulary lacks, the source makes"
            f" {tokenizer.piece(tokenizer.unk_id).decode()} of them"
        )
    if tokenizer.prefix == "none":
        return changes
    each, once, after = tokenizer.prefix == "each", False, list(tokenizer.specials.added)
    if tokenizer.prefix == "first":
        after += [*tokenizer.specials.control, *tokenizer.specials.fixed]
    if isinstance(tokenizer, MergeTokenizer):
        if not isinstance(tokenizer.kind, Characters) or format == "json":
            return changes  # the format can say the rest
        if tokenizer.kind.prefix == "none":
            return changes
        each, once = tokenizer.kind.prefix == "each", tokenizer.kind.prefix_once
        after += () if each else tokenizer.specials.control
    if tokenizer.prefix == "first" and format == "json":
        return [
            *changes,
            "this format puts no space before a text that begins with one, the source puts one",
        ]
    if after and each != (format != "model"):
        there, here = ("no", "one") if each else ("a", "none")
        changes.append(
            f"this format puts {there} space after special tokens in a text, the source puts {here}"
        )
    if once:
        changes.append(
            "this format puts a space before a text that begins with one, the source puts none"
        )
    return changes


def _has_rules(tokenizer: Tokenizer) -> bool:
    """Whether an added token is matched in another way than by its text in the text as it is."""
    normalizes = isinstance(tokenizer, MergeTokenizer) and tokenizer.normalizes
    rules = [tokenizer.specials.matching.get(text, PLAIN) for text in tokenizer.specials.added]
    return any(
        rule.single_word or rule.lstrip or rule.rstrip or (rule.normalized and normalizes)
        for rule in rules
    )

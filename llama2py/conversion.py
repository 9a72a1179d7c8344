"""Checkpoints from any format that is read to any that is written."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ._data import bundled_tokenizer
from .checkpoint import Checkpoint, default_group_size, open_checkpoint
from .checkpoint.export import FileDtype
from .checkpoint.gguf.writer import gguf_items, write_gguf
from .checkpoint.huggingface.writer import (
    SHARD_SIZE,
    config_json,
    huggingface_items,
    write_huggingface,
)
from .checkpoint.llama2c import check_config, lay_out, write_llama2c
from .errors import CheckpointError, ParameterError, TokenizerError
from .formats.atomic_write import check_space, replacing, replacing_folder
from .hub import find_model
from .model import StrPath, beside, end_tokens, own_tokenizer, vocabulary_for
from .tokenizers.export import warn_of_spaces, with_scores
from .tokenizers.load import load_tokenizer, write_tokenizer_bin
from .tokenizers.output import (
    gguf_pairs,
    sentencepiece_model,
    tokenizer_config,
    tokenizer_json,
)
from .tokenizers.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

FileFormat: TypeAlias = Literal["v0", "v1", "v2", "hf", "gguf"]

_HOLDS = {
    "v0": ("float32",),
    "v1": ("float32",),
    "v2": ("int8",),
    "hf": ("float32", "float16", "bfloat16"),
    "gguf": ("float32", "float16", "bfloat16", "int8"),
}
# Names of files that are none of what is written.
_OTHER_FILES = (".safetensors", ".pt", ".pth", ".json", ".model", ".ggml", ".npz", ".zip")
# What belongs to the tokenizer in a directory of Hugging Face's.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
_WITHOUT = "or no vocabulary (--no-tokenizer, or tokenizer=False)"


def convert(
    source: StrPath,
    output: StrPath,
    format: FileFormat | None = None,
    dtype: FileDtype | None = None,
    tokenizer: StrPath | bool | None = None,
    group_size: int | None = None,
    shard_size: int = SHARD_SIZE,
    threads: int = 1,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Path:
    """Write a checkpoint in another format, with its vocabulary.

    One tensor is held in memory at a time. The output appears only once all of it is on disk.

    Parameters
    ----------
    source : str or path-like
        Any checkpoint that `load` takes.
    output : str or path-like
        Where to: a file, which is replaced if there is one, or for Hugging Face a new or empty
        directory.
    format : {'v0', 'v1', 'v2', 'hf', 'gguf'}, optional
        llama2.c's three versions, a directory of Hugging Face's, or GGUF v3. Default: by the
        output's name, gguf for ``.gguf``; for ``.bin`` v0, which every llama2.c reads, or v2 if
        it is to be int8; else a directory.
    dtype : {'float32', 'float16', 'bfloat16', 'int8'}, optional
        Of the matrices, and for hf of the norms. Default: the source's, where the format holds it,
        or else float32: nothing is lost, but where int8 is turned into other groups or v2 is asked
        for. int4 (GGUF's Q4_0), which no format holds, is int8 in groups of 32 here, with the same
        values and scales. v0 and v1 hold float32; v2 int8; hf the three others; gguf all four, of
        which int8 is Q8_0 (and float16 where a row is no multiple of 32). Rounding is to nearest,
        ties to even.
    tokenizer : str, path-like or False, optional
        The vocabulary to go with it. Default: the model's own. False: none. A llama2.c file's goes
        beside it, as ``NAME.tokenizer.bin``, unless it is Llama 2's, which needs no file.
    group_size : int, optional
        For v2: weights that share a scale, a divisor of ``dim``. Default: the source's
        where it has groups, else 64, halved until it divides ``dim``.
    shard_size : int
        For hf: bytes of tensors in one file. Default: 5 GB.
    threads : int
        For v2: how many matrices are quantized at once, and held in memory.
    progress : callable
        Told after each tensor how many weights are written, and how many there are.

    Returns
    -------
    Path
        The output.

    Raises
    ------
    CheckpointError
        If the source cannot be read, the format cannot hold the model (the message names one that
        can), a weight is beyond the dtype, or the output cannot be written or does not fit onto
        the disk.
    TokenizerError
        If the vocabulary cannot be read, or the format cannot hold it.
    ParameterError
        If ``format``, ``dtype``, ``group_size`` or ``threads`` is not one of the values above.

    Examples
    --------
    >>> convert("stories15M.bin", "stories15M.gguf", dtype="float16")  # doctest: +SKIP
    PosixPath('stories15M.gguf')
    """
    target = Path(output)
    if format is not None and format not in get_args(FileFormat):
        raise ParameterError(f"format is {format!r}, expected one of {', '.join(_HOLDS)}")
    if dtype is not None and dtype not in get_args(FileDtype):
        raise ParameterError(
            f"dtype is {dtype!r}, expected one of {', '.join(get_args(FileDtype))}"
        )
    if group_size is not None and group_size < 1:
        raise ParameterError(f"group_size is {group_size}, expected a whole number from 1 up")
    if threads < 1:
        raise ParameterError(f"threads is {threads}, expected a whole number from 1 up")
    with open_checkpoint(find_model(source)) as checkpoint:
        kind: str = format or format_of(target, dtype or _own(checkpoint))
        if kind != "hf" and not target.name:
            raise CheckpointError(f"{target}: this is no regular file, expected one or a new name")
        precision = _dtype(kind, dtype, checkpoint)
        if group_size is not None and kind != "v2":
            raise ParameterError(f"group_size is {group_size}, expected none for format {kind}")
        vocabulary, path = _vocabulary(checkpoint, tokenizer)
        counter = _Counter(checkpoint.config.n_params, progress)
        if kind == "hf":
            norms = dtype or ("float32" if _stored(checkpoint, 1) != precision else precision)
            precisions = (precision, norms)
            _to_huggingface(target, checkpoint, precisions, vocabulary, path, counter, shard_size)
        elif kind == "gguf":
            _to_gguf(target, checkpoint, precision, vocabulary, counter)
            _warn_of_another(target, path)
        else:
            version = int(kind[1:])
            _to_llama2c(target, checkpoint, version, group_size, vocabulary, path, threads, counter)
            if vocabulary is None:
                _warn_of_another(target, None)
    return target


def format_of(output: Path, dtype: str = "float32") -> FileFormat:
    """The format that a file's name asks for.

    Raises
    ------
    ParameterError
        If it is the name of a file of another kind.
    """
    if output.suffix == ".gguf":
        return "gguf"
    if output.suffix == ".bin":
        return "v2" if dtype == "int8" else "v0"
    if output.suffix in _OTHER_FILES or os.path.isfile(output):
        raise ParameterError(
            f"{output}: the name does not tell the format,"
            " expected .bin, .gguf, a directory, or the format by its name"
        )
    return "hf"


class _Counter:
    """Adds up the weights that are written."""

    def __init__(self, total: int, progress: Callable[[int, int], object]) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, weights: int) -> None:
        self._done += weights
        self._progress(self._done, self._total)


def _dtype(kind: str, asked: str | None, checkpoint: Checkpoint) -> str:
    holds = _HOLDS[kind]
    if asked is not None and asked not in holds:
        fitting = [name for name, dtypes in _HOLDS.items() if asked in dtypes]
        raise ParameterError(
            f"format {kind} holds {', '.join(holds)}, not {asked}:"
            f" expected one of these or the format {' or '.join(fitting)}"
        )
    own = _own(checkpoint)
    return asked or (own if own in holds else holds[0])


def _own(checkpoint: Checkpoint) -> str:
    """The dtype of files that holds all matrices; int8 in groups of 32 holds those of int4."""
    return "int8" if checkpoint.dtype in ("int8", "int4") else _stored(checkpoint, 2)


def _stored(checkpoint: Checkpoint, n_dims: int) -> str:
    """What all norms (1) or matrices (2) are stored as, where it is one float dtype."""
    dtypes = {
        tensor.dtype
        for tensors in checkpoint.tensors.values()
        for tensor in tensors
        if len(tensor.shape) == n_dims
    }
    own = dtypes.pop() if len(dtypes) == 1 else "float32"
    return own if own in ("float16", "bfloat16") else "float32"


def _vocabulary(
    checkpoint: Checkpoint, asked: StrPath | bool | None
) -> tuple[Tokenizer | None, Path | None]:
    """The vocabulary and its file; the bundled one where it fits a model that has none."""
    if asked is False:
        return None, None
    path = own_tokenizer(checkpoint) if asked is None or asked is True else Path(asked)
    if path is not None:
        return vocabulary_for(checkpoint, path), path
    bundled = load_tokenizer(bundled_tokenizer())
    if len(bundled) == checkpoint.config.vocab_size:
        return bundled, bundled_tokenizer()
    _log.warning("%s: it has no tokenizer, and so has what is written", checkpoint.path)
    return None, None


def _to_llama2c(
    target: Path,
    checkpoint: Checkpoint,
    version: int,
    group_size: int | None,
    vocabulary: Tokenizer | None,
    path: Path | None,
    threads: int,
    progress: Callable[[int], object],
) -> None:
    config = checkpoint.config
    check_config(target, config)
    if version == 2 and group_size is None:
        own = checkpoint.group_size
        group_size = own if own and config.dim % own == 0 else default_group_size(config)
    copy = beside(target)
    if vocabulary is not None:
        try:
            scored = with_scores(vocabulary, path)
        except TokenizerError as error:
            raise TokenizerError(f"{copy}: {error}, {_WITHOUT}") from None
        warn_of_spaces(copy, vocabulary, "bin")
        vocabulary = scored
    if group_size is None or config.dim % group_size == 0:  # the writer says what is wrong else
        check_space(target, lay_out(config, version, group_size)[1], CheckpointError)
    write_llama2c(target, checkpoint, version, group_size, threads, progress)
    if vocabulary is not None and (os.path.exists(copy) or path != bundled_tokenizer()):
        write_tokenizer_bin(vocabulary, copy)


def _warn_of_another(target: Path, path: Path | None) -> None:
    """Of a vocabulary beside a file that goes before the one, of ``path``, that the file has."""
    other = beside(target)
    if os.path.isfile(other) and (path is None or not os.path.samefile(other, path)):
        _log.warning("%s lies there already: it is taken for %s's vocabulary", other, target)


def _to_gguf(
    target: Path,
    checkpoint: Checkpoint,
    dtype: str,
    vocabulary: Tokenizer | None,
    progress: Callable[[int], object],
) -> None:
    # llama.cpp's name for a model that has none.
    pairs: dict[str, object] = {"tokenizer.ggml.model": b"no_vocab"}
    if vocabulary is not None:
        try:
            pairs = gguf_pairs(vocabulary, checkpoint.chat_template)
        except TokenizerError as error:
            raise TokenizerError(f"{target}: {error}, {_WITHOUT}") from None
        warn_of_spaces(target, vocabulary, "gguf")
    places = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    ends = _ends(checkpoint, vocabulary)
    if len(ends) > len(places):
        _log.warning("%s: GGUF names 3 of the %d tokens that end a text", target, len(ends))
    pairs |= zip(places, ends, strict=False)
    size = sum(item.nbytes for item in gguf_items(checkpoint.config, dtype))
    check_space(target, size, CheckpointError)
    try:
        write_gguf(target, checkpoint, dtype, pairs, progress)
    except CheckpointError as error:
        raise _named(target, error) from None


def _to_huggingface(
    target: Path,
    checkpoint: Checkpoint,
    dtypes: tuple[str, str],
    vocabulary: Tokenizer | None,
    path: Path | None,
    progress: Callable[[int], object],
    shard_size: int,
) -> None:
    ids = (None if vocabulary is None else vocabulary.bos_id, _ends(checkpoint, vocabulary))
    files: dict[str, bytes] = {}
    if vocabulary is not None and path is not None:
        try:
            files = _tokenizer_files(target, checkpoint, vocabulary, path)
        except TokenizerError as error:
            raise TokenizerError(f"{target}: {error}, {_WITHOUT}") from None
    config_json(checkpoint, dtypes[0], ids)  # says what it cannot say before anything is written
    size = sum(item.nbytes for item in huggingface_items(checkpoint.config, *dtypes))
    check_space(target, size, CheckpointError)
    with replacing_folder(target, CheckpointError, last="config.json") as folder:
        try:
            write_huggingface(folder, checkpoint, *dtypes, ids, progress, shard_size)
        except CheckpointError as error:  # of a file in a folder whose name goes away
            shown = str(error).replace(str(folder), str(target))
            raise _named(target, CheckpointError(shown)) from None
        for name, data in files.items():
            with replacing(folder / name, TokenizerError) as out:
                out.write(data)


def _ends(checkpoint: Checkpoint, vocabulary: Tokenizer | None) -> list[int]:
    """The tokens that end a text, the vocabulary's EOS first."""
    if vocabulary is None:
        return sorted(checkpoint.conventions.end_tokens)
    eos = vocabulary.eos_id
    return [eos, *sorted(end_tokens(checkpoint.conventions, vocabulary) - {eos})]


def _tokenizer_files(
    target: Path, checkpoint: Checkpoint, vocabulary: Tokenizer, path: Path
) -> dict[str, bytes]:
    """A directory's own files as they are, or new ones that say the same."""
    folder = checkpoint.path
    if path.parent == folder and (folder / "config.json").is_file() and path.suffix != ".bin":
        names = [name for name in _TOKENIZER_FILES if (folder / name).is_file()]
        try:
            return {name: (folder / name).read_bytes() for name in names}
        except OSError as error:
            raise TokenizerError(f"{folder}: its vocabulary cannot be read ({error})") from error
    template = checkpoint.chat_template
    files = {
        "tokenizer.json": tokenizer_json(vocabulary),
        "tokenizer_config.json": tokenizer_config(vocabulary, checkpoint.config.seq_len, template),
    }
    warn_of_spaces(target, vocabulary, "json")
    try:
        files["tokenizer.model"] = sentencepiece_model(vocabulary)
    except TokenizerError:
        _log.debug("%s: no tokenizer.model, for the vocabulary has no scores", folder)
    return files


def _named(target: Path, error: CheckpointError) -> CheckpointError:
    """An error with the name of what was to be written."""
    text = str(error)
    return error if text.startswith(str(target)) else CheckpointError(f"{target}: {text}")

"""Convert checkpoints: from any format that llama2py reads to any format that it writes."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, get_args

from ._data import bundled_tokenizer
from .checkpoint import Checkpoint, Conventions, default_group_size, open_checkpoint
from .checkpoint.conventions import GGUF_ENDS
from .checkpoint.export import FileDtype
from .checkpoint.gguf.writer import gguf_items, write_gguf
from .checkpoint.huggingface.writer import (
    SHARD_SIZE,
    config_json,
    huggingface_items,
    write_huggingface,
)
from .checkpoint.llama2c import check_config, lay_out, write_llama2c
from .engine.parameters import as_path, function, one_of, unknown_option, whole_number
from .errors import CheckpointError, ParameterError, TokenizerError
from .formats.atomic_write import check_name, check_space, replacing, replacing_folder
from .formats.bounded_json import parse_object
from .hub import find_model
from .model import StrPath, beside, end_tokens, own_tokenizer, vocabulary_for
from .tokenizers.export import conventions_of, for_tokenizer_bin, warn_of_space_changes
from .tokenizers.gguf import gguf_pairs
from .tokenizers.huggingface import tokenizer_config, tokenizer_json
from .tokenizers.llama2c import write_tokenizer_bin
from .tokenizers.load import load_tokenizer
from .tokenizers.sentencepiece import sentencepiece_model
from .tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack  # comes with type checkers

_log = logging.getLogger(__name__)

FileFormat: TypeAlias = Literal["v0", "v1", "v2", "hf", "gguf"]

_HOLDS = {
    "v0": ("float32",),
    "v1": ("float32",),
    "v2": ("int8",),
    "hf": ("float32", "float16", "bfloat16"),
    "gguf": ("float32", "float16", "bfloat16", "int8"),
}
# The extension of a file: of "x.onnx", but not of "TinyLlama-1.1B" or "llama.3-instruct".
_FILE_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9_]*")
# The tokenizer's files in a Hugging Face directory, and the most bytes to copy of each.
_TOKENIZER_FILES = {
    "tokenizer.json": 64 << 20,
    "tokenizer.model": 16 << 20,
    "tokenizer_config.json": 2 << 20,
    "special_tokens_map.json": 2 << 20,
    "added_tokens.json": 2 << 20,
    "chat_template.jinja": 2 << 20,
    "generation_config.json": 2 << 20,
}
_WITHOUT = "or write no vocabulary (--no-tokenizer, tokenizer=False)"


@dataclass(frozen=True, slots=True)
class _Task:
    """One conversion.

    Attributes
    ----------
    target : Path
        The file or directory to write.
    checkpoint : Checkpoint
        The model.
    vocabulary : Tokenizer or None
        The vocabulary to write.
    vocabulary_path : Path or None
        The file that the vocabulary comes from.
    progress : callable
        Takes the number of weights that were just written.
    """

    target: Path
    checkpoint: Checkpoint
    vocabulary: Tokenizer | None
    vocabulary_path: Path | None
    progress: Callable[[int], object]


class ConvertOptions(TypedDict, total=False):
    """More options of `convert`."""

    shard_size: int
    threads: int
    progress: Callable[[int, int], object] | None


def convert(
    source: StrPath,
    output: StrPath,
    format: FileFormat | None = None,
    dtype: FileDtype | None = None,
    tokenizer: StrPath | bool | None = None,
    group_size: int | None = None,
    **options: Unpack[ConvertOptions],
) -> Path:
    """Write a checkpoint in another format, with its vocabulary.

    Only one tensor is in memory at a time. The output appears only when it is complete.

    Parameters
    ----------
    source : str or path-like
        Any checkpoint that `load` accepts, by its path or its name.
    output : str or path-like
        The file to write (an existing file is replaced), or for ``hf`` a new or empty directory.
    format : {'v0', 'v1', 'v2', 'hf', 'gguf'}, optional
        llama2.c's three versions, a Hugging Face directory, or GGUF v3. Default: from the output's
        name. ``.gguf`` means gguf; ``.bin`` means v0, which every llama2.c reads, or v2 if the
        dtype is int8; a name without a file extension means a directory.
    dtype : {'float32', 'float16', 'bfloat16', 'int8'}, optional
        The dtype of the matrices, and for hf also of the norms. Default: the source's dtype if the
        format holds it, else float32, so that nothing is lost. The exceptions are v2, which holds
        only int8, and int4 (GGUF's Q4_0), which is written as int8 in groups of 32 with the same
        values and scales. v0 and v1 hold float32; v2 holds int8; hf holds the three float dtypes;
        gguf holds all four, int8 as Q8_0 (float16 for rows that are not a multiple of 32). Values
        are rounded to nearest, ties to even.
    tokenizer : str, path-like or False, optional
        The vocabulary to write with the model. Default: the model's own. False: no vocabulary. A
        llama2.c file gets it as ``NAME.tokenizer.bin`` in the same folder, unless it is Llama 2's,
        which needs no file.
    group_size : int, optional
        For v2: the number of weights that share a scale, a divisor of ``dim``. Default: the
        source's group size, or 64 halved until it divides ``dim``.
    shard_size : int
        For hf: the most bytes of tensors in one file, unless a single tensor has more. Default: 5
        GB.
    threads : int
        For v2: how many matrices are quantized at the same time, and held in memory. Default: 1.
    progress : callable, optional
        Called after each tensor with the number of weights written so far and their total.

    Returns
    -------
    Path
        The output.

    Raises
    ------
    CheckpointError
        If the source cannot be read, the format cannot hold the model (the message names one that
        can), the dtype cannot hold a weight, the output cannot be written, or the disk is full.
    TokenizerError
        If the vocabulary cannot be read, or the format cannot hold it.
    ParameterError
        If a parameter is unknown, has a wrong type, or is not one of the values above.

    Examples
    --------
    >>> convert("stories15M.bin", "stories15M.gguf", dtype="float16")  # doctest: +SKIP
    PosixPath('stories15M.gguf')
    """
    if unknown := options.keys() - ConvertOptions.__annotations__.keys():
        named = ("source", "output", "format", "dtype", "tokenizer", "group_size")
        raise unknown_option(min(unknown), [*named, *ConvertOptions.__annotations__])
    as_path("source", source)
    target = as_path("output", output)
    if format is not None:
        one_of("format", format, get_args(FileFormat))
    if dtype is not None:
        one_of("dtype", dtype, get_args(FileDtype))
    if not isinstance(tokenizer, bool | None):
        tokenizer = as_path("tokenizer", tokenizer)
    if group_size is not None:
        group_size = whole_number("group_size", group_size, 1)
    shard_size = whole_number("shard_size", options.get("shard_size", SHARD_SIZE), 1)
    threads = whole_number("threads", options.get("threads", 1), 1)
    progress = options.get("progress")
    function("progress", progress)
    with open_checkpoint(find_model(source)) as checkpoint:
        kind: str = format or format_of(target, dtype or _own_dtype(checkpoint))
        if kind != "hf" and not target.name:
            raise CheckpointError(f"{target}: not a regular file; choose a name for the file")
        written_dtype = _written_dtype(kind, dtype, checkpoint)
        if group_size is not None and kind != "v2":
            raise ParameterError(f"group_size is {group_size}, but format {kind} has no groups")
        vocabulary, path = _vocabulary(checkpoint, tokenizer)
        counter = _counter(checkpoint.config.n_params, progress)
        task = _Task(target, checkpoint, vocabulary, path, counter)
        if kind == "hf":
            is_uniform = _stored_dtype(checkpoint, n_dims=1) == written_dtype
            norms = dtype or (written_dtype if is_uniform else "float32")
            _to_huggingface(task, (written_dtype, norms), shard_size)
        elif kind == "gguf":
            _to_gguf(task, written_dtype)
            _warn_of_other_vocabulary(target, path)
        else:
            _to_llama2c(task, int(kind[1:]), group_size, threads)
            if vocabulary is None:
                _warn_of_other_vocabulary(target, None)
    return target


def format_of(output: Path, dtype: str = "float32") -> FileFormat:
    """Return the format that an output's name implies.

    Raises
    ------
    ParameterError
        If the name has another file extension, or is that of an existing file.
    """
    if output.suffix == ".gguf":
        return "gguf"
    if output.suffix == ".bin":
        return "v2" if dtype == "int8" else "v0"
    choice = f"or set the format to one of {', '.join(_HOLDS)}"
    if _FILE_SUFFIX.fullmatch(output.suffix) and not os.path.isdir(output):
        raise ParameterError(
            f"{output}: {output.suffix} is not a format that can be written; name the output *.bin"
            f" (llama2.c), *.gguf, or without an extension (Hugging Face directory), {choice}"
        )
    if os.path.isfile(output):
        raise ParameterError(f"{output} is a file and not a directory; choose a name, {choice}")
    return "hf"


def _counter(total: int, progress: Callable[[int, int], object] | None) -> Callable[[int], object]:
    """Make a function that adds up the weights that were written and reports their sum."""
    done = 0

    def count(weights: int) -> None:
        nonlocal done
        done += weights
        if progress is not None:
            progress(done, total)

    return count


def _written_dtype(kind: str, requested: str | None, checkpoint: Checkpoint) -> str:
    """Return the dtype to write the matrices in."""
    holds = _HOLDS[kind]
    if requested is not None and requested not in holds:
        fitting = [name for name, dtypes in _HOLDS.items() if requested in dtypes]
        raise ParameterError(
            f"format {kind} holds {', '.join(holds)}, not {requested};"
            f" choose another dtype, or format {' or '.join(fitting)}"
        )
    own = _own_dtype(checkpoint)
    return requested or (own if own in holds else holds[0])


def _own_dtype(checkpoint: Checkpoint) -> str:
    """Return the file dtype that holds all matrices. int8 in groups of 32 also holds int4."""
    is_quantized = checkpoint.dtype in ("int8", "int4")
    return "int8" if is_quantized else _stored_dtype(checkpoint, n_dims=2)


def _stored_dtype(checkpoint: Checkpoint, n_dims: int) -> str:
    """Return the float dtype of all norms (1) or matrices (2); float32 if there are several."""
    dtypes = {
        tensor.dtype
        for tensors in checkpoint.tensors.values()
        for tensor in tensors
        if len(tensor.shape) == n_dims
    }
    own = dtypes.pop() if len(dtypes) == 1 else "float32"
    return own if own in ("float16", "bfloat16") else "float32"


# ---- vocabularies ----


def _vocabulary(
    checkpoint: Checkpoint, requested: StrPath | bool | None
) -> tuple[Tokenizer | None, Path | None]:
    """Return the vocabulary and its file: the model's own, or the bundled one if it fits."""
    if requested is False:
        return None, None
    own = requested is None or requested is True
    path = own_tokenizer(checkpoint) if own else Path(requested)  # type: ignore[arg-type]
    if path is not None:
        return vocabulary_for(checkpoint, path), path
    bundled = load_tokenizer(bundled_tokenizer())
    if len(bundled) == checkpoint.config.vocab_size:
        return bundled, bundled_tokenizer()
    _log.warning("%s: the model has no tokenizer; the output has none either", checkpoint.path)
    return None, None


def _warn_of_other_vocabulary(target: Path, path: Path | None) -> None:
    """Warn about an old vocabulary next to a file, which `load` prefers to the one at ``path``."""
    other = beside(target)
    if os.path.isfile(other) and (path is None or not os.path.samefile(other, path)):
        _log.warning("%s already exists: it will be used as the vocabulary of %s", other, target)


def _end_tokens(task: _Task) -> list[int]:
    """Return the tokens that end a text, the vocabulary's EOS first."""
    conventions = task.checkpoint.conventions
    if task.vocabulary is None:
        return sorted(conventions.end_tokens)
    eos = task.vocabulary.eos_id
    return [eos, *sorted(end_tokens(conventions, task.vocabulary) - {eos})]


# ---- the formats ----


def _to_llama2c(task: _Task, version: int, group_size: int | None, threads: int) -> None:
    target, checkpoint, vocabulary = task.target, task.checkpoint, task.vocabulary
    config = checkpoint.config
    check_config(target, config)
    if version == 2 and group_size is None:
        own = checkpoint.group_size
        group_size = own if own and config.dim % own == 0 else default_group_size(config)
    vocabulary_target = beside(target)
    check_name(target, CheckpointError)
    if vocabulary is not None:
        check_name(vocabulary_target, CheckpointError)
        try:
            scored = for_tokenizer_bin(vocabulary, task.vocabulary_path)
        except TokenizerError as error:
            raise TokenizerError(f"{vocabulary_target}: {error}, {_WITHOUT}") from None
        warn_of_space_changes(vocabulary_target, vocabulary, "bin")
        vocabulary = scored
    if group_size is None or config.dim % group_size == 0:  # else write_llama2c raises
        check_space(target, lay_out(config, version, group_size)[1], CheckpointError)
    write_llama2c(target, checkpoint, version, group_size, threads, task.progress)
    is_bundled = task.vocabulary_path == bundled_tokenizer()
    if vocabulary is not None and (os.path.exists(vocabulary_target) or not is_bundled):
        write_tokenizer_bin(vocabulary, vocabulary_target)
        _check_loads(task, target)


def _check_loads(task: _Task, written: Path) -> None:
    """Open an output and read its vocabulary, before anybody else does.

    Parameters
    ----------
    task : _Task
        What was written.
    written : Path
        Where it is now: under a temporary name, or as the target.

    Raises
    ------
    CheckpointError, TokenizerError
        If that fails, or the vocabulary has another BOS or EOS.
    """
    try:
        with open_checkpoint(written) as output:
            path = own_tokenizer(output)
            if task.vocabulary is None or path is None:
                return
            found = vocabulary_for(output, path)
        if conventions_of(found) != conventions_of(task.vocabulary):
            raise TokenizerError(f"{written}: its vocabulary has another BOS or EOS")
    except (CheckpointError, TokenizerError) as error:
        reason = str(error).replace(str(written), str(task.target))
        raise type(error)(f"{task.target}: the output would not load: {reason}") from None


def _to_gguf(task: _Task, dtype: str) -> None:
    target, checkpoint, vocabulary = task.target, task.checkpoint, task.vocabulary
    # llama.cpp's name for the lack of a vocabulary.
    pairs: dict[str, object] = {"tokenizer.ggml.model": b"no_vocab"}
    if vocabulary is not None:
        try:
            pairs = gguf_pairs(vocabulary, checkpoint.chat_template)
        except TokenizerError as error:
            raise TokenizerError(f"{target}: {error}, {_WITHOUT}") from None
        warn_of_space_changes(target, vocabulary, "gguf")
    places = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    ends = _end_tokens(task)
    if vocabulary is not None:  # the reader finds the others by their texts
        by_text = end_tokens(Conventions(end_texts=GGUF_ENDS), vocabulary)
        ends = ends[:1] + [token for token in ends[1:] if token not in by_text]
    if len(ends) > len(places):
        _log.warning("%s: GGUF holds only 3 of the %d tokens that end a text", target, len(ends))
    pairs |= zip(places, ends, strict=False)
    size = sum(item.nbytes for item in gguf_items(checkpoint.config, dtype, "llama"))
    check_space(target, size, CheckpointError)
    try:
        check = partial(_check_loads, task)
        write_gguf(target, checkpoint, dtype, pairs, task.progress, check)
    except CheckpointError as error:
        raise _named(target, checkpoint, error) from None


def _to_huggingface(task: _Task, dtypes: tuple[str, str], shard_size: int) -> None:
    """Write a directory; ``dtypes`` are those of the matrices and of the norms."""
    target, checkpoint, vocabulary = task.target, task.checkpoint, task.vocabulary
    ids = (None if vocabulary is None else vocabulary.bos_id, _end_tokens(task))
    files: dict[str, bytes] = {}
    if vocabulary is not None and task.vocabulary_path is not None:
        try:
            files = _tokenizer_files(target, checkpoint, vocabulary, task.vocabulary_path)
        except TokenizerError as error:
            raise TokenizerError(f"{target}: {error}, {_WITHOUT}") from None
    about = config_json(checkpoint, dtypes[0], ids)  # raises before anything is written
    tensors = huggingface_items(checkpoint.config, *dtypes, about["model_type"])
    size = sum(item.nbytes for item in tensors)
    check_space(target, size, CheckpointError)
    with replacing_folder(target, CheckpointError, last="config.json") as folder:
        try:
            write_huggingface(folder, checkpoint, *dtypes, ids, task.progress, shard_size)
        except CheckpointError as error:  # it names a file in the temporary folder
            shown = str(error).replace(str(folder), str(target))
            raise _named(target, checkpoint, CheckpointError(shown)) from None
        for name, data in files.items():
            with replacing(folder / name, TokenizerError) as out:
                out.write(data)
        _check_loads(task, folder)


def _tokenizer_files(
    target: Path, checkpoint: Checkpoint, vocabulary: Tokenizer, path: Path
) -> dict[str, bytes]:
    """Return a directory's own tokenizer files, or new files with the same content."""
    folder = checkpoint.path
    if path.parent == folder and (folder / "config.json").is_file() and path.suffix != ".bin":
        names = [name for name in _TOKENIZER_FILES if os.path.lexists(folder / name)]
        return {name: _read_own_file(folder / name, _TOKENIZER_FILES[name]) for name in names}
    template = checkpoint.chat_template
    files = {
        "tokenizer.json": tokenizer_json(vocabulary),
        "tokenizer_config.json": tokenizer_config(vocabulary, checkpoint.config.seq_len, template),
    }
    warn_of_space_changes(target, vocabulary, "json")
    try:
        files["tokenizer.model"] = sentencepiece_model(vocabulary)
    except TokenizerError:
        _log.debug("%s: no tokenizer.model, because the vocabulary has no scores", folder)
    return files


def _read_own_file(path: Path, max_size: int) -> bytes:
    """Read a file that accompanies a model's weights, if it is safe to copy.

    Raises
    ------
    TokenizerError
        If it is not a regular file, leads out of the directory, is too large, or should be JSON and
        is not.
    """
    folder = Path(os.path.realpath(path.parent))
    real = Path(os.path.realpath(path))
    allowed = [folder]
    if folder.parent.name == "snapshots":  # the hub's cache: links lead to a folder of blobs
        allowed += [place / "blobs" for place in folder.parents[1:3]]
    if not any(real.is_relative_to(place) for place in allowed):
        raise TokenizerError(f"{path} is a link to {real}, outside the directory; copy the file")
    try:
        descriptor = os.open(real, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise TokenizerError(f"{path} is not a regular file; remove it")
            if about.st_size > max_size:
                raise TokenizerError(f"{path} is larger than {max_size >> 20} MiB; remove it")
            data = file.read(about.st_size)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error.strerror or error})") from error
    if path.suffix == ".json" and path.name != "tokenizer.json":
        try:
            parse_object(data, as_python=True)
        except CheckpointError as error:
            raise TokenizerError(f"{path}: {error}") from None
    return data


def _named(target: Path, checkpoint: Checkpoint, error: CheckpointError) -> CheckpointError:
    """Put the output's name before an error message, unless it names a file already."""
    text = str(error)
    has_name = text.startswith(tuple(map(str, (target, *checkpoint.file_paths))))
    return error if has_name else CheckpointError(f"{target}: {text}")

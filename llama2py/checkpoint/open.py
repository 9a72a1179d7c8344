"""Open a checkpoint of any format, which is detected by content, not by file name.

Every reader but llama2.c's is imported only when a file needs it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..formats import sniff
from ..formats.input_file import InputFile
from . import llama2c
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from .torch.file import Opened

HUGGINGFACE_TOKENIZERS = ("tokenizer.bin", "tokenizer.json", "tokenizer.model")
"""The vocabularies of a Hugging Face directory, best first. tokenizer.model lacks the tokens that
were added after sentencepiece made it."""
_META_TOKENIZERS = ("tokenizer.bin", "tokenizer.model", "tokenizer.json")


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of any format that llama2py reads.

    Parameters
    ----------
    path : str or path-like
        A llama2.c checkpoint: v0 (``stories15M.bin``), v1, v2 (int8), or its trainer's
        ``ckpt.pt``; a Meta (``params.json``) or Hugging Face (``config.json``) directory, or a file
        in one; or a GGUF file, or any part of a split one.

    Returns
    -------
    Checkpoint
        A context manager. Opening reads the headers only; weights are read when they are used.

    Raises
    ------
    CheckpointError
        If the file is missing, malformed, truncated, or of an unsupported format. The message is
        one sentence with the path.

    Examples
    --------
    >>> from llama2py._data import builtin_model
    >>> with open_checkpoint(builtin_model()) as checkpoint:
    ...     checkpoint.config.dim, checkpoint.tensors["wq"][0].shape
    (160, (160, 160))
    """
    if not isinstance(path, str | os.PathLike):
        raise CheckpointError(f"path is {path!r:.60}, expected a str or a path")
    path = Path(path)
    if _is_description(path):
        return _read_directory(path.parent)
    if _is_directory(path):
        return _read_directory(path)
    file = InputFile(path)
    try:
        return _read(file)
    except BaseException:
        file.close()
        raise


def _read(file: InputFile) -> Checkpoint:
    match sniff.kind_of(file.read(0, sniff.HEAD)):
        case sniff.LLAMA2C:
            return llama2c.read_versioned(file)
        case sniff.GGUF:
            from .gguf.reader import read_gguf

            return read_gguf(file)
        case sniff.ZIP:
            from .meta import is_trainer_state, read_trainer_state
            from .torch.file import Opened, read_torch_file

            saved = read_torch_file(file)
            if isinstance(saved, dict) and is_trainer_state(saved):
                return read_trainer_state(file, saved)
            return _read_directory(file.path.parent, Opened(file, saved))
        case sniff.SAFETENSORS:
            from .torch.file import Opened

            return _read_directory(file.path.parent, Opened(file, None))
        case _:
            return llama2c.read_legacy(file)


def _read_directory(folder: Path, opened: Opened | None = None) -> Checkpoint:
    """Read a Hugging Face or Meta directory; ``opened`` is a file in it that is already open."""
    is_shard = opened is not None and opened.file.path.name.startswith("consolidated.")
    if (folder / "config.json").is_file() and not is_shard:
        from .huggingface.reader import read_huggingface_directory

        tokenizer = first_file(folder, HUGGINGFACE_TOKENIZERS)
        return read_huggingface_directory(folder, tokenizer, opened)
    if (folder / "params.json").is_file() and (opened is None or is_shard):
        from .meta import read_meta_directory

        return read_meta_directory(folder, first_file(folder, _META_TOKENIZERS), opened)
    expected = "expected a config.json (Hugging Face) or a params.json (Meta)"
    if opened is None:
        raise CheckpointError(f"{folder}: this is a directory without a model, {expected} in it")
    raise CheckpointError(
        f"{opened.file.path}: the file lacks the model's numbers, {expected} beside it"
    )


def first_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these files that a directory has, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _is_description(path: Path) -> bool:
    """Whether a path stands for its directory: ``config.json``, ``params.json``, or an index."""
    return path.name in ("config.json", "params.json") or path.name.endswith(".index.json")


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a path with a NUL: opening it raises a clear error
        return False

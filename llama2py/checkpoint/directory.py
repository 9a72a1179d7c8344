"""Checkpoints that are directories, and the files in them that do not say enough by themselves."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..formats.mapped_file import MappedFile
from .base import Checkpoint
from .huggingface.reader import read_huggingface_directory
from .meta import is_trainer_state, read_meta_directory, read_trainer_state
from .torch.file import read_torch_file

# Best first. In a directory of Hugging Face's, tokenizer.json alone has the tokens that were added
# after sentencepiece had made its model.
OF_HUGGINGFACE = ("tokenizer.bin", "tokenizer.json", "tokenizer.model")
_OF_META = ("tokenizer.bin", "tokenizer.model", "tokenizer.json")


def read_directory(folder: Path, weights_file: Path | None = None) -> Checkpoint:
    """Read a directory of Hugging Face's or Meta's.

    Parameters
    ----------
    folder : Path
        The directory.
    weights_file : Path, optional
        The file of it that was asked for.

    Raises
    ------
    CheckpointError
        If it is neither, or malformed.
    """
    is_shard = weights_file is not None and weights_file.name.startswith("consolidated.")
    if (folder / "config.json").is_file() and not is_shard:
        return read_huggingface_directory(folder, first_there(folder, OF_HUGGINGFACE), weights_file)
    if (folder / "params.json").is_file() and (weights_file is None or is_shard):
        return read_meta_directory(folder, first_there(folder, _OF_META))
    expected = "expected one of config.json (Hugging Face) and params.json (Meta)"
    if weights_file is None:
        raise CheckpointError(f"{folder}: this is a directory without a model, {expected} in it")
    raise CheckpointError(
        f"{weights_file}: it does not hold the model's numbers, {expected} beside it"
    )


def read_zip(file: MappedFile) -> Checkpoint:
    """Read a file of PyTorch's: a ``ckpt.pt`` whole, another with the directory it lies in.

    Parameters
    ----------
    file : MappedFile
        The file. The checkpoint closes it.

    Raises
    ------
    CheckpointError
        As in `read_trainer_state` and `read_directory`.
    """
    saved = read_torch_file(file)
    if is_trainer_state(saved) and isinstance(saved, dict):
        return read_trainer_state(file, saved)
    file.close()
    return read_directory(file.path.parent, file.path)


def read_safetensors_file(file: MappedFile) -> Checkpoint:
    """Read a safetensors file with the directory it lies in.

    Parameters
    ----------
    file : MappedFile
        The file; it is closed, and opened anew with its siblings.

    Raises
    ------
    CheckpointError
        As in `read_directory`.
    """
    file.close()
    return read_directory(file.path.parent, file.path)


def first_there(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these files that lies in a directory, if one does."""
    return next((folder / name for name in names if (folder / name).is_file()), None)

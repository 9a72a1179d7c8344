"""The story model that comes with llama2py. How it was trained: ``docs/builtin-model.md``."""

from __future__ import annotations

from pathlib import Path

from .errors import CheckpointError


def builtin_model() -> Path:
    """The path of the built-in checkpoint; its vocabulary lies beside it.

    Raises
    ------
    CheckpointError
        If this installation has none.
    """
    path = Path(__file__).resolve().parent / "models" / "story.bin"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected it to come with llama2py")
    return path

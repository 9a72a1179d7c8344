"""The files in the package: the built-in story model and the vocabulary of Llama 2.

``docs/builtin-model.md`` describes how the model was trained.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, TokenizerError

_FOLDER = Path(__file__).resolve().parent


def builtin_model() -> Path:
    """Return the path of the built-in checkpoint; its vocabulary is in the same folder.

    Raises
    ------
    CheckpointError
        If this installation lacks the file.
    """
    path = _FOLDER / "story.bin"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; reinstall llama2py, which contains it")
    return path


def bundled_tokenizer() -> Path:
    """Return the path of Llama 2's 32000-token tokenizer.bin.

    Raises
    ------
    TokenizerError
        If this installation lacks the file.
    """
    # An installed package contains the file; a checkout has it at the top level, like llama2.c.
    for folder in (_FOLDER, _FOLDER.parent.parent):
        if (folder / "tokenizer.bin").is_file():
            return folder / "tokenizer.bin"
    raise TokenizerError(
        f"{_FOLDER / 'tokenizer.bin'}: no such file; reinstall llama2py, which contains it"
    )

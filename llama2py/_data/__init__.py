"""The files in the package: the built-in story model, and the vocabulary of Llama 2.

``docs/builtin-model.md`` describes how the model was trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, TokenizerError

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to generate a text with a model, unless the user says otherwise.

    Attributes
    ----------
    temperature, top_p : float
        As in `Model.stream`.
    steps : int
        The number of tokens, prompt included; 0: as many as the context holds.

    The defaults are llama2.c's.
    """

    temperature: float = 1.0
    top_p: float = 0.9
    steps: int = 256


def builtin_sampling() -> Sampling:
    """Return the built-in model's own defaults, from the file beside it.

    Raises
    ------
    CheckpointError
        If this installation lacks the file.
    """
    path = _FOLDER / "story.json"
    try:
        return Sampling(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}; reinstall llama2py, which contains it") from None


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

"""Stories of a model with scripted tokens."""

from __future__ import annotations

from typing import Any

from llama2py import Model, Story, StoryTeller
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import tiny_tokenizer
from tests.support.scripted import ScriptedBackend

TOKENIZER = tiny_tokenizer()


def raw(text: str) -> list[int]:
    """Encode a text as one token per byte."""
    return [3 + byte for byte in text.encode()]


def scripted(
    text: str, more: list[int] | None = None, seq_len: int = 256
) -> tuple[StoryTeller, ScriptedBackend]:
    """Make a teller whose model writes ``text``, then the tokens ``more`` or the end of a text."""
    backend = ScriptedBackend(raw(text) + ([BOS] if more is None else more), 300, seq_len)
    return StoryTeller(Model(backend, TOKENIZER), temperature=0), backend


def story_of(text: str, more: list[int] | None = None, **how: Any) -> Story:
    """Return the story of a model that writes ``text``, then the tokens ``more``."""
    return scripted(text, more)[0](seed=1, **how)


def is_whole(text: str) -> bool:
    """Return whether a text ends with the end of a sentence."""
    return text == text.strip() and text.rstrip("\"')")[-1:] in {".", "!", "?"}

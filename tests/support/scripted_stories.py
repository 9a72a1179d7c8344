"""Stories by a model that says what a test tells it to."""

from __future__ import annotations

from typing import Any

from llama2py import Model, Story, StoryTeller
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import tiny_tokenizer
from tests.support.scripted import ScriptedBackend

TOKENIZER = tiny_tokenizer()


def raw(text: str) -> list[int]:
    """A token for each byte, so that a script says exactly this."""
    return [3 + byte for byte in text.encode()]


def scripted(
    text: str, more: list[int] | None = None, seq_len: int = 256
) -> tuple[StoryTeller, ScriptedBackend]:
    """Tells this, byte by byte, and then these tokens; without more, it ends there."""
    backend = ScriptedBackend(raw(text) + ([BOS] if more is None else more), 300, seq_len)
    return StoryTeller(Model(backend, TOKENIZER), temperature=0), backend


def told(text: str, more: list[int] | None = None, **how: Any) -> Story:
    """The story of a model that says this."""
    return scripted(text, more)[0](seed=1, **how)


def is_whole(text: str) -> bool:
    """Whether a text ends where a sentence does."""
    return text == text.strip() and text.rstrip("\"')")[-1:] in {".", "!", "?"}

"""Helpers for the tests of tokens that the backend draws."""

from __future__ import annotations

from collections.abc import Sequence

from llama2py import Model, SamplingParams
from llama2py.engine.backend import Draw, draw_token
from llama2py.engine.session import Session, run_sessions
from llama2py.tokenizers.tokenizer import BOS

WAYS = [
    SamplingParams(1.0, 0.9),
    SamplingParams(0.0),
    SamplingParams(1.5, 1.0),
    SamplingParams(0.7, 0.0),
    SamplingParams(3.0, 0.5),
    SamplingParams(1e-31, 0.9),  # counts as 0
]

# Draws that make texts of a model of 300 tokens differ.
HOT = [Draw(1.5, 0.9, (0.37 * i) % 1, 300) for i in range(64)]


def keys(session: Session) -> bytes:
    """The KV cache of a session."""
    return b"".join(array.tobytes() for array in session._open_cache().read(session.position))


def draw_tokens(
    session: Session, tokens: Sequence[int], draws: Sequence[Draw], stop_tokens: Sequence[int] = ()
) -> list[int]:
    """Run tokens of one session in one pass, and draw several tokens in the same pass."""
    (drawn,) = run_sessions([session], [tokens], [draws], stop_tokens)
    return list(drawn)


def by_hand(session: Session, tokens: Sequence[int], draws: Sequence[Draw]) -> list[int]:
    """The same tokens by public calls: `forward`, and a draw in Python, one token at a time."""
    drawn: list[int] = []
    for draw in draws:
        logits = session.forward(tokens)
        tokens = [draw_token(session._backend, logits, draw)]
        drawn += tokens
    return drawn


def session_at(model: Model, n: int) -> Session:
    """A session that has run ``n`` tokens."""
    session = model.session()
    if n:
        session.forward([BOS, *(37 * i % 300 for i in range(1, n))])
    return session


def same(one: Session, other: Session) -> bool:
    """Whether two sessions have run the same tokens, with the same bits."""
    return (one.tokens, one.room, keys(one)) == (other.tokens, other.room, keys(other))

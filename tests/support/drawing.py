"""What the tests of draws by the backend share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llama2py import Model, SamplingParams
from llama2py.engine.backend import Draw, pick
from llama2py.engine.session import Session
from llama2py.generation.sampling import Sampler
from llama2py.tokenizers.tokenizer import BOS

WAYS = [
    SamplingParams(1.0, 0.9),
    SamplingParams(0.0),
    SamplingParams(1.5, 1.0),
    SamplingParams(0.7, 0.0),
    SamplingParams(3.0, 0.5),
    SamplingParams(1e-31, 0.9),  # counts as 0
]

# Of a model of 300 tokens: texts that differ.
HOT = [Draw(1.5, 0.9, (0.37 * i) % 1, 300) for i in range(64)]


def keys(session: Session) -> bytes:
    """All that a session knows of its tokens."""
    return b"".join(array.tobytes() for array in session._open_cache().read(session.position))


def plain_draw(sampler: Sampler, n_tokens: int | None = None) -> Draw:
    """The next one, whose coin is used up."""
    (draw,) = sampler.plain_draws(1, n_tokens)
    sampler.take_coin()
    return draw


def next_token(
    session: Session,
    tokens: Sequence[int],
    draw: Draw,
    interrupted: Callable[[], bool] | None = None,
) -> int:
    """Run tokens and draw one."""
    (token,) = session.generate(tokens, [draw], (), interrupted)
    return token


def apart(
    session: Session, tokens: Sequence[int], sampler: Sampler, n_tokens: int | None = None
) -> int:
    """The next token by two calls."""
    return sampler.sample(session.forward(tokens), n_tokens=n_tokens)


def by_hand(session: Session, token: int, draw: Draw) -> int:
    """Run a token, and draw the next one."""
    return pick(session._backend, session.forward([token]), draw)


def all_by_hand(session: Session, token: int, draws: Sequence[Draw]) -> list[int]:
    drawn = [token]
    for draw in draws:
        drawn.append(by_hand(session, drawn[-1], draw))
    return drawn[1:]


def behind(model: Model, n: int) -> Session:
    """A session that has run so many tokens."""
    session = model.session()
    if n:
        session.forward([BOS, *(37 * i % 300 for i in range(1, n))])
    return session


def same(one: Session, other: Session) -> bool:
    return (one.tokens, one.room, keys(one)) == (other.tokens, other.room, keys(other))

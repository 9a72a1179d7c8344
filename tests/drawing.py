"""What the tests of draws by the backend share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llama2py import SamplingParams
from llama2py.backend import Draw
from llama2py.sampling import Sampler
from llama2py.session import Session

WAYS = [
    SamplingParams(1.0, 0.9),
    SamplingParams(0.0),
    SamplingParams(1.5, 1.0),
    SamplingParams(0.7, 0.0),
    SamplingParams(3.0, 0.5),
    SamplingParams(1e-31, 0.9),  # counts as 0
]


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

"""One pass over several sessions of one model."""

from __future__ import annotations

from collections.abc import Sequence

from .backend import Cache, Draw, Logits
from .session import Session


def _gathered(
    sessions: Sequence[Session], blocks: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[int], list[Cache], list[int], list[int]]:
    """The blocks as lists, their tokens, the caches and positions of these, and where each ends."""
    checked = [session._with_room(block) for session, block in zip(sessions, blocks, strict=True)]
    tokens: list[int] = []
    caches: list[Cache] = []
    positions: list[int] = []
    rows: list[int] = []
    for session, ids in zip(sessions, checked, strict=True):
        tokens += ids
        caches += [session._open_cache()] * len(ids)
        positions += range(session.position, session.position + len(ids))
        rows.append(len(tokens) - 1)
    return checked, tokens, caches, positions, rows


def forward_many(sessions: Sequence[Session], blocks: Sequence[Sequence[int]]) -> Logits:
    """Run tokens of several sessions of one model in one pass.

    Parameters
    ----------
    sessions : sequence of Session, length n
        All different. One without room is shifted before, in a pass of its own, where its
        ``overflow`` is 'shift'.
    blocks : sequence of sequence of int, length n
        Each session's next tokens, at least one.

    Returns
    -------
    ndarray, float32, shape (n, vocab_size)
        The logits behind each block, with the bits that a pass of its own would give them (of the C
        engine).

    Raises
    ------
    PromptError, ClosedError, Cancelled
        As `Session.forward` does; nothing has been run then, but some may have been shifted.
    """
    checked, tokens, caches, positions, ends = _gathered(sessions, blocks)
    logits = sessions[0]._backend.forward(tokens, caches, positions, ends)
    for session, ids in zip(sessions, checked, strict=True):
        session._append(ids)
    return logits


def next_tokens_many(
    sessions: Sequence[Session],
    blocks: Sequence[Sequence[int]],
    draws: Sequence[Draw | None],
) -> list[int | None]:
    """Run tokens of several sessions of one model in one pass, and draw what comes behind them.

    Parameters
    ----------
    sessions, blocks
        As in `forward_many`.
    draws : sequence of Draw or None, length n
        How, for each; None where nothing is to be drawn yet.

    Returns
    -------
    list of int or None, length n
        The tokens, with None where nothing was to be drawn.

    Raises
    ------
    PromptError, ClosedError, Cancelled
        As `forward_many` does.
    """
    checked, tokens, caches, positions, ends = _gathered(sessions, blocks)
    wanted = [(end, draw) for end, draw in zip(ends, draws, strict=True) if draw]
    rows, hows = [end for end, _ in wanted], [draw for _, draw in wanted]
    drawn = iter(sessions[0]._backend.next_tokens(tokens, caches, positions, rows, hows))
    for session, ids in zip(sessions, checked, strict=True):
        session._append(ids)
    return [next(drawn) if draw else None for draw in draws]

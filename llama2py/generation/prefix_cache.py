"""Sessions kept for prompts that share a prefix: the KV cache of the prefix is used again."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from weakref import WeakSet

from .._util import Closing
from ..engine.backend import Backend
from ..engine.session import Session

# Tokens. A shorter prefix is not worth a session's memory.
_SHORTEST = 16
# Sessions. Searching more takes longer than a small model takes to run a prompt.
_MOST_KEPT = 8


class PrefixCache(Closing):
    """The sessions of one model that are not in use, least recently used first.

    Threads may share it. A session is either in here or in use, never both.

    Parameters
    ----------
    backend : Backend
        The model.
    max_bytes : int
        Bytes of all their keys and values. 0 keeps no session.
    """

    def __init__(self, backend: Backend, max_bytes: int) -> None:
        self._backend = backend
        self._max_bytes = max_bytes
        self._kept: list[Session] = []
        self._lock = threading.Lock()
        _all.add(self)

    def take(self, tokens: Sequence[int]) -> tuple[Session, int]:
        """Return a session for a prompt, and how many of the prompt's tokens it has run.

        The last token of a prompt is always left to run, for its logits. If a session has run much
        more than it shares with the prompt, a copy is returned: a prefix that all prompts share
        must not cost the rest of each.

        Raises
        ------
        EngineError
            If there is not enough memory.
        ClosedError
            If the model is closed.
        """
        with self._lock:
            n_shared, at = _SHORTEST - 1, -1
            for i, kept in enumerate(self._kept):
                if (n := min(shared(kept.tokens, tokens), len(tokens) - 1)) > n_shared:
                    n_shared, at = n, i
            session = self._kept.pop(at) if at >= 0 else None
        if session is None:
            return Session(self._backend), 0
        if session.position > 2 * n_shared:
            try:
                return session.fork(n_shared), n_shared
            finally:
                self.give(session)
        session.rewind(n_shared)
        return session, n_shared

    def give(self, session: Session) -> None:
        """Keep a session or close it; the oldest sessions are closed when there are too many."""
        dropped = [session]
        if session.position >= _SHORTEST:
            with self._lock:
                dropped = []
                self._kept.append(session)
                nbytes = sum(kept.nbytes for kept in self._kept)
                # After `close` the limit is 0 bytes.
                while nbytes > self._max_bytes or len(self._kept) > _MOST_KEPT:
                    dropped.append(self._kept.pop(0))
                    nbytes -= dropped[-1].nbytes
        for old in dropped:
            old.close()

    def close(self) -> None:
        """Close all sessions, also those still to be given back."""
        with self._lock:
            self._max_bytes = 0
            dropped, self._kept = self._kept, []
        for session in dropped:
            session.close()


_all: WeakSet[PrefixCache] = WeakSet()


def _unlock_in_child() -> None:
    """Replace the locks: a thread that held one during the fork does not exist in the child."""
    for prefix_cache in _all:
        prefix_cache._lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_unlock_in_child)


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at the beginning."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n

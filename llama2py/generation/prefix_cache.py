"""Sessions kept for prompts that begin alike: what they share need not be run again."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from weakref import WeakSet

from .._util import Closing
from ..engine.session import Session

# Shorter prefixes are not worth a session's memory.
_WORTH_IT = 16
# More sessions than that take longer to look through than a small model takes to run a prompt.
_MOST = 8


class Prefixes(Closing):
    """A few sessions that have run some tokens; the one used last goes last.

    Threads may share it. A session is in here or in use, never both.

    Parameters
    ----------
    max_bytes : int
        Of all their keys and values; 0: none is kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: list[Session] = []
        self._lock = threading.Lock()
        _all.add(self)

    def take(self, tokens: Sequence[int]) -> tuple[Session, int] | None:
        """A session that has run as much of a prompt as any has, and how many tokens it is.

        The prompt's last token is always left to run: its logits are wanted. A session that would
        forget more than it shares stays, and a copy goes: one beginning that all prompts have must
        not cost the rest of each. None: no session shares enough.

        Raises
        ------
        EngineError
            If there is no memory for a copy.
        """
        with self._lock:
            best, at = _WORTH_IT - 1, -1
            for i, kept in enumerate(self._kept):
                if (n := min(shared(kept.tokens, tokens), len(tokens) - 1)) > best:
                    best, at = n, i
            if at < 0:
                return None
            session = self._kept.pop(at)
        if session.position > 2 * best:
            try:
                return session.fork(best), best
            finally:
                self.give(session)
        session.rewind(best)
        return session, best

    def give(self, session: Session) -> None:
        """Keep a session, or close it, and the oldest of too many."""
        leaves = [session]
        if session.position >= _WORTH_IT:
            with self._lock:
                leaves = []
                self._kept.append(session)
                nbytes = sum(kept.nbytes for kept in self._kept)
                # As soon as it is closed, no byte is allowed.
                while nbytes > self._max_bytes or len(self._kept) > _MOST:
                    leaves.append(self._kept.pop(0))
                    nbytes -= leaves[-1].nbytes
        for old in leaves:
            old.close()

    def close(self) -> None:
        """Close them all, and those still to be given."""
        with self._lock:
            self._max_bytes = 0
            leaves, self._kept = self._kept, []
        for session in leaves:
            session.close()


_all: WeakSet[Prefixes] = WeakSet()


def _unlock_in_child() -> None:
    """The thread that held a lock when another one forked is not there to give it back."""
    for prefixes in _all:
        prefixes._lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_unlock_in_child)


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at the beginning."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n

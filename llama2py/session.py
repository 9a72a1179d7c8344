"""Session: one conversation's place in the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index

import numpy as np

from .backend import Backend, Cache, Logits
from .closing import Closing
from .errors import Cancelled, ClosedError, PromptError

# Multiplications in one call of the engine: about a tenth of a second of work, so that Ctrl-C is
# heard between the blocks of a long prompt.
_BLOCK_WORK = 4_000_000_000
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 128


class Session(Closing):
    """A sequence of tokens run so far, with the model's memory of them (its KV cache).

    Made by `Model.session`; a context manager. Not for two threads at once; any number of sessions
    of one model are.
    """

    def __init__(self, backend: Backend, cache: Cache | None = None) -> None:
        self._backend = backend
        self._cache: Cache | None = backend.new_cache() if cache is None else cache
        self._position = 0
        block = _BLOCK_WORK // backend.config.n_params
        self._block = max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, block))

    @property
    def position(self) -> int:
        """How many tokens have been run; the next one gets this position."""
        return self._position

    @property
    def room(self) -> int:
        """How many more tokens the context holds."""
        return self._backend.config.seq_len - self._position

    def forward(
        self,
        tokens: Sequence[int],
        all_logits: bool = False,
        interrupted: Callable[[], bool] | None = None,
    ) -> Logits:
        """Run tokens at the next positions.

        Parameters
        ----------
        tokens : sequence of int
            Token ids, at least one. How they are split over calls changes no bit (of the C
            engine; NumPy's matrix products are not that strict).
        all_logits : bool
            Give the logits behind every token, not only the last.
        interrupted : callable, optional
            Asked before each tenth of a second of work; True ends the call.

        Returns
        -------
        ndarray, float32, shape (vocab_size,) or, with ``all_logits``, (n, vocab_size)
            ``logits[t]`` ranks token t as the next one.

        Raises
        ------
        PromptError
            If there is no token, one is out of the vocabulary, or they do not fit in the context;
            nothing has been run then.
        ClosedError
            After `close`.
        Cancelled
            If another thread closes the session meanwhile, or ``interrupted`` says so; the blocks
            run until then stay.
        """
        cache = self._open_cache()
        ids = self.checked(tokens)
        last = len(ids) - 1
        logits: list[Logits] = []
        for start in range(0, len(ids), self._block):
            block = ids[start : start + self._block]
            n, position = len(block), self._position
            if interrupted is not None and interrupted():
                raise Cancelled("a forward pass was interrupted by its caller")
            if all_logits:
                rows: Sequence[int] = range(n)
            else:
                rows = [n - 1] if start + n > last else []
            logits.append(
                self._backend.forward(block, [cache] * n, range(position, position + n), rows)
            )
            self._position += n
        if all_logits:
            return logits[0] if len(logits) == 1 else np.concatenate(logits)
        last_row: Logits = logits[-1][0]
        return last_row

    def rewind(self, position: int) -> None:
        """Forget the tokens from ``position`` on.

        Raises
        ------
        PromptError
            If ``position`` is not between 0 and the current one.
        """
        self._open_cache()
        position = index(position)
        if not 0 <= position <= self._position:
            raise PromptError(
                f"cannot rewind to position {position}, expected 0 to {self._position}"
            )
        self._position = position

    def fork(self) -> Session:
        """Another session that has run the same tokens; from here on the two go their own ways.

        Costs the copy of as many keys and values as there are positions.

        Examples
        --------
        >>> from llama2py import load
        >>> with load().session() as trunk:
        ...     logits = trunk.forward([1, 300, 301])
        ...     with trunk.fork() as branch:
        ...         bool((branch.forward([302]) == trunk.forward([302])).all())
        True

        Raises
        ------
        ClosedError
            After `close`.
        EngineError
            If there is no memory for it.
        """
        made = Session(self._backend, self._open_cache().copy(self._position))
        made._position = self._position
        return made

    def close(self) -> None:
        """Free the memory. Twice does no harm.

        A `forward` that runs in another thread ends soon, with `Cancelled`.
        """
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _open_cache(self) -> Cache:
        if self._cache is None:
            raise ClosedError("the session is closed, expected an open one")
        return self._cache

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """The tokens as a list, if they can be run next.

        Raises
        ------
        PromptError
            As `forward` does.
        """
        ids = [index(token) for token in tokens]
        config = self._backend.config
        if not ids:
            raise PromptError("there is no token to run, expected at least one")
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            wrong = next(token for token in ids if not 0 <= token < config.vocab_size)
            raise PromptError(
                f"token {wrong} is out of the vocabulary, expected 0 to {config.vocab_size - 1}"
            )
        if self._position + len(ids) > config.seq_len:
            raise PromptError(
                f"{len(ids)} tokens at position {self._position} do not fit:"
                f" the model's context holds {config.seq_len}"
            )
        return ids


def forward_many(sessions: Sequence[Session], blocks: Sequence[Sequence[int]]) -> Logits:
    """Run tokens of several sessions of one model in one pass.

    Parameters
    ----------
    sessions : sequence of Session, length n
        All different.
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
        As `Session.forward` does; nothing has been run then.
    """
    tokens: list[int] = []
    caches: list[Cache] = []
    positions: list[int] = []
    rows: list[int] = []
    for session, block in zip(sessions, blocks, strict=True):
        ids = session.checked(block)
        tokens += ids
        caches += [session._open_cache()] * len(ids)
        positions += range(session._position, session._position + len(ids))
        rows.append(len(tokens) - 1)
    logits = sessions[0]._backend.forward(tokens, caches, positions, rows)
    for session, block in zip(sessions, blocks, strict=True):
        session._position += len(block)
    return logits

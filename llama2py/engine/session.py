"""Session: the tokens of one conversation and their KV cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import accumulate
from typing import Any, Concatenate, Literal, NoReturn, ParamSpec, TypeVar, overload

import numpy as np

from .._util import Closing
from ..config import ModelConfig
from ..errors import (
    Cancelled,
    ClosedError,
    ContextError,
    ParameterError,
    PromptError,
    SessionError,
)
from .backend import Backend, Cache, Draw, Logits
from .parameters import checked_path, function, one_of, prompt_ids, whole_number, wrong
from .session_file import read_session, write_session

# Multiply-adds in one pass: about a tenth of a second of work. Ctrl-C takes effect between two
# passes of a long prompt.
_PASS_WORK = 4_000_000_000
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 128
# Positions in a page of memory where keys and values are bfloat16. A page of float32 holds half.
_PAGE = 128

SessionOverflow = Literal["error", "shift"]
P = ParamSpec("P")
T = TypeVar("T")


class Use:
    """A lock without waiting: records which caller uses something that only one may use at a time.

    There is one ticket. A caller takes it inside a ``try`` and puts it back in the ``finally``, in
    one call of C each: no signal handler can run in between and lose the ticket.

    Attributes
    ----------
    free : list
        Holds the ticket while nobody uses the thing. ``free.extend(mine)`` puts it back.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.free: list[None] = [None]

    def claim(self, mine: list[None]) -> None:
        """Move the ticket into ``mine``.

        Raises
        ------
        SessionError
            If it is in use.
        """
        claim(self._what, [self.free], mine)


def claim(what: str, places: Sequence[list[None]], mine: list[None]) -> None:
    """Move the tickets of several `Use.free` into ``mine``, in order."""
    try:
        mine.extend(map(list.pop, places))  # until one is missing
    except IndexError:
        raise SessionError(
            f"{what} is in use: another thread or the caller of this callback runs it"
        ) from None


def _exclusive(
    method: Callable[Concatenate[Session, P], T],
) -> Callable[Concatenate[Session, P], T]:
    """Make a method raise SessionError while its session is in use."""

    @wraps(method)
    def guarded(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> T:
        mine: list[None] = []
        try:
            session._use.claim(mine)
            return method(session, *args, **kwargs)
        finally:
            session._use.free.extend(mine)

    return guarded


class Session(Closing):
    """A sequence of tokens run so far, with the model's KV cache for them.

    Made by `Model.session`. A context manager. Only one thread at a time may use a session, and no
    callback may use the session it was called for: that raises SessionError. Any number of sessions
    of one model can run at once.

    Attributes
    ----------
    overflow : {'error', 'shift'}
        What `forward` does when the tokens do not fit in the context: raise, or `shift` first.
    kept : int
        How many tokens at the beginning a `shift` keeps in place. Default: 1, the BOS.
    block : int
        How many tokens of a prompt to run in one pass, so that a pass is short.
    """

    def __init__(
        self, backend: Backend, cache: Cache | None = None, overflow: SessionOverflow = "error"
    ) -> None:
        if not callable(getattr(backend, "new_cache", None)):
            raise wrong("backend", backend, "an engine: Model.session() makes a session")
        one_of("overflow", overflow, ("error", "shift"))
        self._backend = backend
        self._cache: Cache | None = backend.new_cache() if cache is None else cache
        self._tokens: list[int] = []
        self._changes = self._furthest = 0
        self._use = Use("the session")
        self.overflow: SessionOverflow = overflow
        self.kept = 1
        block = _PASS_WORK // backend.config.n_params
        self.block = max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, block))

    def __repr__(self) -> str:
        if self._cache is None:
            return "<Session (closed)>"
        return f"<Session position {self.position} of {self.config.seq_len}>"

    @property
    def config(self) -> ModelConfig:
        """The model's hyperparameters."""
        return self._backend.config

    @property
    def backend(self) -> Backend:
        """The engine that computes it."""
        return self._backend

    @property
    def position(self) -> int:
        """How many tokens have been run. The next token gets this position."""
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        """A copy of the tokens that have been run."""
        return self._tokens.copy()

    @property
    def room(self) -> int:
        """How many more tokens the context holds."""
        return self.config.seq_len - len(self._tokens)

    @property
    def ahead(self) -> int:
        """How many tokens to draw in one pass when this session runs alone."""
        return self._backend.ahead

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values written so far, in whole pages."""
        seq_len = self.config.seq_len
        positions = min(seq_len, -(-self._furthest // _PAGE) * _PAGE)
        return positions * self._backend.cache_bytes // seq_len

    @_exclusive
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
            Token ids, at least one. With the C engine, results are bit-identical however they are
            split across calls (NumPy's matrix products are not that strict).
        all_logits : bool
            Return the logits after every token, not only after the last.
        interrupted : callable, optional
            Called about every tenth of a second. If it returns True, `Cancelled` is raised.

        Returns
        -------
        ndarray, float32, shape (vocab_size,) or, with ``all_logits``, (n, vocab_size)
            ``logits[t]`` is the score of token t as the next token.

        Raises
        ------
        PromptError
            If there are no tokens, or one is outside the vocabulary. No token has been run then.
        ContextError
            A PromptError. If the tokens do not fit in the context, even after a `shift` if
            ``overflow`` is 'shift'. No token has been run then.
        ClosedError
            After `close`.
        Cancelled
            If another thread closes the session during the call, or ``interrupted`` returns True.
            The tokens run before that stay in the session.
        SessionError
            If another thread or the caller of this callback uses the session.
        """
        ids = prompt_ids(tokens)
        self.config.check_tokens(ids)
        function("interrupted", interrupted)
        self._make_room(len(ids), interrupted)
        return self._forward(ids, all_logits, interrupted)

    def _forward(
        self, ids: list[int], all_logits: bool, interrupted: Callable[[], bool] | None
    ) -> Logits:
        logits: list[Logits] = []
        n, size = len(ids), self.block
        for start in range(0, n, size):
            if interrupted is not None and interrupted():
                raise Cancelled("a forward pass was interrupted by its caller")
            block = ids[start : start + size]
            rows: Sequence[int] = range(len(block))
            if not all_logits:
                rows = rows[-1:] if start + size >= n else ()
            logits.append(_run([self], [block], rows))
        if all_logits:
            return logits[0] if len(logits) == 1 else np.concatenate(logits)
        last_row: Logits = logits[-1][0]
        return last_row

    @_exclusive
    def make_room(self, n_tokens: int, interrupted: Callable[[], bool] | None = None) -> None:
        """Make sure that ``n_tokens`` more tokens fit; if ``overflow`` is 'shift', by a `shift`.

        Raises
        ------
        ContextError
            If they do not fit.
        ClosedError, Cancelled, SessionError
            As `shift` does.
        """
        self._make_room(n_tokens, interrupted)

    def _make_room(self, n_tokens: int, interrupted: Callable[[], bool] | None = None) -> None:
        self._open_cache()
        if n_tokens <= self.room:
            return
        if self.overflow != "shift":
            raise ContextError(
                f"no room for {_count(n_tokens)} at position {self.position}:"
                f" the model's context holds {self.config.seq_len}"
            )
        self._shift(n_tokens, interrupted)

    @_exclusive
    def hold(self, work: Callable[[], T]) -> T:
        """Return ``work()``, and keep the session from being used while it runs.

        Raises
        ------
        SessionError
            If the session is in use.
        """
        return work()

    @_exclusive
    def rewind(self, position: int) -> None:
        """Forget the tokens from ``position`` on.

        Raises
        ------
        PromptError
            If ``position`` is not between 0 and the current position.
        ClosedError, SessionError
            As `forward` does.
        """
        self._rewind(position)

    def _rewind(self, position: int) -> None:
        self._open_cache()
        del self._tokens[self._reached(position) :]
        self._changes += 1

    @_exclusive
    def shift(self, n_tokens: int = 1, interrupted: Callable[[], bool] | None = None) -> None:
        """Make room: forget the oldest tokens after the first ``kept``.

        Half of them are forgotten, or more if that is not enough. The remaining tokens are run
        again at their new positions. The session then equals one that has run only these tokens,
        bit for bit with the C engine. A shift takes as long as a prompt of that length. The context
        is full again when as many tokens as were forgotten have been run.

        Parameters
        ----------
        n_tokens : int
            How many tokens must fit afterwards.
        interrupted : callable, optional
            As in `forward`.

        Raises
        ------
        ContextError
            If they do not fit even without the old tokens. No token has been forgotten then.
        ClosedError, Cancelled, SessionError
            As `forward` does. After Cancelled, only some of the remaining tokens have been run
            again; the session holds no others.

        Examples
        --------
        >>> from llama2py import load
        >>> with load().session() as session:
        ...     logits = session.forward([1, 300, 301, 302, 303])
        ...     session.shift()
        ...     session.tokens
        [1, 302, 303]
        """
        function("interrupted", interrupted)
        self._shift(whole_number("n_tokens", n_tokens), interrupted)

    def _shift(self, n_tokens: int, interrupted: Callable[[], bool] | None) -> None:
        self._open_cache()
        kept = min(whole_number("kept", self.kept), self.position)
        context = self.config.seq_len
        if kept + n_tokens > context:
            raise ContextError(
                f"no room for {_count(n_tokens)} after the {kept} that stay in place:"
                f" the model's context holds {context}"
            )
        others = self.position - kept
        forgotten = max((others + 1) // 2, others + kept + n_tokens - context)
        remaining = self._tokens[kept + forgotten :]
        self._rewind(kept)
        if remaining:
            self._forward(remaining, False, interrupted)

    @_exclusive
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session's tokens, keys and values to a file, for `Model.load_session`.

        The file takes up to ``config.cache_bytes``, for a full context. It replaces an existing
        file only when it is complete. A model's first save takes longer: it reads all weights, to
        identify the model.

        Raises
        ------
        SessionError
            If the file cannot be written, or the session is in use.
        ClosedError
            After `close`.
        """
        write_session(checked_path("path", path), self._backend, self._open_cache(), self._tokens)

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: Backend) -> Session:
        """Read a session that `save` has written. `Model.load_session` calls this."""
        cache, tokens = read_session(checked_path("path", path), backend)
        made = cls(backend, cache)
        made._append(tokens)
        return made

    @_exclusive
    def fork(self, position: int | None = None) -> Session:
        """Return a new session that has run the same tokens. The two are independent.

        Copies the keys and values of these positions.

        Parameters
        ----------
        position : int, optional
            Copy only the first ``position`` tokens. Default: all.

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
        PromptError
            If ``position`` is not between 0 and the current one.
        ClosedError
            After `close`.
        EngineError
            If there is not enough memory.
        SessionError
            If the session is in use.
        """
        cache = self._open_cache()
        n = self._reached(self.position if position is None else position)
        made = Session(self._backend, cache.copy(n), self.overflow)
        made._append(self._tokens[:n])
        made.kept = self.kept
        return made

    def close(self) -> None:
        """Free the memory. Closing twice does no harm.

        A `forward` that is running in another thread soon raises `Cancelled`.
        """
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Session cannot be pickled or copied: use fork() in this process,"
            " or save() here and Model.load_session() in the other process"
        )

    def _open_cache(self) -> Cache:
        if self._cache is None:
            raise ClosedError("the session is closed")
        return self._cache

    def _reached(self, position: int) -> int:
        try:
            return whole_number("position", position, 0, self.position)
        except ParameterError as error:
            raise PromptError(str(error)) from None

    def _append(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens
        if len(self._tokens) > self._furthest:
            self._furthest = len(self._tokens)

    def _hand_out(self, drawn: list[int]) -> Iterator[int]:
        """Return drawn tokens, all but the last of which are in the KV cache.

        A token counts as run when the next one is requested.
        """
        if len(drawn) == 1:
            return iter(drawn)
        self._furthest = max(self._furthest, self.position + len(drawn) - 1)
        return self._count_tokens(drawn, self._changes)

    def _count_tokens(self, drawn: list[int], changes: int) -> Iterator[int]:
        free, run = self._use.free, self._tokens
        for token in drawn[:-1]:
            yield token
            mine: list[None] = []
            try:
                mine.extend(map(list.pop, (free,)))  # as `Use.claim`
                if self._changes != changes or self._cache is None:
                    return
                run.append(token)
            except IndexError:  # another thread has begun to use the session
                return
            finally:
                free.extend(mine)
        yield drawn[-1]


@overload
def run_sessions(sessions: Sequence[Session], blocks: Sequence[Sequence[int]]) -> Logits: ...


@overload
def run_sessions(
    sessions: Sequence[Session],
    blocks: Sequence[Sequence[int]],
    draws: Sequence[Sequence[Draw]],
    stop_tokens: Sequence[int] = (),
) -> list[Iterator[int]]: ...


def run_sessions(
    sessions: Sequence[Session],
    blocks: Sequence[Sequence[int]],
    draws: Sequence[Sequence[Draw]] | None = None,
    stop_tokens: Sequence[int] = (),
) -> Logits | list[Iterator[int]]:
    """Run the next tokens of several sessions of one model in one pass.

    With the C engine, each session gets bit-identical results to a pass of its own.

    Parameters
    ----------
    sessions : sequence of Session, length n
        All different. If its ``overflow`` is 'shift', a session whose tokens do not fit is shifted
        first, in a pass of its own.
    blocks : sequence of sequence of int, length n
        The next tokens of each session, at least one, all in the vocabulary.
    draws : sequence of sequence of Draw, length n, optional
        How to draw the tokens that follow each block. With several draws, each token drawn is run
        and the next one is drawn, in the same pass. An empty sequence: draw no token.
    stop_tokens : sequence of int
        Draw no token after one of these.

    Returns
    -------
    ndarray, float32, shape (n, vocab_size)
        Without ``draws``: the logits after each block.
    list of iterator of int, length n
        With ``draws``: the tokens drawn for each session. A token counts as run when the next one
        is requested; the last one has not been run. An iterator ends early at the end of the
        context, or if its session is used for something else.

    Raises
    ------
    PromptError, ClosedError, Cancelled, SessionError
        As `Session.forward` does. No block has been run then, but sessions may have been shifted.
    """
    mine: list[None] = []
    places = [session._use.free for session in sessions]
    try:
        claim("the session", places, mine)  # refuses a session that comes twice, too
        return _run_sessions(sessions, blocks, draws, stop_tokens)
    finally:
        list(map(list.append, places, mine))  # one call, as in `Use`


def _run_sessions(
    sessions: Sequence[Session],
    blocks: Sequence[Sequence[int]],
    draws: Sequence[Sequence[Draw]] | None,
    stop_tokens: Sequence[int],
) -> Logits | list[Iterator[int]]:
    for session, block in zip(sessions, blocks, strict=True):
        session._make_room(len(block))
    last = [n - 1 for n in accumulate(map(len, blocks))]  # the row of each block's last token
    if draws is None:
        logits: Logits = _run(sessions, blocks, last)
        return logits
    rows, row_draws = [], []
    for session, block, row, some in zip(sessions, blocks, last, draws, strict=True):
        if some:
            rows.append(row)
            # The last token drawn needs no position.
            row_draws.append(some[: session.room - len(block) + 1])
    texts = iter(_run(sessions, blocks, rows, row_draws, stop_tokens))
    return [
        session._hand_out(next(texts)) if some else iter(())
        for session, some in zip(sessions, draws, strict=True)
    ]


def _run(
    sessions: Sequence[Session],
    blocks: Sequence[Sequence[int]],
    rows: Sequence[int],
    draws: Sequence[Sequence[Draw]] | None = None,
    stop_tokens: Sequence[int] = (),
) -> Any:
    """Call the backend, and count the blocks as run. Every token passes through here."""
    tokens: list[int] = []
    caches: list[Cache] = []
    positions: list[int] = []
    for session, block in zip(sessions, blocks, strict=True):
        tokens += block
        n, position = len(block), len(session._tokens)
        caches += [session._open_cache()] * n
        positions += range(position, position + n)
        session._changes += 1  # before the pass: a cancelled one may have written some layers
    backend, batch = sessions[0]._backend, (tokens, caches, positions, rows)
    result = backend.run(*batch) if draws is None else backend.run(*batch, draws, stop_tokens)
    for session, block in zip(sessions, blocks, strict=True):
        session._append(block)
    return result


def _count(n_tokens: int) -> str:
    return f"{n_tokens} token{'s' * (n_tokens != 1)}"

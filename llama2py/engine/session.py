"""Session: one conversation's place in the context."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from .._util import Closing
from ..config import ModelConfig
from ..errors import Cancelled, ClosedError, ContextError, ParameterError, PromptError
from .backend import Backend, Cache, Draw, Logits
from .session_file import read_session, write_session

# Multiplications in one call of the engine: about a tenth of a second of work, so that Ctrl-C is
# heard between the blocks of a long prompt.
_BLOCK_WORK = 4_000_000_000
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 128
# Positions in a page of memory where keys and values are bfloat16; of float32 it is half of them.
_PAGE = 128

SessionOverflow = Literal["error", "shift"]


class Session(Closing):
    """A sequence of tokens run so far, with the model's memory of them (its KV cache).

    Made by `Model.session`; a context manager. Not for two threads at once; any number of sessions
    of one model are.

    Attributes
    ----------
    overflow : {'error', 'shift'}
        What `forward` does with tokens for which there is no room: raise, or `shift` first.
    kept : int
        So many tokens at the beginning stay where they are in a `shift`. Default: 1, the BOS.
    """

    def __init__(
        self, backend: Backend, cache: Cache | None = None, overflow: SessionOverflow = "error"
    ) -> None:
        if overflow not in ("error", "shift"):
            raise ParameterError(f"overflow is {overflow!r}, expected 'error' or 'shift'")
        self._backend = backend
        self._cache: Cache | None = backend.new_cache() if cache is None else cache
        self._tokens: list[int] = []
        self._changes = self._furthest = 0
        self.overflow: SessionOverflow = overflow
        self.kept = 1
        block = _BLOCK_WORK // backend.config.n_params
        self._block = max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, block))

    @property
    def config(self) -> ModelConfig:
        """The numbers of the model."""
        return self._backend.config

    @property
    def position(self) -> int:
        """How many tokens have been run; the next one gets this position."""
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        """The tokens that have been run, a copy."""
        return self._tokens.copy()

    @property
    def ahead(self) -> int:
        """How many tokens `generate` should be asked for at once."""
        return self._backend.ahead

    @property
    def room(self) -> int:
        """How many more tokens the context holds."""
        return self.config.seq_len - len(self._tokens)

    @property
    def nbytes(self) -> int:
        """The memory of its keys and values in bytes, in whole pages: what was written so far."""
        seq_len = self.config.seq_len
        positions = min(seq_len, -(-self._furthest // _PAGE) * _PAGE)
        return positions * self._backend.cache_bytes // seq_len

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
            If there is no token, or one is out of the vocabulary; nothing has been run then.
        ContextError
            A PromptError, too: if they do not fit in the context, even behind a `shift` where
            ``overflow`` is 'shift'; nothing has been run then.
        ClosedError
            After `close`.
        Cancelled
            If another thread closes the session meanwhile, or ``interrupted`` says so; the blocks
            run until then stay.
        """
        logits: list[Logits] = []
        for block, caches, positions, is_last in self._blocks(tokens, interrupted):
            rows: Sequence[int] = range(len(block))
            if not all_logits:
                rows = rows[-1:] if is_last else ()
            logits.append(self._backend.forward(block, caches, positions, rows))
        if all_logits:
            return logits[0] if len(logits) == 1 else np.concatenate(logits)
        last_row: Logits = logits[-1][0]
        return last_row

    def generate(
        self,
        tokens: Sequence[int],
        draws: Sequence[Draw],
        ends: Sequence[int] = (),
        interrupted: Callable[[], bool] | None = None,
    ) -> Iterator[int]:
        """Run tokens, draw the next one, run that, draw the next one, and so on.

        What `forward` and a `Sampler` do in turns, with less of Python between two tokens. The
        backend may be ahead of what is asked for, which nobody sees: a token yielded counts as run
        when the next one is asked for. It ends before the draws do if one of ``ends`` is drawn, if
        the session is used for something else meanwhile, where the context ends, and behind a
        prompt: who wants more goes on with the last token.

        Parameters
        ----------
        tokens, interrupted
            As in `forward`.
        draws : sequence of Draw
            How, as from `Sampler.plain_draws`; at least one.
        ends : sequence of int
            Tokens that nothing is wanted behind.

        Yields
        ------
        int
            At least one.

        Raises
        ------
        PromptError, ContextError, ClosedError, Cancelled
            As `forward` does, before the first one.
        """
        if len(tokens) != 1:
            drawn: list[int] = []
            for block, caches, positions, is_last in self._blocks(tokens, interrupted):
                rows, how = ((len(block) - 1,), draws[:1]) if is_last else ((), ())
                drawn = self._backend.next_tokens(block, caches, positions, rows, how)
            yield drawn[0]
            return
        cache, (token,) = self._open_cache(), self._with_room(tokens, interrupted)
        if interrupted is not None and interrupted():
            raise Cancelled("a forward pass was interrupted by its caller")
        position = self.position
        drawn = self._backend.generate(token, cache, position, draws[: self.room], ends)
        self._furthest = max(self._furthest, position + len(drawn))
        changes = self._changes
        for next_one in drawn:
            self._append([token])
            token = next_one
            yield token
            if self._changes != changes or self._cache is None:
                return

    def _blocks(
        self, tokens: Sequence[int], interrupted: Callable[[], bool] | None
    ) -> Iterator[tuple[list[int], list[Cache], range, bool]]:
        """Cut tokens into what one call of the backend runs: a block, its caches, its positions,
        and whether it is the last one. It counts as run when the next one is asked for."""
        cache = self._open_cache()
        ids = self._with_room(tokens, interrupted)
        for start in range(0, len(ids), self._block):
            block = ids[start : start + self._block]
            n, position = len(block), len(self._tokens)
            if interrupted is not None and interrupted():
                raise Cancelled("a forward pass was interrupted by its caller")
            yield block, [cache] * n, range(position, position + n), start + n == len(ids)
            self._append(block)

    def rewind(self, position: int) -> None:
        """Forget the tokens from ``position`` on.

        Raises
        ------
        PromptError
            If ``position`` is not between 0 and the current one.
        """
        self._open_cache()
        del self._tokens[self._reached(position) :]
        self._changes += 1

    def shift(self, n_tokens: int = 1, interrupted: Callable[[], bool] | None = None) -> None:
        """Make room: forget the oldest tokens behind the first ``kept``.

        Half of them go, or more where that is not enough. The others are run again at their new
        positions, so that the session equals one that has run these tokens only, to the bit (of the
        C engine). That costs as much as a prompt of that length; one can go on for as many tokens
        as went until the next one.

        Parameters
        ----------
        n_tokens : int
            There must be room for so many.
        interrupted : callable, optional
            As in `forward`.

        Raises
        ------
        ContextError
            If there is not, even without all these tokens; nothing has been forgotten then.
        ClosedError, Cancelled
            As `forward` does; a part of the others has been run again then.

        Examples
        --------
        >>> from llama2py import load
        >>> with load().session() as session:
        ...     logits = session.forward([1, 300, 301, 302, 303])
        ...     session.shift()
        ...     session.tokens
        [1, 302, 303]
        """
        self._open_cache()
        kept = min(self.kept, len(self._tokens))
        context = self.config.seq_len
        if kept + n_tokens > context:
            raise ContextError(
                f"{n_tokens} tokens behind the {kept} that stay do not fit:"
                f" the model's context holds {context}"
            )
        others = len(self._tokens) - kept
        left = self._tokens[kept + max((others + 1) // 2, others + kept + n_tokens - context) :]
        self.rewind(kept)
        if left:
            self.forward(left, interrupted=interrupted)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what the session has run to a file, for `Model.load_session`.

        It holds the tokens and their keys and values (``config.cache_bytes`` for a full context),
        and takes the place of an older file only when it is whole. The first one of a model takes
        longer: its weights are read to tell it from others.

        Raises
        ------
        SessionError
            If the file cannot be written.
        ClosedError
            After `close`.
        """
        write_session(Path(path), self._backend, self._open_cache(), self._tokens)

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: Backend) -> Session:
        """What `save` has written; `Model.load_session` calls it."""
        cache, tokens = read_session(Path(path), backend)
        made = cls(backend, cache)
        made._append(tokens)
        return made

    def fork(self, position: int | None = None) -> Session:
        """Another session that has run the same tokens; from here on the two go their own ways.

        Costs the copy of as many keys and values as there are positions.

        Parameters
        ----------
        position : int, optional
            It has run so many of them only. Default: all.

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
            If there is no memory for it.
        """
        cache = self._open_cache()
        n = self._reached(self.position if position is None else position)
        made = Session(self._backend, cache.copy(n), self.overflow)
        made._append(self._tokens[:n])
        made.kept = self.kept
        return made

    def close(self) -> None:
        """Free the memory. Twice does no harm.

        A `forward` that runs in another thread ends soon, with `Cancelled`.
        """
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Session cannot be pickled or copied, expected save() and, in the other process,"
            " Model.load_session(); fork() copies it in this one"
        )

    def _open_cache(self) -> Cache:
        if self._cache is None:
            raise ClosedError("the session is closed, expected an open one")
        return self._cache

    def _reached(self, position: int) -> int:
        position = index(position)
        if not 0 <= position <= len(self._tokens):
            raise PromptError(
                f"cannot go back to position {position}, expected 0 to {len(self._tokens)}"
            )
        return position

    def _append(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens
        self._furthest = max(self._furthest, len(self._tokens))

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """The tokens as a list, if they can be run next.

        Raises
        ------
        PromptError
            As `forward` does.
        """
        ids = [index(token) for token in tokens]
        config = self.config
        if not ids:
            raise PromptError("there is no token to run, expected at least one")
        config.check_tokens(ids)
        if self.position + len(ids) > config.seq_len:
            raise ContextError(
                f"{len(ids)} tokens at position {self.position} do not fit:"
                f" the model's context holds {config.seq_len}"
            )
        return ids

    def _with_room(
        self, tokens: Sequence[int], interrupted: Callable[[], bool] | None = None
    ) -> list[int]:
        """The same, behind a shift where that is wanted."""
        try:
            ids = self.checked(tokens)
        except ContextError:
            if self.overflow != "shift":
                raise
            self.shift(len(tokens), interrupted)
            ids = self.checked(tokens)
        self._changes += 1  # also where the pass is cancelled: it may have come half-way
        return ids

"""Generation, a finished text, and Stream, a text while it is generated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from .._util import Closing
from ..engine.session import Session, Use
from ..tokenizers.tokenizer import Tokenizer
from .batch import Lane, step
from .job import FinishReason, Job, Timings
from .logprobs import TokenLogprob
from .prefix_cache import PrefixCache

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text.

    Attributes
    ----------
    text : str
        What was generated, without the prompt.
    tokens : list of int
        The tokens generated, without the BOS that ended the text; those of a stop string included.
    prompt_tokens : list of int
        The prompt as it was run, BOS included.
    finish_reason : {'stop', 'length', 'time', 'cancelled'}
        'stop': the model or a stop string ended it. 'length': ``max_tokens`` or the end of the
        context. 'time': ``max_time`` was over. 'cancelled': ``cancel`` was set.
    seed : int
        The seed that gives this text again.
    timings : Timings
        How fast it went.
    stopped_by : int, str or None
        With 'stop': the token or the text that ended it.
    logprobs : list of TokenLogprob or None
        One for each of ``tokens``, if requested.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    finish_reason: FinishReason
    seed: int
    timings: Timings
    stopped_by: int | str | None = None
    logprobs: list[TokenLogprob] | None = None

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, job: Job) -> Generation:
        """Return the text of a finished job."""
        return cls(
            text=job.text,
            tokens=job.tokens,
            prompt_tokens=job.prompt_tokens,
            finish_reason=job.finish_reason or "length",
            seed=job.sampler.seed,
            timings=job.timings,
            stopped_by=job.stopped_by,
            logprobs=None if job.top_logprobs is None else job.logprobs,
        )


class Stream(Closing, Iterator[str]):
    """A text while it is generated: iterate over its pieces.

    Made by `Model.stream`. A context manager. A piece is whole characters and never empty: a
    character of several tokens comes with the last of them, and what may be the beginning of a stop
    text is held back until it is not. ``text``, ``tokens``, ``finish_reason`` (None until the end),
    ``seed`` and ``timings`` say what has happened so far. You can leave the iteration early, and
    `close` to free the memory at once.

    Parameters
    ----------
    session : Session
        The session to run in. Its earlier tokens stay in the context.
    tokenizer : Tokenizer
        Turns tokens into text.
    job : Job
        What to generate.
    owns_session : bool
        Close the session at the end.
    prefix_cache : PrefixCache, optional
        Receives the session at the end, instead.
    runs_all : bool
        Run the last token, too, so that the session can be continued after the text.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        job: Job,
        owns_session: bool = True,
        prefix_cache: PrefixCache | None = None,
        runs_all: bool = False,
    ) -> None:
        self.prompt_tokens = job.prompt_tokens
        self.tokens = job.tokens
        self.logprobs = job.logprobs
        self.seed = job.sampler.seed
        self.timings = job.timings
        self._job = job
        self._session = session
        self._tokenizer = tokenizer
        self._owned = [session] if owns_session else []  # whoever pops it, disposes of it
        self._prefix_cache = prefix_cache
        self._runs_all = runs_all
        self._use = Use("the stream")
        self._pieces = filter(None, self._run())

    @property
    def text(self) -> str:
        """The text so far, without the prompt: all pieces joined."""
        return self._job.text

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended; None before its end."""
        return self._job.finish_reason

    @property
    def stopped_by(self) -> int | str | None:
        """The token or the text that ended it."""
        return self._job.stopped_by

    def __repr__(self) -> str:
        n = len(self.tokens)
        state = "" if self.finish_reason is None else f", finished: {self.finish_reason}"
        return f"<Stream {n} token{'s' * (n != 1)}{state}>"

    def _run(self) -> Iterator[str]:
        """Yield the pieces, and '' for a token that completes no character."""
        job = self._job
        if job.finish_reason is not None:  # the next turn of a chat came before this one began
            return
        job.start(self._session, self._tokenizer)
        lane = Lane(job, self._session)
        while job.finish_reason is None:
            for _, pieces in step([lane], self._session.block):
                yield from pieces
        if self._runs_all:
            self._run_last()

    def _run_last(self) -> None:
        """Run the last token of the text, unless the token that ended the text came after it."""
        session, tokens = self._session, self._job.tokens
        unrun = len(self.prompt_tokens) + len(tokens) - session.position
        if not tokens or not unrun or not session.room:
            return
        if unrun == 1 or session.tokens[-1] != tokens[-1]:  # more after a shift
            session.forward(tokens[-1:])

    def __next__(self) -> str:
        mine: list[None] = []
        try:
            self._use.claim(mine)
            try:
                return next(self._pieces)
            except BaseException as error:  # there will be no more pieces
                self._dispose(ended=isinstance(error, StopIteration))
                raise
        finally:
            self._use.free.extend(mine)

    def _dispose(self, ended: bool) -> None:
        """Give the session of a text that has ended to the prefix cache, or close it."""
        if ended and self._prefix_cache and self.finish_reason and (session := self._pop_session()):
            self._prefix_cache.give(session)
        self.close()

    def finish(self) -> Generation:
        """Generate the rest.

        Returns
        -------
        Generation
            Its ``text`` is only what no iteration has returned before; `Stream.text` is all of it.

        Raises
        ------
        ClosedError
            After `close`, if the text had not ended.
        """
        mine: list[None] = []
        try:
            self._use.claim(mine)  # once, not for each piece
            try:
                text = "".join(self._pieces)
            except BaseException:
                self._dispose(ended=False)
                raise
            self._dispose(ended=True)
        finally:
            self._use.free.extend(mine)
        return replace(Generation.of(self._job), text=text)

    def close(self) -> None:
        """Stop here, from any thread. Closing twice does no harm."""
        if session := self._pop_session():
            session.close()

    def cancel(self) -> None:
        """End the text after the token that is being computed, from any thread."""
        if self._job.finish_reason is None:
            self._job.finish_reason = "cancelled"

    def _pop_session(self) -> Session | None:
        """Return the session if it is this stream's to dispose of: once, to one thread."""
        try:
            return self._owned.pop()
        except IndexError:
            return None


class AsyncStream(AsyncIterator[str]):
    """A `Stream` for ``async for``: each piece is computed in a thread while the event loop runs.

    Made by `Model.astream` and `Chat.asay`. ``async for piece in stream`` yields the pieces, and
    ``await stream`` generates the rest and returns the `Generation`. If the task is cancelled,
    generation ends and its memory is freed; ``async with`` does the same where a task leaves the
    loop. The attributes are those of `Stream`.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.prompt_tokens = stream.prompt_tokens
        self.tokens = stream.tokens
        self.logprobs = stream.logprobs
        self.seed = stream.seed
        self.timings = stream.timings

    @property
    def text(self) -> str:
        """The text so far, without the prompt: all pieces joined."""
        return self._stream.text

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended; None before its end."""
        return self._stream.finish_reason

    @property
    def stopped_by(self) -> int | str | None:
        """The token or the text that ended it."""
        return self._stream.stopped_by

    async def __anext__(self) -> str:
        piece = await self._in_thread(lambda: next(self._stream, None))
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def finish(self) -> Generation:
        """Generate the rest; see `Stream.finish`."""
        return await self._in_thread(self._stream.finish)

    def __await__(self) -> Generator[None, None, Generation]:
        return self.finish().__await__()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        import asyncio  # only here: it takes a tenth of a program's start

        running = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._stream.cancel()
            self._stream.close()
            # The thread ends soon. Until then its session is in use.
            await asyncio.wait([running])
            running.exception()  # seen: nobody waits for it
            raise

    async def aclose(self) -> None:
        """Stop here and free the memory. Closing twice does no harm."""
        self._stream.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stream.close()

"""Generation, a finished text, and Stream, a text while it is generated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .._util import Closing
from ..engine.session import Session, Use
from ..tokenizers.tokenizer import Tokenizer
from .batch import Lane, step
from .job import FinishReason, Job, Timings
from .logprobs import TokenLogprob
from .prefix_cache import PrefixCache


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
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        job: Job,
        owns_session: bool = True,
        prefix_cache: PrefixCache | None = None,
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

    def _pop_session(self) -> Session | None:
        """Return the session if it is this stream's to dispose of: once, to one thread."""
        try:
            return self._owned.pop()
        except IndexError:
            return None

"""A prompt in, tokens and text out: one piece at a time, or all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .._util import Closing
from ..engine.session import Session
from ..errors import Cancelled
from ..tokenizers.tokenizer import Tokenizer
from .job import FinishReason, Job, Timings
from .logprobs import TokenLogprob
from .prefix_cache import Prefixes


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text.

    Attributes
    ----------
    text : str
        What was generated, without the prompt.
    tokens : list of int
        Its tokens, without the BOS that ended it; those of a stop text are among them.
    prompt_tokens : list of int
        The prompt as it was run, BOS included.
    finish_reason : {'stop', 'length', 'time', 'cancelled'}
        'stop': the model or a stop text ended it. 'length': ``max_tokens`` or the context is used
        up. 'time': ``max_time`` is. 'cancelled': ``cancel`` was set.
    seed : int
        Gives this text again.
    timings : Timings
        How fast it went.
    stopped_by : int, str or None
        With 'stop': the token or the text that ended it.
    logprobs : list of TokenLogprob or None
        One for each of ``tokens``, where asked for.
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
        """What a job has come to."""
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
    """A text while it is generated: iterate for its pieces.

    Made by `Model.stream`; a context manager. A piece is whole characters, never empty: a character
    that takes several tokens comes with the last of them, and what may be the beginning of a stop
    text comes when it is none. While it runs and afterwards, ``tokens``, ``finish_reason`` (None
    before the end), ``seed`` and ``timings`` tell what happened so far. Breaking off the iteration
    is fine; `close` then frees the memory at once.

    Parameters
    ----------
    session : Session
        Where to run. Its earlier tokens stay in the context.
    tokenizer : Tokenizer
        Turns tokens into text.
    job : Job
        What to generate.
    owns_session : bool
        Close the session at the end.
    keep : Prefixes, optional
        Gets the session at the end, instead.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        job: Job,
        owns_session: bool = True,
        keep: Prefixes | None = None,
    ) -> None:
        self.prompt_tokens = job.prompt_tokens
        self.tokens = job.tokens
        self.logprobs = job.logprobs
        self.seed = job.sampler.seed
        self.timings = job.timings
        self._job = job
        self._session = session
        self._tokenizer = tokenizer
        self._owned = [session] if owns_session else []  # whoever takes it out, disposes of it
        self._keep = keep
        self._pieces = filter(None, self._run())

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None before."""
        return self._job.finish_reason

    @property
    def stopped_by(self) -> int | str | None:
        """The token or the text that ended it."""
        return self._job.stopped_by

    def _run(self) -> Iterator[str]:
        """The pieces, and "" for a token that completes none."""
        job, session = self._job, self._session
        if job.finish_reason is not None:  # a chat's turn that the next one came before
            return
        job.start(session, self._tokenizer)
        interrupted = job.interrupted if job.watched else None
        try:
            while job.finish_reason is None:
                block, draws = job.next_block(), job.plain_draws(session.ahead)
                params = job.sampler.params
                if not draws:
                    yield job.take(session.forward(block, interrupted=interrupted))
                    continue
                for token in session.generate(block, draws, job.ends, interrupted):
                    yield job.take_token(token)
                    if job.finish_reason is not None or job.sampler.params is not params:
                        break
        except Cancelled:
            if job.finish_reason is None:  # the session was closed
                raise
            yield job.end()

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration:
            if self._keep and self.finish_reason and (session := self._take_session()):
                self._keep.give(session)
            self.close()
            raise
        except BaseException:  # nothing more will come
            self.close()
            raise

    def finish(self) -> Generation:
        """Generate what is left.

        Returns
        -------
        Generation
            Its ``text`` holds only what no iteration has taken before.

        Raises
        ------
        ClosedError
            After `close`, if the text had not come to its end.
        """
        text = "".join(self)
        return replace(Generation.of(self._job), text=text)

    def close(self) -> None:
        """Stop here, from any thread. Twice does no harm."""
        if session := self._take_session():
            session.close()

    def _take_session(self) -> Session | None:
        """The session, if it is this stream's to dispose of: once, whichever thread comes first."""
        try:
            return self._owned.pop()
        except IndexError:
            return None

"""Generate texts: one pass of the model for one text or for many, and the continuous batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from ..engine.backend import Logits
from ..engine.parameters import whole_number
from ..engine.session import Session, run_sessions
from ..errors import Cancelled
from ..tokenizers.tokenizer import Tokenizer
from .job import Guide, Job
from .prefix_cache import PrefixCache

__all__ = ["Guide", "Job", "Lane", "run_jobs", "step"]

# Tokens of one prompt in one pass. The other texts, and Ctrl-C, wait for no more than these.
_PROMPT_BLOCK = 128


class Generator(Protocol):
    """What a batch needs from a model."""

    tokenizer: Tokenizer
    prefix_cache: PrefixCache


@dataclass(slots=True)
class Lane:
    """A text being generated, and its session."""

    job: Job
    session: Session


AnyLane = TypeVar("AnyLane", bound=Lane)


def step(lanes: Sequence[AnyLane], block: int) -> Iterator[tuple[AnyLane, Iterator[str]]]:
    """Run one pass of the model over all texts, and give each text its next tokens.

    The caller must exhaust each iterator of pieces before it requests the next text.

    Parameters
    ----------
    lanes : sequence of Lane
        Texts that have started and not ended. A single text may get several tokens in one pass.
    block : int
        Run at most this many tokens of a prompt.

    Yields
    ------
    Lane, iterator of str
        For each text: for each of its tokens, the piece that is now certain, perhaps ''. A text
        that has ended (``job.finish_reason``) gets no more tokens.

    Raises
    ------
    ContextError
        If a text reaches the end of the context and its ``overflow`` is 'error'.
    Cancelled
        If another thread closes a text's session.
    """
    ready = []
    for lane in lanes:
        if _interrupted(lane, block):
            yield lane, iter([lane.job.end()])
        else:
            ready.append(lane)
    if not ready:
        return
    sessions = [lane.session for lane in ready]
    blocks = [lane.job.next_tokens(block) for lane in ready]
    if any(lane.job.needs_logits and not lane.job.n_pending for lane in ready):
        rows = run_sessions(sessions, blocks)  # (len(ready), vocab_size)
        for lane, logits in zip(ready, rows, strict=True):
            yield lane, iter(() if lane.job.n_pending else [_feed(lane, logits)])
        return
    ahead = sessions[0].ahead if len(ready) == 1 else 1
    draws = [[] if lane.job.n_pending else lane.job.draws(ahead) for lane in ready]
    texts = run_sessions(sessions, blocks, draws, ready[0].job.first_stop_tokens)
    for lane, tokens in zip(ready, texts, strict=True):
        feed = lane.job.feed_token
        yield lane, map(feed, tokens) if ahead == 1 else _feed_tokens(lane.job, tokens)


def _feed_tokens(job: Job, tokens: Iterator[int]) -> Iterator[str]:
    """Feed tokens that the backend drew to a text, until it ends or its sampler changes."""
    params = job.sampler.params
    for token in tokens:
        yield job.feed_token(token)
        if job.finish_reason is not None or job.sampler.params is not params:
            return


def _feed(lane: Lane, logits: Logits) -> str:
    """Feed logits to a text. Its guide and its logits processors may not use its session."""
    return lane.session.hold(lambda: lane.job.feed_logits(logits))


def _interrupted(lane: Lane, block: int) -> bool:
    """Whether the text ends before its next pass. If not, the session has room for that pass."""
    job = lane.job
    try:
        n_tokens = min(block, job.n_pending)
        if not job.interrupted() and n_tokens > lane.session.room:
            lane.session.make_room(n_tokens, job.interrupted)
    except Cancelled:
        if job.finish_reason is None:  # the session was closed
            raise
    return job.finish_reason is not None


@dataclass(slots=True)
class _BatchLane(Lane):
    """A lane of the batch, with the text's number in the input."""

    number: int
    done: bool = False


def run_jobs(model: Generator, jobs: Iterable[Job], max_batch: int) -> Iterator[Job]:
    """Generate texts, up to ``max_batch`` at once, and yield them in order.

    The batch is continuous: the next text takes the place of one that has ended.

    Parameters
    ----------
    model : Model
        The model.
    jobs : iterable of Job
        May be endless: a job is read when there is room for it.
    max_batch : int
        Bounds the memory: each text being generated has a session.

    Yields
    ------
    Job
        Finished. With the C engine, each text is bit-identical to the same text generated alone.

    Raises
    ------
    PromptError
        If a prompt does not fit in the context.
    ParameterError
        If ``max_batch`` is below 1.
    """
    whole_number("max_batch", max_batch, 1)
    waiting = iter(enumerate(jobs))
    lanes: list[_BatchLane] = []
    finished: dict[int, Job] = {}
    next_out = 0

    def finish(lane: _BatchLane) -> None:
        lane.done = True  # from here on, other texts may get its session
        finished[lane.number] = lane.job
        model.prefix_cache.give(lane.session)

    try:
        while True:
            room = max_batch - len(lanes)
            started = 0
            for number, job in islice(waiting, room):
                started += 1
                session, job.reused = model.prefix_cache.take(job.prompt_tokens)
                lane = _BatchLane(job, session, number)
                lanes.append(lane)  # closed below, whatever happens
                job.start(session, model.tokenizer)
                if not job.may_draw:
                    job.finish_reason = "length"
                    finish(lane)
            lanes = [lane for lane in lanes if not lane.done]
            for lane, pieces in step(lanes, _PROMPT_BLOCK):
                for _ in pieces:
                    pass  # the job collects its text
                # Immediately, because the next text's step may raise an error.
                if lane.job.finish_reason:
                    finish(lane)
            lanes = [lane for lane in lanes if not lane.done]
            while next_out in finished:
                yield finished.pop(next_out)
                next_out += 1
            if not lanes and started < room:
                return
    finally:
        for lane in lanes:
            if not lane.done:
                lane.session.close()

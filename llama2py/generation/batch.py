"""Run texts: one pass of the model for one text or for many, and the continuous batch."""

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

# Tokens of one prompt in one pass: the other texts, and Ctrl-C, wait no longer than for these.
_PROMPT_BLOCK = 128


class Generator(Protocol):
    """What a batch needs of a model."""

    tokenizer: Tokenizer
    prefix_cache: PrefixCache


@dataclass(slots=True)
class Lane:
    """A text in work and the session it runs in."""

    job: Job
    session: Session


AnyLane = TypeVar("AnyLane", bound=Lane)


def step(lanes: Sequence[AnyLane], block: int) -> Iterator[tuple[AnyLane, str]]:
    """Run one pass of the model over all texts, and give each text its next tokens.

    Parameters
    ----------
    lanes : sequence of Lane
        Texts that have started and not ended. A text that runs alone may get several tokens.
    block : int
        Run at most this many tokens of a prompt.

    Yields
    ------
    Lane, str
        For each token, and for each block of a prompt: the text that is certain now, perhaps ''.
        A text that has ended (``job.finish_reason``) is not touched any more.

    Raises
    ------
    ContextError
        If a text is at the end of the context, and its ``overflow`` is 'error'.
    Cancelled
        If another thread closes the session of a text that runs alone.
    """
    ready = []
    for lane in lanes:
        if _interrupted(lane, block):
            yield lane, lane.job.end()
        else:
            ready.append(lane)
    if not ready:
        return
    sessions = [lane.session for lane in ready]
    blocks = [lane.job.next_tokens(block) for lane in ready]
    if any(lane.job.needs_logits and not lane.job.n_pending for lane in ready):
        rows = run_sessions(sessions, blocks)  # (len(ready), vocab_size)
        for lane, logits in zip(ready, rows, strict=True):
            yield lane, "" if lane.job.n_pending else _feed(lane, logits)
        return
    ahead = sessions[0].ahead if len(ready) == 1 else 1
    draws = [[] if lane.job.n_pending else lane.job.draws(ahead) for lane in ready]
    texts = run_sessions(sessions, blocks, draws, ready[0].job.first_stop_tokens)
    for lane, tokens in zip(ready, texts, strict=True):
        job = lane.job
        if job.n_pending:
            yield lane, ""
        params = job.sampler.params
        for token in tokens:
            yield lane, job.feed_token(token)
            if job.finish_reason is not None or job.sampler.params is not params:
                break


def _feed(lane: Lane, logits: Logits) -> str:
    """Feed logits to a text, whose guide and processors may not use its session."""
    return lane.session.hold(lambda: lane.job.feed_logits(logits))


def _interrupted(lane: Lane, block: int) -> bool:
    """Whether the text ends before its next pass, for which the session has room afterwards."""
    job = lane.job
    try:
        if not job.interrupted():
            lane.session.make_room(min(block, job.n_pending), job.interrupted)
    except Cancelled:
        if job.finish_reason is None:  # the session was closed
            raise
    return job.finish_reason is not None


@dataclass(slots=True)
class _BatchLane(Lane):
    """A text's place in the batch."""

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
        Bounds the memory: each text in work has a session.

    Yields
    ------
    Job
        Finished. With the C engine each text is, to the bit, what it would be alone.

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
        lane.done = True  # from here on others may have its session
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
            for lane, _ in step(lanes, _PROMPT_BLOCK):
                # At once: the next text's turn may raise an error.
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

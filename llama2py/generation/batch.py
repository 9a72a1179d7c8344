"""Many texts at once: a continuous batch, in which a finished text's place is taken by the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

from ..engine.session import Session
from ..engine.session_many import forward_many, next_tokens_many
from ..errors import ParameterError
from ..tokenizers.tokenizer import Tokenizer
from .job import Guide, Job

__all__ = ["Guide", "Job", "run_jobs"]

# Tokens of a prompt in one pass: its neighbours, and Ctrl-C, wait no longer than for these.
_PROMPT_BLOCK = 128


class Generator(Protocol):
    """What a batch needs of a model."""

    tokenizer: Tokenizer

    def take_session(self, job: Job) -> Session:
        """One for a job: new, or one that has run how its prompt begins."""

    def give_session(self, session: Session) -> None:
        """Keep one for later prompts, or close it."""


class _Lane:
    """A job's place in the batch."""

    def __init__(self, model: Generator, job: Job, number: int) -> None:
        self.job, self.number, self._model = job, number, model
        self.session = model.take_session(job)
        self._left = False

    def leave(self) -> Job:
        """Finish the job, whose session is not this lane's any more."""
        self._left = True
        self._model.give_session(self.session)
        return self.job

    def close(self) -> None:
        """Free the memory, if the job has not finished: others may have its session by now."""
        if not self._left:
            self.session.close()


def run_jobs(model: Generator, jobs: Iterable[Job], max_batch: int) -> Iterator[Job]:
    """Generate the texts, up to ``max_batch`` at once, and yield them in order.

    Parameters
    ----------
    model : Model
        Who generates.
    jobs : iterable of Job
        Taken as there is room for them, so it may be endless.
    max_batch : int
        Bounds the memory: each text in work has a session.

    Yields
    ------
    Job
        Finished. With the C engine each is, to the bit, what it would be alone.

    Raises
    ------
    PromptError
        If a prompt has no token, or one that is not in the vocabulary, or does not fit.
    ParameterError
        If ``max_batch`` is below 1.
    """
    if max_batch < 1:
        raise ParameterError(f"max_batch is {max_batch}, expected a whole number from 1 up")
    waiting = iter(enumerate(jobs))
    lanes: list[_Lane] = []
    finished: dict[int, Job] = {}
    next_out = 0
    try:
        while True:
            room = max_batch - len(lanes)
            taken = 0
            for number, job in islice(waiting, room):
                taken += 1
                lane = _Lane(model, job, number)
                lanes.append(lane)  # closed below, whatever happens
                job.start(lane.session, model.tokenizer)
                if not job.has_budget:
                    job.finish_reason = "length"
                    lanes.remove(lane)
                    finished[number] = lane.leave()
            if lanes:
                blocks = [lane.job.next_block(_PROMPT_BLOCK) for lane in lanes]
                sessions = [lane.session for lane in lanes]
                # Each leaves before the next one's turn, which may fail.
                steps = _step([lane.job for lane in lanes], sessions, blocks)
                for lane, job in zip(lanes, steps, strict=True):
                    if job.finish_reason:
                        finished[lane.number] = lane.leave()
                lanes = [lane for lane in lanes if not lane.job.finish_reason]
            while next_out in finished:
                yield finished.pop(next_out)
                next_out += 1
            if not lanes and taken < room:
                return
    finally:
        for lane in lanes:
            lane.close()


def _step(jobs: list[Job], sessions: list[Session], blocks: list[list[int]]) -> Iterator[Job]:
    """One pass, then each job in turn, once it has its next token or has come further."""
    if all(job.waiting or job.plain for job in jobs):
        draws = [None if job.waiting else job.plain_draws()[0] for job in jobs]
        for job, token in zip(jobs, next_tokens_many(sessions, blocks, draws), strict=True):
            if token is not None:
                job.take_token(token)
            elif job.interrupted():
                job.end()
            yield job
    else:
        for job, row in zip(jobs, forward_many(sessions, blocks), strict=True):
            if not job.waiting:
                job.take(row)
            elif job.interrupted():
                job.end()
            yield job

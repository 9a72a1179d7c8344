"""Many texts at once: a continuous batch, in which a finished text's place is taken by the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from .backend import Logits
from .errors import ParameterError
from .generation import FinishReason
from .model import Model
from .sampling import Sampler
from .session import Session, forward_many
from .tokenizer import Decoder


class Guide(Protocol):
    """Has a say in one text while it is generated."""

    def adjust(self, logits: Logits) -> None:
        """Change logits (vocab_size,) in place, before a token is drawn."""

    def accept(self, token: int, piece: str) -> bool:
        """Take note of the token drawn and the text it completes; False ends the text behind it."""


@dataclass(slots=True)
class Job:
    """A text to generate, and then the text.

    Attributes
    ----------
    prompt_tokens : list of int
        Run first; at least one token.
    sampler : Sampler
        Chooses the tokens.
    max_tokens : int
        Most tokens to generate; the context may end it sooner.
    guide : Guide, optional
        Has a say.
    text : str
        What was generated, without the prompt.
    tokens : list of int
        Its tokens, without the BOS that ended it.
    finish_reason : {None, 'stop', 'length'}
        None: not yet. 'stop': the model or the guide ended it.
    """

    prompt_tokens: list[int]
    sampler: Sampler
    max_tokens: int
    guide: Guide | None = None
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class _Lane:
    """A job's place in the batch."""

    def __init__(self, model: Model, job: Job, number: int) -> None:
        self.job, self.number = job, number
        self.session: Session = model.session()
        self.block = job.prompt_tokens  # to be run next
        self.budget = 0
        self._tokenizer = model.tokenizer
        self._end = model.tokenizer.bos_id  # llama2.c: BOS parts the stories

    def start(self) -> None:
        """Check the prompt; `PromptError` if it cannot be run."""
        self.session.checked(self.block)
        self.budget = min(self.job.max_tokens, self.session.room - len(self.block) + 1)
        self._decoder: Decoder = self._tokenizer.decoder(previous=self.block[-1])

    def take(self, logits: Logits) -> FinishReason | None:
        """Draw a token; tells why, if it was the last."""
        job = self.job
        if job.guide:
            job.guide.adjust(logits)
        token = job.sampler.sample(logits)
        if token == self._end:
            return "stop"
        job.tokens.append(token)
        piece = self._decoder.feed(token)
        job.text += piece
        if job.guide and not job.guide.accept(token, piece):
            return "stop"
        if len(job.tokens) >= self.budget:
            return "length"
        self.block = [token]
        return None

    def leave(self, reason: FinishReason) -> Job:
        """Finish the job."""
        self.job.text += self._decoder.flush()
        self.job.finish_reason = reason
        self.session.close()
        return self.job


def run_jobs(model: Model, jobs: Iterable[Job], max_batch: int) -> Iterator[Job]:
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
                lane.start()
                if lane.budget <= 0:
                    lanes.remove(lane)
                    finished[number] = lane.leave("length")
            if lanes:
                logits = forward_many(
                    [lane.session for lane in lanes], [lane.block for lane in lanes]
                )
                going = []
                for lane, row in zip(lanes, logits, strict=True):
                    if reason := lane.take(row):
                        finished[lane.number] = lane.leave(reason)
                    else:
                        going.append(lane)
                lanes = going
            while next_out in finished:
                yield finished.pop(next_out)
                next_out += 1
            if not lanes and taken < room:
                return
    finally:
        for lane in lanes:
            lane.session.close()

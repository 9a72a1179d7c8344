"""Texts to generate, with tokens drawn by the backend or from logits in Python."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from llama2py import Model, Stream
from llama2py.generation.job import Job, Overflow
from llama2py.generation.sampling import Sampler, SamplingParams
from llama2py.tokenizers.tokenizer import BOS

A, B = 260, 261  # "a" and "b" of conftest's tokenizer


class AfterTokens(threading.Event):
    """An event that is set once a text has ``n`` tokens."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.job: Job | None = None
        self._n = n

    def is_set(self) -> bool:
        assert self.job is not None
        return len(self.job.tokens) >= self._n


@dataclass(frozen=True)
class Wish:
    """A text to generate."""

    prompt: tuple[int, ...] = (BOS, A)
    seed: int = 1
    temperature: float = 1.0
    top_p: float = 0.9
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] | None = frozenset()
    cancelled_after: int | None = None
    max_time: float | None = None
    overflow: Overflow = "stop"

    def job(self, model: Model, logits: bool = False) -> Job:
        """The job; with ``logits`` its tokens are drawn in Python."""
        cancel = None if self.cancelled_after is None else AfterTokens(self.cancelled_after)
        job = Job(
            list(self.prompt),
            Sampler(model.backend, SamplingParams(self.temperature, self.top_p), self.seed),
            self.max_tokens,
            stop=self.stop,
            stop_tokens=self.stop_tokens,
            cancel=cancel,
            max_time=self.max_time,
            overflow=self.overflow,
            top_logprobs=0 if logits else None,
        )
        if cancel is not None:
            cancel.job = job
        return job

    def pieces(self, model: Model, logits: bool = False) -> tuple[list[str], Job]:
        """The pieces of the text, generated alone."""
        job = self.job(model, logits)
        with Stream(model.session(), model.tokenizer, job) as stream:
            return list(stream), job

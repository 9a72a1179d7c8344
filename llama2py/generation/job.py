"""One text in work: the one place that draws a token, stops, and turns it into text.

A `Stream` drives one of these, a batch drives many.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engine.backend import Draw, Logits
from ..engine.session import Session, SessionOverflow
from ..tokenizers.tokenizer import Decoder, Tokenizer
from .logprobs import TokenLogprob, log_softmax, token_logprob
from .sampling import Sampler
from .stopping import StopTexts

FinishReason = Literal["stop", "length", "time", "cancelled"]
Overflow = Literal["stop", "error", "shift"]
# Stop tokens that are looked for after each draw; of more, some tokens may be drawn in vain.
_FEW = 16


@dataclass(slots=True)
class Timings:
    """How long it took, in seconds, and how fast that is.

    Attributes
    ----------
    prompt_tokens : int
        Tokens of the prompt, BOS included.
    prompt_seconds : float
        From the start to the logits behind the prompt, or to the first token drawn from them.
    first_token_seconds : float
        From the start to the first generated token; 0.0 if there is none.
    generated_tokens : int
        Tokens sampled, the one that ended the story included.
    generation_seconds : float
        From the first generated token to the last. Of a stream this includes what its reader did in
        between.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    first_token_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of reading the prompt; 0.0 if nothing was read."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of generating, the first token apart (it waits for the prompt); 0.0 if unknown.

        Like llama2.c, whose clock starts after the first step.
        """
        if self.generated_tokens < 2 or not self.generation_seconds:
            return 0.0
        return (self.generated_tokens - 1) / self.generation_seconds


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
    stop_tokens : frozenset of int, optional
        Tokens that end the text, and do not belong to it. Default: BOS, which parts the stories of
        llama2.c's models.
    stop : str or iterable of str
        Texts that end the text, and do not belong to it.
    max_time : float, optional
        Seconds from `start`, prompt included, after which it ends.
    cancel : threading.Event, optional
        Ends it when set.
    top_logprobs : int, optional
        Keep the log-probability of each token, and so many best beside it.
    reused : int
        So many of the prompt's tokens have been run in the session before.
    overflow : {'stop', 'error', 'shift'}
        What the end of the context does: end the text, raise ContextError, or make the session
        shift.
    tokens : list of int
        Its tokens, without the one that ended it; those of a stop text are among them.
    logprobs : list of TokenLogprob
        One for each of ``tokens``, where asked for.
    finish_reason : {None, 'stop', 'length', 'time', 'cancelled'}
        None: not yet. 'stop': the model, a stop text or the guide ended it.
    stopped_by : int, str or None
        The token or the text that ended it.
    timings : Timings
        How fast it went.
    ends : sequence of int
        Of its stop tokens so many that a backend can look for: behind one nothing is wanted.
    """

    prompt_tokens: list[int]
    sampler: Sampler
    max_tokens: int
    guide: Guide | None = None
    stop_tokens: frozenset[int] | None = None
    stop: str | Iterable[str] = ()
    max_time: float | None = None
    cancel: threading.Event | None = None
    top_logprobs: int | None = None
    reused: int = 0
    overflow: Overflow = "stop"
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stopped_by: int | str | None = None
    timings: Timings = field(default_factory=Timings)
    ends: Sequence[int] = ()
    _pieces: list[str] = field(default_factory=list, repr=False)  # of the text
    _block: list[int] = field(default_factory=list, repr=False)  # to be run next
    _budget: int = 0
    _started_at: float = 0.0
    _first_at: float = 0.0
    _ends: frozenset[int] = frozenset()
    _n_tokens: int | None = None  # where the model's padding begins; None: it has none
    _decoder: Decoder | None = field(default=None, repr=False)
    _stop_texts: StopTexts | None = field(default=None, repr=False)  # None: there are none

    def start(self, session: Session, tokenizer: Tokenizer) -> None:
        """Check the prompt, and begin behind what the session holds.

        Raises
        ------
        PromptError
            If the prompt cannot be run.
        """
        self._started_at = perf_counter()
        self._block = session.checked(self.prompt_tokens[self.reused :])
        full: SessionOverflow = "shift" if self.overflow == "shift" else "error"
        session.overflow = full
        self._budget = self.max_tokens
        if self.overflow == "stop":
            # The last token needs no place: nothing comes after it.
            self._budget = min(self.max_tokens, session.room - len(self._block) + 1)
        self._decoder = tokenizer.decoder(previous=self._block[-1])
        self._stop_texts = StopTexts(self.stop) if self.stop else None
        self._ends = frozenset([tokenizer.bos_id]) if self.stop_tokens is None else self.stop_tokens
        vocab_size = session.config.vocab_size
        ends = sorted(end for end in self._ends if 0 <= end < vocab_size)
        self.ends = ends[:_FEW]
        if tokenizer.n_tokens < len(tokenizer):
            # What the metadata names as an end is a token, also of a tokenizer.model without it.
            self._n_tokens = min(max([tokenizer.n_tokens - 1, *ends[-1:]]) + 1, vocab_size)
        self.timings.prompt_tokens = len(self.prompt_tokens)

    @property
    def text(self) -> str:
        """What was generated, without the prompt."""
        return "".join(self._pieces)

    @property
    def has_budget(self) -> bool:
        """Whether one more token may be drawn."""
        return len(self.tokens) < self._budget

    def next_block(self, most: int | None = None) -> list[int]:
        """The tokens to run next, at most so many; `take` wants the logits behind the last.

        Empty behind the last of them.
        """
        block = self._block
        if most is None or len(block) <= most:
            self._block = []
            return block
        self._block = block[most:]
        return block[:most]

    @property
    def watched(self) -> bool:
        """Whether it may be `interrupted` at all."""
        return self.cancel is not None or self.max_time is not None

    @property
    def waiting(self) -> bool:
        """Whether there are more tokens to run before `take`."""
        return bool(self._block)

    def interrupted(self) -> bool:
        """Whether it has been cancelled or its time is up; then it has ended."""
        if self.cancel is not None and self.cancel.is_set():
            self.finish_reason = "cancelled"
        elif self.max_time is not None and perf_counter() - self._started_at >= self.max_time:
            self.finish_reason = "time"
        return self.finish_reason is not None

    def take(self, logits: Logits) -> str:
        """Draw a token from the logits (vocab_size,) behind the last, which may be overwritten.

        Returns
        -------
        str
            The text that is certain now, perhaps none; all that is left, if ``finish_reason`` is
            set.
        """
        self._see_prompt_end()
        if not self.has_budget:
            self.finish_reason = "length"
            return self.end()
        if self.watched and self.interrupted():
            return self.end()
        logprobs = None if self.top_logprobs is None else log_softmax(logits)
        if self.guide:
            self.guide.adjust(logits)
        token = self.sampler.sample(logits, self.prompt_tokens, self.tokens, self._n_tokens)
        return self._accept(token, logprobs)

    @property
    def plain(self) -> bool:
        """Whether nobody but the backend has to see the logits behind `next_block`."""
        return (
            self.sampler.plain
            and self.guide is None
            and self.top_logprobs is None
            and self.has_budget
        )

    def plain_draws(self, most: int = 1) -> list[Draw]:
        """How the backend is to draw the tokens behind `next_block`, at most so many of them.

        Each is for `take_token` then. None: it is not `plain`, and the logits are for `take`.
        """
        if not self.plain:
            return []
        if not self.timings.generated_tokens:
            most = 1  # the first one's time is told apart
        return self.sampler.plain_draws(min(most, self._budget - len(self.tokens)), self._n_tokens)

    def take_token(self, token: int) -> str:
        """Take a token that was drawn as `plain_draws` says; what comes back is as of `take`."""
        self._see_prompt_end()
        if self.watched and self.interrupted():
            return self.end()
        self.sampler.take_coin()
        return self._accept(token)

    def _see_prompt_end(self) -> None:
        if not self.timings.generated_tokens:
            self.timings.prompt_seconds = perf_counter() - self._started_at

    def _accept(self, token: int, logprobs: NDArray[np.float64] | None = None) -> str:
        timings, now = self.timings, perf_counter()
        timings.generated_tokens += 1
        if timings.generated_tokens == 1:
            self._first_at = now
            timings.first_token_seconds = now - self._started_at
        timings.generation_seconds = now - self._first_at
        if token in self._ends:
            self.finish_reason, self.stopped_by = "stop", token
            return self.end()
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(token_logprob(logprobs, token, self.top_logprobs or 0))
        assert self._decoder is not None, "start() comes first"
        completed = self._decoder.feed(token)
        piece = self._show(completed)
        if self.finish_reason is not None:  # a stop text
            return piece
        if self.guide and not self.guide.accept(token, completed):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._budget:
            self.finish_reason = "length"
        else:
            self._block = [token]
            return piece
        return piece + self.end()

    def end(self) -> str:
        """What is left at the end: a character cut off, the beginning of a stop text."""
        if self._decoder is None or isinstance(self.stopped_by, str):
            return ""
        rest = self._show(self._decoder.flush())
        held = self._stop_texts.flush() if self._stop_texts else ""
        self._pieces.append(held)
        return rest + held

    def _show(self, completed: str) -> str:
        """Add to the text what no stop text can begin with."""
        stops = self._stop_texts
        if stops is None:
            if completed:
                self._pieces.append(completed)
            return completed
        piece = stops.feed(completed)
        self._pieces.append(piece)
        if stops.found is not None:
            self.finish_reason, self.stopped_by = "stop", stops.found
        return piece

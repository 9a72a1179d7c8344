"""A job: one text being generated. It draws tokens, stops, and turns the tokens into text.

A `Stream` has one job, a batch has many.
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
from ..engine.session import Session
from ..errors import PromptError
from ..tokenizers.tokenizer import Decoder, Tokenizer
from .logprobs import TokenLogprob, log_softmax, token_logprob
from .sampling import Sampler
from .stopping import StopStrings

FinishReason = Literal["stop", "length", "time", "cancelled"]
Overflow = Literal["stop", "error", "shift"]
# The backend compares each token it draws with at most this many stop tokens.
_MOST_STOP_TOKENS = 16


@dataclass(slots=True)
class Timings:
    """How long a text took, in seconds, and its speed.

    Attributes
    ----------
    prompt_tokens : int
        Tokens of the prompt, BOS included.
    prompt_seconds : float
        From the start to the logits after the prompt, or to the first token drawn from them.
    first_token_seconds : float
        From the start to the first generated token; 0.0 without one.
    generated_tokens : int
        Tokens drawn, including the one that ended the text.
    generation_seconds : float
        From the first generated token to the last. For a stream this includes the time that its
        reader takes between two tokens.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    first_token_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """The speed of the prefill; 0.0 if it is unknown."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """The speed of decoding, without the first token and the prompt; 0.0 if it is unknown.

        llama2.c measures it the same way: its clock starts after the first step.
        """
        if self.generated_tokens < 2 or not self.generation_seconds:
            return 0.0
        return (self.generated_tokens - 1) / self.generation_seconds


class Guide(Protocol):
    """Steers one text while it is generated."""

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` changes the next logits. If not, the backend may draw the token."""

    def adjust(self, logits: Logits) -> None:
        """Change logits (vocab_size,) in place, before a token is drawn."""

    def accept(self, token: int, piece: str) -> bool:
        """Take a drawn token and the text it completes. Return False to end the text after it."""


@dataclass(slots=True)
class Job:
    """A text to generate, and then the text.

    Attributes
    ----------
    prompt_tokens : list of int
        Run first. At least one, all in the vocabulary.
    sampler : Sampler
        Chooses the tokens.
    max_tokens : int
        Generate at most this many tokens. The end of the context may come sooner.
    guide : Guide, optional
        Steers the text.
    stop_tokens : frozenset of int, optional
        Tokens that end the text and do not belong to it. Default: BOS, which separates the stories
        of llama2.c's models.
    stop : str or iterable of str
        Texts that end the text and do not belong to it.
    max_time : float, optional
        End the text this many seconds after `start`, prompt included.
    cancel : threading.Event, optional
        End the text when it is set.
    top_logprobs : int, optional
        Keep the log-probability of each token, and of this many most probable alternatives.
    reused : int
        How many of the prompt's tokens the session has already run.
    overflow : {'stop', 'error', 'shift'}
        What happens at the end of the context: the text ends, ContextError is raised, or the
        session shifts.
    tokens : list of int
        The tokens generated, without the stop token but with those of a stop string.
    logprobs : list of TokenLogprob
        One for each of ``tokens``, if requested.
    finish_reason : {None, 'stop', 'length', 'time', 'cancelled'}
        None until the text has ended. 'stop': the model, a stop string or the guide ended it.
    stopped_by : int, str or None
        The token or the text that ended it.
    timings : Timings
        How fast it went.
    first_stop_tokens : list of int
        The first 16 stop tokens. The backend stops drawing after one of them.
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
    first_stop_tokens: Sequence[int] = ()
    _pieces: list[str] = field(default_factory=list, repr=False)  # of the text
    _pending: list[int] = field(default_factory=list, repr=False)  # tokens to run next
    _max_tokens: int = 0  # as many as the context holds
    _watched: bool = False  # whether ``cancel`` or ``max_time`` is set
    _started_at: float = 0.0
    _first_token_at: float = 0.0
    _stop_tokens: frozenset[int] = frozenset()
    _n_tokens: int | None = None  # where the padding of the vocabulary begins; None: no padding
    _decoder: Decoder | None = field(default=None, repr=False)
    _stop_strings: StopStrings | None = field(default=None, repr=False)  # None: no stop strings

    def start(self, session: Session, tokenizer: Tokenizer) -> None:
        """Start the clock, and prepare to run what the session has not run of the prompt.

        Raises
        ------
        PromptError
            If there is no token to run, or the prompt does not fit (a ContextError).
        """
        self._started_at = perf_counter()
        self._watched = self.cancel is not None or self.max_time is not None
        self._pending = self.prompt_tokens[self.reused :]
        if not self._pending:
            raise PromptError("there are no tokens to run")
        session.overflow = "error"  # a prompt must fit without a shift
        session.make_room(len(self._pending))
        if self.overflow == "shift":
            session.overflow = "shift"
        self._max_tokens = self.max_tokens
        if self.overflow == "stop":
            # The last token needs no position: nothing comes after it.
            self._max_tokens = min(self.max_tokens, session.room - len(self._pending) + 1)
        self._decoder = tokenizer.decoder(previous=self._pending[-1])
        self._stop_strings = StopStrings(self.stop) if self.stop else None
        bos = frozenset([tokenizer.bos_id])
        self._stop_tokens = bos if self.stop_tokens is None else self.stop_tokens
        vocab_size = session.config.vocab_size
        known = sorted(token for token in self._stop_tokens if 0 <= token < vocab_size)
        self.first_stop_tokens = known[:_MOST_STOP_TOKENS]
        if tokenizer.n_tokens < len(tokenizer):
            # A stop token of the metadata is a token even where the tokenizer's file lacks it.
            self._n_tokens = min(max([tokenizer.n_tokens - 1, *known[-1:]]) + 1, vocab_size)
        self.timings.prompt_tokens = len(self.prompt_tokens)

    @property
    def text(self) -> str:
        """The generated text, without the prompt."""
        return "".join(self._pieces)

    @property
    def may_draw(self) -> bool:
        """Whether one more token may be generated."""
        return len(self.tokens) < self._max_tokens

    @property
    def n_pending(self) -> int:
        """How many tokens must run before a token can be drawn."""
        return len(self._pending)

    def next_tokens(self, most: int) -> list[int]:
        """Return the tokens to run next, at most ``most``."""
        tokens, self._pending = self._pending[:most], self._pending[most:]
        return tokens

    def interrupted(self) -> bool:
        """Check ``cancel`` and the clock, and return whether the text has ended."""
        if self.cancel is not None and self.cancel.is_set():
            self.finish_reason = "cancelled"
        elif self.max_time is not None and perf_counter() - self._started_at >= self.max_time:
            self.finish_reason = "time"
        return self.finish_reason is not None

    @property
    def needs_logits(self) -> bool:
        """Whether the next token is drawn in Python, from logits, and not by the backend."""
        return (
            not self.sampler.plain
            or (self.guide is not None and self.guide.adjusts)
            or self.top_logprobs is not None
            or not self.may_draw
        )

    def draws(self, most: int) -> list[Draw]:
        """Return how the backend draws the next tokens, at most ``most`` of them."""
        if not self.timings.generated_tokens:
            most = 1  # the first token is timed by itself
        return self.sampler.draws(min(most, self._max_tokens - len(self.tokens)), self._n_tokens)

    def feed_logits(self, logits: Logits) -> str:
        """Draw a token from logits (vocab_size,), which may be overwritten.

        Returns
        -------
        str
            The text that is now certain, perhaps ''. If ``finish_reason`` is set, all of the rest.
        """
        self._note_prompt_end()
        if not self.may_draw:
            self.finish_reason = "length"
            return self.end()
        if self.interrupted():
            return self.end()
        logprobs = None if self.top_logprobs is None else log_softmax(logits)
        if self.guide:
            self.guide.adjust(logits)
        token = self.sampler.sample(logits, self.prompt_tokens, self.tokens, self._n_tokens)
        return self._accept(token, logprobs)

    def feed_token(self, token: int) -> str:
        """Accept a token that the backend drew by the first entry of `draws`.

        Returns
        -------
        str
            As `feed_logits` does.
        """
        if not self.timings.generated_tokens:
            self._note_prompt_end()
        if self._watched and self.interrupted():
            return self.end()
        self.sampler.use_draw()
        return self._accept(token)

    def _note_prompt_end(self) -> None:
        if not self.timings.generated_tokens:
            self.timings.prompt_seconds = perf_counter() - self._started_at

    def _accept(self, token: int, logprobs: NDArray[np.float64] | None = None) -> str:
        timings, now = self.timings, perf_counter()
        timings.generated_tokens += 1
        if timings.generated_tokens == 1:
            self._first_token_at = now
            timings.first_token_seconds = now - self._started_at
        timings.generation_seconds = now - self._first_token_at
        if token in self._stop_tokens:
            self.finish_reason, self.stopped_by = "stop", token
            return self.end()
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(token_logprob(logprobs, token, self.top_logprobs or 0))
        assert self._decoder is not None, "start() comes first"
        completed = self._decoder.feed(token)
        piece = self._show(completed)
        if self.finish_reason is not None:  # a stop string
            return piece
        if self.guide and not self.guide.accept(token, completed):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._max_tokens:
            self.finish_reason = "length"
        else:
            self._pending = [token]
            return piece
        return piece + self.end()

    def end(self) -> str:
        """Return the text held back: an incomplete character, the beginning of a stop string."""
        if self._decoder is None or isinstance(self.stopped_by, str):
            return ""
        rest = self._show(self._decoder.flush())
        held = self._stop_strings.flush() if self._stop_strings else ""
        self._pieces.append(held)
        return rest + held

    def _show(self, completed: str) -> str:
        """Add to the text whatever cannot be the beginning of a stop string."""
        stops = self._stop_strings
        if stops is None:
            if completed:
                self._pieces.append(completed)
            return completed
        piece = stops.feed(completed)
        self._pieces.append(piece)
        if stops.found is not None:
            self.finish_reason, self.stopped_by = "stop", stops.found
        return piece

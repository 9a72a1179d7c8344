"""The options of `generate` and the like, and the only place that makes a job."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol, TypedDict, cast, get_args

from ..config import ModelConfig
from ..engine.backend import Backend
from ..engine.parameters import (
    instance,
    one_of,
    real_number,
    shown,
    token_ids,
    unknown_option,
    whole_number,
    wrong,
)
from ..engine.session import Session
from ..errors import ContextError, ParameterError, PromptError
from ..tokenizers.tokenizer import Tokenizer
from .job import Guide, Job, Overflow
from .logits import LogitsProcessor
from .sampling import Coin, Sampler, SamplingParams
from .stopping import StopStrings

_STOPPING = {"stop", "stop_tokens", "max_time", "cancel", "logprobs", "overflow", "session"}


class TextOptions(TypedDict, total=False):
    """The options of any text: how its tokens are drawn, and what ends it. See `Options`."""

    top_k: int
    min_p: float
    typical_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    banned_tokens: Collection[int]
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None
    stop: str | Iterable[str]
    stop_tokens: Iterable[int] | None
    max_time: float | None
    cancel: threading.Event | None
    logprobs: int | None


class Options(TextOptions, total=False):
    """More options of `Model.generate`, `Model.stream` and the like. The defaults are llama2.c's.

    Attributes
    ----------
    top_k, min_p, typical_p, repetition_penalty, frequency_penalty, presence_penalty, \
logit_bias, banned_tokens, logits_processor
        See `SamplingParams`.
    stop : str or iterable of str
        Strings that end the text, even if they span tokens. Neither the text nor a streamed piece
        ever contains any part of one.
    stop_tokens : iterable of int
        Tokens that end the text. Default: `Model.stop_tokens`: only BOS for llama2.c's models, as
        in llama2.c, and BOS and the metadata's end tokens for others. ``(1, 2)``: BOS and Llama 2's
        EOS. ``()``: no token ends the text.
    max_time : float
        End the text after this many seconds, prompt included.
    cancel : threading.Event
        End the text when any thread sets it.
    logprobs : int
        Keep the log-probability of each token, and of this many most probable alternatives.
    overflow : {'stop', 'error', 'shift'}
        What to do when the context is full. Default: 'stop', as in llama2.c: the text ends with
        ``finish_reason`` 'length'. 'error': raise ContextError. 'shift': forget the oldest tokens
        after the first and keep generating, see `Session.shift`; ``max_tokens`` may then be larger
        than the context. A prompt that does not fit is an error in all three.
    session : Session
        Continue after the tokens of this session, and leave it open. The prompt may then be empty.
        For one prompt only. See `Model.session` and `Model.load_session`.
    """

    overflow: Overflow
    session: Session | None


class GenerateOptions(Options, total=False):
    """The options of `Model.agenerate`: all parameters of `Model.generate` but the prompt."""

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | Sequence[int] | None
    max_batch: int


class ChatOptions(TextOptions, total=False):
    """The options of an answer: those of `Options`, and the first ones of `Model.generate`."""

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None


class Generator(Protocol):
    """What a job needs from a model."""

    tokenizer: Tokenizer
    stop_tokens: frozenset[int]

    @property
    def backend(self) -> Backend:
        """The engine."""


@dataclass(frozen=True, slots=True)
class JobMaker:
    """The checked options of one text or of many; made by `check_options`."""

    model: Generator
    params: SamplingParams
    max_tokens: int
    stop_tokens: frozenset[int]
    stop: tuple[str, ...]
    max_time: float | None
    cancel: threading.Event | None
    top_logprobs: int | None
    overflow: Overflow
    session: Session | None = None

    def job(self, prompt: str | Sequence[int], seed: int | None) -> Job:
        """Return the job for one prompt.

        Raises
        ------
        PromptError
            As `prompt_tokens` does.
        ParameterError
            If the seed is wrong.
        """
        config, reused = self.model.backend.config, 0
        if self.session is not None:
            prompt, reused = continuation(self.session, prompt, self.model.tokenizer)
        tokens = prompt_tokens(prompt, self.model.tokenizer, config)
        job = self.job_of(tokens, self.sampler(seed))
        job.reused = reused
        return job

    def sampler(self, seed: int | None) -> Sampler:
        """Return a sampler with these options.

        Raises
        ------
        ParameterError
            If the seed is wrong.
        """
        return Sampler(self.model.backend, self.params, seed)

    def job_of(
        self,
        tokens: list[int],
        sampler: Sampler,
        max_tokens: int | None = None,
        guide: Guide | None = None,
    ) -> Job:
        """Return the job for tokens that have been checked, with a sampler that may have been used.

        Parameters
        ----------
        tokens : list of int
            The tokens to run first.
        sampler : Sampler
            Draws the tokens. The turns of a dialogue share one.
        max_tokens : int, optional
            Instead of the option.
        guide : Guide, optional
            Steers the text.
        """
        return Job(
            tokens,
            sampler,
            self.max_tokens if max_tokens is None else max_tokens,
            guide,
            stop_tokens=self.stop_tokens,
            stop=self.stop,
            max_time=self.max_time,
            cancel=self.cancel,
            top_logprobs=self.top_logprobs,
            overflow=self.overflow,
        )

    def jobs(
        self, prompts: Iterable[str | Sequence[int]], seeds: Iterable[int | None]
    ) -> Iterator[Job]:
        """Yield a job for each prompt. An error says which prompt it concerns, counted from 0."""
        if self.session is not None:
            raise ParameterError("a session continues one prompt, and there is a list of prompts")
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=False)):
            try:
                job = self.job(prompt, seed)
            except PromptError as error:
                raise type(error)(f"prompt {number}: {error}") from None
            yield job


def check_options(
    model: Generator,
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    options: Options,
) -> JobMaker:
    """Check the options, and return the maker of jobs that have them.

    Raises
    ------
    ParameterError
        If an option is unknown, has a wrong type, or is out of its range.
    """
    if unknown := options.keys() - Options.__annotations__.keys():
        named = ("max_tokens", "temperature", "top_p", "seed", "max_batch")
        raise unknown_option(min(unknown), [*Options.__annotations__, *named])
    context = model.backend.config.seq_len
    max_tokens = context if max_tokens is None else whole_number("max_tokens", max_tokens)
    sampling = {name: value for name, value in options.items() if name not in _STOPPING}
    params = SamplingParams(temperature, top_p, **sampling)  # type: ignore[arg-type]
    max_time, logprobs = options.get("max_time"), options.get("logprobs")
    if max_time is not None:
        max_time = real_number("max_time", max_time, 0, math.inf, "seconds from 0 up")
    if logprobs is not None:
        logprobs = whole_number("logprobs", logprobs)
    cancel = options.get("cancel")
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise wrong("cancel", cancel, "a threading.Event")
    stop_tokens = options.get("stop_tokens")
    overflow = options.get("overflow", "stop")
    one_of("overflow", overflow, get_args(Overflow))
    session = options.get("session")
    if session is not None:
        instance("session", session, Session, "a Session")
        if session.backend is not model.backend:
            raise ParameterError("the session belongs to another model")
    return JobMaker(
        model,
        params,
        max_tokens,
        stop_tokens=model.stop_tokens
        if stop_tokens is None
        else frozenset(token_ids("stop_tokens", stop_tokens)),
        stop=_checked_stop(options.get("stop")),
        max_time=max_time,
        cancel=cancel,
        top_logprobs=logprobs,
        overflow=overflow,
        session=session,
    )


def _checked_stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    if isinstance(stop, str):
        stop = (stop,) if stop else ()
    if not isinstance(stop, Iterable) or isinstance(stop, bytes | bytearray):
        raise wrong("stop", stop, "a str or an iterable of str")
    texts = tuple(stop)
    for text in texts:
        if not isinstance(text, str):
            raise ParameterError(f"stop holds {shown(text)}, expected str")
    StopStrings(texts)  # refuses empty texts now, not when the text begins
    return texts


def prompt_tokens(
    prompt: str | Sequence[int], tokenizer: Tokenizer, config: ModelConfig
) -> list[int]:
    """Return the tokens that a prompt is run as: BOS and the text's, or those given.

    Raises
    ------
    PromptError
        If there are no tokens, one is outside the vocabulary, or the text cannot be encoded.
    ContextError
        A PromptError: if there are more tokens than the context holds.
    """
    tokens = text_tokens(prompt, tokenizer, config)
    if len(tokens) > config.seq_len:
        raise ContextError(
            f"the prompt is {len(tokens)} tokens long, longer than"
            f" the model's context of {config.seq_len}"
        )
    return tokens


def continuation(
    session: Session, prompt: str | Sequence[int], tokenizer: Tokenizer
) -> tuple[list[int], int]:
    """Return the tokens of a session and of a prompt after them, and how many are run already.

    The last token is always left to run, for its logits.
    """
    before = session.tokens
    if isinstance(prompt, str):
        more = tokenizer.encode(prompt, bos=not before) if prompt or not before else []
    else:
        more = token_ids("the prompt", prompt, PromptError)
    return [*before, *more], min(len(before), max(0, len(before) + len(more) - 1))


def text_tokens(text: str | Sequence[int], tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    """Return what `prompt_tokens` does, for a text that may be longer than the context.

    Raises
    ------
    PromptError
        As `prompt_tokens` does.
    """
    if isinstance(text, str):
        tokens = tokenizer.encode(text, bos=True)
    elif isinstance(text, Iterable) and not isinstance(text, bytes | bytearray | memoryview):
        tokens = token_ids("the prompt", text, PromptError)
    else:
        raise PromptError(f"the prompt is {shown(text)}, expected str or a sequence of token ids")
    if not tokens:
        raise PromptError("the prompt has no tokens; begin it with BOS")
    config.check_tokens(tokens)
    return tokens


def is_one(prompt: object) -> bool:
    """Return whether this is one prompt, a text or its tokens, and not a sequence of prompts."""
    if isinstance(prompt, str | bytes | bytearray | memoryview) or not isinstance(prompt, Iterable):
        return True
    first = next(iter(prompt), 0)  # not of an iterator, which would lose it
    return not isinstance(first, str) and not hasattr(first, "__len__")


def seeds_of(seed: int | Iterable[int] | None) -> Iterator[int | None]:
    """Yield a seed for each of endless prompts: those given, the same for all, or None.

    Raises
    ------
    ParameterError
        If there are fewer seeds than prompts: the missing ones would end the texts silently.
    """
    if seed is None or not isinstance(seed, Iterable):
        yield from repeat(seed)
        return
    n = 0
    for one in seed:
        n += 1
        yield one
    raise ParameterError(f"there are only {n} seeds, expected one for each prompt")


def seed_each(seed: int | Sequence[int] | None, n: int) -> Sequence[int | None]:
    """Return a seed for each of ``n`` prompts: those given, the same for all, or None.

    Raises
    ------
    ParameterError
        If the number of seeds is not the number of prompts.
    """
    if seed is None:
        return [None] * n
    given: Any = seed
    if not hasattr(given, "__len__") or isinstance(given, str):
        return [Coin.checked(given)] * n
    if len(given) != n:
        raise ParameterError(f"there are {len(given)} seeds for {n} prompts, expected one each")
    return cast("Sequence[int]", given)

"""What may be asked of a text beside its prompt and its seed, and the job that comes of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import index
from typing import TypedDict, cast, get_args

from ..engine.backend import Backend
from ..errors import ParameterError
from .job import Job, Overflow
from .logits import LogitsProcessor
from .sampling import Sampler, SamplingParams
from .stopping import StopTexts

_STOPPING = {"stop", "stop_tokens", "max_time", "cancel", "logprobs", "overflow"}


class Options(TypedDict, total=False):
    """Further keywords of `Model.generate` and its kin; without them everything is llama2.c's.

    Attributes
    ----------
    top_k, min_p, typical_p, repetition_penalty, frequency_penalty, presence_penalty, \
logit_bias, banned_tokens, logits_processor
        See `SamplingParams`.
    stop : str or iterable of str
        Texts that end the text, wherever tokens part; neither the text nor a streamed piece ever
        holds a part of one.
    stop_tokens : iterable of int
        Tokens that end the text. Default: `Model.stop_tokens`, which is BOS alone for llama2.c's
        models, as in llama2.c, and BOS and the end tokens that its metadata names for another.
        ``(1, 2)``: BOS and Llama 2's EOS; ``()``: none.
    max_time : float
        Seconds, prompt included, after which the text ends.
    cancel : threading.Event
        Set by any thread, it ends the text.
    logprobs : int
        Keep the log-probability of each token, and so many most probable ones beside it; 0: none.
    overflow : {'stop', 'error', 'shift'}
        What to do at the end of the context. Default: 'stop', as in llama2.c: the text ends there,
        with ``finish_reason`` 'length', for a story of full length is none the worse for it.
        'error': raise ContextError. 'shift': go on without the oldest tokens behind the first, see
        `Session.shift`; ``max_tokens`` may be above the context then. A prompt that does not fit is
        an error in all three.
    """

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
    overflow: Overflow


def make_job(
    backend: Backend,
    prompt_tokens: list[int],
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    seed: int | None,
    options: Options,
    stop_tokens: frozenset[int] | None = None,
) -> Job:
    """Check what is asked for, and put it together; ``stop_tokens`` are the default ones.

    Raises
    ------
    ParameterError
        If a number is out of its range.
    TypeError
        If an option is unknown.
    """
    if unknown := options.keys() - Options.__annotations__.keys():
        raise TypeError(f"unknown option {min(unknown)!r}, expected one of llama2py.Options")
    limit = backend.config.seq_len if max_tokens is None else index(max_tokens)
    if limit < 0:
        raise ParameterError(f"max_tokens is {limit}, expected a whole number from 0 up")
    sampling = {name: value for name, value in options.items() if name not in _STOPPING}
    params = SamplingParams(temperature, top_p, **sampling)  # type: ignore[arg-type]
    max_time, logprobs = options.get("max_time"), options.get("logprobs")
    if max_time is not None and (math.isnan(max_time) or max_time < 0):
        raise ParameterError(f"max_time is {max_time}, expected seconds from 0 up")
    if logprobs is not None and index(logprobs) < 0:
        raise ParameterError(f"logprobs is {logprobs}, expected a whole number from 0 up")
    stop = options.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    StopTexts(stop)  # raises here, not when the text begins
    ends = options.get("stop_tokens")
    overflow = options.get("overflow", "stop")
    if overflow not in get_args(Overflow):
        expected = ", ".join(get_args(Overflow))
        raise ParameterError(f"overflow is {overflow!r}, expected one of {expected}")
    return Job(
        prompt_tokens,
        Sampler(backend, params, seed),
        limit,
        stop_tokens=stop_tokens if ends is None else frozenset(index(token) for token in ends),
        stop=stop,
        max_time=max_time,
        cancel=options.get("cancel"),
        top_logprobs=logprobs,
        overflow=overflow,
    )


def is_one(prompt: object) -> bool:
    """Whether a prompt is one: a text or its tokens, not a sequence of prompts."""
    if isinstance(prompt, str | bytes | bytearray | memoryview):
        return True
    first = next(iter(prompt), 0)  # type: ignore[call-overload]  # no iterator, which would miss it
    return not isinstance(first, str) and not hasattr(first, "__len__")


def seeds_of(seed: int | Iterable[int] | None) -> Iterator[int | None]:
    """A seed for each of endless prompts: those given, the same for all, or a fresh one each.

    Raises
    ------
    ParameterError
        If those given come to an end: they would end the texts, too.
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
    """A seed for each of ``n`` prompts: those given, the same for all, or a fresh one each.

    Raises
    ------
    ParameterError
        If there are not as many as prompts.
    """
    if seed is None or not hasattr(seed, "__len__"):
        return [seed] * n
    if len(seed) != n:
        raise ParameterError(f"there are {len(seed)} seeds for {n} prompts, expected one each")
    return cast("Sequence[int]", seed)

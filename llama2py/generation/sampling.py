"""How the next token is chosen: the parameters, the seeded coin, the sampler."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any, cast

import numpy as np

from ..engine.backend import Backend, Draw, Logits, draw_token
from ..engine.parameters import known_fields, real_number, token_ids, whole_number, wrong
from ..errors import ParameterError
from .logits import LogitsProcessor, add_bias, cut, penalize, process, softmax

# Dividing logits by a smaller temperature would overflow float32. It counts as 0.
_SMALLEST_TEMPERATURE = 1e-30
_MASK = (1 << 64) - 1
# xorshift64* cannot leave the state 0, so seed 0 is replaced by this one (2^64 / golden ratio).
_SEED_ZERO = 0x9E3779B97F4A7C15
_LARGEST = 1.7976931348623157e308  # finite float


@known_fields
@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn from logits, in the order that `llama2py.generation.logits` lists.

    The defaults are llama2.c's: temperature and top-p, everything else off.

    Parameters
    ----------
    temperature : float
        Logits are divided by it. Below 1, the distribution is sharper; above 1, flatter. 0: always
        the most probable token.
    top_p : float
        Draw from the smallest set of most probable tokens whose probabilities sum to more than
        this. 0 and 1: draw from all tokens.
    top_k : int
        Draw from the ``top_k`` most probable tokens. 0: from all.
    min_p : float
        Draw from tokens with at least this fraction of the best token's probability. 0: from all.
    typical_p : float
        Draw from the tokens whose surprise is closest to the entropy: the fewest whose
        probabilities sum to at least this. 1: from all.
    repetition_penalty : float
        Logits of tokens in the prompt and the text so far are divided by it where positive and
        multiplied where negative. 1: off.
    frequency_penalty, presence_penalty : float
        Subtracted from the logits of generated tokens: once per occurrence, and once.
    logit_bias : mapping of int to float
        Added to the logits of some tokens. Infinity forces a token, minus infinity bans it.
    banned_tokens : iterable of int
        Tokens never to draw.
    logits_processor : callable or sequence of callables, optional
        ``processor(tokens, logits)`` receives all tokens so far and the logits (vocab_size,),
        float32, and returns the logits to use. It may change its argument and return it.

    Raises
    ------
    ParameterError
        If a parameter has a wrong type or is out of its range.

    Examples
    --------
    >>> SamplingParams(top_k=40, min_p=0.05).top_p
    0.9
    """

    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    banned_tokens: Collection[int] = ()
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None

    def __post_init__(self) -> None:
        real_number("temperature", self.temperature, 0, _LARGEST, "a finite number from 0 up")
        for name in ("top_p", "min_p", "typical_p"):
            real_number(name, getattr(self, name), 0, 1, "a number from 0 to 1")
        whole_number("top_k", self.top_k)
        penalty, smallest = self.repetition_penalty, math.ulp(0.0)
        real_number("repetition_penalty", penalty, smallest, _LARGEST, "a number above 0")
        for name in ("frequency_penalty", "presence_penalty"):
            real_number(name, getattr(self, name), -_LARGEST, _LARGEST, "a finite number")
        # Copies: an iterator can be read only once, and an array has no truth value.
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        banned = tuple(token_ids("banned_tokens", self.banned_tokens))
        object.__setattr__(self, "banned_tokens", banned)
        processors = _checked_processors(self.logits_processor)
        object.__setattr__(self, "logits_processor", processors)

    @property
    def plain(self) -> bool:
        """Whether only temperature and top-p are set, so that the engine can draw the tokens."""
        return (
            self.top_k == self.min_p == 0
            and self.typical_p == self.repetition_penalty == 1
            and self.frequency_penalty == self.presence_penalty == 0
            and not (self.logit_bias or self.banned_tokens or self.logits_processor)
        )


def _checked_bias(bias: Any) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise wrong("logit_bias", bias, "a mapping of token ids to numbers")
    tokens = token_ids("logit_bias", bias)
    expected = "numbers, which may be infinite"
    values = [
        real_number(f"logit_bias[{token}]", value, -math.inf, math.inf, expected)
        for token, value in zip(tokens, bias.values(), strict=True)
    ]
    return dict(zip(tokens, values, strict=True))


def _checked_processors(given: Any) -> tuple[LogitsProcessor, ...]:
    if given is None:
        return ()
    processors = (given,) if callable(given) else given
    if not isinstance(processors, Iterable) or isinstance(processors, str):
        raise wrong("logits_processor", given, "a function or a sequence of functions")
    processors = tuple(processors)
    for processor in processors:
        if not callable(processor):
            raise wrong("logits_processor", processor, "a function")
    return processors


class Coin:
    """llama2.c's random numbers: xorshift64*, 24 bits of each as a float in [0, 1).

    Parameters
    ----------
    seed : int
        0 to 2**64 - 1. The same seed gives the same coins as in llama2.c. The exception is 0, which
        llama2.c replaces with the time and this class with another fixed seed.

    Raises
    ------
    ParameterError
        If the seed is not an integer or is out of range.

    References
    ----------
    Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled" (2016).
    """

    def __init__(self, seed: int) -> None:
        self.state = self.checked(seed) or _SEED_ZERO

    @staticmethod
    def checked(seed: int) -> int:
        """Return the seed as an int.

        Raises
        ------
        ParameterError
            If it is not an integer or is out of range.
        """
        try:
            return whole_number("seed", seed, 0, _MASK)
        except ParameterError:
            raise wrong("seed", seed, "a whole number from 0 to 2**64 - 1") from None

    def flip(self) -> float:
        """Return the next coin."""
        return self.flips(1)[0]

    def flips(self, n: int) -> list[float]:
        """Return the next ``n`` coins."""
        coins = []
        s = self.state
        for _ in range(n):
            s ^= s >> 12
            s ^= s << 25 & _MASK
            s ^= s >> 27
            coins.append((s * 0x2545F4914F6CDD1D >> 40 & 0xFFFFFF) / 16777216.0)  # bits 40 to 63
        self.state = s
        return coins


def random_seed() -> int:
    """Return a fresh seed: short enough to read out, and valid for llama2.c's ``-s``, too."""
    return int.from_bytes(os.urandom(4), "little") % 0x7FFFFFFF + 1


class Sampler:
    """Chooses the tokens of one text, and owns its coins.

    Parameters
    ----------
    backend : Backend
        Does the arithmetic.
    params : SamplingParams
        How to choose.
    seed : int, optional
        See `Coin`. Default: a fresh one.

    Attributes
    ----------
    plain : bool
        As in `SamplingParams`.

    Raises
    ------
    ParameterError
        If the seed is wrong, or ``params`` names a token outside the vocabulary.
    """

    def __init__(self, backend: Backend, params: SamplingParams, seed: int | None = None) -> None:
        self._backend = backend
        self.params = params
        self.seed = random_seed() if seed is None else Coin.checked(seed)
        self._coin = Coin(self.seed)
        self._coins: deque[float] = deque()  # flipped for `draws`, and not used yet

    @property
    def params(self) -> SamplingParams:
        """How tokens are chosen; may be set at any time."""
        return self._params

    @params.setter
    def params(self, params: SamplingParams) -> None:
        vocab_size = self._backend.config.vocab_size
        for name, tokens in (
            ("logit_bias", params.logit_bias),
            ("banned_tokens", params.banned_tokens),
        ):
            for token in tokens:
                if not 0 <= token < vocab_size:
                    raise ParameterError(
                        f"token {token} of {name} is outside the vocabulary,"
                        f" expected 0 to {vocab_size - 1}"
                    )
        self._params, self.plain = params, params.plain
        self._flips = params.temperature >= _SMALLEST_TEMPERATURE
        bias = params.logit_bias
        self._biased = np.fromiter(bias.keys(), np.int64, len(bias))
        with np.errstate(over="ignore"):  # a bias beyond float32 is infinite
            self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._banned = np.array(params.banned_tokens, np.int64)

    @property
    def state(self) -> list[int | float]:
        """The state of the random numbers: set it on another sampler, and that one goes on."""
        return [self._coin.state, *self._coins]

    @state.setter
    def state(self, state: Sequence[int | float]) -> None:
        coin, *coins = state or [0]
        if not (
            type(coin) is int
            and 0 < coin <= _MASK
            and all(type(flipped) is float and 0 <= flipped < 1 for flipped in coins)
        ):
            raise ParameterError("the state of the random numbers is malformed")
        self._coin.state, self._coins = coin, deque(coins)

    def draws(self, n: int, n_tokens: int | None = None) -> list[Draw]:
        """Return how the backend draws the next ``n`` tokens, if this sampler is `plain`.

        Call `use_draw` once for each of these tokens that is used. The coins of the others are
        used again for the next draws.

        Parameters
        ----------
        n : int
            How many tokens.
        n_tokens : int, optional
            As in `sample`.
        """
        params = self._params
        drawable = self._backend.config.vocab_size if n_tokens is None else n_tokens
        if not self._flips:
            return [Draw(0.0, 1.0, 0.0, drawable)] * n
        self._coins.extend(self._coin.flips(n - len(self._coins)))
        how = repeat(params.temperature), repeat(params.top_p)
        return list(map(Draw, *how, islice(self._coins, n), repeat(drawable)))

    def use_draw(self) -> None:
        """Record that the token of the first of `draws` is used, and so is its coin."""
        if self._flips:
            self._coins.popleft()

    def _next_coin(self) -> float:
        return self._coins.popleft() if self._coins else self._coin.flip()

    def sample(
        self,
        logits: Logits,
        prompt_tokens: Sequence[int] = (),
        tokens: Sequence[int] = (),
        n_tokens: int | None = None,
    ) -> int:
        """Return the next token. Logits (vocab_size,) may be overwritten.

        Temperature 0 (or below 1e-30) uses no coin.

        Parameters
        ----------
        logits : ndarray, float32, shape (vocab_size,)
            The model's logits.
        prompt_tokens, tokens : sequence of int
            The prompt and the text so far, for penalties and processors.
        n_tokens : int, optional
            Draw from the first ``n_tokens`` tokens; the others are padding. Default: from all.

        Raises
        ------
        ParameterError
            If bans and processors leave no token to draw.
        """
        if self.plain:
            (draw,) = self.draws(1, len(logits[:n_tokens]))
            self.use_draw()
            return draw_token(self._backend, logits, draw)
        params = self._params
        logits = self._adjusted(logits, prompt_tokens, tokens, n_tokens)
        if not self._flips:
            return self._backend.argmax(logits)
        coin = self._next_coin()
        p = softmax(logits, params.temperature)
        drawable = cut(p, params.top_k, params.typical_p, params.top_p, params.min_p)
        sums = np.cumsum(p[drawable])
        drawn = int(np.searchsorted(sums, coin * sums[-1], side="right"))
        return int(drawable[min(drawn, len(drawable) - 1)])

    def _adjusted(
        self,
        logits: Logits,
        prompt_tokens: Sequence[int],
        tokens: Sequence[int],
        n_tokens: int | None,
    ) -> Logits:
        """Return the logits (n_tokens,) after every step that comes before temperature."""
        params = self._params
        penalize(
            logits,
            prompt_tokens,
            tokens,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        add_bias(logits, self._biased, self._bias, self._banned)
        if params.logits_processor:
            processors = cast("tuple[LogitsProcessor, ...]", params.logits_processor)
            logits = process(logits, [*prompt_tokens, *tokens], processors)
        logits = logits[:n_tokens]  # not earlier: a prompt or a bias may name padding
        best = logits.max()
        if np.isnan(best):  # as in llama2.c, a NaN is never drawn
            logits = np.where(np.isnan(logits), np.float32(-np.inf), logits)
            best = logits.max()
        if best == -np.inf:
            raise ParameterError("no token is left to draw: all are banned or have a logit of -inf")
        return logits

"""How the next token is chosen: the parameters, the seeded coin, the sampler."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import index
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..engine.backend import Backend, Draw, Logits, pick
from ..errors import ParameterError
from .logits import LogitsProcessor, add_bias, cut, penalize, process, softmax

# Logits over a smaller temperature leave float32: it counts as 0.
_SMALLEST_TEMPERATURE = 1e-30
_MASK = (1 << 64) - 1
# xorshift64* cannot leave the state 0, so seed 0 stands for another (2^64 / golden ratio).
_SEED_ZERO = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What the sampler does with logits, in the order that `adjusting` tells. The defaults are
    llama2.c's: the rest does nothing.

    Parameters
    ----------
    temperature : float
        Logits are divided by it: below 1 sharper, above 1 flatter. 0: the most probable token.
    top_p : float
        Draw from the smallest set of most probable tokens whose sum exceeds this; 0 and 1: from
        all of them.
    top_k : int
        Draw from so many most probable tokens at most; 0: from all.
    min_p : float
        Draw from tokens at least this fraction as probable as the best one; 0: from all.
    typical_p : float
        Draw from the tokens whose surprise is nearest to the expected one, the fewest that sum up
        to this; 1: from all.
    repetition_penalty : float
        Logits of tokens of the prompt and the text so far are divided by it where positive, else
        multiplied; 1: not.
    frequency_penalty, presence_penalty : float
        Taken off the logits of generated tokens: for each time it came, and once.
    logit_bias : mapping of int to float
        Added to the logits of some tokens; infinity forces one, minus infinity bans it.
    banned_tokens : iterable of int
        Never drawn.
    logits_processor : callable or sequence of callables, optional
        ``processor(tokens, logits)`` gets all tokens so far and the logits (vocab_size,), float32,
        and gives the logits to go on with. It may change and give back those that it got.

    Raises
    ------
    ParameterError
        If a number is out of its range.

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
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ParameterError(
                f"temperature is {self.temperature}, expected a finite number from 0 up"
            )
        for name in ("top_p", "min_p", "typical_p"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ParameterError(f"{name} is {value}, expected a number from 0 to 1")
        if index(self.top_k) < 0:
            raise ParameterError(f"top_k is {self.top_k}, expected a whole number from 0 up")
        if not 0 < self.repetition_penalty < math.inf:
            raise ParameterError(
                f"repetition_penalty is {self.repetition_penalty}, expected a number above 0"
            )
        for name in ("frequency_penalty", "presence_penalty"):
            if not math.isfinite(value := getattr(self, name)):
                raise ParameterError(f"{name} is {value}, expected a finite number")
        # Iterators are used up by the first look, and arrays are neither true nor false.
        bias = {index(token): float(value) for token, value in self.logit_bias.items()}
        if any(math.isnan(value) for value in bias.values()):
            raise ParameterError("logit_bias holds nan, expected numbers")
        given = self.logits_processor
        processors = () if given is None else (given,) if callable(given) else tuple(given)
        object.__setattr__(self, "logit_bias", bias)
        object.__setattr__(self, "banned_tokens", tuple(index(t) for t in self.banned_tokens))
        object.__setattr__(self, "logits_processor", processors)

    @property
    def plain(self) -> bool:
        """Whether temperature and top-p are all there is: one call of the engine."""
        return (
            self.top_k == self.min_p == 0
            and self.typical_p == self.repetition_penalty == 1
            and self.frequency_penalty == self.presence_penalty == 0
            and not (self.logit_bias or self.banned_tokens or self.logits_processor)
        )


class Coin:
    """llama2.c's random numbers: xorshift64*, 24 bits of each as a float in [0, 1).

    Parameters
    ----------
    seed : int
        0 to 2**64 - 1. The same seed gives the same coins as llama2.c; for 0, which llama2.c takes
        for "use the time", it is a fixed other seed.

    Raises
    ------
    ParameterError
        If the seed is out of range.

    References
    ----------
    Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled" (2016).
    """

    def __init__(self, seed: int) -> None:
        self._state = self.checked(seed) or _SEED_ZERO
        self._ahead: deque[float] = deque()  # flipped and not taken yet

    @staticmethod
    def checked(seed: int) -> int:
        """The seed, if it is one.

        Raises
        ------
        ParameterError
            If it is out of range.
        """
        seed = index(seed)
        if not 0 <= seed <= _MASK:
            raise ParameterError(f"seed is {seed}, expected a whole number from 0 to 2**64 - 1")
        return seed

    def flip(self) -> float:
        """The next coin."""
        return self._ahead.popleft() if self._ahead else self._flip()

    def look_ahead(self, n: int) -> list[float]:
        """The next n coins, which `flip` gives all the same."""
        while len(self._ahead) < n:
            self._ahead.append(self._flip())
        return list(islice(self._ahead, n))

    def _flip(self) -> float:
        s = self._state
        s ^= s >> 12
        s = (s ^ (s << 25)) & _MASK
        s ^= s >> 27
        self._state = s
        return ((s * 0x2545F4914F6CDD1D & _MASK) >> 40) / 16777216.0


def random_seed() -> int:
    """A fresh seed, short enough to read out, that llama2.c's ``-s`` takes too."""
    return int.from_bytes(os.urandom(4), "little") % 0x7FFFFFFF + 1


def draw(probabilities: NDArray[np.float32], top_p: float, coin: float) -> int:
    """What the engine does with probabilities and a coin, in NumPy.

    Parameters
    ----------
    probabilities : ndarray, float32, shape (n,)
        They sum up to 1.
    top_p : float
        Draw from the smallest set of most probable indices whose sum exceeds it, most probable
        first, of equals the lower index; 0 and 1: from all, in order of index.
    coin : float
        In [0, 1).

    Returns
    -------
    int
        The first index whose running sum exceeds ``coin`` times the sum of the set.
    """
    order = np.arange(len(probabilities))
    total, cut = np.float32(1), np.float32(top_p)
    if 0 < cut < 1:
        order = np.argsort(-probabilities, kind="stable")
        sums = np.cumsum(probabilities[order])
        order = order[: int(np.searchsorted(sums, cut, side="right")) + 1]
        total = sums[len(order) - 1]
    sums = np.cumsum(probabilities[order])
    drawn = int(np.searchsorted(sums, np.float32(coin) * total, side="right"))
    return int(order[min(drawn, len(order) - 1)])


class Sampler:
    """Chooses tokens; owns its coin, so one sampler tells one story.

    Parameters
    ----------
    backend : Backend
        Who does the arithmetic.
    params : SamplingParams
        How.
    seed : int, optional
        See `Coin`; None draws a fresh one.

    Attributes
    ----------
    plain : bool
        Of its parameters: temperature and top-p are all there is.
    """

    def __init__(self, backend: Backend, params: SamplingParams, seed: int | None = None) -> None:
        self.params = params
        self.seed = random_seed() if seed is None else seed
        self._backend = backend
        self._coin = Coin(self.seed)

    @property
    def params(self) -> SamplingParams:
        """How tokens are chosen; may be set at any time."""
        return self._params

    @params.setter
    def params(self, params: SamplingParams) -> None:
        self._params, self.plain = params, params.plain
        self._flips = params.temperature >= _SMALLEST_TEMPERATURE
        bias = params.logit_bias
        self._biased = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._banned = np.array(params.banned_tokens, np.int64)

    def sample(
        self,
        logits: Logits,
        prompt: Sequence[int] = (),
        generated: Sequence[int] = (),
        n_tokens: int | None = None,
    ) -> int:
        """The next token; logits (vocab_size,) may be overwritten.

        With temperature 0 (or below 1e-30) the coin is not touched.

        Parameters
        ----------
        logits : ndarray, float32, shape (vocab_size,)
            Of the model.
        prompt, generated : sequence of int
            The tokens so far, for penalties and processors.
        n_tokens : int, optional
            Draw one of the first so many, the others being padding. Default: of all.

        Raises
        ------
        ParameterError
            If bans and processors leave no token, or a token of theirs is not in the vocabulary.
        """
        if self.plain:
            (draw,) = self.plain_draws(1, len(logits[:n_tokens]))
            self.take_coin()
            return pick(self._backend, logits, draw)
        params = self._params
        logits = self._adjusted(logits, prompt, generated, n_tokens)
        if not self._flips:
            return self._backend.argmax(logits)
        coin = self._coin.flip()
        p = softmax(logits, params.temperature)
        tokens = cut(p, params.top_k, params.typical_p, params.top_p, params.min_p)
        sums = np.cumsum(p[tokens])
        drawn = int(np.searchsorted(sums, coin * sums[-1], side="right"))
        return int(tokens[min(drawn, len(tokens) - 1)])

    def plain_draws(self, n: int, n_tokens: int | None = None) -> list[Draw]:
        """The next draws, coins included, which the backend can do by itself where it is `plain`.

        For each token that comes of them `take_coin` is to be called.

        Parameters
        ----------
        n : int
            So many.
        n_tokens : int, optional
            As in `sample`, but no more than there are logits.
        """
        params = self._params
        drawable = self._backend.config.vocab_size if n_tokens is None else n_tokens
        if not self._flips:
            return [Draw(0.0, 1.0, 0.0, drawable)] * n
        how = params.temperature, params.top_p
        return [Draw(*how, coin, drawable) for coin in self._coin.look_ahead(n)]

    def take_coin(self) -> None:
        """The first of `plain_draws` has given a token: its coin, if it had one, is used up."""
        if self._flips:
            self._coin.flip()

    def _adjusted(
        self,
        logits: Logits,
        prompt: Sequence[int],
        generated: Sequence[int],
        n_tokens: int | None,
    ) -> Logits:
        """The logits (n_tokens,) behind everything that comes before temperature."""
        params = self._params
        penalize(
            logits,
            prompt,
            generated,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        add_bias(logits, self._biased, self._bias, self._banned)
        if params.logits_processor:
            processors = cast("tuple[LogitsProcessor, ...]", params.logits_processor)
            logits = process(logits, [*prompt, *generated], processors)
        logits = logits[:n_tokens]  # not before: a prompt or a bias may name padding
        best = logits.max()
        if np.isnan(best):  # as in llama2.c, a NaN is never drawn
            logits = np.where(np.isnan(logits), np.float32(-np.inf), logits)
            best = logits.max()
        if best == -np.inf:
            raise ParameterError("no token is left to draw, expected at least one that is allowed")
        return logits

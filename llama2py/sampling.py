"""How the next token is chosen: the parameters, the seeded coin, the sampler."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from operator import index

import numpy as np
from numpy.typing import NDArray

from .backend import Backend, Logits
from .errors import ParameterError

# Logits over a smaller temperature leave float32: it counts as 0.
_SMALLEST_TEMPERATURE = 1e-30
_MASK = (1 << 64) - 1
# xorshift64* cannot leave the state 0, so seed 0 stands for another (2^64 / golden ratio).
_SEED_ZERO = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What the sampler does with logits. The defaults are llama2.c's.

    Parameters
    ----------
    temperature : float
        Logits are divided by it: below 1 sharper, above 1 flatter. 0: the most probable token.
    top_p : float
        Draw from the smallest set of most probable tokens whose sum exceeds this; 0 and 1: from
        all of them.

    Raises
    ------
    ParameterError
        If ``temperature`` is not a finite number from 0 up, or ``top_p`` not within 0 to 1.
    """

    temperature: float = 1.0
    top_p: float = 0.9

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ParameterError(
                f"temperature is {self.temperature}, expected a finite number from 0 up"
            )
        if not 0 <= self.top_p <= 1:
            raise ParameterError(f"top_p is {self.top_p}, expected a number from 0 to 1")


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
        Temperature and top-p.
    seed : int, optional
        See `Coin`; None draws a fresh one.
    """

    def __init__(self, backend: Backend, params: SamplingParams, seed: int | None = None) -> None:
        self.params = params
        self.seed = random_seed() if seed is None else seed
        self._backend = backend
        self._coin = Coin(self.seed)

    def sample(self, logits: Logits) -> int:
        """The next token; logits (vocab_size,) may be overwritten.

        With temperature 0 (or below 1e-30) the coin is not touched.
        """
        if self.params.temperature < _SMALLEST_TEMPERATURE:
            return self._backend.argmax(logits)
        return self._backend.sample(
            logits, self.params.temperature, self.params.top_p, self._coin.flip()
        )

"""How fast rotary position embeddings turn, and how long-context models slow that down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """What divides the rotary frequencies of a model that was stretched to a longer context.

    Parameters
    ----------
    kind : {'linear', 'llama3', 'factors'}
        ``linear`` divides all of them by ``factor``; ``llama3`` only those that turn less than
        ``low_freq_factor`` times within ``original_seq_len``, none that turn more than
        ``high_freq_factor`` times, and the ones between in part; ``factors`` has a divisor for
        each frequency.
    factor : float
        Of ``linear`` and ``llama3``.
    low_freq_factor, high_freq_factor : float
        Of ``llama3``, in turns.
    original_seq_len : int
        Of ``llama3``: the context before it was stretched.
    factors : tuple of float, length head_dim / 2
        Of ``factors``.

    Raises
    ------
    ConfigError
        If a number is not finite, not above 0, or in the way of another.

    Notes
    -----
    Source: the model cards of Llama 3.1, and ``rope_scaling`` of Hugging Face's ``config.json``.
    """

    kind: Literal["linear", "llama3", "factors"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_seq_len: int = 8192
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "factors"):
            raise ConfigError(
                f"RoPE scaling of kind {self.kind!r}, expected linear, llama3 or factors"
            )
        numbers = {
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_seq_len": self.original_seq_len,
        }
        numbers |= {f"factor {i}": factor for i, factor in enumerate(self.factors)}
        for name, value in numbers.items():
            # Within float32's range, so that the engine gets a number, too.
            if not 1e-30 < value < 1e30:
                raise ConfigError(f"RoPE scaling's {name} is {value}, expected 1e-30 to 1e30")
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"RoPE scaling's low_freq_factor {self.low_freq_factor} is not below"
                f" its high_freq_factor {self.high_freq_factor}"
            )

    def divisors(self, head_dim: int, theta: float) -> tuple[float, ...]:
        """What to divide each frequency of `frequencies` by, ``head_dim / 2`` numbers."""
        if self.kind == "factors":
            return self.factors
        if self.kind == "linear":
            return (self.factor,) * (head_dim // 2)
        return tuple(map(self._llama3_divisor, frequencies(head_dim, theta)))

    def _llama3_divisor(self, frequency: float) -> float:
        turns = self.original_seq_len * frequency / (2 * math.pi)  # within the original context
        part = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        part = min(max(part, 0.0), 1.0)
        return 1 / ((1 - part) / self.factor + part)


def frequencies(head_dim: int, theta: float) -> list[float]:
    """Radians per position of each pair of channels, unscaled, ``head_dim / 2`` numbers."""
    return [float(theta ** -(i / head_dim)) for i in range(0, head_dim, 2)]

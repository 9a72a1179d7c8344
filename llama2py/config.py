"""ModelConfig: the numbers of a model, validated in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeAlias

from .errors import ConfigError, PromptError

# The dtype of the engine's matrices; norms are always float32.
Dtype: TypeAlias = Literal["float32", "bfloat16", "int8", "int4"]

# The dtype of a KV cache.
CacheDtype: TypeAlias = Literal["float32", "bfloat16"]

# Far above any real model (llama-2-70b: dim 8192, hidden_dim 28672), and so low that the product of
# any two is an exact 64-bit integer in the engine.
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 12
MAX_VOCAB = 1 << 24
MAX_SEQ_LEN = 1 << 24


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """The divisors of the rotary frequencies of a model that was stretched to a longer context.

    Parameters
    ----------
    kind : {'linear', 'llama3', 'factors'}
        ``linear`` divides all frequencies by ``factor``. ``llama3`` divides those that turn less
        than ``low_freq_factor`` times within ``original_seq_len`` by ``factor``, none that turn
        more than ``high_freq_factor`` times, and those in between in part. ``factors`` has a
        divisor for each frequency.
    factor : float
        For ``linear`` and ``llama3``.
    low_freq_factor, high_freq_factor : float
        For ``llama3``, in turns.
    original_seq_len : int
        For ``llama3``: the context before it was stretched.
    factors : tuple of float, length head_dim / 2
        For ``factors``.

    Raises
    ------
    ConfigError
        If a number is not finite, not above 0, or contradicts another.

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
            # Within the range of float32, which the engine computes in.
            if not 1e-30 < value < 1e30:
                raise ConfigError(f"RoPE scaling's {name} is {value}, expected 1e-30 to 1e30")
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"RoPE scaling's low_freq_factor {self.low_freq_factor} is not below"
                f" its high_freq_factor {self.high_freq_factor}"
            )

    def divisors(self, head_dim: int, theta: float) -> tuple[float, ...]:
        """Return the divisor of each frequency of `frequencies`, ``head_dim / 2`` numbers."""
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
    """Return the radians per position of each pair of channels, ``head_dim / 2`` numbers."""
    return [float(theta ** -(i / head_dim)) for i in range(0, head_dim, 2)]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of one transformer.

    Parameters
    ----------
    dim : int
        Width of the residual stream.
    hidden_dim : int
        Width of the feed-forward layer.
    n_layers, n_heads, n_kv_heads : int
        Transformer blocks, query heads, and key/value heads (fewer than ``n_heads`` with
        grouped-query attention).
    vocab_size : int
        Number of token ids.
    seq_len : int
        Longest context, in tokens.
    shared_classifier : bool
        Whether the output matrix is the token embedding.
    norm_eps : float
        Number added to the mean square in RMSNorm.
    rope_theta : float
        Base of the rotary position frequencies.
    head_size : int, optional
        Width of a head if it is not ``dim / n_heads``, else None. See `head_dim`.
    rope_scaling : RopeScaling, optional
        The divisors of the rotary frequencies, if there are any.

    Raises
    ------
    ConfigError
        If the numbers contradict each other or are out of range.
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared_classifier: bool = True
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    head_size: int | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for name in ("norm_eps", "rope_theta"):
            if not isinstance(getattr(self, name), Real):
                raise ConfigError(f"{name} is {getattr(self, name)!r:.60}, expected a number")
        if not isinstance(self.head_size, int | None):
            raise ConfigError(f"head_size is {self.head_size!r:.60}, expected an int or None")
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise ConfigError(
                f"rope_scaling is {self.rope_scaling!r:.60}, expected a RopeScaling or None"
            )
        limits = {
            "dim": MAX_WIDTH,
            "hidden_dim": MAX_WIDTH,
            "n_layers": MAX_LAYERS,
            "n_heads": MAX_WIDTH,
            "n_kv_heads": MAX_WIDTH,
            "vocab_size": MAX_VOCAB,
            "seq_len": MAX_SEQ_LEN,
        }
        for name, limit in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= limit:
                raise ConfigError(f"{name} is {value!r:.60}, expected 1 to {limit}")
        if self.head_size is None:
            if self.dim % self.n_heads:
                raise ConfigError(f"n_heads {self.n_heads} does not divide dim {self.dim}")
        elif not 1 <= self.head_size <= MAX_WIDTH // self.n_heads:
            raise ConfigError(
                f"head_size is {self.head_size},"
                f" expected 1 to {MAX_WIDTH // self.n_heads} with {self.n_heads} heads"
            )
        elif self.head_size * self.n_heads == self.dim:
            object.__setattr__(self, "head_size", None)  # equal models have equal configs
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"the head size dim / n_heads = {self.head_dim} is odd, but rotary embeddings"
                " need pairs of channels"
            )
        if not (math.isfinite(self.norm_eps) and self.norm_eps >= 0):
            raise ConfigError(f"norm_eps is {self.norm_eps}, expected a finite number from 0 up")
        if not 1e-30 < self.rope_theta < 1e30:  # its powers must be finite numbers, too
            raise ConfigError(
                f"rope_theta is {self.rope_theta}, expected a finite number above 0 (1e-30 to 1e30)"
            )
        if self.rope_scaling is not None and self.rope_scaling.kind == "factors":
            n_factors = len(self.rope_scaling.factors)
            if n_factors != self.head_dim // 2:
                raise ConfigError(
                    f"RoPE scaling has {n_factors} factors,"
                    f" expected {self.head_dim // 2}, one for each pair of a head's channels"
                )

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Check that one or more tokens are in the vocabulary.

        Raises
        ------
        PromptError
            A token is not.
        """
        if min(tokens) < 0 or max(tokens) >= self.vocab_size:
            wrong = next(token for token in tokens if not 0 <= token < self.vocab_size)
            raise PromptError(
                f"token {wrong} is out of the vocabulary, expected 0 to {self.vocab_size - 1}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_size or self.dim // self.n_heads

    @property
    def q_dim(self) -> int:
        """Width of the queries of one token: ``n_heads * head_dim``, which is usually ``dim``."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of the keys (and of the values) of one token: ``n_kv_heads * head_dim``."""
        return self.n_kv_heads * self.head_dim

    @property
    def cache_bytes(self) -> int:
        """Bytes of one session's KV cache at full length in float32; bfloat16 takes half."""
        return 2 * 4 * self.n_layers * self.kv_dim * self.seq_len

    @property
    def n_params(self) -> int:
        """Number of weights, the embedding counted once when the classifier shares it."""
        dim, hidden = self.dim, self.hidden_dim
        attention = dim * (2 * self.q_dim + 2 * self.kv_dim)
        layer = 2 * dim + attention + 3 * dim * hidden
        tables = 1 if self.shared_classifier else 2
        return tables * self.vocab_size * dim + self.n_layers * layer + dim

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
    kind : {'linear', 'llama3', 'yarn', 'factors'}
        ``linear`` divides all frequencies by ``factor``. ``llama3`` divides those that turn less
        than ``low_freq_factor`` times within ``original_seq_len`` by ``factor``, none that turn
        more than ``high_freq_factor`` times, and those in between in part. ``yarn`` does the same
        between ``beta_slow`` and ``beta_fast`` turns, with a ramp over the numbers of the
        frequencies. ``factors`` has a divisor for each frequency.
    factor : float
        For all kinds but ``factors``.
    low_freq_factor, high_freq_factor : float
        For ``llama3``, in turns.
    original_seq_len : int
        For ``llama3`` and ``yarn``: the context before it was stretched.
    factors : tuple of float, length rotary_dim / 2
        For ``factors``.
    beta_fast, beta_slow : float
        For ``yarn``, in turns.
    truncate : bool
        For ``yarn``: whether the ramp begins and ends at a whole frequency.
    attention_factor : float
        Multiplies the rotated channels of queries and keys.

    Raises
    ------
    ConfigError
        If a number is not finite, not above 0, or contradicts another.

    Notes
    -----
    Source: the model cards of Llama 3.1, and ``rope_scaling`` of Hugging Face's ``config.json``.
    """

    kind: Literal["linear", "llama3", "yarn", "factors"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_seq_len: int = 8192
    factors: tuple[float, ...] = ()
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "yarn", "factors"):
            raise ConfigError(
                f"RoPE scaling of kind {self.kind!r}, expected linear, llama3, yarn or factors"
            )
        numbers = {
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_seq_len": self.original_seq_len,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "attention_factor": self.attention_factor,
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

    def divisors(self, rotary_dim: int, theta: float) -> tuple[float, ...]:
        """Return the divisor of each frequency of `frequencies`, ``rotary_dim / 2`` numbers."""
        if self.kind == "factors":
            return self.factors
        if self.kind == "linear":
            return (self.factor,) * (rotary_dim // 2)
        if self.kind == "yarn":
            return self._yarn_divisors(rotary_dim, theta)
        return tuple(map(self._llama3_divisor, frequencies(rotary_dim, theta)))

    def _llama3_divisor(self, frequency: float) -> float:
        turns = self.original_seq_len * frequency / (2 * math.pi)  # within the original context
        part = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return self._divisor(part)

    def _yarn_divisors(self, rotary_dim: int, theta: float) -> tuple[float, ...]:
        def number_of(turns: float) -> float:
            """The number of the frequency that turns so often within the original context."""
            return (
                rotary_dim
                * math.log(self.original_seq_len / (turns * 2 * math.pi))
                / (2 * math.log(theta))
            )

        low, high = number_of(self.beta_fast), number_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        width = high - low if high != low else 0.001
        return tuple(self._divisor(1 - (i - low) / width) for i in range(rotary_dim // 2))

    def _divisor(self, part: float) -> float:
        """The divisor of a frequency of which a part from 0 to 1 is left as it is."""
        part = min(max(part, 0.0), 1.0)
        return 1 / ((1 - part) / self.factor + part)


def frequencies(rotary_dim: int, theta: float) -> list[float]:
    """Return the radians per position of each pair of channels, ``rotary_dim / 2`` numbers."""
    return [float(theta ** -(i / rotary_dim)) for i in range(0, rotary_dim, 2)]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of one transformer, and its optional steps.

    The defaults from ``qkv_bias`` on are a LLaMA's. Each of the others adds, changes or leaves out
    one step of the same forward pass, as models with another name do.

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
    qkv_bias, output_bias, mlp_bias : bool
        Whether vectors are added to the queries, keys and values; to the attention's output; to
        the three products of the feed-forward layer.
    qk_norm : {'head', 'all'}, optional
        Whether RMSNorm is applied to the queries and to the keys, before they are rotated: to each
        head with the same weights, or to all heads together.
    pre_norm, post_norm : bool
        Whether RMSNorm is applied before attention and before the feed-forward layer, and to what
        they return. At least one of the two.
    activation : {'silu', 'gelu'}
        The function of the gate; ``gelu`` is the approximation with tanh.
    rotary_dim : int, optional
        How many channels of a head are rotated, the first ones; None for all. See `rotated_dim`.
    unrotated_layers : tuple of int
        The layers whose queries and keys are not rotated, in order.
    windows : tuple of int, length n_layers, or empty
        How many positions a token sees in each layer, its own included; 0 for all of them. Empty
        if all layers see all positions.
    window_rope_theta : float, optional
        Base of the rotary frequencies in layers with a window, where they have no divisors. None:
        the frequencies are the same in all layers.
    embedding_scale, residual_scale, logit_scale : float
        Multiply the token embedding, what each attention and each feed-forward layer adds to the
        residual stream, and the logits.
    attention_scale : float, optional
        Multiplies the products of queries and keys; None for ``1 / sqrt(head_dim)``.

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
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["head", "all"] | None = None
    pre_norm: bool = True
    post_norm: bool = False
    activation: Literal["silu", "gelu"] = "silu"
    rotary_dim: int | None = None
    unrotated_layers: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()
    window_rope_theta: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_scale: float | None = None

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
        self._check_rotation()
        self._check_steps()
        if not (math.isfinite(self.norm_eps) and self.norm_eps >= 0):
            raise ConfigError(f"norm_eps is {self.norm_eps}, expected a finite number from 0 up")

    def _check_rotation(self) -> None:
        if self.rotary_dim is None:
            if self.head_dim % 2:
                raise ConfigError(
                    f"the head size dim / n_heads = {self.head_dim} is odd, but rotary embeddings"
                    " need pairs of channels"
                )
        elif not 2 <= self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ConfigError(
                f"rotary_dim is {self.rotary_dim!r:.60}, expected an even number from 2 to the head"
                f" size {self.head_dim}"
            )
        elif self.rotary_dim == self.head_dim:
            object.__setattr__(self, "rotary_dim", None)  # equal models have equal configs
        for name in ("rope_theta", "window_rope_theta"):
            theta = getattr(self, name)
            if theta is not None and not 1e-30 < theta < 1e30:  # its powers must be finite, too
                raise ConfigError(
                    f"{name} is {theta}, expected a finite number above 0 (1e-30 to 1e30)"
                )
        if (
            self.rope_scaling is not None
            and self.rope_scaling.kind == "yarn"
            and self.rope_theta <= 1
        ):
            raise ConfigError(
                f"rope_theta is {self.rope_theta}, expected a number above 1 with YaRN scaling"
            )
        if self.rope_scaling is not None and self.rope_scaling.kind == "factors":
            n_factors = len(self.rope_scaling.factors)
            if n_factors != self.rotated_dim // 2:
                raise ConfigError(
                    f"RoPE scaling has {n_factors} factors, expected {self.rotated_dim // 2}, one"
                    " for each pair of a head's rotated channels"
                )
        layers = self.unrotated_layers
        if any(not 0 <= layer < self.n_layers for layer in layers) or sorted(set(layers)) != list(
            layers
        ):
            raise ConfigError(
                f"unrotated_layers is {layers!r:.60}, expected different layers from 0 to"
                f" {self.n_layers - 1} in order"
            )

    def _check_steps(self) -> None:
        if self.windows and len(self.windows) != self.n_layers:
            raise ConfigError(
                f"windows has {len(self.windows)} numbers, expected {self.n_layers}, one for each"
                " layer"
            )
        for window in self.windows:
            if not 0 <= window <= 1 << 30:
                raise ConfigError(f"a window is {window!r:.60}, expected 0 to {1 << 30}")
        # Equal models have equal configs: a window as long as the context hides nothing.
        windows = tuple(0 if n >= self.seq_len else n for n in self.windows)
        if self.window_rope_theta is None and windows != self.windows:
            object.__setattr__(self, "windows", windows)
        if not any(self.windows):
            object.__setattr__(self, "windows", ())
            object.__setattr__(self, "window_rope_theta", None)
        if self.qk_norm not in (None, "head", "all"):
            raise ConfigError(f"qk_norm is {self.qk_norm!r:.60}, expected 'head', 'all' or None")
        if self.activation not in ("silu", "gelu"):
            raise ConfigError(f"activation is {self.activation!r:.60}, expected 'silu' or 'gelu'")
        if not (self.pre_norm or self.post_norm):
            raise ConfigError("pre_norm and post_norm are False, expected at least one to be True")
        if self.attention_scale is not None and math.isclose(
            self.attention_scale, self.head_dim**-0.5, rel_tol=1e-7
        ):
            object.__setattr__(self, "attention_scale", None)  # equal models have equal configs
        for name in ("embedding_scale", "residual_scale", "logit_scale", "attention_scale"):
            scale = getattr(self, name)
            if scale is not None and not 1e-30 < scale < 1e30:
                raise ConfigError(f"{name} is {scale}, expected 1e-30 to 1e30")

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
    def rotated_dim(self) -> int:
        """How many channels of a head are rotated."""
        return self.rotary_dim or self.head_dim

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

    def rotation(self, layer: int) -> tuple[list[float], float]:
        """Return how a layer rotates queries and keys.

        Returns
        -------
        list of float
            Radians per position of each rotated pair of a head's channels; empty if the layer
            rotates nothing.
        float
            What multiplies the rotated channels.
        """
        if layer in self.unrotated_layers:
            return [], 1.0
        if self.window_rope_theta is not None and self.windows[layer]:
            return frequencies(self.rotated_dim, self.window_rope_theta), 1.0
        found, scaling = frequencies(self.rotated_dim, self.rope_theta), self.rope_scaling
        if scaling is None:
            return found, 1.0
        divisors = scaling.divisors(self.rotated_dim, self.rope_theta)
        return [a / b for a, b in zip(found, divisors, strict=True)], scaling.attention_factor

    @property
    def layer_vectors(self) -> dict[str, int]:
        """The lengths of a layer's vectors, norms and biases, by their names."""
        dim, hidden, head = self.dim, self.hidden_dim, self.qk_norm == "head"
        lengths = {
            "rms_att_weight": dim * self.pre_norm,
            "rms_ffn_weight": dim * self.pre_norm,
            "rms_att_post_weight": dim * self.post_norm,
            "rms_ffn_post_weight": dim * self.post_norm,
            "rms_q_weight": (self.head_dim if head else self.q_dim) * (self.qk_norm is not None),
            "rms_k_weight": (self.head_dim if head else self.kv_dim) * (self.qk_norm is not None),
            "bq": self.q_dim * self.qkv_bias,
            "bk": self.kv_dim * self.qkv_bias,
            "bv": self.kv_dim * self.qkv_bias,
            "bo": dim * self.output_bias,
            "b1": hidden * self.mlp_bias,
            "b2": dim * self.mlp_bias,
            "b3": hidden * self.mlp_bias,
        }
        return {name: length for name, length in lengths.items() if length}

    @property
    def n_params(self) -> int:
        """Number of weights, the embedding counted once when the classifier shares it."""
        dim, hidden = self.dim, self.hidden_dim
        attention = dim * (2 * self.q_dim + 2 * self.kv_dim)
        layer = sum(self.layer_vectors.values()) + attention + 3 * dim * hidden
        tables = 1 if self.shared_classifier else 2
        return tables * self.vocab_size * dim + self.n_layers * layer + dim

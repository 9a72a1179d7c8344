"""A GGUF file's metadata as a ModelConfig, and what of it cannot be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...config import ModelConfig, RopeScaling
from ...errors import ConfigError
from ..weights import cut_to_window

# Per-model metadata is prefixed with the architecture's name.
ARCHITECTURE = "llama"
_HEAD_SIZE = "attention.key_length"
_REQUIRED = object()


class _Numbers:
    """Looks numbers up in the metadata."""

    def __init__(self, pairs: Mapping[str, Any]) -> None:
        self.pairs = pairs

    def has(self, name: str) -> bool:
        return f"{ARCHITECTURE}.{name}" in self.pairs

    def integer(self, name: str, default: Any = _REQUIRED) -> int:
        value = self._get(name, default)
        # bool is an int to Python, not to GGUF.
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{ARCHITECTURE}.{name} is {_show(value)}, expected a whole number")
        return value

    def real(self, name: str, default: Any = _REQUIRED) -> float:
        value = self._get(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ConfigError(f"{ARCHITECTURE}.{name} is {_show(value)}, expected a number")
        # Stored as float32. The shortest decimal that is the same float32 is what was meant: 1e-05,
        # not 9.999999747378752e-06.
        with np.errstate(over="ignore"):
            return float(str(np.float32(value)))

    def _get(self, name: str, default: Any) -> Any:
        value = self.pairs.get(f"{ARCHITECTURE}.{name}", default)
        if value is _REQUIRED:
            raise ConfigError(f"the metadata lacks {ARCHITECTURE}.{name}, expected it")
        return value


def _show(value: Any) -> str:
    """A value for a message, cut short."""
    return repr(value)[:80]


def check_architecture(pairs: Mapping[str, Any]) -> None:
    """Make sure that the metadata is of a llama.

    Raises
    ------
    ConfigError
        Without the file's name.
    """
    architecture = pairs.get("general.architecture")
    if architecture != ARCHITECTURE.encode():
        raise ConfigError(
            f"general.architecture is {_show(architecture)}, expected {ARCHITECTURE.encode()!r}"
        )


def read_config(
    pairs: Mapping[str, Any],
    vocab_size: int,
    shared_classifier: bool,
    rope_factors: Sequence[float] = (),
) -> tuple[ModelConfig, list[str]]:
    """Make the config of a model of the architecture llama.

    Parameters
    ----------
    pairs : mapping of str to value
        The metadata.
    vocab_size : int
        Rows of the token embedding.
    shared_classifier : bool
        Whether there is no output matrix.
    rope_factors : sequence of float
        What the file divides each rotary frequency by; none: nothing.

    Returns
    -------
    ModelConfig
        The numbers.
    list of str
        What a user should know about them.

    Raises
    ------
    ConfigError
        Without the file's name: a number is missing, senseless, or of a model that the engine
        does not run.
    """
    check_architecture(pairs)
    get = _Numbers(pairs)
    n_heads = get.integer("attention.head_count")
    told = get.integer("vocab_size", vocab_size)
    if told != vocab_size:
        raise ConfigError(
            f"{ARCHITECTURE}.vocab_size is {told}, expected the {vocab_size} rows of token_embd"
        )
    seq_len, notes = cut_to_window(
        get.integer("context_length"), get.integer("attention.sliding_window", 0)
    )
    config = ModelConfig(
        dim=get.integer("embedding_length"),
        hidden_dim=get.integer("feed_forward_length"),
        n_layers=get.integer("block_count"),
        n_heads=n_heads,
        n_kv_heads=get.integer("attention.head_count_kv", n_heads),
        vocab_size=vocab_size,
        seq_len=seq_len,
        shared_classifier=shared_classifier,
        norm_eps=get.real("attention.layer_norm_rms_epsilon"),
        rope_theta=get.real("rope.freq_base", 10000.0),
        head_size=get.integer(_HEAD_SIZE) if get.has(_HEAD_SIZE) else None,
        rope_scaling=_rope_scaling(get, rope_factors),
    )
    _refuse_unknown(get, config)
    return config, notes


def _rope_scaling(get: _Numbers, factors: Sequence[float]) -> RopeScaling | None:
    """What divides the frequencies: one number all of them, the factors each, or both."""
    # llama.cpp means linear where no type is told, and no scaling by a factor of 0.
    kind = get.pairs.get(f"{ARCHITECTURE}.rope.scaling.type", b"linear")
    if kind not in (b"none", b"linear"):
        raise ConfigError(
            f"{ARCHITECTURE}.rope.scaling.type is {_show(kind)}, expected b'none' or b'linear'"
        )
    factor = get.real("rope.scaling.factor", get.real("rope.scale_linear", 1.0)) or 1.0
    if kind == b"none":
        factor = 1.0
    if any(each != 1 for each in factors):
        return RopeScaling("factors", factors=tuple(factor * each for each in factors))
    return None if factor == 1 else RopeScaling("linear", factor)


def _refuse_unknown(get: _Numbers, config: ModelConfig) -> None:
    """Say no to what `ModelConfig` has no word for: it would run, and talk nonsense."""
    for name in ("attention.value_length", "rope.dimension_count"):
        length = get.integer(name, config.head_dim)
        if length != config.head_dim:
            raise ConfigError(
                f"{ARCHITECTURE}.{name} is {length}, expected the head size {config.head_dim}"
            )
    if get.integer("expert_count", 0):
        raise ConfigError(f"{ARCHITECTURE}.expert_count is not 0, expected a model without experts")

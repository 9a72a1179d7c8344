"""A GGUF file's metadata as a ModelConfig, and what in it cannot be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...config import ModelConfig, RopeScaling
from ...errors import ConfigError
from ...formats.gguf_metadata import GGUFFields
from ..state_dict import cut_to_window

# The keys of a model's own metadata begin with the name of its architecture.
ARCHITECTURE = "llama"
_PREFIX = f"{ARCHITECTURE}."
_HEAD_SIZE = "attention.key_length"


def check_architecture(pairs: Mapping[str, Any]) -> None:
    """Refuse the metadata of another architecture.

    Raises
    ------
    ConfigError
        Without the file's name.
    """
    fields = GGUFFields(pairs, ConfigError)
    if fields.text("general.architecture") != ARCHITECTURE.encode():
        raise fields.wrong("general.architecture", repr(ARCHITECTURE.encode()))


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
        The divisor of each rotary frequency, from the file; empty for none.

    Returns
    -------
    ModelConfig
        The numbers.
    list of str
        What a user should know about them.

    Raises
    ------
    ConfigError
        Without the file's name: a number is missing or impossible, or the model is one that the
        engine does not run.
    """
    check_architecture(pairs)
    fields = GGUFFields(pairs, ConfigError, _PREFIX)
    n_heads = fields.integer("attention.head_count")
    if fields.integer("vocab_size", vocab_size) != vocab_size:
        raise fields.wrong("vocab_size", f"the {vocab_size} rows of token_embd")
    seq_len, notes = cut_to_window(
        fields.integer("context_length"), fields.integer("attention.sliding_window", 0)
    )
    config = ModelConfig(
        dim=fields.integer("embedding_length"),
        hidden_dim=fields.integer("feed_forward_length"),
        n_layers=fields.integer("block_count"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("attention.head_count_kv", n_heads),
        vocab_size=vocab_size,
        seq_len=seq_len,
        shared_classifier=shared_classifier,
        norm_eps=_decimal(fields.number("attention.layer_norm_rms_epsilon")),
        rope_theta=_decimal(fields.number("rope.freq_base", 10000.0)),
        head_size=fields.integer(_HEAD_SIZE, None),
        rope_scaling=_rope_scaling(fields, rope_factors),
    )
    _refuse_unknown(fields, config)
    return config, notes


def _decimal(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06.

    GGUF stores float32 numbers, which were decimals in the model's config.
    """
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _rope_scaling(fields: GGUFFields, factors: Sequence[float]) -> RopeScaling | None:
    """One divisor for all frequencies, one for each, or both."""
    # As in llama.cpp, a missing type means linear, and a factor of 0 means no scaling.
    kind = fields.text("rope.scaling.type", b"linear")
    if kind not in (b"none", b"linear"):
        raise fields.wrong("rope.scaling.type", "b'none' or b'linear'")
    old_name = fields.number("rope.scale_linear", 1.0)
    factor = _decimal(fields.number("rope.scaling.factor", old_name)) or 1.0
    if kind == b"none":
        factor = 1.0
    if any(each != 1 for each in factors):
        return RopeScaling("factors", factors=tuple(factor * each for each in factors))
    return None if factor == 1 else RopeScaling("linear", factor)


def _refuse_unknown(fields: GGUFFields, config: ModelConfig) -> None:
    """Refuse what `ModelConfig` cannot say: such a model would run, and write nonsense."""
    for name in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(name, config.head_dim) != config.head_dim:
            raise fields.wrong(name, f"the head size {config.head_dim}")
    if fields.integer("expert_count", 0):
        raise fields.wrong("expert_count", "0: a mixture of experts is not supported")

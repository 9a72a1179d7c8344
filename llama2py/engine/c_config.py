"""The shape of a checkpoint's model as the C engine takes it, and what that model takes packed."""

from __future__ import annotations

from typing import Any

from ..checkpoint import Checkpoint, int8_group_size
from ..config import CacheDtype, Dtype, ModelConfig
from ..errors import EngineError
from .extension import ffi, lib

C_DTYPES: dict[Dtype, int] = {
    "float32": lib.L2P_FLOAT32,
    "bfloat16": lib.L2P_BFLOAT16,
    "int8": lib.L2P_INT8,
    "int4": lib.L2P_INT4,
}


def c_config(checkpoint: Checkpoint, dtype: Dtype, cache_dtype: CacheDtype, divisors: Any) -> Any:
    """Make an ``l2p_config``.

    Parameters
    ----------
    checkpoint : Checkpoint
        Where the shape comes from.
    dtype, cache_dtype
        The types of the packed matrices, and of keys and values.
    divisors : cdata
        As `rope_divisors` makes them; must live as long as C reads the configuration.
    """
    config: ModelConfig = checkpoint.config
    return ffi.new(
        "l2p_config *",
        {
            "dim": config.dim,
            "hidden_dim": config.hidden_dim,
            "n_layers": config.n_layers,
            "n_heads": config.n_heads,
            "n_kv_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "seq_len": config.seq_len,
            "shared_classifier": config.shared_classifier,
            "weight_type": C_DTYPES[dtype],
            "cache_type": C_DTYPES[cache_dtype],
            "group_size": int8_group_size(checkpoint),
            "norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta,
            "rope_divisors": divisors,
        },
    )


def rope_divisors(config: ModelConfig) -> Any:
    """Make the array (head_dim / 2,) that divides the rotary frequencies, or NULL."""
    if config.rope_scaling is None:
        return ffi.NULL
    return ffi.new("float[]", config.rope_scaling.divisors(config.head_dim, config.rope_theta))


def packed_bytes(checkpoint: Checkpoint, dtype: Dtype) -> int:
    """Bytes of a checkpoint's weights in the engine, as matrices of a dtype.

    Raises
    ------
    EngineError
        If the engine cannot take a model of this shape.
    """
    nbytes = int(lib.l2p_packed_bytes(c_config(checkpoint, dtype, "float32", ffi.NULL)))
    if nbytes < 0:
        raise EngineError(f"{checkpoint.path}: the engine cannot take a model of this shape")
    return nbytes

"""The shape of a checkpoint's model as the C engine takes it, and what that model takes packed."""

from __future__ import annotations

from collections.abc import Mapping
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


_QK_NORMS = {None: 0, "head": lib.L2P_HEAD_NORM, "all": lib.L2P_ALL_NORM}


def tensor_number(name: str) -> int:
    """Return the C engine's number of a tensor, by llama2.c's name."""
    return int(getattr(lib, f"L2P_{name.upper()}"))


def c_config(
    checkpoint: Checkpoint, dtype: Dtype, cache_dtype: CacheDtype, arrays: Mapping[str, Any]
) -> Any:
    """Make an ``l2p_config``.

    Parameters
    ----------
    checkpoint : Checkpoint
        Where the shape comes from.
    dtype, cache_dtype
        The types of the packed matrices, and of keys and values.
    arrays : mapping of str to cdata
        As `c_arrays` makes them; must live as long as C reads the configuration.
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
            "steps": _steps(config),
            "rotary_dim": config.rotated_dim,
            "window_rope_theta": config.window_rope_theta or 0,
            "rope_scale": config.rope_scaling.attention_factor if config.rope_scaling else 1,
            "embedding_scale": config.embedding_scale,
            "residual_scale": config.residual_scale,
            "logit_scale": config.logit_scale,
            "attention_scale": config.attention_scale or 0,
            **arrays,
        },
    )


def _steps(config: ModelConfig) -> int:
    """The bits of the optional steps."""
    steps = {
        lib.L2P_QKV_BIAS: config.qkv_bias,
        lib.L2P_OUTPUT_BIAS: config.output_bias,
        lib.L2P_MLP_BIAS: config.mlp_bias,
        lib.L2P_NO_PRE_NORM: not config.pre_norm,
        lib.L2P_POST_NORM: config.post_norm,
        lib.L2P_GELU: config.activation == "gelu",
    }
    return int(sum(bit for bit, wanted in steps.items() if wanted) + _QK_NORMS[config.qk_norm])


def c_arrays(config: ModelConfig) -> dict[str, Any]:
    """Make the arrays of an ``l2p_config``; one that is missing stands for NULL."""
    arrays = {}
    if config.rope_scaling is not None:
        divisors = config.rope_scaling.divisors(config.rotated_dim, config.rope_theta)
        arrays["rope_divisors"] = ffi.new("float[]", divisors)
    if config.windows:
        arrays["windows"] = ffi.new("int32_t[]", config.windows)
    if config.unrotated_layers:
        layers = range(config.n_layers)
        unrotated = [layer in config.unrotated_layers for layer in layers]
        arrays["unrotated"] = ffi.new("int32_t[]", unrotated)
    return arrays


def packed_bytes(checkpoint: Checkpoint, dtype: Dtype) -> int:
    """Bytes of a checkpoint's weights in the engine, as matrices of a dtype.

    Raises
    ------
    EngineError
        If the engine cannot take a model of this shape.
    """
    nbytes = int(lib.l2p_packed_bytes(c_config(checkpoint, dtype, "float32", {})))
    if nbytes < 0:
        raise EngineError(f"{checkpoint.path}: the engine cannot take a model of this shape")
    return nbytes

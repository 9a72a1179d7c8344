"""A GGUF file's metadata as a ModelConfig: each architecture's steps, and what cannot be run.

Source: ``src/models/*.cpp`` and ``conversion/*.py`` of ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ...config import MAX_LAYERS, ModelConfig, RopeScaling
from ...errors import ConfigError
from ...formats.gguf_metadata import GGUFFields

# From the metadata to values of ModelConfig.
Steps: TypeAlias = Callable[[GGUFFields], dict[str, Any]]

_HEAD_SIZE = "attention.key_length"
_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


@dataclass(frozen=True, slots=True)
class Architecture:
    """The models of one ``general.architecture``.

    Attributes
    ----------
    steps : callable
        Returns the optional steps, except for biases, which are there if their tensors are.
    in_pairs : bool
        Whether the two channels of a rotary pair are side by side, as in llama2.c. Otherwise their
        order is Hugging Face's.
    """

    steps: Steps
    in_pairs: bool


def _windows(fields: GGUFFields, every: int = 0) -> tuple[int, ...]:
    """The window of each layer; by default, each ``every``-th layer sees everything."""
    window = fields.integer(_WINDOW, 0)
    layers = range(min(fields.integer("block_count"), MAX_LAYERS))
    if not window:
        return ()
    pattern = [not every or (i + 1) % every != 0 for i in layers]
    if _PATTERN in fields:
        try:
            every = fields.integer(_PATTERN)
            pattern = [not every or (i + 1) % every != 0 for i in layers]
        except ConfigError:
            pattern = fields.list(_PATTERN, bool, MAX_LAYERS)
    if len(pattern) < len(layers):
        raise fields.wrong(_PATTERN, f"{len(layers)} bools")
    return tuple(window if pattern[i] else 0 for i in layers)


def _llama(fields: GGUFFields) -> dict[str, Any]:
    return {"windows": _windows(fields)}


def _qwen3(fields: GGUFFields) -> dict[str, Any]:
    return {"windows": _windows(fields), "qk_norm": "head"}


def _smollm3(fields: GGUFFields) -> dict[str, Any]:
    layers = range(min(fields.integer("block_count"), MAX_LAYERS))
    return {"windows": _windows(fields), "unrotated_layers": tuple(layers[3::4])}


def _olmo2(fields: GGUFFields) -> dict[str, Any]:
    windows = _windows(fields, 4)
    base = fields.number("rope.freq_base", 10000.0)
    return {
        "qk_norm": "all",
        "pre_norm": False,
        "post_norm": True,
        "windows": windows,
        "window_rope_theta": decimal(fields.number("rope.freq_base_swa", base))
        if windows
        else None,
    }


def _granite(fields: GGUFFields) -> dict[str, Any]:
    layers = range(min(fields.integer("block_count"), MAX_LAYERS))
    return {
        "windows": _windows(fields),
        "embedding_scale": _scale(fields, "embedding_scale"),
        "residual_scale": _scale(fields, "residual_scale"),
        "attention_scale": _scale(fields, "attention.scale", None),
        "logit_scale": 1 / (_scale(fields, "logit_scale") or 1.0),
        # A switch of all rotation in this architecture.
        "unrotated_layers": () if fields.flag("rope.scaling.finetuned", True) else tuple(layers),
    }


def _minicpm(fields: GGUFFields) -> dict[str, Any]:
    depth = 1.4 / math.sqrt(max(fields.integer("block_count"), 1))
    width = max(fields.integer("embedding_length"), 1)
    return {
        "embedding_scale": _scale(fields, "embedding_scale", 12.0),
        "residual_scale": _scale(fields, "residual_scale", depth),
        "logit_scale": 1 / (_scale(fields, "logit_scale", width / 256) or 1.0),
    }


def _scale(fields: GGUFFields, name: str, default: float | None = 1.0) -> float | None:
    """A number; 0 stands for the default, as in llama.cpp."""
    return decimal(fields.number(name, 0.0)) or default


def _gemma(fields: GGUFFields) -> dict[str, Any]:
    width = max(fields.integer("embedding_length"), 1)
    return {"activation": "gelu", "embedding_scale": math.sqrt(width)}


def _gemma3(fields: GGUFFields) -> dict[str, Any]:
    if fields.number("final_logit_softcapping", 0.0):
        raise fields.wrong("final_logit_softcapping", "0: soft caps are not supported")
    scale = None
    if fields.integer("block_count") == 62:  # the one with 27 billion parameters
        heads = max(fields.integer("attention.head_count"), 1)
        scale = max(fields.integer("embedding_length") // heads, 1) ** -0.5
    windows = _windows(fields, 6)
    return {
        **_gemma(fields),
        "qk_norm": "head",
        "post_norm": True,
        "attention_scale": scale,
        "windows": windows,
        "window_rope_theta": decimal(fields.number("rope.freq_base_swa", 1e4)) if windows else None,
    }


ARCHITECTURES = {
    "llama": Architecture(_llama, in_pairs=True),
    "qwen2": Architecture(_llama, in_pairs=False),
    "qwen3": Architecture(_qwen3, in_pairs=False),
    "smollm3": Architecture(_smollm3, in_pairs=True),
    "olmo2": Architecture(_olmo2, in_pairs=False),
    "granite": Architecture(_granite, in_pairs=True),
    "minicpm": Architecture(_minicpm, in_pairs=True),
    "phi3": Architecture(_llama, in_pairs=False),
    "internlm2": Architecture(_llama, in_pairs=True),
    "gemma": Architecture(_gemma, in_pairs=False),
    "gemma3": Architecture(_gemma3, in_pairs=False),
}


def architecture_of(pairs: Mapping[str, Any]) -> str:
    """Return the name of the metadata's architecture, which is one of `ARCHITECTURES`.

    Raises
    ------
    ConfigError
        Without the file's name: it is another one.
    """
    fields = GGUFFields(pairs, ConfigError)
    name = fields.text("general.architecture").decode(errors="replace")
    if name not in ARCHITECTURES:
        *others, last = ARCHITECTURES
        raise fields.wrong("general.architecture", f"{', '.join(others)} or {last}")
    return name


def read_config(
    pairs: Mapping[str, Any],
    tensors: Collection[str],
    vocab_size: int,
    rope_factors: Sequence[float] = (),
) -> tuple[ModelConfig, list[str]]:
    """Make the config of a model.

    Parameters
    ----------
    pairs : mapping of str to value
        The metadata.
    tensors : collection of str
        The names of the file's tensors: whether there are biases, and an output matrix.
    vocab_size : int
        Rows of the token embedding.
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
    name = architecture_of(pairs)
    fields = GGUFFields(pairs, ConfigError, f"{name}.")
    n_heads = fields.integer("attention.head_count")
    if fields.integer("expert_count", 0):
        raise fields.wrong("expert_count", "0: a mixture of experts is not supported")
    seq_len, notes = fields.integer("context_length"), []
    stated = fields.integer("vocab_size", vocab_size)
    if stated != vocab_size:  # llama.cpp does not use it
        notes.append(f"{name}.vocab_size is {stated}, but token_embd has {vocab_size} rows")
    if _kind(fields) == b"longrope" and rope_factors:
        original = fields.integer("rope.scaling.original_context_length", seq_len)
        if seq_len > original:  # longer texts need other factors from their first token on
            notes.append(
                f"its context of {seq_len} is cut to {original}, for which its short RoPE factors"
                " are made"
            )
            seq_len = original
    config = ModelConfig(
        dim=fields.integer("embedding_length"),
        hidden_dim=fields.integer("feed_forward_length"),
        n_layers=fields.integer("block_count"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("attention.head_count_kv", n_heads),
        vocab_size=vocab_size,
        seq_len=seq_len,
        shared_classifier="output.weight" not in tensors,
        norm_eps=decimal(fields.number("attention.layer_norm_rms_epsilon")),
        rope_theta=decimal(fields.number("rope.freq_base", 10000.0)),
        head_size=fields.integer(_HEAD_SIZE, None),
        rope_scaling=_rope_scaling(fields, rope_factors),
        rotary_dim=fields.integer("rope.dimension_count", None),
        qkv_bias="blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
        **ARCHITECTURES[name].steps(fields),
    )
    if fields.integer("attention.value_length", config.head_dim) != config.head_dim:
        raise fields.wrong("attention.value_length", f"the head size {config.head_dim}")
    if config.rotary_dim is not None and ARCHITECTURES[name].in_pairs:
        raise fields.wrong("rope.dimension_count", f"the head size {config.head_dim}")
    return config, notes


def decimal(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06.

    GGUF stores float32 numbers, which were decimals in the model's config.
    """
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _kind(fields: GGUFFields) -> bytes:
    """The kind of RoPE scaling: as in llama.cpp, a missing type means linear."""
    return fields.text("rope.scaling.type", b"linear")


def _rope_scaling(fields: GGUFFields, factors: Sequence[float]) -> RopeScaling | None:
    """One divisor for all frequencies, one for each, or both; or YaRN's."""
    kind = _kind(fields)
    if kind not in (b"none", b"linear", b"yarn", b"longrope"):
        raise fields.wrong("rope.scaling.type", "b'none', b'linear', b'yarn' or b'longrope'")
    old_name = fields.number("rope.scale_linear", 1.0)
    # A factor of 0 means no scaling.
    factor = decimal(fields.number("rope.scaling.factor", old_name)) or 1.0
    attention = decimal(fields.number("rope.scaling.attn_factor", 1.0))
    if kind == b"yarn" and not factors:
        return _yarn(fields, factor, attention)
    if kind in (b"none", b"longrope"):
        factor = 1.0
    if any(each != 1 for each in factors) or attention != 1:
        all_factors = tuple(factor * each for each in factors)
        return RopeScaling(
            "factors" if factors else "linear",
            1.0 if factors else factor,
            factors=all_factors,
            attention_factor=attention,
        )
    return None if factor == 1 else RopeScaling("linear", factor)


def _yarn(fields: GGUFFields, factor: float, attention: float) -> RopeScaling:
    def growth(part: float) -> float:
        return 0.1 * part * math.log(factor) + 1 if factor > 1 else 1.0

    part = decimal(fields.number("rope.scaling.yarn_log_multiplier", 0.0))
    return RopeScaling(
        "yarn",
        factor,
        original_seq_len=fields.integer(
            "rope.scaling.original_context_length", fields.integer("context_length")
        ),
        beta_fast=decimal(fields.number("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=decimal(fields.number("rope.scaling.yarn_beta_slow", 1.0)),
        attention_factor=attention * growth(1) / (growth(part) if part else 1),
    )

"""The writer of Hugging Face directories: config.json, generation_config.json and safetensors.

Source: what ``huggingface_hub`` splits by and ``transformers`` reads; safetensors' README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ...config import ModelConfig
from ...errors import CheckpointError
from ...formats.atomic_write import replacing
from ...formats.bounded_json import JsonObject
from ..checkpoint import Checkpoint
from ..export import Adapt, Item, in_halves, items, same_steps, steps_of
from ..tensors import Tensor
from .config import FAMILIES, read_config
from .reader import names
from .rope_factors import as_llama3
from .safetensors import write_safetensors

# The BOS token, and the tokens that end a text.
SpecialIds: TypeAlias = tuple[int | None, Sequence[int]]

SHARD_SIZE = 5 * 10**9  # bytes of tensors in one file


def huggingface_items(config: ModelConfig, dtype: str, norms: str, model_type: str) -> list[Item]:
    """List the tensors of a directory, with a dtype of the matrices and one of the norms."""
    own = names(config)
    if FAMILIES[model_type].tensors == "fused":
        own = {**own, **_FUSED}
    return list(items(config, own, lambda shape: dtype if len(shape) == 2 else norms))


def write_huggingface(
    folder: Path,
    checkpoint: Checkpoint,
    dtype: str,
    norms: str,
    ids: SpecialIds,
    progress: Callable[[int], object] = lambda weights: None,
    shard_size: int = SHARD_SIZE,
) -> None:
    """Write the model's files, without the tokenizer's, into an existing folder.

    Parameters
    ----------
    folder : Path
        The output folder.
    checkpoint : Checkpoint
        The model, of any format.
    dtype, norms : {'float32', 'float16', 'bfloat16'}
        Dtype of the matrices, and of the norms.
    ids : tuple of (int or None, sequence of int)
        The BOS token, if it is known, and the tokens that end a text, EOS first.
    progress : callable
        Called after each tensor with its number of weights.
    shard_size : int
        At most this many bytes of tensors go into one file, unless a single tensor has more.

    Raises
    ------
    CheckpointError
        If the dtype cannot hold a weight, config.json cannot hold one of the model's numbers, the
        source cannot be read, or a file cannot be written.
    """
    about = config_json(checkpoint, dtype, ids)
    _write_json(folder / "config.json", about)
    _write_json(folder / "generation_config.json", _generation(ids))
    model_type = about["model_type"]
    adapt = _adapt(checkpoint.config, model_type)
    shards = _shards(huggingface_items(checkpoint.config, dtype, norms, model_type), shard_size)
    mapping: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        name = "model.safetensors" if len(shards) == 1 else name
        mapping |= {item.name: name for item in shard}
        write_safetensors(folder / name, shard, checkpoint, progress, adapt)
    if len(shards) > 1:
        total = sum(item.nbytes for shard in shards for item in shard)
        index = {"metadata": {"total_size": total}, "weight_map": mapping}
        _write_json(folder / "model.safetensors.index.json", index)


def config_json(checkpoint: Checkpoint, dtype: str, ids: SpecialIds) -> dict[str, Any]:
    """Return the contents of a model's config.json.

    Raises
    ------
    CheckpointError
        If no family of transformers has this model's steps.
    """
    config = checkpoint.config
    about = {
        "hidden_act": "gelu_pytorch_tanh" if config.activation == "gelu" else "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
        "tie_word_embeddings": config.shared_classifier,
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
        "torch_dtype": dtype,
        **_generation(ids),
    }
    for model_type, (architecture, own) in _FAMILIES.items():
        family = {"architectures": [architecture], "model_type": model_type}
        written = {**family, **about, **own(config)}
        if _means(written, config):
            return written
    raise CheckpointError(
        f"{checkpoint.path}: transformers has no family of models with these steps together:"
        f" {steps_of(config)}; use the format gguf for this model"
    )


def _means(about: dict[str, Any], config: ModelConfig) -> bool:
    """Whether a config.json says all about a model."""
    try:
        found, _, _ = read_config(JsonObject("config.json", about))
    except CheckpointError:
        return False
    return same_steps(found, config)


def _windows(config: ModelConfig) -> dict[str, Any]:
    """The windows of each layer, as Qwen's and later families have them."""
    types = ["sliding_attention" if window else "full_attention" for window in config.windows]
    if not types:
        return {"use_sliding_window": False, "sliding_window": None}
    window = max(config.windows)
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": types}


def _smollm3(config: ModelConfig) -> dict[str, Any]:
    rotated = [int(layer not in config.unrotated_layers) for layer in range(config.n_layers)]
    # The padding token that transformers supposes is in the vocabulary of SmolLM3 only.
    return {"no_rope_layers": rotated, "pad_token_id": None, **_windows(config)}


def _granite(config: ModelConfig) -> dict[str, Any]:
    return {
        "embedding_multiplier": config.embedding_scale,
        "residual_multiplier": config.residual_scale,
        "attention_multiplier": config.attention_scale or config.head_dim**-0.5,
        "logits_scaling": 1 / config.logit_scale,
    }


def _two_ropes(config: ModelConfig) -> dict[str, Any]:
    """The windows, and the rotary frequencies of both kinds of layers."""
    scaling = _rope_scaling(config) or {"rope_type": "default"}
    local = {"rope_type": "default", "rope_theta": config.window_rope_theta or config.rope_theta}
    full = {**scaling, "rope_theta": config.rope_theta}
    parameters = {"full_attention": full, "sliding_attention": local}
    return {**_windows(config), "rope_scaling": None, "rope_parameters": parameters}


def _phi3(config: ModelConfig) -> dict[str, Any]:
    return {
        "partial_rotary_factor": config.rotated_dim / config.head_dim,
        "sliding_window": max(config.windows, default=None),
        "original_max_position_embeddings": config.seq_len,
        "pad_token_id": None,
    }


def _gemma3(config: ModelConfig) -> dict[str, Any]:
    scalar = (config.attention_scale or config.head_dim**-0.5) ** -2
    whole = round(scalar)
    scalar = whole if math.isclose(scalar, whole, rel_tol=1e-6) else scalar
    act = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": scalar}
    return {**_two_ropes(config), **act}


# The families that are written, with what only their config.json has; the first that fits is taken.
_FAMILIES: dict[str, tuple[str, Callable[[ModelConfig], dict[str, Any]]]] = {
    "llama": ("LlamaForCausalLM", lambda config: {}),
    "mistral": (
        "MistralForCausalLM",
        lambda config: {"sliding_window": max(config.windows, default=None)},
    ),
    "qwen2": ("Qwen2ForCausalLM", _windows),
    "qwen3": ("Qwen3ForCausalLM", _windows),
    "smollm3": ("SmolLM3ForCausalLM", _smollm3),
    "olmo2": ("Olmo2ForCausalLM", lambda config: {}),
    "olmo3": ("Olmo3ForCausalLM", _two_ropes),
    "gemma": ("GemmaForCausalLM", lambda config: {}),
    "gemma3_text": ("Gemma3ForCausalLM", _gemma3),
    "granite": ("GraniteForCausalLM", _granite),
    "phi3": ("Phi3ForCausalLM", _phi3),
}


def _generation(ids: SpecialIds) -> dict[str, Any]:
    bos, ends = ids
    found: dict[str, Any] = {} if bos is None else {"bos_token_id": bos}
    if ends:
        found["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    return found


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "factors" and scaling.attention_factor == 1:
        scaling = as_llama3(config) or scaling  # GGUF stores factors for Llama 3.1's formula
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    if scaling.kind == "factors":
        return {
            "rope_type": "longrope",
            "short_factor": list(scaling.factors),
            "long_factor": list(scaling.factors),
            "original_max_position_embeddings": config.seq_len,
            "attention_factor": scaling.attention_factor,
        }
    if scaling.kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_seq_len,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
            "attention_factor": scaling.attention_factor,
        }
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_seq_len,
    }


def _shards(tensors: Sequence[Item], shard_size: int) -> list[list[Item]]:
    """Divide tensors among files, in order."""
    shards: list[list[Item]] = [[]]
    size = 0
    for item in tensors:
        if shards[-1] and size + item.nbytes > shard_size:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.nbytes
    return shards


# Phi-3's joined matrices.
_FUSED = {
    "wq+wk+wv": "model.layers.{}.self_attn.qkv_proj.weight",
    "w1+w3": "model.layers.{}.mlp.gate_up_proj.weight",
}


class _LessOne:
    """A norm's weights minus 1, as Gemma's files have them."""

    def __init__(self, base: Tensor) -> None:
        self._base = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights minus 1, float32, a new array."""
        return self._base.dequantize() - np.float32(1)


def _adapt(config: ModelConfig, model_type: str) -> Adapt:
    """What makes a directory's tensors from a checkpoint's."""
    halves = in_halves(config)

    def adapt(kind: str, tensor: Tensor) -> Tensor:
        if FAMILIES[model_type].norms_less_one and kind.startswith("rms_"):
            tensor = cast("Tensor", _LessOne(tensor))
        return halves(kind, tensor)

    return adapt


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path, CheckpointError) as out:
        out.write(json.dumps(value, indent=2).encode() + b"\n")

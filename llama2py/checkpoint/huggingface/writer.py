"""The writer of Hugging Face directories: config.json, generation_config.json and safetensors.

Source: what ``huggingface_hub`` splits by and ``transformers`` reads; safetensors' README.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...config import ModelConfig
from ...errors import CheckpointError
from ...formats.atomic_write import replacing
from ..checkpoint import Checkpoint
from ..export import Item, Reorder, items
from .reader import NAMES
from .rope_factors import as_llama3
from .safetensors import write_safetensors

# The BOS token, and the tokens that end a text.
SpecialIds: TypeAlias = tuple[int | None, Sequence[int]]

SHARD_SIZE = 5 * 10**9  # bytes of tensors in one file


def huggingface_items(config: ModelConfig, dtype: str, norms: str) -> list[Item]:
    """List the tensors of a directory, with a dtype of the matrices and one of the norms."""
    return list(items(config, NAMES, lambda shape: dtype if len(shape) == 2 else norms))


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
    shards = _shards(huggingface_items(checkpoint.config, dtype, norms), shard_size)
    mapping: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        name = "model.safetensors" if len(shards) == 1 else name
        mapping |= {item.name: name for item in shard}
        write_safetensors(folder / name, shard, checkpoint, progress, _reorder(checkpoint.config))
    if len(shards) > 1:
        total = sum(item.nbytes for shard in shards for item in shard)
        index = {"metadata": {"total_size": total}, "weight_map": mapping}
        _write_json(folder / "model.safetensors.index.json", index)


def config_json(checkpoint: Checkpoint, dtype: str, ids: SpecialIds) -> dict[str, Any]:
    """Return the contents of a model's config.json.

    Raises
    ------
    CheckpointError
        If config.json has no setting that scales the rotary frequencies as this model does.
    """
    config = checkpoint.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
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
        "rope_scaling": _rope_scaling(checkpoint),
        "tie_word_embeddings": config.shared_classifier,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        **_generation(ids),
    }


def _generation(ids: SpecialIds) -> dict[str, Any]:
    bos, ends = ids
    found: dict[str, Any] = {} if bos is None else {"bos_token_id": bos}
    if ends:
        found["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    return found


def _rope_scaling(checkpoint: Checkpoint) -> dict[str, Any] | None:
    config = checkpoint.config
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "factors":
        scaling = as_llama3(config)  # GGUF stores factors instead of Llama 3.1's formula
        if scaling is None:
            raise CheckpointError(
                f"{checkpoint.path}: a config.json cannot give each rotary frequency its own"
                " factor: use the format gguf for this model"
            )
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
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


def _reorder(config: ModelConfig) -> Reorder:
    """What puts the rows of wq and wk into Hugging Face's order."""
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}

    def reorder(kind: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return permuted(weights, heads[kind]) if kind in heads else weights

    return reorder


def permuted(weights: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Put the rows of wq or wk into Hugging Face's order; `StoredTensor` undoes it.

    Parameters
    ----------
    weights : ndarray, float32, shape (n_heads * head_dim, dim)
        The two channels of a rotary pair are side by side.
    n_heads : int
        Number of heads of the queries, or of the keys.

    Returns
    -------
    ndarray, float32, of the same shape
        In each head, the first channel of every pair, then the second of every pair.
    """
    rows, cols = weights.shape
    heads = weights.reshape(n_heads, rows // n_heads // 2, 2, cols)  # (heads, pairs, 2, cols)
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(weights.shape)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path, CheckpointError) as out:
        out.write(json.dumps(value, indent=2).encode() + b"\n")

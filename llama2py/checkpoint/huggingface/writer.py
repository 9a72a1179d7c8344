"""Writes Hugging Face's directories: ``config.json``, ``generation_config.json`` and safetensors.

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
from ..base import Checkpoint
from ..write_tensors import Item, items, write_item
from .reader import NAMES
from .rope_factors import as_llama3

# The token BOS, and those that end a text.
SpecialIds: TypeAlias = tuple[int | None, Sequence[int]]

SHARD_SIZE = 5 * 10**9  # bytes of tensors in one file
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def huggingface_items(config: ModelConfig, dtype: str, norms: str) -> list[Item]:
    """The tensors of such a directory: matrices of one dtype, and norms."""
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
    """Write the model's files, all but the tokenizer's, into a folder that is there.

    Parameters
    ----------
    folder : Path
        Where to.
    checkpoint : Checkpoint
        The model, of any format.
    dtype, norms : {'float32', 'float16', 'bfloat16'}
        Of its matrices, and of its norms.
    ids : tuple of (int or None, sequence of int)
        The token BOS, where it is known, and those that end a text, EOS first.
    progress : callable
        Told the number of weights of each tensor that is written.
    shard_size : int
        Bytes of tensors in one file, at most, unless a single one has more.

    Raises
    ------
    CheckpointError
        If the dtype cannot hold a weight, config.json one of the model's numbers, or the disk one
        of the files.
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
        _write_safetensors(folder / name, shard, checkpoint, progress)
    if len(shards) > 1:
        total = sum(item.nbytes for shard in shards for item in shard)
        index = {"metadata": {"total_size": total}, "weight_map": mapping}
        _write_json(folder / "model.safetensors.index.json", index)


def config_json(checkpoint: Checkpoint, dtype: str, ids: SpecialIds) -> dict[str, Any]:
    """What config.json says of a model.

    Raises
    ------
    CheckpointError
        If it cannot say how the rotary frequencies are scaled.
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
        scaling = as_llama3(config)  # GGUF has only the factors of what is Llama 3.1's formula
        if scaling is None:
            raise CheckpointError(
                f"{checkpoint.path}: a config.json cannot say that each rotary frequency has a"
                " factor of its own, expected the format gguf for this model"
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
    """Fill one file after the other."""
    shards: list[list[Item]] = [[]]
    size = 0
    for item in tensors:
        if shards[-1] and size + item.nbytes > shard_size:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.nbytes
    return shards


def _write_safetensors(
    path: Path, shard: Sequence[Item], checkpoint: Checkpoint, progress: Callable[[int], object]
) -> None:
    # "pt": transformers asks whose tensors they are.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in shard:
        begin, end = end, end + item.nbytes
        header[item.name] = {
            "dtype": _DTYPES[item.dtype],
            "shape": item.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned

    def turn(kind: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        heads = {"wq": checkpoint.config.n_heads, "wk": checkpoint.config.n_kv_heads}
        return permuted(weights, heads[kind]) if kind in heads else weights

    with replacing(path, CheckpointError) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for item in shard:
            write_item(out, item, checkpoint, progress, turn)


def permuted(weights: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Put the rows of wq or wk into Hugging Face's order; `stored.unpermuted` undoes it.

    Parameters
    ----------
    weights : ndarray, float32, shape (n_heads * head_dim, dim)
        The two channels of a rotary pair beside each other.
    n_heads : int
        Of the queries, or of the keys.

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

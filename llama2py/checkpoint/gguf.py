"""Reads GGUF files, version 2 and 3, of models of the architecture llama.

Such a file has Meta's tensors under its own names. Its converter takes Hugging Face's rotary
permutation of wq and wk back, so both turn neighbouring pairs, as llama2.c's RoPE does, and no
weight has to move: a reader that permuted them would not give the recorded tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from .base import Checkpoint
from .gguf_blocks import FORMATS
from .gguf_config import check_architecture, read_config
from .gguf_files import GGUFModel, Place, open_model
from .gguf_tensors import BlockTensor, Q8Tensor
from .mapped_file import MappedFile
from .tensors import DenseTensor, Tensor, tensor_shapes

_EMBEDDING, _CLASSIFIER = "token_embd.weight", "output.weight"
_ROPE_FACTORS = "rope_freqs.weight"
# llama2.c's name -> GGUF's; {} is the layer.
_NAMES = {
    "token_embedding_table": _EMBEDDING,
    "rms_att_weight": "blk.{}.attn_norm.weight",
    "wq": "blk.{}.attn_q.weight",
    "wk": "blk.{}.attn_k.weight",
    "wv": "blk.{}.attn_v.weight",
    "wo": "blk.{}.attn_output.weight",
    "rms_ffn_weight": "blk.{}.ffn_norm.weight",
    "w1": "blk.{}.ffn_gate.weight",
    "w2": "blk.{}.ffn_down.weight",
    "w3": "blk.{}.ffn_up.weight",
    "rms_final_weight": "output_norm.weight",
    "wcls": _CLASSIFIER,
}
_F32, _Q8_0 = FORMATS[0], FORMATS[8]


def has_magic(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a GGUF file."""
    return head.startswith(b"GGUF")


def read_gguf(file: MappedFile) -> Checkpoint:
    """Read a GGUF file.

    Parameters
    ----------
    file : MappedFile
        A whole model, or any part of a split one. The checkpoint closes it.

    Returns
    -------
    Checkpoint
        Of int8 matrices with a scale for every 32 values where all matrices are Q8_0; else of
        float32 ones, widened on use. ``tokenizer_path`` is the file itself if it has a vocabulary.

    Raises
    ------
    CheckpointError
        If a file is malformed or cut short, its tensors are not those of the model, or it is of a
        model that the engine does not run.
    """
    model = open_model(file)
    try:
        return _read(model)
    except BaseException as error:
        for part in model.files:
            if part is not file:  # that one is the caller's
                part.close()
        if isinstance(error, ConfigError):
            raise CheckpointError(f"{model.files[0].path}: {error}") from None
        raise


def _read(model: GGUFModel) -> Checkpoint:
    first = model.files[0]
    places = model.places
    embedding = places.get(_EMBEDDING)
    if embedding is None:
        check_architecture(model.pairs)  # tells more, if it is no llama
        raise CheckpointError(f"{first.path}: it has no tensor {_EMBEDDING!r}, expected it")
    config = read_config(model.pairs, embedding.dims[-1], _CLASSIFIER not in places)
    chosen = _choose(model, config)
    matrices = [place for row in chosen.values() for place in row if len(place.dims) == 2]
    quantized = all(place.format is _Q8_0 for place in matrices)
    tensors = {
        name: tuple(_tensor(place, quantized) for place in row) for name, row in chosen.items()
    }
    kinds = "/".join(sorted({place.format.name for place in matrices}))
    return Checkpoint(
        first.path,
        f"GGUF ({kinds})",
        config,
        tensors,
        model.files,
        group_size=_Q8_0.size if quantized else None,
        tokenizer_path=first.path if "tokenizer.ggml.tokens" in model.pairs else None,
    )


def _choose(model: GGUFModel, config: ModelConfig) -> dict[str, tuple[Place, ...]]:
    """Find every tensor of the model, and make sure that there is no other."""
    path = model.files[0].path
    left = dict(model.places)
    _check_rope_factors(left.pop(_ROPE_FACTORS, None), config)

    def find(name: str, count: int, shape: tuple[int, ...]) -> Iterator[Place]:
        for layer in range(count):
            key = _NAMES[name].format(layer)
            place = left.pop(key, None)
            if place is None:
                raise CheckpointError(f"{path}: it has no tensor {key!r}, expected it")
            if place.dims != shape[::-1]:
                raise CheckpointError(
                    f"{path}: tensor {key!r} is of shape {place.dims[::-1]}, expected {shape}"
                )
            yield place

    chosen = {
        name: tuple(find(name, count, shape))
        for name, (count, shape) in tensor_shapes(config).items()
    }
    if left:
        raise CheckpointError(
            f"{path}: it has a tensor {min(left)!r}, expected none but those of a llama"
            f" with {config.n_layers} layers"
        )
    return chosen


def _check_rope_factors(place: Place | None, config: ModelConfig) -> None:
    """Refuse frequencies that are divided by anything but 1: `ModelConfig` has no word for them.

    Llama 3.1 and later stretch the slow ones; the converter writes their divisors as a tensor.
    """
    if place is None:
        return
    factors = BlockTensor(place.blocks(), place.format, place.dims)
    if place.dims != (config.head_dim // 2,) or not np.all(factors.dequantize() == 1):
        raise ConfigError(
            f"tensor {_ROPE_FACTORS!r} scales the rotary frequencies,"
            " expected a model whose frequencies are not scaled"
        )


def _tensor(place: Place, quantized: bool) -> Tensor:
    shape = place.dims[::-1]
    if place.format is _F32:
        return DenseTensor(place.file.view(place.offset, "<f4", shape))
    if quantized and len(shape) == 2:
        return Q8Tensor(place.blocks(), shape)
    return BlockTensor(place.blocks(), place.format, shape)

"""Quantized GGUF models, in files of one or several types, and the same models in memory.

Q4_0 and Q8_0 are made here as whole numbers and scales, and packed by hand; as tensors they are
int8 in groups of 32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llama2py.checkpoint import (
    Checkpoint,
    DenseTensor,
    QuantizedTensor,
    Tensor,
    quantize,
    tensor_shapes,
)
from llama2py.checkpoint.gguf.blocks import FORMATS
from llama2py.checkpoint.gguf.reader import NAMES
from llama2py.checkpoint.gguf.tensors import BlockTensor
from llama2py.checkpoint.quantize import quantize_int4
from llama2py.config import ModelConfig
from llama2py.tokenizers.gguf import gguf_pairs
from tests.conftest import in_memory, tiny_tokenizer
from tests.support import gguf_files as made

F32, Q4_0, Q4_1, Q8_0 = 0, 2, 3, 8
CONFIG = ModelConfig(64, 96, 2, 4, 2, 300, 40, shared_classifier=False)
#: Its w2 is of whole blocks; rows of 48 are not.
NARROW = ModelConfig(48, 64, 1, 4, 4, 300, 40)


class Part(NamedTuple):
    """A tensor of a file."""

    kind: int
    """ggml's number of the type."""
    raw: bytes
    tensor: Tensor
    """The tensor, made without the reader; Q4_0 and Q8_0 are int8."""


Parts = dict[str, list[Part]]


def random_scales(
    shape: tuple[int, ...], rng: np.random.Generator, peak: int
) -> NDArray[np.float16]:
    """One for each 32 values, of either sign, for values up to the peak: (rows * cols / 32,)."""
    count = shape[0] * shape[1] // 32
    sizes = rng.uniform(1, 3, count) / peak / np.sqrt(shape[1])
    return np.asarray(rng.choice([-1, 1], count) * sizes, np.float16)


def q4_0(shape: tuple[int, ...], rng: np.random.Generator, first: int | None) -> Part:
    """Values from -7 to 7; or the first of each 32 is always this one."""
    values, scales = rng.integers(-7, 8, shape, np.int8), random_scales(shape, rng, 8)
    if first is not None:
        values[:, ::32] = first
    groups = values.reshape(-1, 2, 16).astype(np.int16) + 8
    nibbles = (groups[:, 0] + 16 * groups[:, 1]).astype(np.uint8)  # 16 values below, 16 above
    raw = np.concatenate([scales.view(np.uint8).reshape(-1, 2), nibbles], axis=1).tobytes()
    return Part(Q4_0, raw, QuantizedTensor(values, scales.astype(np.float32), 32))


def q8_0(shape: tuple[int, ...], rng: np.random.Generator) -> Part:
    """No group reaches 127, which no quantizer would write."""
    values, scales = rng.integers(-90, 91, shape, np.int8), random_scales(shape, rng, 90)
    halves = scales.view(np.uint8).reshape(-1, 2)
    raw = np.concatenate([halves, values.reshape(-1, 32).view(np.uint8)], axis=1).tobytes()
    return Part(Q8_0, raw, QuantizedTensor(values, scales.astype(np.float32), 32))


def q4_1(shape: tuple[int, ...], rng: np.random.Generator) -> Part:
    """A type that is not kept."""
    blocks = np.empty(shape[0] * shape[1] // 32, FORMATS[Q4_1].record)
    blocks["q"] = rng.integers(0, 256, (blocks.size, 16))
    blocks["d"] = random_scales(shape, rng, 8)
    blocks["m"] = -8 * blocks["d"]
    weights = BlockTensor(blocks, FORMATS[Q4_1], shape).dequantize()
    return Part(Q4_1, blocks.tobytes(), DenseTensor(weights))


def f32(shape: tuple[int, ...], rng: np.random.Generator) -> Part:
    weights = rng.standard_normal(shape, np.float32)
    weights = (1 + weights / 4 if len(shape) == 1 else weights / np.sqrt(shape[1])).astype("<f4")
    return Part(F32, weights.tobytes(), DenseTensor(weights))


def parts_of(config: ModelConfig, kinds: dict[str, int], first: int | None = None) -> Parts:
    """A model whose matrices are in Q4_0, but those of the names in ``kinds``."""
    rng = np.random.default_rng(7)

    def part(name: str, shape: tuple[int, ...]) -> Part:
        kind = kinds.get(name, Q4_0) if len(shape) == 2 else F32
        if kind == Q4_0:
            return q4_0(shape, rng, first)
        return {F32: f32, Q4_1: q4_1, Q8_0: q8_0}[kind](shape, rng)

    shapes = tensor_shapes(config).items()
    return {name: [part(name, shape) for _ in range(count)] for name, (count, shape) in shapes}


def write(path: Path, config: ModelConfig, parts: Parts) -> Path:
    numbers = {
        "embedding_length": config.dim,
        "feed_forward_length": config.hidden_dim,
        "block_count": config.n_layers,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "context_length": config.seq_len,
    }
    file = {
        NAMES[name].format(layer): (part.kind, part.tensor.shape, part.raw)
        for name, layers in parts.items()
        for layer, part in enumerate(layers)
    }
    pairs = made.metadata(**numbers) | gguf_pairs(tiny_tokenizer(config.vocab_size), None)
    path.write_bytes(made.gguf_file(pairs, *made.lay_out(file)))
    return path


def model(
    config: ModelConfig,
    parts: Parts,
    matrix: Callable[[Part], Tensor] = lambda part: part.tensor,
    group_size: int | None = 32,
) -> Checkpoint:
    """The same in memory, with such matrices."""
    tensors = {
        name: tuple(matrix(p) if len(p.tensor.shape) == 2 else p.tensor for p in layers)
        for name, layers in parts.items()
    }
    return in_memory(config, tensors, group_size)


def dense(part: Part) -> Tensor:
    return DenseTensor(part.tensor.dequantize())


def four_bits(part: Part) -> Tensor:
    """The tensor as int8; a part that is not Q4_0 is quantized from its weights."""
    if part.kind == Q4_0:
        return part.tensor
    weights = part.tensor.dequantize()
    rows, cols = weights.shape
    new = quantize_int4(weights)
    scales = new.scales.astype(np.float32).reshape(-1)
    return QuantizedTensor(new.values.reshape(rows, cols), scales, 32)


def eight_bits(part: Part) -> Tensor:
    if isinstance(part.tensor, QuantizedTensor):
        return part.tensor
    return quantize(part.tensor.dequantize(), 32)

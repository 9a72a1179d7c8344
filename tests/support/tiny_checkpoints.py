"""Tiny llama2.c files, written by hand: the oracle of the reader's and the writer's tests.

Nothing here uses the code under test. No two float32 tensors of a file share a value, so a tensor
read from the wrong place cannot pass for the right one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = 0x616B3432


@dataclass(frozen=True)
class Shape:
    """The numbers of a tiny model, as its author thinks of them."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    seq_len: int
    shared: bool
    group_size: int

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.dim, self.hidden, self.layers, self.heads, self.kv_heads)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of each name, all layers together."""
        n, d, h, kv = self.layers, self.dim, self.hidden, self.dim // self.heads * self.kv_heads
        return {
            "token_embedding_table": (1, self.vocab, d),
            "rms_att_weight": (n, d),
            "wq": (n, d, d),
            "wk": (n, kv, d),
            "wv": (n, kv, d),
            "wo": (n, d, d),
            "rms_ffn_weight": (n, d),
            "w1": (n, h, d),
            "w2": (n, d, h),
            "w3": (n, h, d),
            "rms_final_weight": (1, d),
            "wcls": (1, self.vocab, d),
        }


# Grouped-query attention, a classifier of its own, groups that reach over the rows of w2 (8, 12).
GROUPED = Shape(8, 12, 2, 4, 2, 5, 3, shared=False, group_size=8)
# All heads alike, shared classifier, an odd number of int8 values per tensor: unaligned scales.
UNALIGNED = Shape(6, 11, 3, 3, 3, 7, 4, shared=True, group_size=3)

SHAPES = {"grouped": GROUPED, "unaligned": UNALIGNED}

# fmt: off
V0_ORDER = (
    "token_embedding_table", "rms_att_weight", "wq", "wk", "wv", "wo", "rms_ffn_weight",
    "w1", "w2", "w3", "rms_final_weight", "ROPE", "wcls",
)
V1_ORDER = (
    "rms_att_weight", "rms_ffn_weight", "rms_final_weight", "token_embedding_table",
    "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls",
)
# fmt: on
NORMS = ("rms_att_weight", "rms_ffn_weight", "rms_final_weight")


@dataclass
class TinyFile:
    """A file's bytes, where its parts begin, and the tensors its author put there.

    ``expected`` holds for each name one array per layer; in v2, for a matrix, a pair
    (int8 values, float32 scales).
    """

    shape: Shape
    version: int
    data: bytes = b""
    borders: list[int] = field(default_factory=list)
    expected: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, part: bytes) -> None:
        self.borders.append(len(self.data))
        self.data += part


def floats(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Distinct values for each name: 10000, 10001 ... for the first, 20000 ... for the second."""
    first = 10000.0 * (1 + sorted(V1_ORDER).index(name))
    return (first + np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


def make_file(shape: Shape, version: int) -> TinyFile:
    """Write one tiny model as v0, v1 or v2."""
    file = TinyFile(shape, version)
    if version == 0:
        vocab = shape.vocab if shape.shared else -shape.vocab
        file.add(struct.pack("<7i", *shape.numbers, vocab, shape.seq_len))
    else:
        fields = (*shape.numbers, shape.vocab, shape.seq_len)
        head = struct.pack("<Ii7iB", MAGIC, version, *fields, shape.shared)
        if version == 2:
            head += struct.pack("<i", shape.group_size)
        file.add(head + bytes(256 - len(head)))
    for name in V1_ORDER if version else V0_ORDER:
        if name == "ROPE":
            table = bytes(4 * shape.seq_len * (shape.dim // shape.heads) // 2)
            file.add(table)
            file.add(table)
        elif name != "wcls" or not shape.shared:
            _add_tensors(file, name)
    return file


def _add_tensors(file: TinyFile, name: str) -> None:
    stacked = floats(name, file.shape.tensors()[name])
    file.expected[name] = []
    for layer in stacked:
        if file.version < 2 or name in NORMS:
            file.add(layer.astype("<f4").tobytes())
            file.expected[name].append(layer)
        else:
            # int8 has too few numbers to be distinct; their order still distinguishes tensors.
            values = (layer * 7 % 255 - 127).astype(np.int8)
            scales = (layer.ravel()[:: file.shape.group_size] / 8).astype(np.float32)
            file.add(values.tobytes())
            file.add(scales.astype("<f4").tobytes())
            file.expected[name].append((values, scales))

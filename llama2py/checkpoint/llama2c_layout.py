"""Where everything lies in llama2.c's own files: for the reader and the writer.

All little-endian. Source: ``export.py`` and ``run.c`` / ``runq.c`` of karpathy/llama2.c.

v0      Seven int32, tensors in the order of `_V0_ORDER`. No magic. A negative vocab_size says that
        the classifier is a tensor of its own, at the end.
v1, v2  Magic, version, seven int32, a byte that says whether the classifier is the token
        embedding, in v2 the group size (right behind it, unaligned); zeros up to byte 256; tensors
        in the order of `_V1_ORDER`. In v2 a matrix is int8 values, then their float32 scales.

The tensors of one name lie behind one another, layer by layer.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import ModelConfig
from .tensors import tensor_shapes

MAGIC = struct.pack("<I", 0x616B3432)  # "ak42" to a machine that reads it big end first

V0_HEADER = struct.Struct("<7i")
V1_HEADER = struct.Struct("<4si7iB")  # magic, version, seven numbers, shared_classifier
V2_GROUP_SIZE = struct.Struct("<i")  # at byte V1_HEADER.size of a v2 file

# Bytes in front of the first tensor, by version.
HEADER_SIZES = {0: V0_HEADER.size, 1: 256, 2: 256}

# Two tables of seq_len * head_dim / 2 floats that nothing reads any more.
_ROPE_TABLES = "rope_tables"

# fmt: off
_V0_ORDER = (
    "token_embedding_table", "rms_att_weight", "wq", "wk", "wv", "wo",
    "rms_ffn_weight", "w1", "w2", "w3", "rms_final_weight", _ROPE_TABLES, "wcls",
)
_V1_ORDER = (
    "rms_att_weight", "rms_ffn_weight", "rms_final_weight", "token_embedding_table",
    "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Section:
    """The tensors of one name.

    Attributes
    ----------
    name : str
        llama2.c's name of them.
    count : int
        How many there are.
    shape : tuple of int
        Shape of each.
    offset, stride : int
        Where the first one begins in the file and how far it is to the next, in bytes.
    quantized : bool
        Whether each is int8 values followed by float32 scales, or plain float32.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    offset: int
    stride: int
    quantized: bool


def header_numbers(config: ModelConfig) -> tuple[int, int, int, int, int, int, int]:
    """List the seven numbers of a header in their order (vocab_size positive)."""
    return (
        config.dim,
        config.hidden_dim,
        config.n_layers,
        config.n_heads,
        config.n_kv_heads,
        config.vocab_size,
        config.seq_len,
    )


def header_config(numbers: Sequence[int], shared_classifier: bool) -> ModelConfig:
    """Make the config that a header means: the inverse of `header_numbers`.

    Raises
    ------
    ConfigError
        If they make no model.
    """
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = numbers
    return ModelConfig(
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=vocab_size,
        seq_len=seq_len,
        shared_classifier=shared_classifier,
    )


def pack_header(config: ModelConfig, version: int, group_size: int | None) -> bytes:
    """Make the bytes in front of the first tensor."""
    numbers = header_numbers(config)
    if version == 0:
        *shape, vocab_size, seq_len = numbers
        sign = 1 if config.shared_classifier else -1
        return V0_HEADER.pack(*shape, sign * vocab_size, seq_len)
    header = V1_HEADER.pack(MAGIC, version, *numbers, config.shared_classifier)
    if group_size is not None:
        header += V2_GROUP_SIZE.pack(group_size)
    return header.ljust(HEADER_SIZES[version], b"\0")


def lay_out(config: ModelConfig, version: int, group_size: int | None) -> tuple[list[Section], int]:
    """Work out where each tensor lies, in Python integers and without looking at a file.

    Parameters
    ----------
    config : ModelConfig
        The numbers of the model.
    version : {0, 1, 2}
        Of the file.
    group_size : int or None
        Values per scale in v2, a divisor of ``dim``; None in v0 and v1. Every matrix has ``dim``
        as one of its sides, so whole groups fill it, even where ``hidden_dim`` is not divided.

    Returns
    -------
    sections : list of Section
        In the order of the file.
    file_size : int
        Length of the whole file, in bytes.
    """
    shapes = tensor_shapes(config)
    sections = []
    offset = HEADER_SIZES[version]
    for name in _V1_ORDER if version else _V0_ORDER:
        if name == _ROPE_TABLES:
            offset += 4 * config.seq_len * config.head_dim
        elif name in shapes:  # wcls is not where the classifier is shared
            count, shape = shapes[name]
            size = math.prod(shape)
            stride, quantized = 4 * size, False
            if group_size is not None and len(shape) == 2:
                stride, quantized = size + 4 * (size // group_size), True
            sections.append(Section(name, count, shape, offset, stride, quantized))
            offset += count * stride
    return sections, offset

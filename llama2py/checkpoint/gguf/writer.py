"""The writer of GGUF files, version 3, of the architecture llama.

The layout is that of `gguf_metadata`. Rows of wq and wk stay as llama2.c has them: see `reader`.

Source: the GGUF specification, github.com/ggml-org/ggml, ``docs/gguf.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...config import ModelConfig
from ...errors import CheckpointError
from ...formats.atomic_write import replacing
from ...formats.gguf_metadata import ARRAY, MAX_NAME, NUMBERS, STRING
from ..checkpoint import Checkpoint
from ..export import Item, items, write_item
from .blocks import FORMATS
from .config import ARCHITECTURE
from .reader import NAMES, ROPE_FACTORS

ALIGNMENT = 32
VERSION = 3
_KINDS = {"float32": 0, "float16": 1, "bfloat16": 30, "int8": 8}
# general.file_type: the type of most tensors.
_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, "int8": 7}
_INTEGER, _REAL, _BOOL, _SIGNED = 4, 6, 7, 5  # uint32, float32, bool, int32

Pairs = Mapping[str, Any]


def gguf_items(config: ModelConfig, dtype: str) -> list[Item]:
    """List the tensors of a file with matrices of a dtype.

    Norms are float32. With int8, matrices whose rows are no multiple of 32 are float16.
    """

    def of(shape: tuple[int, ...]) -> str:
        if len(shape) == 1:
            return "float32"
        return "float16" if dtype == "int8" and shape[1] % FORMATS[8].size else dtype

    return list(items(config, NAMES, of))


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    dtype: str,
    vocabulary: Pairs,
    progress: Callable[[int], object] = lambda weights: None,
    check: Callable[[Path], object] = lambda path: None,
) -> None:
    """Write a model as one GGUF file, whole or not at all.

    Parameters
    ----------
    path : Path
        The output file.
    checkpoint : Checkpoint
        The model, of any format.
    dtype : {'float32', 'float16', 'bfloat16', 'int8'}
        Dtype of the matrices; int8 is Q8_0. Matrices whose rows are no multiple of 32, which Q8_0
        cannot hold, are then float16, as in llama.cpp.
    vocabulary : mapping of str to value
        The pairs ``tokenizer.*``.
    progress : callable
        Called after each tensor with its number of weights.
    check : callable
        Called with the path of the complete file, before it replaces the output.

    Raises
    ------
    CheckpointError
        If the dtype cannot hold a weight, the source cannot be read, or the file cannot be written.
    """
    config = checkpoint.config
    tensors = gguf_items(config, dtype)
    pairs = {**_model_pairs(path, config, dtype), **vocabulary}
    factors = _factors(config)
    places = [(item.name, item.shape, _KINDS[item.dtype], item.nbytes) for item in tensors]
    if factors is not None:
        places.append((ROPE_FACTORS, factors.shape, 0, factors.nbytes))
    head = _head(pairs, places)
    with replacing(path, CheckpointError) as out:
        out.write(head)
        for item in tensors:
            _pad(out)
            write_item(out, item, checkpoint, progress)
        if factors is not None:
            _pad(out)
            out.write(factors.tobytes())
        _pad(out)
        out.flush()
        check(Path(out.name))


def _pad(out: Any) -> None:
    out.write(bytes(-out.tell() % ALIGNMENT))


def _model_pairs(path: Path, config: ModelConfig, dtype: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.seq_len,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.hidden_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        numbers |= {"rope.scaling.type": b"linear", "rope.scaling.factor": scaling.factor}
    return {
        "general.architecture": ARCHITECTURE.encode(),
        "general.type": b"model",
        "general.name": path.stem.encode(errors="replace"),
        "general.file_type": _FILE_TYPES[dtype],
        "general.alignment": ALIGNMENT,
        "general.quantization_version": 2,
        **{f"{ARCHITECTURE}.{name}": value for name, value in numbers.items()},
    }


def _factors(config: ModelConfig) -> Any:
    """The divisor of each rotary frequency, unless all share one: (head_dim / 2,)."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "linear":
        return None
    return np.array(scaling.divisors(config.head_dim, config.rope_theta), "<f4")


def _head(pairs: Pairs, places: Sequence[tuple[str, tuple[int, ...], int, int]]) -> bytes:
    """Everything before the first tensor."""
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(places), len(pairs))]
    for key, value in pairs.items():
        kind, data = pack_value(value)
        parts += [_string(key.encode()), struct.pack("<I", kind), data]
    offset = 0
    for name, shape, kind, nbytes in places:
        assert len(name) < MAX_NAME, "the names are ours"
        layout = f"<I{len(shape)}QIQ"
        parts += [_string(name.encode())]
        parts += [struct.pack(layout, len(shape), *shape[::-1], kind, offset)]
        offset += nbytes + -nbytes % ALIGNMENT
    return b"".join(parts)


def _string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def pack_value(value: Any) -> tuple[int, bytes]:
    """Return GGUF's number of a value's type, and the value's bytes.

    The value is a bool, an int (uint32), a float (float32), bytes (a string), or a list of ints
    (int32), floats or bytes.
    """
    if isinstance(value, list):
        if value and isinstance(value[0], bytes):
            return ARRAY, struct.pack("<IQ", STRING, len(value)) + b"".join(map(_string, value))
        kind = _REAL if value and isinstance(value[0], float) else _SIGNED
        data = struct.pack(f"<{len(value)}{NUMBERS[kind]}", *value)
        return ARRAY, struct.pack("<IQ", kind, len(value)) + data
    if isinstance(value, bytes):
        return STRING, _string(value)
    kind = {bool: _BOOL, int: _INTEGER, float: _REAL}[type(value)]
    return kind, struct.pack("<" + NUMBERS[kind], value)

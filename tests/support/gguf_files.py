"""GGUF files made by hand, byte by byte, so that tests can also make invalid ones.

Only `refusal` and `weights_of` use the code under test.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py.checkpoint import Checkpoint, open_checkpoint
from llama2py.errors import CheckpointError

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

#: Small, with grouped queries, and rows that are whole blocks of 32.
CONFIG: dict[str, Any] = {
    "embedding_length": 32,
    "feed_forward_length": 64,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 16,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
VOCAB = 6


def string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key.encode()) + struct.pack("<I", kind) + value


def typed(value: Any) -> tuple[int, bytes]:
    """The type and bytes of a Python value."""
    match value:
        case tuple():
            return value
        case bool():
            return BOOL, struct.pack("<?", value)
        case int():
            return U32, struct.pack("<I", value)
        case float():
            return F32, struct.pack("<f", value)
        case bytes():
            return STRING, string(value)
        case [str() | bytes(), *_]:
            return ARRAY, array(STRING, [string(bytes(item)) for item in value])
        case [float(), *_]:
            return ARRAY, array(F32, [struct.pack("<f", item) for item in value])
        case [*_]:
            return ARRAY, array(I32, [struct.pack("<i", item) for item in value])
    raise TypeError(value)


def tensor_info(name: str, dims: Sequence[int], kind: int, offset: int) -> bytes:
    layout = f"<I{len(dims)}QIQ"
    return string(name.encode()) + struct.pack(layout, len(dims), *dims, kind, offset)


def gguf_file(
    pairs: Mapping[str, Any],
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    version: int = 3,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these pairs (`typed`), this tensor list, and this data after it."""
    count = len(infos) if n_tensors is None else n_tensors
    head = b"GGUF" + struct.pack("<IQQ", version, count, len(pairs))
    head += b"".join(pair(key, *typed(value)) for key, value in pairs.items()) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def metadata(**changes: Any) -> dict[str, Any]:
    """The pairs of a llama; ``changes`` add to those of `CONFIG`, or drop one (None)."""
    numbers = CONFIG | {key.replace("__", "."): value for key, value in changes.items()}
    pairs: dict[str, Any] = {"general.architecture": b"llama"}
    return pairs | {f"llama.{key}": val for key, val in numbers.items() if val is not None}


def shapes(tied: bool = True) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model of `CONFIG`, rows first."""
    dim, hidden, kv = 32, 64, 16
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, dim)}
    for layer in range(2):
        names = {
            "attn_norm": (dim,), "attn_q": (dim, dim), "attn_k": (kv, dim), "attn_v": (kv, dim),
            "attn_output": (dim, dim), "ffn_norm": (dim,), "ffn_gate": (hidden, dim),
            "ffn_up": (hidden, dim), "ffn_down": (dim, hidden),
        }  # fmt: skip
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in names.items()}
    found["output_norm.weight"] = (dim,)
    return found if tied else found | {"output.weight": (VOCAB, dim)}


def weights(tied: bool = True, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights for it."""
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(shape) / np.sqrt(shape[-1]), np.float32)
        for name, shape in shapes(tied).items()
    }


def lay_out(
    tensors: Mapping[str, tuple[int, Sequence[int], bytes]],
) -> tuple[list[bytes], bytes]:
    """The list and the data of tensors given by type, shape (rows first) and bytes."""
    infos, data = [], b""
    for name, (kind, shape, raw) in tensors.items():
        infos.append(tensor_info(name, shape[::-1], kind, len(data)))
        data += raw + bytes(-len(raw) % 32)
    return infos, data


def float_file(tied: bool = True, **changes: Any) -> bytes:
    """A whole float32 model."""
    tensors = {name: (0, values.shape, values.tobytes()) for name, values in weights(tied).items()}
    return gguf_file(metadata(**changes), *lay_out(tensors))


# ---- reading them ----


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def weights_of(checkpoint: Checkpoint) -> dict[str, list[NDArray[np.float32]]]:
    return {
        name: [tensor.dequantize() for tensor in row] for name, row in checkpoint.tensors.items()
    }

"""Files in other programs' formats, written by hand, from which the readers' tests start.

Only `opens` uses the code under test, and nothing here uses the other programs.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2py.checkpoint import open_checkpoint
from llama2py.errors import CheckpointError

Array = NDArray[Any]

# A model of one layer: dim 8, 2 heads, 1 of keys, hidden_dim 12, 5 tokens.
CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 5,
    "max_position_embeddings": 16,
    "tie_word_embeddings": True,
}
PARAMS = {"dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 5}
SHAPES = {
    "model.embed_tokens.weight": (5, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.mlp.gate_proj.weight": (12, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.norm.weight": (8,),
}


def tiny_tensors(dtype: str = "<f4") -> dict[str, Array]:
    """No two tensors alike; small whole numbers, which any dtype holds."""
    return {
        name: (np.arange(np.prod(shape)) % 97 + 100 * i).reshape(shape).astype(dtype)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


# ---- safetensors ----

_NAMES = {"<f4": "F32", "<f2": "F16", "<u2": "BF16"}


def safetensors(tensors: dict[str, Array]) -> tuple[dict[str, Any], bytes]:
    """The header, and the data after it."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        dtype = _NAMES[array.dtype.str]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), end]}
        data += array.tobytes()
    return header, data


def safetensors_file(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# ---- torch.save ----


class Storage:
    """Pickled as a persistent id."""

    def __init__(self, key: str, array: Array, kind: str = "FloatStorage", numel: Any = None):
        self.key, self.array, self.kind = key, array, kind
        self.numel = array.size if numel is None else numel


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def sizes(values: Any) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor_program(storage: Storage, offset: int, shape: Any, strides: Any) -> bytes:
    """The pickle opcodes of one tensor."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage")
        + f"ctorch\n{storage.kind}\n".encode()
        + text(storage.key)
        + text("cpu")
        + number(storage.numel)
        + b"tQ"
        + number(offset)
        + sizes(shape)
        + sizes(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def whole(storage: Storage) -> bytes:
    """A tensor that covers its whole storage."""
    shape = storage.array.shape
    strides = [s // storage.array.itemsize for s in storage.array.strides]
    return tensor_program(storage, 0, shape, strides)


def dict_program(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(name) + program for name, program in items.items()) + b"u"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def torch_file(path: Path, pickled: bytes, storages: dict[str, Array], **more: Any) -> None:
    """A zip archive as torch.save makes them."""
    with zipfile.ZipFile(path, "w", more.get("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", more.get("byteorder", "little"))
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def torch_state(tensors: dict[str, Array]) -> tuple[bytes, dict[str, Array]]:
    """The pickle of a state_dict, and its storages."""
    kinds = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<u2": "BFloat16Storage"}
    storages = {
        name: Storage(str(i), array, kinds[array.dtype.str])
        for i, (name, array) in enumerate(tensors.items())
    }
    body = dict_program({name: whole(storage) for name, storage in storages.items()})
    return program(body), {s.key: s.array for s in storages.values()}


def huggingface(folder: Path, kind: str = "safetensors", dtype: str = "<f4") -> Path:
    """A directory with the tiny model; returns its file of weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    if kind == "safetensors":
        path = folder / "model.safetensors"
        path.write_bytes(safetensors_file(*safetensors(tiny_tensors(dtype))))
    else:
        path = folder / "pytorch_model.bin"
        torch_file(path, *torch_state(tiny_tensors(dtype)))
    return path


class Evil:
    """Its pickle runs a command when Python reads it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def evil(command: str, protocol: int) -> bytes:
    return pickle.dumps({"model": Evil(command)}, protocol)


# ---- what holds whenever one is read ----


def opens(path: Path) -> str:
    """Open a file and read all of it within the bounds; return the error, or an empty string."""
    size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    started = time.process_time()
    complaint = _read_all(path, size)
    assert time.process_time() - started < 2
    tracemalloc.start()  # which makes it up to eight times slower
    try:
        assert _read_all(path, size) == complaint
        assert tracemalloc.get_traced_memory()[1] < 2 * size + (16 << 20)
    finally:
        tracemalloc.stop()
    return complaint


def _read_all(path: Path, size: int) -> str:
    try:
        with open_checkpoint(path) as checkpoint:
            for layers in checkpoint.tensors.values():
                for tensor in layers:
                    assert tensor.dequantize().nbytes <= 2 * size + (16 << 20)
                    tensor.count_non_finite()
    except CheckpointError as error:
        complaint = str(error)
        assert str(path.parent) in complaint
        assert "\n" not in complaint
        assert len(complaint) < 1000
        return complaint
    return ""


def refusal(path: Path) -> str:
    complaint = opens(path)
    assert complaint
    return complaint

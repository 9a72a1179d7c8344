"""Small or sparse files that once took seconds or gigabytes: each is done within the bounds.

The bounds are docs/formats.md's: 2 seconds of CPU time, and twice the size of the files plus 16 MB.
"""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2py.checkpoint import open_checkpoint
from llama2py.engine.native import Engine
from llama2py.errors import CheckpointError
from tests.support import gguf_files as made
from tests.support.foreign_files import (
    CONFIG,
    PARAMS,
    Storage,
    dict_program,
    huggingface,
    number,
    program,
    safetensors_file,
    sizes,
    tensor_program,
    text,
    torch_file,
    whole,
)


def in_time(path: Path, load: bool = False) -> str:
    """Open a checkpoint within the bound of time; return the error, if any."""
    started = time.process_time()
    error = _open(path, load)
    assert time.process_time() - started < 2
    return error


def bounded(path: Path, load: bool = False) -> str:
    """Open a checkpoint within the bounds of time and memory; return the error, if any."""
    folder = path if path.is_dir() else path.parent
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    error = in_time(path, load)
    tracemalloc.start()  # which makes it up to eight times slower
    try:
        assert _open(path, load) == error
        assert tracemalloc.get_traced_memory()[1] < 2 * size + (16 << 20)
    finally:
        tracemalloc.stop()
    return error


def _open(path: Path, load: bool) -> str:
    try:
        with open_checkpoint(path) as checkpoint:
            if load:
                Engine(checkpoint, 1).close()
    except CheckpointError as error:
        return str(error)
    return ""


# ---- pickles ----

NORM = Storage("0", np.ones(8, "<f4"))


def shared(body: bytes, call: bytes, times: int) -> bytes:
    """A pickle that stores an object as number 0 and uses it in a call again and again."""
    return program(body + b"q\x000" + call * times + b"N")


PAIR = text("key") + b"N\x86"
MANY_PAIRS = b"](" + PAIR + b"q\1" + b"h\1" * 50_000 + b"e"
ORDERED_DICT = b"ccollections\nOrderedDict\n"

LARGE = number((1 << 61) - 1) + b"q\x01"

PICKLES = {
    # OrderedDict goes through the whole list at each call.
    "one list for many dicts": shared(MANY_PAIRS, ORDERED_DICT + b"h\0\x85R0", 20_000),
    # The product of 100,000 numbers has 6 million bits.
    "a hundred thousand dimensions": shared(
        LARGE + b"0(" + b"h\x01" * 100_000 + b"t",
        tensor_program(NORM, 0, (1,), (1,)).replace(sizes([1]), b"h\0"),
        1,
    ),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_cannot_repeat_what_is_slow(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt"
    torch_file(path, PICKLES[name], {"0": NORM.array})
    assert bounded(path).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["shared_list_ordereddict", "hundred_thousand_dims"])
def test_the_pickles_that_were_found(name: str) -> None:
    path = Path(os.environ.get("LLAMA2PY_SHARED", "../shared")) / "cases" / f"{name}.pt"
    if not path.is_file():
        pytest.skip(f"needs {path}, which is not part of the project")
    assert "the pickle builds far more" in bounded(path)


def test_a_tensor_of_scattered_values_is_refused(tmp_path: Path) -> None:
    """Reading it would read its whole storage, and so for each of many such tensors."""
    storage = Storage("0", np.ones(1 << 20, "<f4"))
    path = huggingface(tmp_path, "torch")
    torch_file(
        path,
        program(dict_program({"x": tensor_program(storage, 0, (2,), ((1 << 20) - 1,))})),
        {"0": storage.array},
    )
    assert "2 values of a tensor are spread over 1048576" in bounded(path)


def test_the_shards_of_a_model_share_one_allowance(tmp_path: Path) -> None:
    """Each alone is within the limits of one file."""
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    body = b"N0" * 124_000 + dict_program({"x": whole(NORM)})
    for shard in range(9):
        torch_file(tmp_path / f"consolidated.{shard:02}.pth", program(body), {"0": NORM.array})
    assert ".pth: the pickle " in in_time(tmp_path)


# ---- GGUF ----


def sparse(path: Path, head: bytes, size: int) -> None:
    with open(path, "wb") as out:
        out.write(head)
        try:
            out.truncate(size)
        except OSError:
            pytest.skip("no sparse files here")


def test_a_sparse_gguf_cannot_have_endless_strings(tmp_path: Path) -> None:
    """268 MB of zeros are 33 million empty strings, in 16 arrays that each are allowed."""
    path = tmp_path / "sparse.gguf"
    count = 1 << 21
    with open(path, "wb") as out:
        out.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 16))
        for i in range(16):
            out.write(made.string(b"k%d" % i) + struct.pack("<IIQ", made.ARRAY, 8, count))
            out.seek(8 * count, os.SEEK_CUR)
        out.truncate(out.tell())
    assert "'k1' is an array of 2097152, expected at most 0" in in_time(path)


def test_a_sparse_gguf_cannot_have_a_huge_string(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    value = struct.pack("<IQ", made.STRING, 1 << 30)
    sparse(path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + made.string(b"k") + value, 2 << 30)
    started = time.process_time()
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="has 1073741824 bytes, expected at most 67108864"):
        open_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert time.process_time() - started < 2


def test_the_parts_of_a_gguf_share_one_allowance(tmp_path: Path) -> None:
    """Each alone is within the limits of one file."""
    n_strings = 1 << 20
    for part in range(3):
        head = {"split.count": 3, "split.no": part}
        pairs = b"".join(
            made.string(key.encode()) + struct.pack("<IH", 2, value) for key, value in head.items()
        )
        array = made.string(b"k") + struct.pack("<IIQ", made.ARRAY, 8, n_strings)
        path = tmp_path / f"m-{part + 1:05}-of-00003.gguf"
        data = b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + pairs + array
        sparse(path, data, len(data) + 8 * n_strings)
    assert "is an array of 1048576, expected at most 0" in in_time(tmp_path / path.name)


# ---- Hugging Face's directories ----


def many_layers(folder: Path, n_layers: int, n_files: int) -> None:
    """A model of tiny layers in many files."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (2, 2), "model.norm": (2,)}
    for layer in range(n_layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[prefix + name] = (2,)
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"):
            shapes[f"{prefix}{name}_proj"] = (2, 2)
        for name in ("gate", "down", "up"):
            shapes[f"{prefix}mlp.{name}_proj"] = (2, 2)
    headers: list[dict[str, Any]] = [{} for _ in range(n_files)]
    ends = [0] * n_files
    mapping = {}
    for i, (name, shape) in enumerate(shapes.items()):
        file = i % n_files
        begin, ends[file] = ends[file], ends[file] + 4 * int(np.prod(shape))
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [begin, ends[file]]}
        headers[file][f"{name}.weight"] = entry
        mapping[f"{name}.weight"] = f"m{file}.safetensors"
    for file, header in enumerate(headers):
        data = np.ones(ends[file] // 4, "<f4").tobytes()
        (folder / f"m{file}.safetensors").write_bytes(safetensors_file(header, data))
    index = {"weight_map": mapping}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sizes = {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": n_layers}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 2}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **sizes}))


def test_many_files_of_many_layers_load_in_time(tmp_path: Path) -> None:
    """Work for each tensor must not grow with the number of files."""
    many_layers(tmp_path, n_layers=1200, n_files=400)
    assert in_time(tmp_path, load=True) == ""


@pytest.mark.parametrize(
    ("n_tensors", "padding", "complaint"),
    [(9_000, 0, "lists 9000 tensors, expected at most"), (10, 1 << 21, "bytes, expected at most")],
)
def test_the_headers_of_many_files_share_one_allowance(
    n_tensors: int, padding: int, complaint: str, tmp_path: Path
) -> None:
    files = [f"m{i}.safetensors" for i in range(6)]
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    for i, name in enumerate(files):
        header: dict[str, Any] = {f"x{i}.{j}": entry for j in range(n_tensors)}
        header["__metadata__"] = {"padding": "x" * (padding - 2000)}
        (tmp_path / name).write_bytes(safetensors_file(header, b""))
    index = {"weight_map": {f"x{i}.0": name for i, name in enumerate(files)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert complaint in bounded(tmp_path)


@pytest.mark.parametrize("name", ["m" + "-o" * 20_000 + ".safetensors", "../m.safetensors", "", 5])
def test_an_index_names_files_beside_it_only(name: Any, tmp_path: Path) -> None:
    index = {"weight_map": {"x.0": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    complaint = bounded(tmp_path)
    assert "expected the name of a file beside it" in complaint
    assert len(complaint) < 1000


# ---- files that never end ----

SIDE_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model.safetensors",
]


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "sparse"])
@pytest.mark.parametrize("name", SIDE_FILES)
def test_a_side_file_that_never_ends_is_not_read(name: str, kind: str, tmp_path: Path) -> None:
    """It is an error, or it is ignored if a directory need not have the file."""
    folder = tmp_path / "model"
    weights = huggingface(folder)
    if name.endswith("index.json"):
        weights.unlink()
    (folder / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(folder / name)
    elif kind == "sparse":
        sparse(folder / name, b"", 1 << 40)
    else:
        (folder / name).symlink_to(kind)
    started = time.process_time()
    tracemalloc.start()
    error = _open(folder, load=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - started < 2
    assert peak < 16 << 20
    assert error or name not in ("config.json", "model.safetensors.index.json", "model.safetensors")

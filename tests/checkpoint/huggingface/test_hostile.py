"""Other programs' files that are cut short, lie, or attack: a clear error each, at no cost."""

from __future__ import annotations

import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.checkpoint import open_checkpoint
from llama2py.errors import CheckpointError
from tests.support.foreign_files import (
    CONFIG,
    SHAPES,
    huggingface,
    opens,
    refusal,
    safetensors,
    safetensors_file,
    tiny_tensors,
    torch_file,
    torch_state,
)

NORM = "model.norm.weight"


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<u2"])
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_the_unbroken_files_open(tmp_path: Path, kind: str, dtype: str) -> None:
    """If these did not open, the errors below would prove nothing."""
    path = huggingface(tmp_path / "good", kind, dtype)
    assert opens(path) == ""
    with open_checkpoint(path) as checkpoint:
        down = checkpoint.tensors["w2"][0].dequantize()
        wq = checkpoint.tensors["wq"][0].dequantize()
    bits = tiny_tensors(dtype)
    if dtype == "<u2":
        floats = {n: (b.astype(np.uint32) << 16).view(np.float32) for n, b in bits.items()}
    else:
        floats = {n: b.astype(np.float32) for n, b in bits.items()}
    np.testing.assert_array_equal(down, floats["model.layers.0.mlp.down_proj.weight"])
    # Rows of a head: first channels of its two pairs, then the second ones.
    rows = floats["model.layers.0.self_attn.q_proj.weight"][[0, 2, 1, 3, 4, 6, 5, 7]]
    np.testing.assert_array_equal(wq, rows)


# ---- safetensors ----


def changed(name: str, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    def change(header: dict[str, Any]) -> Any:
        header[name] = {**header[name], **changes}
        return header

    return change


def last(header: dict[str, Any]) -> int:
    return int(header[NORM]["data_offsets"][1])


BROKEN_HEADERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no JSON": (lambda h: b"{" + bytes(50), "not JSON"),
    "an array": (lambda h: b"{}[]", "not JSON"),
    "no UTF-8": (lambda h: b'{"\xff": 1}', "not JSON"),
    "NaN": (lambda h: b'{"x": NaN}', "NaN is not a JSON number"),
    "deep": (lambda h: b'{"x":' + b"[" * 30000, "nested too deep|not JSON"),
    "deep objects": (lambda h: b'{"x":' * 9000, "nested too deep|not JSON"),
    "many objects": (lambda h: b'{"x":[' + b"{}," * 500000 + b"{}]}", "many more than a real file"),
    "many numbers": (lambda h: b'{"x":[' + b"1," * 500000 + b"1]}", "many more than a real file"),
    "a long number": (lambda h: b'{"x":' + b"1" * 100000 + b"}", "not JSON"),
    "duplicates": (lambda h: b'{"a": 1, "a": 2}', "has a name twice"),
    "empty": (lambda h: {}, "fill"),
    "no dtype": (
        lambda h: {**h, NORM: {"shape": [8]}},
        "does not have a dtype",
    ),
    "a number": (lambda h: {**h, NORM: 3}, "does not have a dtype"),
    "odd dtype": (changed(NORM, dtype="F7"), "is of dtype 'F7'"),
    "wrong dtype": (changed(NORM, dtype="I32"), "dtype I32, expected float32"),
    "fraction": (changed(NORM, shape=[8.0]), "not sizes"),
    "negative": (changed(NORM, shape=[-8]), "not sizes"),
    "true": (changed(NORM, shape=[True, 8]), "not sizes"),
    "huge": (changed(NORM, shape=[1 << 61, 1 << 61]), "expected"),
    "many dimensions": (changed(NORM, shape=[1] * 9 + [8]), "not sizes"),
    "two dimensions": (changed(NORM, shape=[2, 4]), "has shape .2, 4., expected .8,."),
    "outside": (lambda h: changed(NORM, data_offsets=[last(h), last(h) + 32])(h), "within it"),
    "backwards": (lambda h: changed(NORM, data_offsets=[last(h), last(h) - 32])(h), "within it"),
    "negative offset": (changed(NORM, data_offsets=[-32, 0]), "not sizes"),
    "overlap": (
        lambda h: changed(NORM, data_offsets=[last(h) - 36, last(h) - 4])(h),
        "overlap at byte",
    ),
    "the same bytes": (changed(NORM, data_offsets=[0, 32]), "overlap at byte"),
    "a hole": (lambda h: {n: a for n, a in h.items() if "embed" not in n}, "leave a gap"),
    "a tail": (lambda h: {n: a for n, a in h.items() if n != NORM}, "expected them to fill"),
}


@pytest.mark.parametrize("name", BROKEN_HEADERS)
def test_a_broken_safetensors_header_is_an_error(tmp_path: Path, name: str) -> None:
    change, complaint = BROKEN_HEADERS[name]
    path = huggingface(tmp_path / "bad")
    header, data = safetensors(tiny_tensors())
    path.write_bytes(safetensors_file(change(header), data))
    assert re.search(complaint, refusal(path))


def test_a_safetensors_file_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    path = huggingface(tmp_path / "cut")
    whole_file = path.read_bytes()
    header_end = 8 + struct.unpack("<Q", whole_file[:8])[0]
    for size in [*range(1, 12), *range(12, header_end, 37), header_end, header_end + 1]:
        path.write_bytes(whole_file[:size])
        assert opens(path)
    path.write_bytes(whole_file + b"\0")
    assert "fill" in refusal(path)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 31, (1 << 64) - 1])
def test_a_wrong_header_length_is_an_error(tmp_path: Path, length: int) -> None:
    path = huggingface(tmp_path / "bad")
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    assert refusal(path)


# ---- JSON beside the weights ----


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"nul", b"{", b"[" * 100_000, b"\xff\xfe", b'{"model_type": 7}', b'{"a":1,"a":2}'],
)
def test_a_broken_config_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = huggingface(tmp_path / "bad")
    (path.parent / "config.json").write_bytes(content)
    assert refusal(path)
    (path.parent / "config.json").unlink()
    assert "expected a config.json" in refusal(path)
    (path.parent / "config.json").mkdir()
    assert refusal(path)


def test_huge_json_is_not_read(tmp_path: Path) -> None:
    path = huggingface(tmp_path / "bad")
    with open(path.parent / "config.json", "wb") as out:
        out.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="expected a JSON file of at most"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": {NORM: "../../etc/passwd"}}, "expected the name of a file beside it"),
        ({"weight_map": {NORM: "/etc/passwd"}}, "expected the name of a file beside it"),
        ({"weight_map": {NORM: 7}}, "not a string"),
        ({"weight_map": {NORM: ["x"]}}, "not a string"),
        ({"weight_map": {NORM: "model-1-of-2.safetensors"}}, "no such file"),
        ({"weight_map": {NORM: "one.safetensors"}}, "missing"),
        ({"weight_map": {str(i): f"{i}.safetensors" for i in range(600)}}, "600 files"),
    ],
)
def test_a_broken_index_is_an_error(tmp_path: Path, index: Any, complaint: str) -> None:
    path = huggingface(tmp_path / "bad")
    path.rename(path.parent / "one.safetensors")
    file = path.parent / "model.safetensors.index.json"
    file.write_text(json.dumps(index), "utf-8")
    assert complaint in refusal(file)


def test_shards_of_another_shape_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text('{"dim": 8, "n_layers": 1, "n_heads": 2}', "utf-8")
    for shard in range(2):
        path = tmp_path / f"consolidated.{shard:02d}.pth"
        torch_file(path, *torch_state({"output.weight": np.ones((3 - shard, 8), "<f4")}))
    assert refusal(tmp_path / "params.json")
    path.rename(tmp_path / "consolidated.02.pth")
    assert "without a gap" in refusal(tmp_path / "params.json")


# ---- anything ----


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    return {kind: huggingface(folder / kind, kind) for kind in ("safetensors", "torch")}


@pytest.fixture(scope="module")
def originals(scratch: dict[str, Path]) -> dict[str, bytes]:
    return {kind: path.read_bytes() for kind, path in scratch.items()}


FLIPS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["safetensors", "torch"]), FLIPS, st.booleans())
def test_flipped_bytes_open_or_are_an_error(
    scratch: dict[str, Path], originals: dict[str, bytes], kind: str, flips: Any, front: bool
) -> None:
    """In the whole file, or in its first part, which has the header or the pickle."""
    data = bytearray(originals[kind])
    span = min(len(data), 1200) if front else len(data)
    for place, value in flips:
        data[int(place * span)] = value
    scratch[kind].write_bytes(data)
    opens(scratch[kind])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted({*CONFIG, "rope_theta", "rope_scaling", "head_dim"})), VALUES)
def test_a_config_with_another_value_opens_or_is_an_error(
    scratch: dict[str, Path], originals: dict[str, bytes], name: str, value: Any
) -> None:
    path = scratch["safetensors"]
    path.write_bytes(originals["safetensors"])
    config = path.parent / "config.json"
    try:
        config.write_text(json.dumps({**CONFIG, name: value}), "utf-8")
        opens(path)
    finally:
        config.write_text(json.dumps(CONFIG), "utf-8")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.sampled_from(["dtype", "shape", "data_offsets"]), VALUES)
def test_a_header_with_another_value_opens_or_is_an_error(
    scratch: dict[str, Path], name: str, field: str, value: Any
) -> None:
    header, data = safetensors(tiny_tensors())
    header[name][field] = value
    scratch["safetensors"].write_bytes(safetensors_file(header, data))
    opens(scratch["safetensors"])


@pytest.mark.parametrize("theta", [10000.0, 5e-324, 1e308])
def test_a_huge_head_with_scaled_positions_allocates_nothing(tmp_path: Path, theta: float) -> None:
    """The fuzzer's: a divisor for each of 303,000 pairs took 20 MB, and small bases overflowed."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8}
    path = huggingface(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    about |= {"num_attention_heads": 1, "head_dim": 606000, "rope_theta": theta}
    (tmp_path / "config.json").write_text(json.dumps(about | {"rope_scaling": scaling}))
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + (1 << 20)

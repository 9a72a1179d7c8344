"""Writing checkpoints: byte for byte what llama2.c's exporter writes, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from llama2py.checkpoint import (
    Checkpoint,
    DenseTensor,
    QuantizedTensor,
    Tensor,
    open_checkpoint,
    write_checkpoint,
    write_llama2c,
)
from llama2py.config import ModelConfig
from llama2py.errors import CheckpointError, ParameterError
from tests.support.tiny_checkpoints import GROUPED, SHAPES, make_file

SHA_15M = "bd4df05fcf71f042020f0eef88c225cb0acc7ff0d79257e308ce4b3a1a7124cc"
SHA_15M_Q80 = "fd41a16e96eb7c872e5cdf183e7d9e6e02bf798104bb8aa181e6cd976673bc1f"

Tensors = dict[str, tuple[Tensor, ...]]
CONFIG = ModelConfig(8, 12, 2, 4, 2, 5, 3, shared_classifier=False)  # of GROUPED


def tiny(version: int) -> Tensors:
    """The tensors of the tiny grouped file, straight from its author."""
    return {
        name: tuple(
            QuantizedTensor(layer[0], layer[1], 8)
            if isinstance(layer, tuple)
            else DenseTensor(layer)
            for layer in layers
        )
        for name, layers in make_file(GROUPED, version).expected.items()
    }


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_a_file_read_and_written_is_the_same(
    tmp_path: Path, name: str, version: Literal[0, 1, 2]
) -> None:
    source, copy = tmp_path / "source.bin", tmp_path / "copy.bin"
    source.write_bytes(make_file(SHAPES[name], version).data)
    with open_checkpoint(source) as checkpoint:
        write_llama2c(copy, checkpoint, version, checkpoint.group_size)
    assert copy.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_authors_tensors_give_the_authors_file(
    tmp_path: Path, version: Literal[0, 1, 2]
) -> None:
    path = tmp_path / "tiny.bin"
    made = Checkpoint(path, "made in a test", CONFIG, tiny(version), ())
    write_llama2c(path, made, version, 8 if version == 2 else None)
    assert path.read_bytes() == make_file(GROUPED, version).data
    write_checkpoint(path, CONFIG, tiny(0))
    assert path.read_bytes() == make_file(GROUPED, 0).data


def test_float_versions_write_what_quantized_tensors_stand_for(tmp_path: Path) -> None:
    path, quantized = tmp_path / "tiny.bin", tiny(2)
    write_checkpoint(path, CONFIG, quantized)
    with open_checkpoint(path) as checkpoint:
        for name, layers in quantized.items():
            for left, right in zip(checkpoint.tensors[name], layers, strict=True):
                np.testing.assert_array_equal(left.dequantize(), right.dequantize())


def test_group_quantizing_the_real_model_gives_the_recorded_file(
    test_data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "q80.bin"
    with open_checkpoint(test_data / "data/stories260K.bin") as checkpoint:
        write_llama2c(path, checkpoint, version=2, group_size=4)
    assert path.read_bytes() == (test_data / "data/stories260K_q80.bin").read_bytes()


def test_the_real_model_as_v1_is_the_recorded_file(test_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "v1.bin"
    with open_checkpoint(test_data / "data/stories260K.bin") as checkpoint:
        write_llama2c(path, checkpoint, version=1)
    assert path.read_bytes() == (test_data / "data/formats/stories260K_v1.bin").read_bytes()


def test_the_real_model_as_v0_differs_in_the_unused_tables_alone(
    test_data: Path, tmp_path: Path
) -> None:
    path, original = tmp_path / "v0.bin", (test_data / "data/stories260K.bin").read_bytes()
    with open_checkpoint(test_data / "data/formats/stories260K_v1.bin") as checkpoint:
        write_checkpoint(path, checkpoint.config, checkpoint.tensors)
    tables = 2 * 4 * 512 * 8 // 2  # two tables, float32, seq_len, head size, pairs
    assert path.read_bytes() == original[:-tables] + bytes(tables)


def test_quantizing_the_15m_model_gives_the_recorded_sum(test_data: Path, tmp_path: Path) -> None:
    tool = test_data / "tools/make_checkpoint.py"
    if not tool.exists():
        pytest.skip("no make_checkpoint.py here to make the 15M model with")
    source, path = tmp_path / "15M.bin", tmp_path / "15M_q80.bin"
    subprocess.run([sys.executable, str(tool), "15M", str(source)], check=True)
    assert hashlib.sha256(source.read_bytes()).hexdigest() == SHA_15M
    with open_checkpoint(source) as checkpoint:
        write_llama2c(path, checkpoint, version=2, group_size=32)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA_15M_Q80


def test_groups_need_not_divide_hidden_dim(test_data: Path, tmp_path: Path) -> None:
    """Groups of 64 in rows of 172: llama2.c's runq goes wrong here, the file is well defined."""
    path = tmp_path / "q64.bin"
    with open_checkpoint(test_data / "data/stories260K.bin") as original:
        write_llama2c(path, original, version=2, group_size=64)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.group_size == 64
            for left, right in zip(checkpoint.tensors["w2"], original.tensors["w2"], strict=True):
                exact = right.dequantize()
                error = np.abs(left.dequantize() - exact).max()
                assert 0 < error <= np.abs(exact).max() / 127 / 2 * 1.001


@pytest.mark.parametrize("group_size", [0, -8, 3, 16])
def test_group_sizes_that_do_not_divide_dim_are_refused(tmp_path: Path, group_size: int) -> None:
    path = tmp_path / "tiny.bin"
    path.write_bytes(make_file(GROUPED, 0).data)
    message = f"group_size is {group_size}, expected a positive divisor of dim 8"
    with open_checkpoint(path) as checkpoint, pytest.raises(ParameterError, match=message):
        write_llama2c(tmp_path / "out.bin", checkpoint, 2, group_size)


def missing(tensors: Tensors) -> None:
    del tensors["wq"]


def unknown(tensors: Tensors) -> None:
    tensors["lora"] = tensors["wq"]


def one_layer_less(tensors: Tensors) -> None:
    tensors["wo"] = tensors["wo"][:1]


def transposed(tensors: Tensors) -> None:
    tensors["wk"] = tuple(DenseTensor(t.dequantize().T) for t in tensors["wk"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "the tensors are .* expected"),
        (unknown, "the tensors are .*lora.* expected"),
        (one_layer_less, r"wo has shapes \[\(8, 8\)\], expected 2 of \(8, 8\)"),
        (transposed, r"wk has shapes \[\(8, 4\), \(8, 4\)\], expected 2 of \(4, 8\)"),
    ],
)
def test_other_tensors_than_the_models_are_refused(
    tmp_path: Path, spoil: Any, message: str
) -> None:
    tensors = tiny(0)
    spoil(tensors)
    with pytest.raises(ParameterError, match=message):
        write_checkpoint(tmp_path / "tiny.bin", CONFIG, tensors)
    assert not list(tmp_path.iterdir())


def test_groups_of_another_size_are_made_anew(tmp_path: Path) -> None:
    """Those of this size stay as they are."""
    path, tensors = tmp_path / "tiny.bin", tiny(2)
    write_llama2c(path, Checkpoint(path, "made in a test", CONFIG, tensors, ()), 2, group_size=4)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.group_size == 4
        for name, layers in tensors.items():
            for written, given in zip(checkpoint.tensors[name], layers, strict=True):
                wanted = given.dequantize()
                if isinstance(given, QuantizedTensor):
                    groups = wanted.reshape(-1, 4)
                    step = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
                    wanted = (np.rint(groups / step) * step).reshape(wanted.shape)
                np.testing.assert_allclose(written.dequantize(), wanted, rtol=1e-6)


def test_a_weight_that_no_scale_holds_is_refused(tmp_path: Path) -> None:
    path, tensors = tmp_path / "tiny.bin", tiny(0)
    tensors["w2"][1].dequantize()[3, 2] = np.inf
    with pytest.raises(CheckpointError, match=r"tiny\.bin: w2: cannot quantize NaN"):
        write_llama2c(path, Checkpoint(path, "made in a test", CONFIG, tensors, ()), 2, 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"rope_theta": 500000.0}, {"norm_eps": 1e-6}])
def test_a_number_the_header_has_no_place_for_is_refused(
    tmp_path: Path, change: dict[str, float]
) -> None:
    ((name, value),) = change.items()
    config = replace(CONFIG, **change)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=f"cannot say that {name} is {value}, llama2"):
        write_checkpoint(tmp_path / "tiny.bin", config, tiny(0))


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.bin"
    path.write_bytes(b"the old one")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"tiny\.bin: cannot be written \(No space left"):
        write_checkpoint(path, CONFIG, tiny(0))
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_may_be_written_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "tiny.bin"
    path.write_bytes(make_file(GROUPED, 0).data)
    with open_checkpoint(path) as checkpoint:
        write_llama2c(path, checkpoint, version=1)
    assert path.read_bytes() == make_file(GROUPED, 1).data


def test_links_are_followed_and_permissions_are_usual(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path, link = tmp_path / "real/tiny.bin", tmp_path / "link.bin"
    link.symlink_to(path)
    write_checkpoint(link, CONFIG, tiny(0))
    assert link.is_symlink()
    assert path.read_bytes() == make_file(GROUPED, 0).data
    usual = tmp_path / "usual"
    usual.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode) & 0o666


def test_folders_pipes_and_missing_folders_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(CheckpointError, match="not a regular file"):
            write_checkpoint(path, CONFIG, tiny(0))
    for path in (tmp_path / "no/tiny.bin", pipe / "tiny.bin"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_checkpoint(path, CONFIG, tiny(0))
    assert list(tmp_path.iterdir()) == [pipe]

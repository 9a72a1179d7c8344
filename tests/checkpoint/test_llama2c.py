"""Reading good checkpoints: every number and tensor, views, release, close."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama2py.checkpoint import (
    DenseTensor,
    QuantizedTensor,
    open_checkpoint,
    tensor_shapes,
)
from llama2py.config import ModelConfig
from llama2py.errors import CheckpointError, ClosedError
from tests.conftest import ROOT
from tests.support.tiny_checkpoints import GROUPED, SHAPES, UNALIGNED, Shape, make_file


def write(folder: Path, shape: Shape, version: int) -> Path:
    path = folder / "tiny.bin"
    path.write_bytes(make_file(shape, version).data)
    return path


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_equals_what_the_author_wrote(tmp_path: Path, name: str, version: int) -> None:
    shape = SHAPES[name]
    expected = make_file(shape, version).expected
    with open_checkpoint(write(tmp_path, shape, version)) as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        for tensor_name, layers in expected.items():
            found = checkpoint.tensors[tensor_name]
            assert len(found) == len(layers)
            for tensor, layer in zip(found, layers, strict=True):
                if isinstance(layer, tuple):
                    assert isinstance(tensor, QuantizedTensor)
                    assert tensor.group_size == shape.group_size
                    assert tensor.parts()[0].tobytes() == layer[0].tobytes()
                    np.testing.assert_array_equal(tensor.values, layer[0])
                    np.testing.assert_array_equal(tensor.scales, layer[1])
                else:
                    assert isinstance(tensor, DenseTensor)
                    assert tensor.data.dtype == np.float32
                    np.testing.assert_array_equal(tensor.data, layer)


@pytest.mark.parametrize(
    ("version", "format", "dtype", "group_size"),
    [
        (0, "llama2.c v0", "float32", None),
        (1, "llama2.c v1", "float32", None),
        (2, "llama2.c v2 (int8)", "int8", 8),
    ],
)
def test_a_checkpoint_has_the_numbers_of_its_header(
    tmp_path: Path, version: int, format: str, dtype: str, group_size: int | None
) -> None:
    path = write(tmp_path, GROUPED, version)
    with open_checkpoint(str(path)) as checkpoint:
        assert checkpoint.path == path
        assert checkpoint.format == format
        assert checkpoint.dtype == dtype
        assert checkpoint.group_size == group_size
        assert checkpoint.file_size == path.stat().st_size
        assert checkpoint.tokenizer_path is None
        assert checkpoint.config == ModelConfig(
            dim=8,
            hidden_dim=12,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            vocab_size=5,
            seq_len=3,
            shared_classifier=False,
        )
        assert str(path) in repr(checkpoint)


@pytest.mark.parametrize("name", SHAPES)
def test_tensor_shapes_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    with open_checkpoint(write(tmp_path, SHAPES[name], 2)) as checkpoint:
        found = {key: (len(layers), layers[0].shape) for key, layers in checkpoint.tensors.items()}
        assert found == tensor_shapes(checkpoint.config)


def test_tensors_are_read_only(tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path, GROUPED, 1)) as checkpoint:
        (embedding,) = checkpoint.tensors["token_embedding_table"]
        assert isinstance(embedding, DenseTensor)
        with pytest.raises(ValueError, match="read-only"):
            embedding.data[0, 0] = 1
        with pytest.raises(TypeError):
            checkpoint.tensors["wq"] = ()  # type: ignore[index]


def test_each_use_of_a_tensor_reads_the_file_anew(tmp_path: Path) -> None:
    path = write(tmp_path, GROUPED, 1)
    with open_checkpoint(path) as checkpoint:
        (norm,) = checkpoint.tensors["rms_final_weight"]
        before = norm.dequantize()
        data = path.read_bytes().replace(before.tobytes(), bytes(before.nbytes))
        path.write_bytes(data)  # the same file, as long as before
        assert not norm.dequantize().any()
        assert not norm.has_values()
        assert before.all()


def test_scales_at_odd_offsets_are_read_right(tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path, UNALIGNED, 2)) as checkpoint:
        (table,) = checkpoint.tensors["token_embedding_table"]
        assert isinstance(table, QuantizedTensor)
        groups = table.values.astype(np.float32).reshape(-1, 3) * table.scales[:, None]
        np.testing.assert_array_equal(table.dequantize(), groups.reshape(7, 6))


def test_a_closed_checkpoint_gives_no_tensors(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, GROUPED, 0))
    (norm,) = checkpoint.tensors["rms_final_weight"]
    before = norm.dequantize()
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(ClosedError, match=r"tiny\.bin: the checkpoint is closed"):
        _ = checkpoint.tensors
    with pytest.raises(ClosedError, match=r"tiny\.bin: the file is closed"):
        norm.dequantize()
    assert "closed" in repr(checkpoint)
    assert before.all()  # what was read stays


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc/self")


def open_files() -> list[str]:
    """What this process's descriptors point at."""
    folder = Path("/proc/self/fd")
    return [os.readlink(folder / name) for name in os.listdir(folder) if (folder / name).exists()]


@linux
def test_a_file_is_open_until_its_checkpoint_is_closed(tmp_path: Path) -> None:
    path = write(tmp_path, GROUPED, 2)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["w1"][0].dequantize().size
        assert open_files().count(str(path)) == 1
        assert str(path) not in Path("/proc/self/maps").read_text("utf-8", "surrogateescape")
    assert str(path) not in open_files()


@linux
def test_a_checkpoint_that_nobody_closed_closes_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, GROUPED, 2)
    checkpoint = open_checkpoint(path)
    assert str(path) in open_files()
    del checkpoint
    gc.collect()
    assert str(path) not in open_files()


@linux
def test_a_refused_file_is_closed_while_the_error_is_still_held(tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(make_file(GROUPED, 0).data[:-1])
    with pytest.raises(CheckpointError) as held:
        open_checkpoint(path)
    assert held.tb is not None  # the reader's frames, and in them the file
    assert str(path) not in open_files()


def test_the_reader_needs_no_engine() -> None:
    """Loaded without the package's front page, which imports everything, the engine included."""
    code = (
        "import sys, types; package = types.ModuleType('llama2py');"
        f"package.__path__ = [{str(ROOT / 'llama2py')!r}]; sys.modules['llama2py'] = package;"
        "import importlib, pkgutil, llama2py.checkpoint as c;"
        "names = [f'{c.__name__}.{module.name}' for module in pkgutil.iter_modules(c.__path__)];"
        "[importlib.import_module(name) for name in names];"
        "print(*sorted(sys.modules))"
    )
    modules = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    ours = {name for name in modules if name.startswith("llama2py.")}
    inside = {name for name in ours if name.startswith("llama2py.checkpoint")}
    assert "llama2py.checkpoint" in inside
    outside = {name.split(".")[1] for name in ours - inside}
    assert outside == {"_util", "config", "errors", "formats"}
    assert "_cffi_backend" not in modules


def test_the_real_models_two_versions_hold_the_same_weights(test_data: Path) -> None:
    """Its v0 and v1 files hold the same weights, in another order."""
    with (
        open_checkpoint(test_data / "data/stories260K.bin") as v0,
        open_checkpoint(test_data / "data/formats/stories260K_v1.bin") as v1,
    ):
        assert v0.config == v1.config
        assert (v0.config.dim, v0.config.hidden_dim, v0.config.n_kv_heads) == (64, 172, 4)
        assert v0.tensors.keys() == v1.tensors.keys()
        for name in v0.tensors:
            for left, right in zip(v0.tensors[name], v1.tensors[name], strict=True):
                np.testing.assert_array_equal(left.dequantize(), right.dequantize())
        # Read off the file by hand: the last four floats in front of the RoPE tables' 512 * 8.
        (norm,) = v0.tensors["rms_final_weight"]
        last = np.array([1.721722, 0.9720381, 1.4526384, 1.7077769], np.float32)
        np.testing.assert_array_equal(norm.dequantize()[-4:], last)

"""Conversion writes all or nothing, tensor by tensor, and reports its progress."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2py.checkpoint import DenseTensor, write_checkpoint
from llama2py.cli import main
from llama2py.conversion import convert
from llama2py.errors import CheckpointError
from tests.conftest import TINY, random_checkpoint
from tests.test_conversion import make, names_in


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "model")


Fail = Callable[[pytest.MonkeyPatch], None]


def no_space(patch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))


def disk_full(patch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr("os.fsync", fail)


@pytest.mark.parametrize("name", ["out.bin", "out.gguf", "out"])
@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (
            no_space,
            r"out\S*: needs [\d.]{4,} kB of disk space, 1\.0 kB are free$",
        ),
        (disk_full, r"^\S*/out[./]?[\w.]*: cannot be written \(No space left on device\)"),
    ],
)
def test_a_failure_leaves_nothing(
    name: str,
    fail: Fail,
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail(monkeypatch)
    with pytest.raises(CheckpointError, match=message):
        convert(model, tmp_path / name)
    assert names_in(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["out.gguf", "out"])
def test_a_weight_too_large_for_the_dtype_is_an_error(name: str, tmp_path: Path) -> None:
    wide = np.zeros((24, 44), np.float32)
    wide[3, 3] = 1e6
    source = make(tmp_path / "model", w2=DenseTensor(wide))
    with pytest.raises(CheckpointError) as caught:
        convert(source, tmp_path / name, dtype="float16")
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "down" in str(caught.value)
    assert str(caught.value).endswith(
        "holds 1e+06, which is too large for float16: use another dtype"
    )
    assert names_in(tmp_path) == ["model"]
    convert(source, tmp_path / name, dtype="bfloat16")


def test_a_folder_with_files_is_refused_and_stays(model: Path, tmp_path: Path) -> None:
    taken, empty = tmp_path / "taken", tmp_path / "empty"
    taken.mkdir()
    empty.mkdir()
    (taken / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"taken: the folder is not empty \(it holds file\)"):
        convert(model, taken)
    assert names_in(taken) == ["file"]
    convert(model, empty)
    assert "config.json" in names_in(empty)
    assert names_in(tmp_path) == ["empty", "model", "taken"]


def test_an_empty_folder_is_filled_not_replaced(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a mount point or the current directory."""
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    before = empty.stat()
    monkeypatch.chdir(empty)
    seen: list[list[str]] = []
    real = os.replace

    def watched(source: Path, target: Path) -> None:
        if Path(target).parent == empty.resolve():
            seen.append(names_in(empty))
        real(source, target)

    monkeypatch.setattr(os, "replace", watched)
    assert main(["convert", str(model), "-o", "."]) == 0
    assert (empty.stat().st_ino, empty.stat().st_mode) == (before.st_ino, before.st_mode)
    assert "config.json" in names_in(Path())
    assert not any("config.json" in names for names in seen)
    assert len(seen) == len(names_in(empty)) > 2


def test_an_empty_folder_stays_empty_after_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    disk_full(monkeypatch)
    with pytest.raises(CheckpointError, match="No space left"):
        convert(model, tmp_path / "empty")
    assert names_in(tmp_path / "empty") == []


def test_an_empty_folder_stays_empty_after_ctrl_c(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between the moves of two files."""
    (tmp_path / "empty").mkdir()
    real = os.replace

    def interrupted(source: Path, target: Path) -> None:
        real(source, target)
        if Path(target).parent.name == "empty" and len(names_in(tmp_path / "empty")) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(model, tmp_path / "empty")
    assert names_in(tmp_path / "empty") == []


@pytest.mark.parametrize("format", ["v0", "gguf"])
@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_file_needs_a_name(name: str, format: Any, model: Path) -> None:
    with pytest.raises(CheckpointError, match="not a regular file; choose a"):
        convert(model, name, format)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".bin", "a\0b", "a\0b.gguf"])
def test_names_that_the_system_refuses_are_errors(name: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be written \(\S.*\)"):
        convert(model, tmp_path / name)
    with pytest.raises(CheckpointError):
        convert(tmp_path / name, tmp_path / "out.bin")


def test_the_output_may_replace_the_source(model: Path, tmp_path: Path) -> None:
    path = convert(model, tmp_path / "a.gguf")
    first = path.read_bytes()
    convert(path, path)
    assert path.read_bytes() == first


def test_one_tensor_is_held_in_memory_at_a_time(tmp_path: Path) -> None:
    config = replace(TINY, dim=256, hidden_dim=512, n_layers=8, vocab_size=64)
    write_checkpoint(tmp_path / "m.bin", config, random_checkpoint(config).tensors)
    largest = 4 * 256 * 512
    for name, dtype in (("a.gguf", "float16"), ("a", "bfloat16"), ("a.bin", "int8")):
        tracemalloc.start()
        try:
            convert(tmp_path / "m.bin", tmp_path / name, dtype=dtype, tokenizer=False)  # type: ignore[arg-type]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 6 * largest < 4 * config.n_params / 3, name


def remember(calls: list[tuple[int, int]], done: int, total: int) -> None:
    calls.append((done, total))


def test_progress_counts_weights(model: Path, tmp_path: Path) -> None:
    for name in ("a.bin", "a.gguf", "a"):
        calls: list[tuple[int, int]] = []
        convert(model, tmp_path / name, progress=partial(remember, calls))
        assert calls == sorted(calls)
        assert calls[-1] == (TINY.n_params, TINY.n_params)
        assert len(calls) == 2 * 9 + 3

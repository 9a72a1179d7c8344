"""benchmarks/compare.py gives each peer a file that it can read."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from llama2py.checkpoint import open_checkpoint, write_checkpoint
from llama2py.conversion import convert
from tests.conftest import ROOT, TINY, random_checkpoint


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare", ROOT / "benchmarks" / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "m.bin", TINY, random_checkpoint(TINY).tensors)
    return tmp_path / "m.bin"


def arguments(model: Path, dtype: str | None) -> Namespace:
    return Namespace(checkpoint=model, dtype=dtype and [dtype])


@pytest.mark.parametrize("name", ["m.bin", "m.gguf", "m"])
@pytest.mark.parametrize(
    ("binary", "dtype", "format"),
    [
        ("run", None, "llama2.c v0"),
        ("runomp", "float32", "llama2.c v0"),
        ("runq", "int8", "llama2.c v2 (int8)"),
    ],
)
def test_llama2c_gets_a_file_of_its_dtype(
    binary: str,
    dtype: str | None,
    format: str,
    name: str,
    model: Path,
    tmp_path: Path,
    compare: ModuleType,
) -> None:
    source = model if name == "m.bin" else convert(model, tmp_path / name, tokenizer=False)
    (tmp_path / "copies").mkdir()
    path = compare.llama2c_model(Path(binary), arguments(source, dtype), tmp_path / "copies")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == format
    assert (path == source) == (name == "m.bin" and format == "llama2.c v0")
    again = compare.llama2c_model(Path(binary), arguments(source, dtype), tmp_path / "copies")
    assert again == path


def test_an_int8_file_goes_to_runq_as_it_is(
    model: Path, tmp_path: Path, compare: ModuleType
) -> None:
    small = convert(model, tmp_path / "q.bin", dtype="int8", tokenizer=False)
    assert compare.llama2c_model(Path("runq"), arguments(small, None), tmp_path) == small


@pytest.mark.parametrize(
    ("binary", "dtype", "message"),
    [
        ("runq", None, "runq cannot run float32 weights: pass --dtype int8"),
        ("run", "int8", "run cannot run int8 weights: pass --dtype float32"),
        ("run", "bfloat16", "llama2.c has no bfloat16: pass --dtype float32 "),
    ],
)
def test_weights_that_llama2c_cannot_run_are_errors(
    binary: str, dtype: str | None, message: str, model: Path, tmp_path: Path, compare: ModuleType
) -> None:
    with pytest.raises(SystemExit, match=message):
        compare.llama2c_model(Path(binary), arguments(model, dtype), tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="the peer is a shell script")
def test_a_comparison_runs_its_peers(
    model: Path,
    tmp_path: Path,
    compare: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The peer here only prints a speed, if the file is one that runq can read."""
    peer = tmp_path / "runq"
    peer.write_text(
        "#!/bin/sh\n"
        '[ "$(head -c 4 "$1")" = 24ka ] || exit 1\n'  # the magic of llama2.c's v2 files
        "echo 'achieved tok/s: 1.0' >&2\n"
    )
    peer.chmod(0o755)
    line = [str(model), "--dtype", "int8", "--llama2c", str(peer), "--rounds", "1", "--tokens", "4"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *line, "--prompt-tokens", "4", "--batch", "1"])
    compare.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| m.bin, threads: 2 | tok/s | llama2py is faster by |"
    assert lines[3].startswith("| generate: runq | 1 (1 to 1) | ")

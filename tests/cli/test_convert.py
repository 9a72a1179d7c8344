"""``llama2py convert``: a terminated command leaves no files, nor does a killed one for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import llama2py
from llama2py._data import builtin_model
from llama2py.cli import main

# The command, held where its data is written but has not got its name.
HELD = """
import os, sys, time
from llama2py.cli import main

def fsync(descriptor):
    print("written", flush=True)
    time.sleep(60)

os.fsync = fsync
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def held(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    root = str(Path(llama2py.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, *command],
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "written\n"
        yield process
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()


def temporary_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".llama2py-*")]


@pytest.mark.parametrize("name", ["out.bin", "out.gguf", "out", "empty"])
def test_a_terminated_conversion_leaves_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with held("convert", builtin_model(), "-o", tmp_path / name) as process:
        assert temporary_files(tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("name", ["out.bin", "out.gguf", "out", "empty"])
def test_a_conversion_removes_what_a_killed_one_left(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with held("convert", builtin_model(), "-o", tmp_path / name) as process:
        process.kill()
        process.wait(60)
    assert temporary_files(tmp_path)
    assert main(["convert", str(builtin_model()), "-o", str(tmp_path / name)]) == 0
    assert temporary_files(tmp_path) == []

"""A terminated command leaves no files, and the next run removes those of a killed one."""

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
from llama2py.cli.terminating import cleanup_on_termination

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


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", ["out.bin", "out.gguf", "out", "empty"])
def test_a_terminated_conversion_leaves_nothing(
    name: str, signum: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with held("convert", builtin_model(), "-o", tmp_path / name) as process:
        assert temporary_files(tmp_path)
        process.send_signal(signum)
        assert process.wait(60) == 128 + signum
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


def test_signals_that_somebody_handles_are_left_alone() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does with SIGHUP
    try:
        with cleanup_on_termination():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(SystemExit) as exit_, cleanup_on_termination():
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit_.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before

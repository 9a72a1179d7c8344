"""Ctrl-C and SIGTERM at any moment of a command: never a traceback, and the right exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama2py.cli import main
from tests.conftest import ROOT

READY = "sys.stdout.write('ready'); sys.stdout.flush()"
# What the script `llama2py` does. "ready" comes when `main` has begun: Python's start is not ours.
SCRIPT = f"""
import sys
from llama2py import __main__ as entry

def ready(run=entry._run):
    {READY}
    return run()

entry._run = ready
sys.exit(entry.main())
"""
# What `python -m llama2py` does; Python's runpy imports modules of its own first.
MODULE = (
    f"import sys, runpy, pkgutil; {READY}"
    "; runpy.run_module('llama2py', {}, '__main__', alter_sys=True)"
)
STARTS = {"script": SCRIPT, "module": MODULE}


def send(code: str, *args: str, number: int, delay: float) -> tuple[int, bytes]:
    """Send a signal some time after a Python program is ready; its exit code, as a shell has it."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.read(5) == b"ready"
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    code_ = process.returncode
    return (128 - code_ if code_ < 0 else code_), err


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("milliseconds", [1, 5, 12, 25, 50, 80, 120, 200])
def test_ctrl_c_while_modules_are_imported_is_no_traceback(start: str, milliseconds: int) -> None:
    delay = milliseconds / 1000
    words = ["run", "-n", "0", "--backend", "numpy", "-t", "0", "-i", "Once"]
    code, err = send(STARTS[start], *words, number=signal.SIGINT, delay=delay)
    if start == "module" and b"Traceback" in err:  # Python was still looking for the module
        assert b"llama2py" not in err
    else:
        assert b"Traceback" not in err
        assert code == 130


@pytest.mark.slow
def test_ctrl_c_is_no_traceback_at_any_of_80_moments() -> None:
    """From the first import to the end of the process; a short run may also end by itself."""
    codes = set()
    for n in range(80):
        code, err = send(SCRIPT, "run", "-s", "4", number=signal.SIGINT, delay=n / 100)
        assert b"Traceback" not in err, err.decode()
        codes.add(code)
    assert codes <= {0, 130}
    assert 130 in codes


def test_ctrl_c_is_ignored_where_the_parent_ignores_it() -> None:
    """As for a background job of a shell."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{SCRIPT}"
    assert send(code, "run", "-s", "4", "-n", "9", number=signal.SIGINT, delay=0.05)[0] == 0


CLEANING = """
import os, sys, time
sys.path.insert(0, {root!r})
from llama2py import cli
from types import SimpleNamespace

def run(args):
    open("temporary", "w").close()
    try:
        sys.stdout.write("ready"); sys.stdout.flush()
        time.sleep(60)
    finally:
        os.remove("temporary")

sys.exit(cli.execute(SimpleNamespace(run=run)))
"""


def test_sigterm_runs_cleanups_and_exits_with_143(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = CLEANING.format(root=str(ROOT))
    assert send(code, number=signal.SIGTERM, delay=0.05) == (143, b"")
    assert list(tmp_path.iterdir()) == []


def test_sigterm_during_a_story_exits_with_143() -> None:
    words = ["run", "-n", "0", "--backend", "numpy", "-t", "0", "-i", "Once"]
    code, err = send(SCRIPT, *words, number=signal.SIGTERM, delay=0.3)
    assert (code, b"Traceback" in err) == (143, False)


def test_a_command_leaves_the_handlers_of_its_caller(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert main(["run", "-n", "3", "-s", "1"]) == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before

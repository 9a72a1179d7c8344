"""The command line inside the test's process, which is faster than a process per command."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llama2py.cli import main
from tests.support.command_line import Result

Call = Callable[..., Result]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command; like `tests.support.command_line.llama2py`, but without a process."""

    def run(*args: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        words = [os.fspath(arg) for arg in args]
        try:
            code = main(words)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return run

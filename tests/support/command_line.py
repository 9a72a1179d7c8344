"""Run the command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

Result = subprocess.CompletedProcess[str]


def llama2py(*args: str | Path, stdin: bytes = b"", **environment: str) -> Result:
    """Run a command to its end; output as text, undecodable bytes as surrogates."""
    done = subprocess.run(
        [sys.executable, "-m", "llama2py", *[os.fspath(arg) for arg in args]],
        input=stdin,
        capture_output=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )
    out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)

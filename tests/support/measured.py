"""Load a vocabulary in a process of its own, and measure its time and memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import run_python

_SCRIPT = """
import json, sys, time
import llama2py.tokenizers.export, llama2py.tokenizers.tiktoken  # every reader
import llama2py.formats.gguf_metadata
from llama2py.errors import TokenizerError
from llama2py.tokenizers.load import load_tokenizer

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) << 10

before, start = status("VmRSS"), time.process_time()
tokenizer, n_tokens, error = None, 0, ""
try:
    tokenizer = load_tokenizer(sys.argv[1])
    n_tokens = len(tokenizer)
except TokenizerError as trouble:
    error = str(trouble)
loaded = time.process_time()
peak = status("VmHWM")
ids = tokenizer.encode(sys.argv[2]) if tokenizer and len(sys.argv) > 2 else []
encoded = time.process_time()
print(json.dumps([n_tokens, error, loaded - start, peak - before, encoded - loaded, ids]))
"""


class Measured(NamedTuple):
    """What `load_tokenizer` did."""

    n_tokens: int
    error: str
    seconds: float
    """CPU time."""
    memory: int
    """Bytes that the process grew by, at its peak."""
    encode_seconds: float
    ids: list[int]
    """The tokens of the text, if there is one."""


def measure(path: Path, *text: str) -> Measured:
    """Load a vocabulary, and encode a text with it."""
    if sys.platform != "linux":
        pytest.skip("the peak of a process's memory is read from /proc")
    done = run_python("-c", _SCRIPT, str(path), *text)
    assert done.returncode == 0, done.stderr
    return Measured(*json.loads(done.stdout))

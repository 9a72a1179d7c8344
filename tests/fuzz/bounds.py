"""What must hold of every reader, whatever a file contains."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from llama2py.errors import Llama2pyError

Read = Callable[[bytes], object]

MAX_SECONDS, MAX_BYTES = 2.0, 16 << 20


class Wrong(Exception):
    """A bound that was not kept."""


def check(read: Read, data: bytes, folder: Path) -> None:
    """Read an input, which is put into this folder, within the bounds."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()  # once: each start costs some kilobytes that stop does not give back
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    started = time.process_time()
    attempt(read, data)
    peak = tracemalloc.get_traced_memory()[1] - before
    size = sum(file.stat().st_size for file in folder.iterdir())
    if peak > 2 * size + MAX_BYTES:
        raise Wrong(f"{peak} bytes of memory for {size} bytes of files")
    if time.process_time() - started > MAX_SECONDS:  # which tracing makes several times slower
        tracemalloc.stop()
        started = time.process_time()
        attempt(read, data)
        if (seconds := time.process_time() - started) > MAX_SECONDS:
            raise Wrong(f"{seconds:.1f} seconds")


def attempt(read: Read, data: bytes) -> None:
    try:
        read(data)
    except Llama2pyError as error:
        text = str(error)
        if "\n" in text or len(text) > 2000:
            raise Wrong(f"an error of {len(text)} characters: {text[:200]!r}") from None

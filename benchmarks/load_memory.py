"""How much memory and time it takes to load a model, compared with the documented bound.

    python benchmarks/load_memory.py MODEL DTYPE

Loads the model once, in this process, generates 16 tokens, and prints one line of JSON: seconds,
the peak of resident memory while loading (``rss``), the peak of the memory that the process owned
(``anonymous``), and the bound: 1.15 times the packed weights plus 300 MB. For Linux.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
from time import perf_counter

import llama2py
from llama2py.config import Dtype


def anonymous_bytes() -> int:
    """Return the bytes that this process owns now, without mapped files."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon: this needs Linux 4.5 or later")


class Peak:
    """The most memory that this process owns while the block runs, read every 5 ms."""

    def __enter__(self) -> Peak:
        self.nbytes = anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.nbytes = max(self.nbytes, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def measure(path: str, dtype: Dtype) -> dict[str, object]:
    """Load the model, then generate."""
    with Peak() as peak:
        start = perf_counter()
        model = llama2py.load(path, dtype=dtype)
        seconds = perf_counter() - start
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    packed = model.backend.nbytes
    bound = round(1.15 * packed + 300e6)
    made = model.generate("Once upon a time", max_tokens=16, temperature=0, seed=1)
    return {
        "model": path,
        "dtype": dtype,
        "load_seconds": round(seconds, 1),
        "packed_bytes": packed,
        "peak_rss_bytes": rss,
        "peak_anonymous_bytes": peak.nbytes,
        "bound_bytes": bound,
        "within": rss <= bound,
        "generated_tokens": len(made.tokens),
        "tokens_per_second": made.timings.tokens_per_second,
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: load_memory.py MODEL DTYPE")
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))  # type: ignore[arg-type]  # load checks it

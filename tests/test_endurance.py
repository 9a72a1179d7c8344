"""Many threads on one model, and many texts one after the other."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import tiny_model

from llama2py import Generation, Model


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with tiny_model() as model:
        yield model


def test_eight_threads_tell_what_one_tells(model: Model) -> None:
    """Texts that share long beginnings, so that kept sessions go from thread to thread."""

    def tell(seed: int) -> Generation:
        return model.generate("abc abc abc abc " + "dab"[: seed % 4], seed=seed, logprobs=1)

    seeds = range(160)
    model.reuse_prefixes(0)
    expected = [(g.text, g.tokens, g.logprobs) for g in map(tell, seeds)]
    model.reuse_prefixes()
    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(tell, seeds))
    assert [(g.text, g.tokens, g.logprobs) for g in told] == expected
    assert len({g.text for g in told}) > 100


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(model: Model) -> None:
    """Solo texts, broken-off streams and batches; a session leaked each time would be 17 MiB."""

    def some(n: int) -> None:
        for seed in range(n):
            model.generate("abc " * (seed % 12), seed=seed, max_tokens=12, top_k=9, logprobs=1)
            with model.stream("a", seed=seed) as stream:
                next(stream, None)
            if seed % 20 == 0:
                model.generate(["a", "abc"], seed=seed, max_tokens=5)

    some(300)
    gc.collect()
    before = resident()
    some(700)
    gc.collect()
    assert resident() - before < 2 << 20

"""Many threads on one model, many texts in a batch, and many one after the other.

Set ``LLAMA2PY_ENDURANCE=1`` for the long forms: a minute of threads, 10,000 texts.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llama2py
from llama2py import Generation, Model
from tests.conftest import tiny_model

LONG = bool(os.environ.get("LLAMA2PY_ENDURANCE"))


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with tiny_model() as model:
        yield model


def facts(g: Generation) -> tuple[Any, ...]:
    """All but the timings."""
    return g.text, g.tokens, g.prompt_tokens, g.finish_reason, g.stopped_by, g.seed, g.logprobs


# ---- batches ----

N_PROMPTS = 500


@pytest.mark.parametrize("kind", ["random float32", "built-in int8"])
def test_500_prompts_in_batches_are_what_each_is_alone(model: Model, kind: str) -> None:
    """Token for token and log-probability for log-probability, whatever the batch holds beside."""
    if kind == "built-in int8":
        model = llama2py.load()
    rng = random.Random(5)
    longest = min(model.config.seq_len, 100)
    prompts = [
        [1, *(rng.randrange(3, model.config.vocab_size) for _ in range(n - 1))]
        for n in (1 + int((longest - 1) * rng.random() ** 4) for _ in range(N_PROMPTS))
    ]
    seeds = [rng.getrandbits(64) for _ in prompts]
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 1.2, "logprobs": 2}
    model.reuse_prefixes(0)
    alone = [
        facts(model.generate(prompt, seed=seed, **options))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert {reason for _, _, _, reason, *_ in alone} == {"stop", "length"}
    assert len({text for text, *_ in alone}) > N_PROMPTS * 0.9
    for max_batch in (1, 5, 32):
        together = model.generate(prompts, seed=seeds, max_batch=max_batch, **options)
        assert [facts(g) for g in together] == alone


# ---- threads ----


def test_eight_threads_generate_what_one_generates(model: Model) -> None:
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


def test_eight_threads_run_for_a_while() -> None:
    """Stories of the built-in model in every way there is to ask, at random, beside each other."""
    seconds = 60.0 if LONG else 1.5
    beginning = "Once upon a time, there was a little girl named Lily. She had a "
    prompts = [beginning + what for what in ("dog", "red ball", "friend", "big box")]
    with llama2py.load() as model:

        def ask(seed: int, how: int) -> Any:
            prompt, many = prompts[seed % 4], [seed, seed + 1]
            if how == 0:
                return facts(model.generate(prompt, 40, seed=seed, logprobs=1))
            if how == 1:
                with model.stream(prompt, 40, seed=seed, stop="Lily") as stream:
                    return list(stream)
            if how == 2:
                texts = model.generate([prompt, beginning], 30, seed=many, top_k=9, max_batch=2)
                return [facts(g) for g in texts]
            if how == 3:
                return model.score(prompt).tolist()
            with model.session() as session:
                session.forward(model.tokenizer.encode(prompt))
                with session.fork() as branch:
                    return branch.forward([seed + 300]).tobytes()

        asked = [(seed, how) for seed in range(12) for how in range(5)]
        model.reuse_prefixes(0)
        expected = {question: ask(*question) for question in asked}
        model.reuse_prefixes()
        end = time.monotonic() + seconds

        def keep_asking(number: int) -> int:
            order = random.Random(number)
            told = 0
            while time.monotonic() < end:
                question = order.choice(asked)
                assert ask(*question) == expected[question], question
                told += 1
            return told

        with ThreadPoolExecutor(8) as threads:
            told = list(threads.map(keep_asking, range(8)))
    print(f"{sum(told)} answers in {seconds:.0f} s, the same as one thread's")
    assert min(told) > 0


# ---- memory ----


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
    some(10_000 if LONG else 700)
    gc.collect()
    grown = resident() - before
    print(f"{before / 2**20:.1f} MiB, and {grown / 2**10:+.0f} KiB after the rest")
    assert grown < 2 << 20

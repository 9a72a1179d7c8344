"""The numerics contract: the same bits for any thread, batch and block, and close to NumPy.

Float32 models: all SIMD sets give the same bits. Int8 models: all sets do, the portable one too.
Compared is what the backends compute, not what is sampled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.checkpoint import QuantizedTensor
from llama2py.config import ModelConfig
from llama2py.engine._engine import lib
from llama2py.engine.isa import isa_names
from llama2py.engine.reference import Reference
from tests.conftest import in_memory, random_checkpoint
from tests.support.numeric_models import (
    BEST,
    MODELS,
    SIMD,
    TOLERANCE,
    checkpoint_of,
    distance,
    engine,
    one_by_one,
    run,
    same,
    shape,
    some_tokens,
    threaded,
)

# ---- instruction sets ----


@pytest.mark.parametrize("name", MODELS)
def test_instruction_sets_give_the_same_bits(name: str) -> None:
    checkpoint = checkpoint_of(name)
    tokens = some_tokens(checkpoint.config)
    sets = SIMD if checkpoint.dtype == "float32" else isa_names()
    first, *others = [run(engine(checkpoint, isa), tokens) for isa in sets]
    if checkpoint.config.vocab_size > 1:
        assert np.ptp(first) > 0.1
    for isa, other in zip(sets[1:], others, strict=True):
        assert same(first, other), isa


@pytest.mark.parametrize("group_size", [4, 6, 64])
def test_extreme_int8_weights_do_not_overflow(group_size: int) -> None:
    """-128, which llama2.c's exporter never writes, and sums as large as they get.

    Where an instruction adds pairs in 16 bits, this is where they would saturate.
    """
    config = shape(192, 96, 2, 2, 33)
    tensors = dict(random_checkpoint(config, group_size).tensors)
    for name in ("token_embedding_table", "wq", "wv", "wo", "w1", "w2", "w3"):
        for i, tensor in enumerate(tensors[name]):
            assert isinstance(tensor, QuantizedTensor)
            values = np.where(tensor.values < 0, np.int8(-128), np.int8(127)).astype(np.int8)
            values[::3] = -128
            values[1::3] = 127
            changed = QuantizedTensor(values, tensor.scales, tensor.group_size)
            tensors[name] = (*tensors[name][:i], changed, *tensors[name][i + 1 :])
    checkpoint = in_memory(config, tensors, group_size)
    tokens = some_tokens(config)
    first, *others = [run(engine(checkpoint, isa), tokens) for isa in isa_names()]
    assert all(same(first, other) for other in others)
    assert distance(first, run(Reference(checkpoint), tokens)) < TOLERANCE["int8"]


@pytest.mark.parametrize("isa", isa_names())
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_close_to_numpys(name: str, isa: str) -> None:
    checkpoint = checkpoint_of(name)
    tokens = some_tokens(checkpoint.config)
    ours, theirs = run(engine(checkpoint, isa), tokens), run(Reference(checkpoint), tokens)
    assert distance(ours, theirs) < TOLERANCE[checkpoint.dtype]


# ---- threads ----


@pytest.mark.parametrize("isa", [BEST, "portable"])
@pytest.mark.parametrize("name", ["hd8-gqa", "hd100-mqa", "hd2", "q80-group4", "q80-group8"])
def test_threads_give_the_same_bits(name: str, isa: str) -> None:
    """Also more threads than there are rows to share."""
    checkpoint = threaded(name)
    tokens = some_tokens(checkpoint.config, 20)
    expected = run(engine(checkpoint, isa), tokens)
    for threads in (2, 3, 4, 7):
        backend = engine(checkpoint, isa, threads)
        for _ in range(3):  # a race shows now and then
            assert same(run(backend, tokens), expected), threads


def test_threads_give_the_same_bits_token_by_token() -> None:
    """One token at a time takes other paths, and threads only from 1.25 MB of weights up."""
    config = shape(256, 688, 8, 4, 500)
    assert config.n_params > 5 * 2**18
    checkpoint = random_checkpoint(config)
    tokens = some_tokens(config, 20)
    expected = one_by_one(engine(checkpoint), tokens)
    for threads in (2, 3, 4):
        assert same(one_by_one(engine(checkpoint, threads=threads), tokens), expected), threads


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
def test_more_threads_than_one_do_run() -> None:
    """Or the two tests above would show nothing."""
    backend = engine(threaded("hd8-gqa"))
    tokens = some_tokens(backend.config)
    counts = []
    for threads in (1, 4):
        backend.threads = threads
        lib.l2p_release()  # end those of other tests
        before = len(os.listdir("/proc/self/task"))
        run(backend, tokens)
        counts.append(len(os.listdir("/proc/self/task")) - before)
    assert counts == [0, 3]


# ---- batches and blocks ----

BATCH_MODELS = ["hd6-gqa", "hd100-mqa", "q80-group4", "q80-group8"]


@pytest.mark.parametrize("n_sessions", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("isa", [BEST, "portable"])
@pytest.mark.parametrize("name", BATCH_MODELS)
def test_a_batch_of_sessions_equals_each_alone(name: str, isa: str, n_sessions: int) -> None:
    """One more token for sessions at different positions, all in one call."""
    checkpoint = checkpoint_of(name)
    backend = engine(checkpoint, isa, threads=2)
    # Some sessions are one position ahead of their neighbour, as if they were one session.
    lengths = [1 + i % 4 + 9 * (i % 11 // 4) for i in range(n_sessions)]
    stories = [some_tokens(checkpoint.config, n, seed=i) for i, n in enumerate(lengths)]
    caches = [backend.new_cache() for _ in stories]
    for story, cache in zip(stories, caches, strict=True):
        if story[:-1]:
            run(backend, story[:-1], cache)
    batch = backend.run(
        [story[-1] for story in stories],
        caches,
        [len(story) - 1 for story in stories],
        range(n_sessions),
    )
    alone = np.stack([run(backend, story)[-1] for story in stories])
    assert same(batch, alone)


@pytest.mark.parametrize("isa", [BEST, "portable"])
@pytest.mark.parametrize("name", BATCH_MODELS)
def test_a_mixed_batch_equals_each_alone(name: str, isa: str) -> None:
    """A prompt, single tokens and another prompt in one call, then two prompts taking turns."""
    checkpoint = checkpoint_of(name)
    backend = engine(checkpoint, isa, threads=2)
    stories = [some_tokens(checkpoint.config, n, seed=n) for n in (30, 18, 40, 17)]
    alone = [run(backend, story) for story in stories]
    caches = [backend.new_cache() for _ in stories]
    done = [0] * len(stories)

    def batch(order: Sequence[int]) -> None:
        """Run the next token of each story named."""
        entries = []
        for i in order:
            entries.append((i, done[i]))
            done[i] += 1
        got = backend.run(
            [stories[i][position] for i, position in entries],
            [caches[i] for i, _ in entries],
            [position for _, position in entries],
            range(len(entries)),
        )
        assert same(got, np.stack([alone[i][position] for i, position in entries]))

    batch([0] * 20 + [1] * 3)
    batch([0, 1, *[2] * 33, 3])
    batch([0, 1] * 7 + [3, 3, 2, 1])


@pytest.mark.parametrize("isa", [BEST, "portable"])
@pytest.mark.parametrize("name", BATCH_MODELS)
def test_blocks_of_a_prompt_give_the_same_bits(name: str, isa: str) -> None:
    checkpoint = checkpoint_of(name)
    backend = engine(checkpoint, isa)
    tokens = some_tokens(checkpoint.config, 80)
    whole = run(backend, tokens)
    for block in (1, 3, 64):
        cache = backend.new_cache()
        parts = [
            run(backend, tokens[i : i + block], cache, i) for i in range(0, len(tokens), block)
        ]
        assert same(np.concatenate(parts), whole), block


@pytest.mark.parametrize("name", ["hd6-gqa", "hd8-mqa", "q80-group8"])
def test_logits_of_some_rows_equal_those_of_all(name: str) -> None:
    checkpoint = checkpoint_of(name)
    backend = engine(checkpoint)
    tokens = some_tokens(checkpoint.config, 12)
    n = len(tokens)
    everything = run(backend, tokens)
    for rows in ([n - 1], [], [3, 3, 3], list(range(n))[::-1], [0, 11, 5, 0] * 9):
        got = backend.run(tokens, [backend.new_cache()] * n, range(n), rows)
        assert got.shape == (len(rows), checkpoint.config.vocab_size)
        assert same(got, everything[rows])


@st.composite
def configs(draw: st.DrawFn) -> tuple[ModelConfig, int | None]:
    head_dim = 2 * draw(st.integers(1, 20))
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4))
    dim = head_dim * heads
    divisors = [group for group in range(1, dim + 1) if dim % group == 0]
    config = ModelConfig(
        dim,
        hidden_dim=draw(st.integers(1, 70)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=heads,
        n_kv_heads=kv_heads,
        vocab_size=draw(st.integers(1, 70)),
        seq_len=40,
        shared_classifier=draw(st.booleans()),
    )
    return config, draw(st.none() | st.sampled_from(divisors))


@settings(max_examples=80, deadline=None)
@given(configs(), st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 4))
def test_any_shape_in_any_blocks(
    model: tuple[ModelConfig, int | None], blocks: list[int], threads: int
) -> None:
    """All sets, some threads, some blocks: one result, and NumPy agrees with it."""
    checkpoint = random_checkpoint(*model)
    tokens = some_tokens(checkpoint.config, 33)
    expected = one_by_one(engine(checkpoint, SIMD[0] if SIMD else BEST), tokens)
    if checkpoint.dtype == "float32":
        # Looser than above: a model of two channels may come near 0 where RMSNorm divides.
        assert distance(expected, run(Reference(checkpoint), tokens)) < 1e-3
    for isa in SIMD if checkpoint.dtype == "float32" else isa_names():
        backend = engine(checkpoint, isa, threads)
        cache, at, parts = backend.new_cache(), 0, []
        for block in [*blocks, len(tokens)]:
            if part := tokens[at : at + block]:
                parts.append(run(backend, part, cache, at))
            at += len(part)
        assert same(np.concatenate(parts), expected), isa

"""The numerics contract: the same bits for any thread, batch and block, and close to NumPy.

Float32 models: all SIMD sets give the same bits. Int8 models: all sets do, the portable one too.
Random models of awkward shapes: widths beside the blocks of 16 rows, odd head sizes, tiny
vocabularies, groups that fit no row. Compared is what the backends compute, not what is sampled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import in_memory, random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama2py._engine import lib
from llama2py.backend import Backend, Cache, Logits
from llama2py.checkpoint import Checkpoint, DenseTensor, QuantizedTensor, Tensor
from llama2py.config import ModelConfig
from llama2py.engine import Engine, isa_names
from llama2py.reference import Reference

SIMD = [isa for isa in isa_names() if isa != "portable"]
BEST = isa_names()[0]

# How far the engine may be from NumPy, of the largest logit. Int8 activations are rounded: where
# NumPy's last bit differs, one in thousands falls to the other side, a step of 1/127 of its group.
TOLERANCE = {"float32": 2e-5, "int8": 2e-2}


def shape(
    dim: int, hidden: int, heads: int, kv_heads: int, vocab: int, shared: bool = True
) -> ModelConfig:
    return ModelConfig(dim, hidden, 2, heads, kv_heads, vocab, 90, shared_classifier=shared)


# (config, group size; None: float32)
MODELS: dict[str, tuple[ModelConfig, int | None]] = {
    "vocab1": (shape(16, 17, 8, 8, 1), None),
    "hd2": (shape(16, 17, 8, 8, 33), None),
    "hd6-gqa": (shape(24, 44, 4, 2, 15), None),
    "hd8-mqa": (shape(40, 172, 5, 1, 16, shared=False), None),
    "hd48": (shape(48, 17, 1, 1, 17), None),
    "hd8-gqa": (shape(64, 172, 8, 4, 33, shared=False), None),
    "hd100-mqa": (shape(200, 44, 2, 1, 500), None),
    "q80-group1": (shape(16, 17, 8, 4, 17), 1),
    "q80-group2": (shape(24, 44, 4, 2, 15, shared=False), 2),
    "q80-group4": (shape(64, 172, 8, 4, 500), 4),
    "q80-group8": (shape(200, 44, 2, 1, 33), 8),  # 44 is no multiple of 8: parts of groups
    "q80-vocab1": (shape(16, 44, 4, 4, 1, shared=False), 4),
    "q80-group32": (shape(64, 17, 8, 8, 33, shared=False), 32),  # in 17 columns: groups of 1
    "q80-group6": (shape(96, 172, 2, 2, 16), 6),  # no multiple of 4, and only 2 divides 172
    "q80-group96": (shape(96, 96, 16, 2, 17), 96),
}
INT8 = [name for name, (_, group) in MODELS.items() if group]
FLOAT32 = [name for name in MODELS if name not in INT8]


def checkpoint_of(name: str) -> Checkpoint:
    config, group_size = MODELS[name]
    return random_checkpoint(config, group_size, seed=len(name))


def threaded(name: str) -> Checkpoint:
    """The same shape with so large a vocabulary that the engine takes more than one thread."""
    config, group_size = MODELS[name]
    config = replace(config, vocab_size=2**21 // config.dim + 5)
    return random_checkpoint(config, group_size, seed=len(name))


def engine(checkpoint: Checkpoint, isa: str = BEST, threads: int = 1) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA2PY_ISA", isa)
        return Engine(checkpoint, threads)


def some_tokens(config: ModelConfig, n: int = 40, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, config.vocab_size, n)]


def run(backend: Backend, tokens: Sequence[int], cache: Cache | None = None, at: int = 0) -> Logits:
    """All logits of one sequence, run in one call."""
    n = len(tokens)
    return backend.forward(tokens, [cache or backend.new_cache()] * n, range(at, at + n), range(n))


def one_by_one(backend: Backend, tokens: Sequence[int]) -> Logits:
    cache = backend.new_cache()
    return np.concatenate([run(backend, [token], cache, i) for i, token in enumerate(tokens)])


def same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The largest difference, as a part of b's largest logit (or of 1, where all are smaller).

    Infinite where one is NaN and the other is not.
    """
    assert a.shape == b.shape
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    return float(np.nanmax(np.abs(a - b)) / max(1.0, np.nanmax(np.abs(b))))


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
def test_extreme_int8_weights(group_size: int) -> None:
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
            changed = replace(tensor, values=values)
            tensors[name] = (*tensors[name][:i], changed, *tensors[name][i + 1 :])
    checkpoint = in_memory(config, tensors, group_size)
    tokens = some_tokens(config)
    first, *others = [run(engine(checkpoint, isa), tokens) for isa in isa_names()]
    assert all(same(first, other) for other in others)
    assert distance(first, run(Reference(checkpoint), tokens)) < TOLERANCE["int8"]


@pytest.mark.parametrize("isa", isa_names())
@pytest.mark.parametrize("name", MODELS)
def test_close_to_numpy(name: str, isa: str) -> None:
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
def test_threads_really_run() -> None:
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
    batch = backend.forward(
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
        got = backend.forward(
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
def test_logits_of_some_rows(name: str) -> None:
    checkpoint = checkpoint_of(name)
    backend = engine(checkpoint)
    tokens = some_tokens(checkpoint.config, 12)
    n = len(tokens)
    everything = run(backend, tokens)
    for rows in ([n - 1], [], [3, 3, 3], list(range(n))[::-1], [0, 11, 5, 0] * 9):
        got = backend.forward(tokens, [backend.new_cache()] * n, range(n), rows)
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


# ---- the comparison with NumPy bites ----

Spoil = Callable[[dict[str, tuple[Tensor, ...]]], None]


def spoiled(name: str, spoil: Spoil) -> tuple[Checkpoint, Checkpoint]:
    """A model, and what becomes of it."""
    good = checkpoint_of(name)
    tensors = dict(good.tensors)
    spoil(tensors)
    return good, in_memory(good.config, tensors, good.group_size)


def with_element(tensor: Tensor, index: int, change: Callable[[float], float]) -> Tensor:
    """A copy with one weight changed (of int8: the scale of one group)."""
    values = (tensor.scales if isinstance(tensor, QuantizedTensor) else tensor.dequantize()).copy()
    values.flat[index] = change(float(values.flat[index]))
    if isinstance(tensor, QuantizedTensor):
        return replace(tensor, scales=values)
    return DenseTensor(values)


def largest(tensor: Tensor) -> int:
    values = tensor.scales if isinstance(tensor, QuantizedTensor) else tensor.dequantize()
    return int(np.argmax(np.abs(values)))


NAMES = list(random_checkpoint(MODELS["hd8-gqa"][0]).tensors)


@pytest.mark.parametrize("tensor", NAMES)
@pytest.mark.parametrize("name", ["hd8-gqa", "q80-group2"])
def test_a_flipped_weight_shows(name: str, tensor: str) -> None:
    """The sign of a single one, in the last layer (of int8: of one group's scale)."""

    def flip(tensors: dict[str, tuple[Tensor, ...]]) -> None:
        *others, last = tensors[tensor]
        tensors[tensor] = (*others, with_element(last, largest(last), lambda value: -value))

    good, bad = spoiled(name, flip)
    tokens = list(range(good.config.vocab_size))  # all of them: each embedding counts
    right, wrong = run(Reference(good), tokens), run(engine(bad), tokens)
    assert distance(run(engine(good), tokens), right) < TOLERANCE[good.dtype]
    assert distance(wrong, right) > TOLERANCE[good.dtype]


@pytest.mark.parametrize(("one", "other"), [("w1", "w3"), ("wq", "wk"), ("wk", "wv"), ("wq", "wo")])
@pytest.mark.parametrize("name", ["hd2", "q80-group32"])
def test_swapped_tensors_show(name: str, one: str, other: str) -> None:
    def swap(tensors: dict[str, tuple[Tensor, ...]]) -> None:
        tensors[one], tensors[other] = tensors[other], tensors[one]

    good, bad = spoiled(name, swap)
    tokens = some_tokens(good.config)
    right = run(Reference(good), tokens)
    assert distance(run(engine(good), tokens), right) < TOLERANCE[good.dtype]
    assert distance(run(engine(bad), tokens), right) > 5 * TOLERANCE[good.dtype]


def test_zeros_and_nan_show() -> None:
    checkpoint = checkpoint_of("hd8-gqa")
    right = run(Reference(checkpoint), some_tokens(checkpoint.config))
    assert distance(np.zeros_like(right), right) > TOLERANCE["int8"]
    assert distance(np.full_like(right, np.nan), right) == float("inf")


@pytest.mark.parametrize("isa", isa_names())
@pytest.mark.parametrize("name", ["hd8-gqa", "q80-group2"])
@pytest.mark.parametrize("tensor", NAMES)
def test_nan_stays_nan(tensor: str, name: str, isa: str) -> None:
    """One NaN weight, and everything behind it is NaN; it is counted, too."""

    def spoil(tensors: dict[str, tuple[Tensor, ...]]) -> None:
        first, *others = tensors[tensor]
        tensors[tensor] = (with_element(first, 0, lambda _: float("nan")), *others)

    good, bad = spoiled(name, spoil)
    tokens = [0, 1, 2]
    healthy, backend = engine(good, isa), engine(bad, isa)
    assert (healthy.non_finite, backend.non_finite) == (0, 1)
    before = run(healthy, tokens)
    ours = run(backend, tokens)
    assert np.array_equal(np.isnan(ours), np.isnan(run(Reference(bad), tokens)))
    if tensor == "wcls":  # of one token's row
        assert np.isnan(ours).sum(axis=1).tolist() == [1, 1, 1]
    else:
        assert np.isnan(ours).all()
    assert same(run(healthy, tokens), before)  # no NaN stays behind in the workspace

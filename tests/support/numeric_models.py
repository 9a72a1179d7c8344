"""Random models of awkward shapes, and functions that run them and compare the results.

Widths that are not multiples of 16, odd head sizes, tiny vocabularies, groups that fit no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py.checkpoint import Checkpoint
from llama2py.config import ModelConfig
from llama2py.engine.backend import Backend, Cache, Logits
from llama2py.engine.isa import isa_names
from llama2py.engine.native import Engine
from tests.conftest import random_checkpoint

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
    return backend.run(tokens, [cache or backend.new_cache()] * n, range(at, at + n), range(n))


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

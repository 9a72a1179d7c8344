"""The comparison of the engine with NumPy bites: flipped, swapped, zero and NaN weights show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llama2py.checkpoint import Checkpoint, DenseTensor, QuantizedTensor, Tensor
from llama2py.engine.isa import isa_names
from llama2py.engine.reference import Reference
from tests.conftest import in_memory, random_checkpoint
from tests.support.numeric_models import (
    MODELS,
    TOLERANCE,
    checkpoint_of,
    distance,
    engine,
    run,
    same,
    some_tokens,
)

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
        return QuantizedTensor(tensor.values, values, tensor.group_size)
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
    """One NaN weight makes everything computed from it NaN; it is counted, too."""

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
    assert same(run(healthy, tokens), before)  # no NaN remains in the workspace

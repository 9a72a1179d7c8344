"""Every block format against the gguf package's own reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama2py.checkpoint.gguf.blocks import FORMATS, type_name
from llama2py.checkpoint.gguf.tensors import _BAND, BlockTensor, Q8Tensor
from llama2py.checkpoint.state_dict import to_tensor
from llama2py.checkpoint.tensors import Tensor

gguf = pytest.importorskip("gguf")

NAMES = {format.name: kind for kind, format in FORMATS.items()}
WANTED = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K"


def reference(kind: int, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of bytes -> rows of weights."""
    with np.errstate(all="ignore"):
        weights = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(kind))
    return np.asarray(weights, np.float32)


def tensor(kind: int, rows: NDArray[np.uint8]) -> Tensor:
    format = FORMATS[kind]
    if format.decode is None:
        return to_tensor(rows.view(format.record))
    blocks = rows.reshape(-1).view(format.record)
    return BlockTensor(blocks, format, (len(rows), blocks.size // len(rows) * format.size))


def same_bits(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    """The sign of a NaN that arithmetic makes is the machine's own affair; all else counts."""
    assert ours.dtype == theirs.dtype == np.float32
    nan = np.isnan(theirs)
    bits = np.where(nan, 0, ours.view(np.uint32)) == np.where(nan, 0, theirs.view(np.uint32))
    return ours.shape == theirs.shape and bool(bits.all()) and bool((np.isnan(ours) == nan).all())


def random_rows(
    kind: int, rng: np.random.Generator, n_rows: int, n_blocks: int
) -> NDArray[np.uint8]:
    size = FORMATS[kind].record.itemsize
    return rng.integers(0, 256, (n_rows, n_blocks * size), np.uint8)


def test_every_wanted_type_is_read() -> None:
    assert set(NAMES) == set(WANTED.split())


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_numbers_are_ggmls(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    format = FORMATS[kind]
    assert (format.size, format.record.itemsize) == gguf.GGML_QUANT_SIZES[kind]
    assert type_name(kind) == name


def test_the_types_that_are_not_read_have_names() -> None:
    for kind in gguf.GGMLQuantizationType:
        assert type_name(kind) in (kind.name, f"number {kind.value}")
    assert type_name(23) == "IQ4_XS"
    assert type_name(1000) == "number 1000"


@pytest.mark.parametrize("name", NAMES)
def test_random_blocks_decode_as_in_gguf(name: str) -> None:
    """Any bytes are blocks; many rows of them, so that more than one band is widened."""
    kind = NAMES[name]
    rng = np.random.default_rng(kind)
    n_blocks = max(1, 512 // FORMATS[kind].size)
    rows = random_rows(kind, rng, _BAND // 512 + 5, n_blocks)
    ours = tensor(kind, rows)
    theirs = reference(kind, rows)
    assert same_bits(ours.dequantize(), theirs)
    assert ours.shape == theirs.shape
    assert ours.nbytes == rows.size
    assert ours.count_non_finite() == np.count_nonzero(~np.isfinite(theirs))
    assert np.count_nonzero(np.isfinite(theirs)) > theirs.size / 2, (
        "the test has weights to compare"
    )


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(NAMES)), st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3))
def test_a_few_blocks_decode_as_in_gguf(name: str, seed: int, n_rows: int, n_blocks: int) -> None:
    kind = NAMES[name]
    rows = random_rows(kind, np.random.default_rng(seed), n_rows, n_blocks)
    assert same_bits(tensor(kind, rows).dequantize(), reference(kind, rows))


@pytest.mark.parametrize("name", [name for name in NAMES if name[0] == "Q"])
@pytest.mark.parametrize("bit", [0, 1, 7])
def test_every_bit_of_a_block_counts(name: str, bit: int) -> None:
    """Flipping any one changes a weight, and changes it as the reference says."""
    kind = NAMES[name]
    size = FORMATS[kind].record.itemsize
    block = random_rows(kind, np.random.default_rng(kind), 1, 1)[0].view(FORMATS[kind].record)
    for field in FORMATS[kind].record.names or ():
        if field not in ("q", "high"):  # scales that are finite and not zero
            block[field].view(np.uint8)[...] = 0x35
    rows = np.repeat(block.view(np.uint8)[np.newaxis], size + 1, axis=0)
    rows[np.arange(size), np.arange(size)] ^= 1 << bit
    ours = tensor(kind, rows).dequantize()
    assert same_bits(ours, reference(kind, rows))
    assert (ours[:-1] != ours[-1]).any(axis=1).all()


def test_q8_0_is_an_int8_matrix() -> None:
    """Its parts are the file's, its product the reference's."""
    rng = np.random.default_rng(1)
    rows = random_rows(8, rng, 6, 3)
    rows[:, 1::34] &= 0x3F  # finite, positive scales
    theirs = reference(8, rows)
    ours = Q8Tensor(rows.reshape(-1).view(FORMATS[8].record), theirs.shape)
    assert same_bits(ours.dequantize(), theirs)
    assert ours.shape == theirs.shape == (6, 96)
    assert (ours.values.dtype, ours.values.shape) == (np.dtype(np.int8), (6, 96))
    assert (ours.scales.dtype, ours.scales.shape) == (np.dtype(np.float32), (18,))
    assert ours.values.flags.c_contiguous
    assert ours.nbytes == rows.nbytes
    assert ours.group_size == 32
    assert ours.count_non_finite() == 0

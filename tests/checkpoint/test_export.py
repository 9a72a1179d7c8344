"""Rounding for files, against NumPy's own integers, and the gguf package's reference of Q8_0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py.checkpoint import DenseTensor, QuantizedTensor
from llama2py.checkpoint.export import encode, encode_q8_0
from llama2py.errors import CheckpointError


def floats(values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def whole(parts: Any) -> NDArray[Any]:
    return np.concatenate(list(parts))


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    """Every upper half, with lower halves just below, at and above the middle to the next one."""
    upper = np.arange(0, 0x7F7F, dtype=np.uint32)
    upper = np.concatenate([upper, upper | 0x8000])
    for lower, up in ((0, 0), (1, 0), (0x7FFF, 0), (0x8000, upper & 1), (0x8001, 1), (0xFFFF, 1)):
        found = whole(encode((upper << 16 | lower).view(np.float32), "bfloat16", "x"))
        assert found.dtype == np.dtype("<u2")
        np.testing.assert_array_equal(found, upper + up)


def test_float16_rounds_to_nearest_and_ties_to_even() -> None:
    """The middle between two float16 numbers is one of float32's."""
    below = np.arange(0, 0x7BFF, dtype=np.uint16)
    low, high = (bits.view(np.float16).astype(np.float64) for bits in (below, below + np.uint16(1)))
    middle = ((low + high) / 2).astype(np.float32)
    even = np.where(below & 1, below + 1, below)
    found = [
        whole(encode(np.nextafter(middle, np.float32(side)), "float16", "x")).view(np.uint16)
        for side in (0, 1e9)
    ]
    np.testing.assert_array_equal(found, [below, below + 1])
    np.testing.assert_array_equal(whole(encode(middle, "float16", "x")).view(np.uint16), even)


def test_float32_keeps_every_bit() -> None:
    values = np.arange(1 << 18, dtype=np.float32).reshape(512, -1)
    parts = list(encode(values, "float32", "x"))
    assert len(parts) == 2
    np.testing.assert_array_equal(np.concatenate(parts), values.ravel())


@pytest.mark.parametrize(
    ("dtype", "largest", "beyond"),
    [("float16", 65519.996, 65520.0), ("bfloat16", 3.3961773e38, 3.3961776e38)],
)
def test_a_weight_that_does_not_fit_is_an_error_that_names_the_tensor(
    dtype: str, largest: float, beyond: float
) -> None:
    assert np.isfinite(np.float32(beyond))
    whole(encode(floats([largest, -largest]), dtype, "wq"))
    for value in (beyond, -beyond):
        with pytest.raises(CheckpointError, match=rf"^blk\.0 holds \S+, .* large for {dtype}: use"):
            whole(encode(floats([1, value]), dtype, "blk.0"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_nan_and_infinity_stay_as_they_are(dtype: str) -> None:
    low_nan = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    found = whole(encode(floats([*low_nan, np.inf, -np.inf]), dtype, "x"))
    if dtype == "bfloat16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(found[:3]).all()
    assert found[3:].tolist() == [np.inf, -np.inf]


def test_q8_0_has_the_bytes_of_ggmls_quantizer() -> None:
    quants = pytest.importorskip("gguf.quants")
    kinds = pytest.importorskip("gguf").GGMLQuantizationType
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((9000, 96), np.float32)
    weights *= (10.0 ** rng.integers(-6, 4, (9000, 1))).astype(np.float32)
    weights[7, :32] = 0
    weights[8] = np.rint(weights[8] * 10) / 2  # halves
    weights[8, 0::32] = 127
    found = whole(encode_q8_0(DenseTensor(weights), "x"))
    wanted = quants.quantize(weights, kinds.Q8_0)
    np.testing.assert_array_equal(found.view(np.uint8), wanted.ravel())


def test_q8_0_of_tiny_weights_is_zeros_or_near_them() -> None:
    """Where 1 / scale overflows, and where the scale itself is no half any more."""
    tiny = np.full((1, 32), 1e-44, np.float32)
    tiny[0, ::2] = 1e-38
    found = whole(encode_q8_0(DenseTensor(tiny), "x"))
    assert found["d"].tolist() == [0]
    assert not (found["q"].astype(np.float32) * found["d"].astype(np.float32)).any()


def test_q8_0_keeps_the_blocks_of_q8_0() -> None:
    rng = np.random.default_rng(6)
    values = rng.integers(-127, 128, (4, 64), np.int8)
    scales = rng.random(8).astype(np.float16).astype(np.float32)
    found = whole(encode_q8_0(QuantizedTensor(values, scales, 32), "x"))
    np.testing.assert_array_equal(found["q"].ravel(), values.ravel())
    np.testing.assert_array_equal(found["d"].astype(np.float32).ravel(), scales)


def test_q8_0_of_other_int8_is_within_half_a_step() -> None:
    """Groups of 64, or scales that half precision lacks."""
    rng = np.random.default_rng(7)
    values = rng.integers(-127, 128, (4, 64), np.int8)
    for group in (64, 32):
        scales = rng.random(256 // group).astype(np.float32)
        tensor = QuantizedTensor(values, scales, group)
        found = whole(encode_q8_0(tensor, "x"))
        again = (found["q"] * found["d"].astype(np.float32)[:, np.newaxis]).reshape(4, 64)
        exact = tensor.dequantize()
        assert 0 < np.abs(again - exact).max() < np.abs(exact).max() * (1 / 254 + 1 / 1024)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e9])
def test_q8_0_refuses_weights_without_a_scale(value: float) -> None:
    weights = np.zeros((2, 32), np.float32)
    weights[1, 3] = value
    with pytest.raises(CheckpointError, match=r"^blk\.0\.w h(as|olds) "):
        whole(encode_q8_0(DenseTensor(weights), "blk.0.w"))

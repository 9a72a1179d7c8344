"""int8, int4 and bfloat16: numbers worked out by hand, and bounds on the rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from llama2py.checkpoint import quantize
from llama2py.checkpoint.quantize import quantize_int4, round_to_bfloat16
from llama2py.errors import ParameterError


def test_quantize_gives_the_numbers_worked_out_by_hand() -> None:
    # Group 1: the peak is 127, so the scale is 1 and halves go to the even neighbour.
    # Group 2: zeros. Group 3: a negative peak.
    weights = np.array([[127, 0.5, 1.5], [-2.5, 0, 0], [0, 0, -0.0], [0, 1, -254]], np.float32)
    tensor = quantize(weights, 4)
    np.testing.assert_array_equal(tensor.values, [[127, 0, 2], [-2, 0, 0], [0, 0, 0], [0, 0, -127]])
    np.testing.assert_array_equal(tensor.scales, np.array([1, 0, 2], np.float32))
    assert not np.signbit(tensor.scales).any()
    assert tensor.values.dtype == np.int8
    assert tensor.scales.dtype == np.float32
    assert tensor.shape == (4, 3)
    assert tensor.nbytes == 12 + 3 * 4
    restored = tensor.dequantize()
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored, [[127, 0, 2], [-2, 0, 0], [0, 0, 0], [0, 0, -254]])


def test_quantize_holds_where_the_scale_is_subnormal() -> None:
    # 190 steps of the smallest float32: the scale rounds to one step, the ratio would be 190.
    step = np.float32(1e-45)
    tensor = quantize(np.array([[190 * step, -190 * step], [step, 0]], np.float32), 2)
    np.testing.assert_array_equal(tensor.values, [[127, -127], [0, 0]])
    assert np.isfinite(tensor.dequantize()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_refuses_what_no_scale_can_hold(bad: float) -> None:
    with pytest.raises(ParameterError, match="cannot quantize NaN or infinity"):
        quantize(np.array([[1, bad]], np.float32), 2)


@pytest.mark.parametrize("group_size", [0, -4, 5, 1 << 40])
def test_quantize_refuses_groups_that_do_not_fill_the_matrix(group_size: int) -> None:
    with pytest.raises(ParameterError, match=f"group_size is {group_size}, expected a positive"):
        quantize(np.ones((4, 6), np.float32), group_size)


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


sizes = st.tuples(st.integers(1, 5), st.integers(1, 70))


matrices = hnp.arrays(np.float32, sizes, elements=numbers)


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)))
def test_bfloat16_rounds_to_the_nearest_value(values: NDArray[np.float32]) -> None:
    rounded = round_to_bfloat16(values)
    assert np.array_equal(np.isnan(rounded), np.isnan(values))
    finite = np.isfinite(values)
    assert not (rounded[finite].view(np.uint32) & 0xFFFF).any()
    exact, got = values[finite].astype(np.float64), rounded[finite].astype(np.float64)
    below = (values[finite].view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    step = np.abs(below) * 2.0**-7 + 2.0**-133  # at least the distance to the next one
    assert (np.abs(np.where(np.isinf(got), below, got) - exact) <= step).all()


def test_bfloat16_ties_go_to_even() -> None:
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32).view(np.float32)
    assert [hex(b) for b in round_to_bfloat16(ties).view(np.uint32)] == [
        "0x3f800000",
        "0x3f820000",
        "0x3f810000",
        "0x3f800000",
    ]


@given(matrices)
def test_int4_rounds_within_half_a_step_or_one_at_the_far_end(weights: NDArray[np.float32]) -> None:
    weights = np.clip(weights, -6e4, 6e4).astype(np.float32)
    quantized = quantize_int4(weights)
    assert quantized.shape == weights.shape
    assert quantized.values.min() >= -8
    assert quantized.values.max() <= 7
    steps = np.repeat(abs(quantized.scales.astype(np.float32)), 32, axis=1)[:, : weights.shape[1]]
    error = abs(quantized.dequantize() - weights)
    # The opposite of the farthest weight would need +8; float16 rounds the scale by 2^-11, or by
    # 2^-25 where it is subnormal.
    assert (error <= steps * 1.01 + 8 * 2.0**-24).all()
    within = quantized.values.reshape(len(weights), -1)[:, : weights.shape[1]] < 7
    assert (error[within] <= (steps * 0.51 + 8 * 2.0**-24)[within]).all()

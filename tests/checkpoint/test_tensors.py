"""Tensors in memory: widened, joined, and refused where their parts do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from llama2py import ParameterError
from llama2py.checkpoint import DenseTensor, JoinedTensor, QuantizedTensor, StoredTensor


def test_halves_are_widened_exactly() -> None:
    values = np.array([[1, -2.5, 65504], [6e-8, np.inf, np.nan]], np.float16)
    half = StoredTensor(values)
    np.testing.assert_array_equal(half.dequantize(), values.astype(np.float32))
    assert half.count_non_finite() == 2
    # 1, -2, the largest, the smallest, infinity, NaN: sign, 8 bits of exponent, 7 of fraction.
    bits = np.array([0x3F80, 0xC000, 0x7F7F, 0x0001, 0xFF80, 0x7FC1], np.uint16)
    brain = StoredTensor(bits.reshape(3, 2))
    expected = [[1, -2], [(2 - 2**-7) * 2.0**127, 2.0**-133], [-np.inf, np.nan]]
    np.testing.assert_array_equal(brain.dequantize(), np.array(expected, np.float32))
    assert brain.count_non_finite() == 2
    assert brain.nbytes == 12


def test_parts_are_joined() -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    half = whole.astype(np.float16)
    rows = JoinedTensor([DenseTensor(whole[:1]), StoredTensor(half[1:])], 0)
    columns = JoinedTensor([DenseTensor(whole[:, :2]), StoredTensor(half[:, 2:])], 1)
    for joined in (rows, columns):
        assert joined.shape == (4, 6)
        np.testing.assert_array_equal(joined.dequantize(), whole)
    with pytest.raises(ParameterError, match="do not join along axis 0"):
        JoinedTensor([DenseTensor(whole), DenseTensor(whole[:, :2])], 0)


def test_tensors_refuse_parts_that_do_not_fit() -> None:
    with pytest.raises(ParameterError, match="expected a float32 vector or matrix"):
        DenseTensor(np.ones((2, 2), np.float64))
    with pytest.raises(ParameterError, match="expected a float32 vector or matrix"):
        DenseTensor(np.ones((2, 2, 2), np.float32))
    with pytest.raises(ParameterError, match="expected one scale for each whole group"):
        QuantizedTensor(np.ones((4, 6), np.int8), np.ones(5, np.float32), 4)
    with pytest.raises(ParameterError, match="expected one scale for each whole group"):
        QuantizedTensor(np.ones((4, 6), np.int8), np.ones(6, np.float32), 0)
    with pytest.raises(ParameterError, match="expected an int8 matrix and float32 scales"):
        QuantizedTensor(np.ones(24, np.int8), np.ones(6, np.float32), 4)

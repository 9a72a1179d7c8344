"""The matrix products of the NumPy reference, in integers where a matrix is quantized.

Shapes: n vectors of `cols` numbers, G groups of columns that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import QuantizedTensor, Tensor
from ..checkpoint.quantize import INT4_GROUP, Int4Matrix

Array: TypeAlias = NDArray[np.float32]


def quantize_activations(x: Array, group: int) -> tuple[Array, Array]:
    """Round x (n, cols) to whole numbers (n, G, group), half away from 0, with scales (n, G)."""
    groups = x.reshape(len(x), -1, group)  # (n, G, group)
    scales = abs(groups).max(axis=-1) / np.float32(127)  # (n, G)
    ratios = np.divide(groups, scales[..., None], where=scales[..., None] > 0, out=groups * 0)
    return np.sign(ratios) * np.floor(np.abs(ratios) + np.float32(0.5)), scales


def linear(matrix: Tensor | Int4Matrix) -> Callable[[Array], Array]:
    """Return ``x (n, cols) -> x @ W.T (n, rows)`` for W (rows, cols), in integers if quantized."""
    rows, cols = matrix.shape
    if isinstance(matrix, Int4Matrix):  # the last group of a row may be padded
        group, width = INT4_GROUP, matrix.values.shape[1] * INT4_GROUP
        values, scales = matrix.values, matrix.scales.astype(np.float32)
    elif isinstance(matrix, QuantizedTensor):  # a file's group may span two rows
        group, width = int(np.gcd(matrix.group_size, cols)), cols
        values = matrix.values.reshape(rows, -1, group)
        scales = np.repeat(matrix.scales, matrix.group_size // group).reshape(rows, -1)
    else:
        weight = np.array(matrix.dequantize())  # (rows, cols)
        return lambda x: x @ weight.T
    values = values.astype(np.float32)  # (rows, G, group); scales (rows, G)

    def multiply(x: Array) -> Array:
        padded = np.zeros((len(x), width), np.float32)
        padded[:, :cols] = x
        q, x_scales = quantize_activations(padded, group)  # (n, G, group), (n, G)
        sums = np.einsum("ngk,rgk->nrg", q, values, dtype=np.float64)  # exact
        return np.asarray(np.einsum("nrg,rg,ng->nr", sums.astype(np.float32), scales, x_scales))

    return multiply

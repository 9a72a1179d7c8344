"""The reference's matrix products: in floats, or in whole numbers where the weights are quantized.

Shapes: n vectors x (n, cols), a matrix (rows, cols), G groups of columns that share a scale.
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
    """Groups of int8 (as float32, (n, G, group)) and their scales (n, G), rounded half away."""
    groups = x.reshape(len(x), -1, group)
    scales = abs(groups).max(axis=-1) / np.float32(127)
    ratios = np.divide(groups, scales[..., None], where=scales[..., None] > 0, out=groups * 0)
    return np.sign(ratios) * np.floor(np.abs(ratios) + np.float32(0.5)), scales


def linear(tensor: Tensor | Int4Matrix) -> Callable[[Array], Array]:
    """``x (n, cols) -> x @ W.T (n, rows)``; for int8 and int4, in integers within each group."""
    if isinstance(tensor, Int4Matrix):
        return linear_int4(tensor)
    rows, cols = tensor.shape
    if not isinstance(tensor, QuantizedTensor):
        weight = np.array(tensor.dequantize())
        return lambda x: x @ weight.T
    # Groups run on over the flattened matrix; smaller ones that fit a row keep every value.
    group = int(np.gcd(tensor.group_size, cols))
    values = tensor.values.reshape(rows, -1, group).astype(np.float32)  # (rows, G, group)
    scales = np.repeat(tensor.scales, tensor.group_size // group).reshape(rows, -1)  # (rows, G)

    def multiply(x: Array) -> Array:
        q, x_scales = quantize_activations(x, group)
        sums = np.einsum("ngk,rgk->nrg", q, values, dtype=np.float64)  # exact: whole numbers
        out: Array = np.einsum("nrg,rg,ng->nr", sums.astype(np.float32), scales, x_scales)
        return out

    return multiply


def linear_int4(matrix: Int4Matrix) -> Callable[[Array], Array]:
    """``x (n, cols) -> x @ W.T (n, rows)``."""
    values, scales = matrix.values.astype(np.float32), matrix.scales.astype(np.float32)

    def multiply(x: Array) -> Array:
        filled = np.zeros((len(x), values.shape[1] * INT4_GROUP), np.float32)
        filled[:, : matrix.cols] = x
        q, x_scales = quantize_activations(filled, INT4_GROUP)
        sums = np.einsum("ngk,rgk->nrg", q, values, dtype=np.float64)  # exact: whole numbers
        out: Array = np.einsum("nrg,rg,ng->nr", sums.astype(np.float32), scales, x_scales)
        return out

    return multiply

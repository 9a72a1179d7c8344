"""Quantized weights in NumPy: the conversions and products that the engine computes in C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..config import Dtype, ModelConfig
from ..errors import ParameterError
from .checkpoint import Checkpoint
from .tensors import DenseTensor, QuantizedTensor, Tensor, quantize

INT4_GROUP = 32

Array: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Int4Matrix:
    """A matrix of whole numbers from -8 to 7, with one scale for every 32 of a row.

    Parameters
    ----------
    values : ndarray, int8, shape (rows, groups, 32)
        The last group of a row is filled up with zeros.
    scales : ndarray, float16, shape (rows, groups)
        Each group's values are multiplied by its scale.
    cols : int
        Length of a row.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float16]
    cols: int

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, cols)``."""
        return len(self.values), self.cols

    @property
    def nbytes(self) -> int:
        """Size in bytes when packed, two values a byte."""
        return self.values.size // 2 + self.scales.nbytes

    def count_non_finite(self) -> int:
        """Return how many scales are NaN or infinite; each spoils its group."""
        return int(self.scales.size - np.count_nonzero(np.isfinite(self.scales)))

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights that this matrix stands for, float32, (rows, cols), a new array."""
        weights = self.values * self.scales.astype(np.float32)[..., np.newaxis]
        return weights.reshape(len(weights), -1)[:, : self.cols]


def default_group_size(config: ModelConfig) -> int:
    """Return the values per int8 scale: 64, halved until it divides dim, as in llama2.c."""
    group_size = 64
    while config.dim % group_size:
        group_size //= 2
    return group_size


def int8_group_size(checkpoint: Checkpoint) -> int:
    """Return the values per scale of a checkpoint as int8: of its own groups, or the default."""
    return checkpoint.group_size or default_group_size(checkpoint.config)


def own_dtype(checkpoint: Checkpoint) -> Dtype:
    """Return the dtype as which a checkpoint's weights lose nothing: the default of loading.

    float16 becomes float32, which holds all of its numbers; bfloat16 does not.
    """
    if checkpoint.dtype == "int8":
        return "int8"
    if checkpoint.dtype == "int4":
        return "int4"
    matrices = [t for layers in checkpoint.tensors.values() for t in layers if len(t.shape) == 2]
    narrow = checkpoint.dtype == "bfloat16" and all(
        matrix.nbytes == 2 * matrix.shape[0] * matrix.shape[1] for matrix in matrices
    )
    return "bfloat16" if narrow else "float32"


def round_to_bfloat16(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round weights to bfloat16, ties to even, as float32. NaN stays NaN.

    Parameters
    ----------
    weights : ndarray, float32, any shape
        The weights.

    Returns
    -------
    ndarray, float32, of the same shape
    """
    bits = np.ascontiguousarray(weights).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(weights), weights, rounded.view(np.float32))


def quantize_int4(weights: NDArray[np.float32]) -> Int4Matrix:
    """Quantize a matrix to 4 bits.

    ``scale = w / -8`` of the weight w that is farthest from 0 in its group, rounded to float16;
    then ``value = weight / scale``, rounded half to even and clipped to -8..7. So all 16 values
    are used, as in ggml's Q4_0.

    Parameters
    ----------
    weights : ndarray, float32, shape (rows, cols)
        The weights.

    Returns
    -------
    Int4Matrix, shape (rows, cols)
        The scale of a group with a NaN or an infinity, or with weights beyond float16, is NaN.
    """
    rows, cols = weights.shape
    groups = np.zeros((rows, -(-cols // INT4_GROUP) * INT4_GROUP), np.float32)
    groups[:, :cols] = weights
    groups = groups.reshape(rows, -1, INT4_GROUP)
    farthest = np.take_along_axis(groups, abs(groups).argmax(axis=2)[..., np.newaxis], axis=2)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = (farthest[..., 0] / np.float32(-8)).astype(np.float16)
    spoiled = ~np.isfinite(scales)
    scales[spoiled] = np.nan
    unusable = spoiled | (scales == 0)
    divisors = np.where(unusable, 1, scales.astype(np.float32))[..., np.newaxis]
    ratios = np.where(unusable[..., np.newaxis], 0, groups / divisors)
    values = np.clip(np.rint(ratios), -8, 7).astype(np.int8)
    return Int4Matrix(values, scales, cols)


def convert_matrix(tensor: Tensor, dtype: Dtype, group_size: int) -> Tensor | Int4Matrix:
    """Convert a matrix to another dtype.

    Parameters
    ----------
    tensor : Tensor, shape (rows, cols)
        The matrix.
    dtype : {'float32', 'bfloat16', 'int8', 'int4'}
        The dtype. bfloat16 is returned as float32 numbers that bfloat16 holds.
    group_size : int
        For int8: values per scale. A tensor that has such groups keeps its values and scales, and
        for int4 so does a tensor of four bits.

    Returns
    -------
    DenseTensor, QuantizedTensor or Int4Matrix
        Its arrays are in memory.

    Raises
    ------
    ParameterError
        If ``dtype`` is another one.
    """
    if dtype == "int8":
        if isinstance(tensor, QuantizedTensor) and tensor.group_size == group_size:
            return QuantizedTensor(*tensor.parts(), group_size)
        return quantize(tensor.dequantize(), group_size)
    if dtype == "int4":
        if isinstance(tensor, QuantizedTensor) and tensor.bits == 4:
            rows, cols = tensor.shape
            values, scales = tensor.parts()
            halves = scales.astype(np.float16).reshape(rows, -1)
            return Int4Matrix(values.reshape(rows, -1, INT4_GROUP), halves, cols)
        return quantize_int4(tensor.dequantize())
    if dtype == "bfloat16":
        return DenseTensor(round_to_bfloat16(tensor.dequantize()))
    if dtype == "float32":
        return DenseTensor(tensor.dequantize())
    raise ParameterError(f"dtype is {dtype!r}, expected float32, bfloat16, int8 or int4")


def quantize_activations(x: Array, group: int) -> tuple[Array, Array]:
    """Round x (n, cols) to whole numbers (n, G, group), half away from 0, with scales (n, G)."""
    groups = x.reshape(len(x), -1, group)  # (n, G, group)
    scales = abs(groups).max(axis=-1) / np.float32(127)  # (n, G)
    ratios = np.divide(groups, scales[..., None], where=scales[..., None] > 0, out=groups * 0)
    return np.sign(ratios) * np.floor(np.abs(ratios) + np.float32(0.5)), scales


def integer_product(matrix: QuantizedTensor | Int4Matrix) -> Callable[[Array], Array]:
    """Return ``x (n, cols) -> x @ W.T (n, rows)`` for a quantized matrix W (rows, cols).

    x is rounded to int8 in the same groups, and each pair of groups is multiplied exactly, in
    integers.
    """
    rows, cols = matrix.shape
    if isinstance(matrix, Int4Matrix):  # the last group of a row may be padded
        group, width = INT4_GROUP, matrix.values.shape[1] * INT4_GROUP
        values, scales = matrix.values, matrix.scales.astype(np.float32)
    else:  # a file's group may reach from one row into the next
        group, width = int(np.gcd(matrix.group_size, cols)), cols
        values = matrix.values.reshape(rows, -1, group)
        scales = np.repeat(matrix.scales, matrix.group_size // group).reshape(rows, -1)
    values = values.astype(np.float32)  # (rows, G, group); scales (rows, G)

    def multiply(x: Array) -> Array:
        padded = np.zeros((len(x), width), np.float32)
        padded[:, :cols] = x
        q, x_scales = quantize_activations(padded, group)  # (n, G, group), (n, G)
        sums = np.einsum("ngk,rgk->nrg", q, values, dtype=np.float64)  # exact
        return np.asarray(np.einsum("nrg,rg,ng->nr", sums.astype(np.float32), scales, x_scales))

    return multiply

"""Tensors as other programs store them: in half precision, with strides, permuted, in shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError
from .tensors import DenseTensor, Tensor

# NumPy has no bfloat16: its bits stand in a uint16.
DTYPES = {
    np.dtype(np.float32): "float32",
    np.dtype(np.float16): "float16",
    np.dtype(np.uint16): "bfloat16",
}


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A vector or matrix that is widened to float32 only when it is asked for.

    Parameters
    ----------
    data : ndarray, float32, float16, or uint16 for bfloat16's bits
        The weights, of any number of dimensions and strides; often a view into a mapped file.
    shape : tuple of int
        ``(n,)`` or ``(rows, cols)``: what becomes of ``data`` once it is read in C order.

    Raises
    ------
    ParameterError
        If the dtype is another, or the shape has another number of elements.
    """

    data: NDArray[Any]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.data.dtype not in DTYPES or len(self.shape) not in (1, 2):
            raise ParameterError(
                f"a stored tensor got {self.data.dtype} to be of shape {self.shape},"
                " expected float32, float16 or bfloat16 bits to be a vector or matrix"
            )
        if math.prod(self.shape) != self.data.size:
            raise ParameterError(
                f"a stored tensor of shape {self.shape} got {self.data.size} values,"
                f" expected {math.prod(self.shape)}"
            )

    @property
    def nbytes(self) -> int:
        """Size in bytes, as stored."""
        return self.data.nbytes

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The array behind it."""
        return (self.data,)

    def count_non_finite(self) -> int:
        """How many weights are NaN or infinite."""
        if self.data.dtype == np.uint16:
            return int(np.count_nonzero((self.data & 0x7F80) == 0x7F80))
        return int(self.data.size - np.count_nonzero(np.isfinite(self.data)))

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights, widened exactly.

        Returns
        -------
        ndarray, float32, of this tensor's shape
            A new array in C order.
        """
        if self.data.dtype == np.uint16:  # bfloat16 is the upper half of a float32
            bits = self.data.astype(np.uint32, order="C")
            bits <<= 16
            return bits.view(np.float32).reshape(self.shape)
        return self.data.astype(np.float32, order="C").reshape(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class JoinedTensor:
    """A matrix whose parts lie in several files.

    Parameters
    ----------
    parts : sequence of Tensor, matrices
        In order.
    axis : {0, 1}
        0: rows below rows; 1: columns beside columns.

    Raises
    ------
    ParameterError
        If the parts do not fit together.
    """

    parts: Sequence[Tensor]
    axis: int

    def __post_init__(self) -> None:
        across = {part.shape[1 - self.axis] for part in self.parts if len(part.shape) == 2}
        if len(across) != 1 or any(len(part.shape) != 2 for part in self.parts):
            raise ParameterError(
                f"shapes {[part.shape for part in self.parts]} do not join along axis {self.axis}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, cols)``."""
        long = sum(part.shape[self.axis] for part in self.parts)
        other = self.parts[0].shape[1 - self.axis]
        return (other, long) if self.axis else (long, other)

    @property
    def nbytes(self) -> int:
        """Size of all the parts in bytes, as stored."""
        return sum(part.nbytes for part in self.parts)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays behind the parts."""
        return tuple(array for part in self.parts for array in part.arrays)

    def count_non_finite(self) -> int:
        """How many weights are NaN or infinite."""
        return sum(part.count_non_finite() for part in self.parts)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the whole matrix.

        Returns
        -------
        ndarray, float32, shape (rows, cols)
            A new array; at most one part is held beside it.
        """
        whole = np.empty(self.shape, np.float32)
        begin = 0
        for part in self.parts:
            end = begin + part.shape[self.axis]
            target = whole[:, begin:end] if self.axis else whole[begin:end]
            target[...] = part.dequantize()
            begin = end
        return whole


def stored(array: NDArray[Any]) -> Tensor:
    """The tensor of a vector or matrix: float32 as it is, half precision to be widened on use."""
    if array.dtype == np.float32:
        return DenseTensor(array)
    return StoredTensor(array, array.shape)


def unpermuted(array: NDArray[Any], n_heads: int) -> StoredTensor:
    """Undo Hugging Face's order of the rows of wq and wk.

    Parameters
    ----------
    array : ndarray, shape (n_heads * head_dim, dim)
        In each head, the first channel of every rotary pair, then the second of every pair. Also
        any columns, or none: shape (n_heads * head_dim,).
    n_heads : int
        Of the queries, or of the keys.

    Returns
    -------
    StoredTensor, of the same shape
        The two channels of a pair beside each other, as llama2.c turns them. A view.
    """
    rows, *cols = array.shape
    heads = array.reshape(n_heads, 2, rows // n_heads // 2, *cols)  # (heads, 2, pairs, cols)
    return StoredTensor(heads.swapaxes(1, 2), array.shape)

"""The tensors of a GGUF file: they stay as the file has them until somebody asks for the weights.

None holds more than views of the mapped file. What they return is made anew at every use, one
tensor's worth, for callers that copy it somewhere and let it go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tensors import QuantizedTensor
from .blocks import BlockFormat, q4_0_values

_BAND = 1 << 18  # weights that are widened at a time: what lies between stays in the cache


@dataclass(frozen=True, slots=True, eq=False)
class BlockTensor:
    """A matrix or vector in blocks of one of ggml's formats.

    Parameters
    ----------
    stored : ndarray, records, shape (n_blocks,)
        The blocks, row after row; a row is a whole number of them.
    format : BlockFormat
        What they are.
    shape : tuple of int
        ``(rows, cols)`` or ``(n,)``.
    """

    stored: NDArray[Any]
    format: BlockFormat
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes, as stored."""
        return self.stored.nbytes

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The array behind it."""
        return (self.stored,)

    def _bands(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """A stretch of blocks, and their weights: (n, format.size)."""
        decode = self.format.decode
        assert decode is not None, "plain numbers are no blocks"
        step = max(1, _BAND // self.format.size)
        for first in range(0, self.stored.size, step):
            band = slice(first, first + step)
            # A damaged file's scales may be anything: NaN and infinity stay, without a warning.
            with np.errstate(over="ignore", invalid="ignore"):
                yield band, decode(self.stored[band])

    def count_non_finite(self) -> int:
        """How many weights are NaN or infinite."""
        return sum(
            weights.size - int(np.count_nonzero(np.isfinite(weights)))
            for _, weights in self._bands()
        )

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights this tensor stands for.

        Returns
        -------
        ndarray, float32, of this tensor's shape
            A new array.
        """
        out = np.empty((self.stored.size, self.format.size), np.float32)
        for band, weights in self._bands():
            out[band] = weights
        return out.reshape(self.shape)


class Q8Tensor(QuantizedTensor):
    """A matrix in Q8_0: 32 int8 values and a half-precision scale a block, widened exactly.

    Everything else that is an int8 matrix has its values in one place and its scales in another.
    Here they alternate in the file, so both arrays are copies made on use.

    Parameters
    ----------
    stored : ndarray, records, shape (rows * cols / 32,)
        The blocks, row after row.
    shape : tuple of int
        ``(rows, cols)``.
    """

    __slots__ = ("_shape", "stored")

    stored: NDArray[Any]
    _shape: tuple[int, ...]

    def __init__(self, stored: NDArray[Any], shape: tuple[int, ...]) -> None:
        # The parent is a frozen dataclass; its own __init__ would fill in the arrays.
        object.__setattr__(self, "stored", stored)
        object.__setattr__(self, "_shape", shape)
        object.__setattr__(self, "group_size", 32)

    @property
    def values(self) -> NDArray[np.int8]:
        """The quantized weights, int8, (rows, cols): a new array."""
        return np.ascontiguousarray(self.stored["q"]).reshape(self._shape)

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scale of every block, (n_blocks,): a new array."""
        return self.stored["d"].astype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, cols)``."""
        return self._shape

    @property
    def nbytes(self) -> int:
        """Size in bytes, as stored."""
        return self.stored.nbytes

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The array behind it; values and scales are made of it."""
        return (self.stored,)


class Q4Tensor(Q8Tensor):
    """A matrix in Q4_0: as `Q8Tensor`, its values from -8 to 7 and two of them in a byte."""

    __slots__ = ()
    bits = 4

    @property
    def values(self) -> NDArray[np.int8]:
        """The quantized weights, int8, (rows, cols): a new array."""
        return q4_0_values(self.stored).reshape(self._shape)

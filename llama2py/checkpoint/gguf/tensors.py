"""The tensors of a GGUF file, which stay as the file has them until their weights are used.

What they return is recomputed on every use, for callers that copy it and then drop it. The
file is read a band at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tensors import Array, QuantizedTensor
from .blocks import BlockFormat, q4_0_values

_BAND = 1 << 18  # weights that are widened at a time: intermediate results stay in the cache


class BlockTensor:
    """A matrix or vector in blocks of one of ggml's formats.

    Parameters
    ----------
    stored : ndarray or FileArray, records, shape (n_blocks,)
        The blocks, row after row; a row is a whole number of them.
    format : BlockFormat
        How they store weights.
    shape : tuple of int
        ``(rows, cols)`` or ``(n,)``.
    """

    __slots__ = ("_stored", "format", "shape")

    def __init__(self, stored: Array, format: BlockFormat, shape: tuple[int, ...]) -> None:
        self._stored, self.format, self.shape = stored, format, shape

    @property
    def dtype(self) -> str:
        """The format's name: ``'Q4_K'``."""
        return self.format.name

    @property
    def nbytes(self) -> int:
        """Size in bytes, as stored."""
        return self._stored.nbytes

    @property
    def rows_in_file(self) -> None:
        """None: the file has blocks, not numbers."""

    def _bands(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Consecutive slices of the blocks, each with its weights: (n, format.size)."""
        decode = self.format.decode
        assert decode is not None, "plain numbers are not blocks"
        for band, blocks in bands(self._stored, self.format.size):
            # The scales of a damaged file may be NaN or infinite: they stay so, without a warning.
            with np.errstate(over="ignore", invalid="ignore"):
                yield band, decode(blocks)

    def count_non_finite(self) -> int:
        """Return how many weights are NaN or infinite."""
        return sum(
            weights.size - int(np.count_nonzero(np.isfinite(weights)))
            for _, weights in self._bands()
        )

    def has_values(self) -> bool:
        """Whether any byte of the blocks is not zero."""
        return any_byte(self._stored, self.format.size)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights that this tensor stands for.

        Returns
        -------
        ndarray, float32, of this tensor's shape
            A new array.
        """
        out = np.empty((self._stored.size, self.format.size), np.float32)
        for band, weights in self._bands():
            out[band] = weights
        return out.reshape(self.shape)


def bands(stored: Array, size: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Read blocks of ``size`` weights a band at a time: each with its place among all blocks."""
    step = max(1, _BAND // size)
    for first in range(0, stored.size, step):
        band = slice(first, first + step)
        yield band, stored[band]


def any_byte(stored: Array, size: int) -> bool:
    """Whether any byte is not zero in blocks of ``size`` weights."""
    return any(bool(blocks.view(np.uint8).any()) for _, blocks in bands(stored, size))


class Q8Tensor(QuantizedTensor):
    """A matrix in Q8_0: 32 int8 values and a half-precision scale a block, widened exactly.

    In other int8 matrices the values lie in one place and the scales in another. Here they
    alternate in the file, so both arrays are copies.

    Parameters
    ----------
    stored : ndarray or FileArray, records, shape (rows * cols / 32,)
        The blocks, row after row.
    shape : tuple of int
        ``(rows, cols)``.
    """

    __slots__ = ("_shape", "_stored")

    def __init__(self, stored: Array, shape: tuple[int, ...]) -> None:
        # Not the parent's: it wants the values and the scales, which are made on use.
        self._stored = stored
        self._shape = shape
        self.group_size = 32

    def _values_of(self, blocks: NDArray[Any]) -> NDArray[np.int8]:
        """The whole numbers of some blocks: (n, 32)."""
        values: NDArray[np.int8] = blocks["q"]
        return values

    def parts(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return values (rows, cols) and scales (n_blocks,), new arrays, read in one go."""
        values = np.empty((self._stored.size, 32), np.int8)
        scales = np.empty(self._stored.size, np.float32)
        for band, blocks in bands(self._stored, 32):
            values[band] = self._values_of(blocks)
            scales[band] = blocks["d"]
        return values.reshape(self._shape), scales

    @property
    def values(self) -> NDArray[np.int8]:
        """The quantized weights, int8, (rows, cols): a new array."""
        return self.parts()[0]

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scale of every block, (n_blocks,): a new array."""
        out = np.empty(self._stored.size, np.float32)
        for band, blocks in bands(self._stored, 32):
            out[band] = blocks["d"]
        return out

    @property
    def rows_in_file(self) -> None:
        """None: in the file, values and scales alternate."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, cols)``."""
        return self._shape

    @property
    def nbytes(self) -> int:
        """Size in bytes, as stored."""
        return self._stored.nbytes

    def has_values(self) -> bool:
        """Whether any byte of the blocks is not zero."""
        return any_byte(self._stored, 32)


class Q4Tensor(Q8Tensor):
    """A matrix in Q4_0: like `Q8Tensor`, with values from -8 to 7, two in a byte."""

    __slots__ = ()
    bits = 4

    @property
    def dtype(self) -> str:
        """``'int4'``."""
        return "int4"

    def _values_of(self, blocks: NDArray[Any]) -> NDArray[np.int8]:
        return q4_0_values(blocks)

"""Weights as the bytes of another program's files, a stretch of them at a time.

Numbers are rounded to the nearest, of two the even one; what a format cannot hold is an error that
names the tensor, never an infinity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .gguf.blocks import FORMATS
from .quantize import round_to_bfloat16
from .tensors import QuantizedTensor, Tensor

FileDtype: TypeAlias = Literal["float32", "float16", "bfloat16", "int8"]

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
Q8_0 = FORMATS[8]
_BAND = 1 << 17  # weights that are turned at a time: what lies between stays in the cache


def encode(weights: NDArray[np.float32], dtype: str, name: str) -> Iterator[NDArray[Any]]:
    """Turn weights into numbers of a float dtype.

    Parameters
    ----------
    weights : ndarray, float32, any shape
        In C order.
    dtype : {'float32', 'float16', 'bfloat16'}
        What to make of them.
    name : str
        Of the tensor, for errors.

    Yields
    ------
    ndarray, float32, float16, or uint16 of bfloat16's bits, shape (n,)
        Together, all of the weights. NaN and infinities stay what they are.

    Raises
    ------
    CheckpointError
        Without a file's name: if a finite weight is beyond the largest number of the dtype.
    """
    flat = weights.reshape(-1)
    for first in range(0, flat.size, _BAND):
        band = flat[first : first + _BAND]
        if dtype == "float32":
            yield band.astype("<f4", copy=False)
            continue
        if dtype == "float16":
            with np.errstate(over="ignore"):
                rounded: NDArray[Any] = band.astype("<f2")
            overflow = np.isinf(rounded) & np.isfinite(band)
        else:
            wide = round_to_bfloat16(band)
            overflow = np.isinf(wide) & np.isfinite(band)
            rounded = (wide.view(np.uint32) >> 16).astype("<u2")
            # A NaN whose bits are all in the lower half would become an infinity.
            rounded[np.isnan(band)] |= 0x40
        _refuse(name, dtype, band, overflow)
        yield rounded


def encode_q8_0(tensor: Tensor, name: str) -> Iterator[NDArray[Any]]:
    """Turn a matrix into blocks of ggml's Q8_0: 32 int8 values, and a scale in half precision.

    Parameters
    ----------
    tensor : Tensor, shape (rows, cols), cols a multiple of 32
        One that has int8 values in groups of 32, with scales that half precision holds, keeps them.
        Others are quantized as ggml's own reference does it: half away from zero.
    name : str
        Of the tensor, for errors.

    Yields
    ------
    ndarray of records, shape (n,)
        Together, all of the blocks.

    Raises
    ------
    CheckpointError
        Without a file's name: if a weight is not finite, or a scale beyond half precision.
    """
    if isinstance(tensor, QuantizedTensor) and tensor.group_size == Q8_0.size:
        scales = tensor.scales
        with np.errstate(over="ignore"):
            halves = scales.astype("<f2")
        if np.array_equal(halves.astype(np.float32), scales):
            blocks = np.empty(halves.size, Q8_0.record)
            blocks["d"] = halves.reshape(blocks["d"].shape)
            blocks["q"] = tensor.values.reshape(-1, Q8_0.size)
            yield blocks
            return
    groups = tensor.dequantize().reshape(-1, Q8_0.size)  # (n_blocks, 32)
    for first in range(0, len(groups), _BAND // Q8_0.size):
        band = groups[first : first + _BAND // Q8_0.size]
        yield _quantize_q8_0(band, name)


def _quantize_q8_0(groups: NDArray[np.float32], name: str) -> NDArray[Any]:
    """(n, 32) weights as n blocks."""
    scales = np.abs(groups).max(axis=1) / np.float32(127)  # (n,); NaN and infinity show in it
    if not np.isfinite(scales).all():
        raise CheckpointError(f"{name} has weights that are NaN or infinite, expected none as int8")
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        halves = scales.astype("<f2")
        factors = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
        ratios = groups * factors[:, np.newaxis]
    if not np.isfinite(factors).all():
        # Where 1 / scale overflows, the half is 0, and any number stands for a weight of 0.
        ratios[~np.isfinite(factors)] = 0
    _refuse(name, "float16, which int8's scales are", scales, np.isinf(halves))
    sizes = np.abs(ratios)
    whole = np.floor(sizes)
    sizes -= whole
    whole += sizes >= 0.5
    blocks = np.empty(len(groups), Q8_0.record)
    blocks["d"] = halves.reshape(blocks["d"].shape)
    blocks["q"] = np.copysign(whole, ratios, out=ratios)
    return blocks


def _refuse(
    name: str, dtype: str, weights: NDArray[np.float32], overflow: NDArray[np.bool_]
) -> None:
    if overflow.any():
        worst = float(weights[overflow][0])
        raise CheckpointError(
            f"{name} holds {worst:g}, which is too large for {dtype}, expected another dtype"
        )

"""The block formats in which GGUF stores weights, decoded to float32.

A block is a few weights with their own scales. Each format is a NumPy record of one block and a
function that turns n blocks into ``(n, size)`` weights; float32 and the half precisions have
neither blocks nor such a function. A weight is always a small integer q times a scale, in some
formats plus or minus a minimum. The formats differ in how they pack the bits of q and of the
scales. The arithmetic is in float32, in the order of ggml's own reference, so the weights are the
same to the last bit.

Source: the structs of ``ggml-common.h`` and ``gguf-py``'s quants.py, github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Blocks = NDArray[Any]  # records, (n,)

SUPER = 256  # weights of a K-quant's block


class BlockFormat(NamedTuple):
    """One way to store weights."""

    name: str
    """ggml's name: ``'Q4_K'``."""
    size: int
    """Weights in a block."""
    record: np.dtype[Any]
    """The bytes of a block."""
    decode: Callable[[Blocks], Floats] | None
    """n blocks, (n,) -> float32, (n, size). None: the format has plain numbers, not blocks."""


def _float(values: NDArray[Any]) -> Floats:
    return values.astype(np.float32)


def _column(values: NDArray[Any]) -> Floats:
    """One number per block as a column, to broadcast over its weights: (n,) -> (n, 1)."""
    return _float(values)[:, np.newaxis]


def _crumbs(packed: Bytes, bits: int) -> Bytes:
    """Numbers of a few bits, lowest bits first: (..., k) -> (..., 8 // bits, k)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, np.newaxis]
    return (packed[..., np.newaxis, :] >> shifts) & np.uint8((1 << bits) - 1)


# ---- blocks of 32 ----


def _nibbles(blocks: Blocks) -> NDArray[np.int16]:
    """The low nibbles of 16 bytes, then the high ones: (n, 32)."""
    return _crumbs(blocks["q"], 4).reshape(-1, 32).astype(np.int16)


def _fifths(blocks: Blocks) -> NDArray[np.int16]:
    """As `_nibbles`, each with a fifth bit from ``high``: (n, 32)."""
    high = np.unpackbits(blocks["high"], axis=1, bitorder="little")  # (n, 32)
    return _nibbles(blocks) + (high.astype(np.int16) << 4)


def q4_0_values(blocks: Blocks) -> NDArray[np.int8]:
    """The whole numbers of blocks of Q4_0, from -8 to 7: (n, 32), a new array."""
    values = _crumbs(blocks["q"], 4).reshape(-1, 32).view(np.int8)
    values -= 8
    return values


def _q4_0(blocks: Blocks) -> Floats:
    return _column(blocks["d"]) * _float(q4_0_values(blocks))


def _q4_1(blocks: Blocks) -> Floats:
    return _column(blocks["d"]) * _float(_nibbles(blocks)) + _column(blocks["m"])


def _q5_0(blocks: Blocks) -> Floats:
    return _column(blocks["d"]) * _float(_fifths(blocks) - 16)


def _q5_1(blocks: Blocks) -> Floats:
    return _column(blocks["d"]) * _float(_fifths(blocks)) + _column(blocks["m"])


def _q8_0(blocks: Blocks) -> Floats:
    return _float(blocks["q"]) * _column(blocks["d"])


# ---- the K-quants: blocks of 256, in groups of 16 or 32 weights with small integer scales ----


def _scaled(q: NDArray[Any], scales: Floats) -> Floats:
    """Multiply every group by its scale: (n, 256), (n, groups) -> (n, groups, size)."""
    return scales[..., np.newaxis] * _float(q).reshape(*scales.shape, -1)


def _quarters(blocks: Blocks) -> Bytes:
    """Two bits a weight; 32 bytes hold 4 times 32 weights: (n, 256)."""
    return _crumbs(blocks["q"].reshape(-1, 2, 32), 2).reshape(-1, SUPER)


def _bit_planes(high: Bytes) -> Bytes:
    """One bit a weight; bit i of 32 bytes belongs to the i-th 32 weights: (n, 32) -> (n, 256)."""
    return _crumbs(high, 1).reshape(-1, SUPER)


def _q2_k(blocks: Blocks) -> Floats:
    scales = _column(blocks["d"]) * _float(blocks["scales"] & 15)  # (n, 16)
    minima = _column(blocks["dmin"]) * _float(blocks["scales"] >> 4)
    weights = _scaled(_quarters(blocks), scales) - minima[..., np.newaxis]
    return weights.reshape(-1, SUPER)


def _q3_k(blocks: Blocks) -> Floats:
    # 16 scales of six bits: 8 bytes of low nibbles, then 4 bytes of the two high bits each.
    low = _crumbs(blocks["scales"][:, :8], 4).reshape(-1, 16)
    high = _crumbs(blocks["scales"][:, 8:], 2).reshape(-1, 16)
    scales = _column(blocks["d"]) * _float((low | high << 4).astype(np.int16) - 32)
    # A third bit that is not set subtracts 4.
    q = _quarters(blocks).astype(np.int16) + 4 * _bit_planes(blocks["high"]).astype(np.int16) - 4
    return _scaled(q, scales).reshape(-1, SUPER)


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Unpack 8 scales and 8 minima of six bits from 12 bytes: (n, 12) -> two of (n, 8).

    Bytes 0 to 3 hold scales 0 to 3, bytes 4 to 7 minima 0 to 3. Their two high bits belong to
    numbers 4 to 7, whose low nibbles are in bytes 8 to 11: the scale's, then the minimum's.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = [first & 63, (third & 15) | (first >> 6 << 4)]
    minima = [second & 63, (third >> 4) | (second >> 6 << 4)]
    return np.concatenate(scales, axis=1), np.concatenate(minima, axis=1)


def _scaled_less_minima(blocks: Blocks, q: NDArray[Any]) -> Floats:
    scales, minima = _six_bits(blocks["scales"])
    weights = _scaled(q, _column(blocks["d"]) * _float(scales))
    weights -= (_column(blocks["dmin"]) * _float(minima))[..., np.newaxis]
    return weights.reshape(-1, SUPER)


def _long_nibbles(blocks: Blocks) -> Bytes:
    """The low nibbles of 32 bytes, then the high ones, four times: (n, 256)."""
    return _crumbs(blocks["q"].reshape(-1, 4, 32), 4).reshape(-1, SUPER)


def _q4_k(blocks: Blocks) -> Floats:
    return _scaled_less_minima(blocks, _long_nibbles(blocks))


def _q5_k(blocks: Blocks) -> Floats:
    return _scaled_less_minima(blocks, _long_nibbles(blocks) | _bit_planes(blocks["high"]) << 4)


def _q6_k(blocks: Blocks) -> Floats:
    low = _crumbs(blocks["q"].reshape(-1, 2, 64), 4).reshape(-1, SUPER)
    high = _crumbs(blocks["high"].reshape(-1, 2, 32), 2).reshape(-1, SUPER)
    scales = _column(blocks["d"]) * _float(blocks["scales"])
    return _scaled((low | high << 4).astype(np.int16) - 32, scales).reshape(-1, SUPER)


def _format(
    name: str, size: int, decode: Callable[[Blocks], Floats], *fields: tuple[str, str, int]
) -> BlockFormat:
    # A field of one number is (n,), one of several (n, count).
    record = [(field, kind, (count,) if count > 1 else ()) for field, kind, count in fields]
    return BlockFormat(name, size, np.dtype(record), decode)


_D, _DMIN, _M = ("d", "<f2", 1), ("dmin", "<f2", 1), ("m", "<f2", 1)
_SCALES12 = ("scales", "u1", 12)

# By ggml's number of the type.
FORMATS = {
    0: BlockFormat("F32", 1, np.dtype("<f4"), None),
    1: BlockFormat("F16", 1, np.dtype("<f2"), None),
    30: BlockFormat("BF16", 1, np.dtype("<u2"), None),  # its bits
    2: _format("Q4_0", 32, _q4_0, _D, ("q", "u1", 16)),
    3: _format("Q4_1", 32, _q4_1, _D, _M, ("q", "u1", 16)),
    6: _format("Q5_0", 32, _q5_0, _D, ("high", "u1", 4), ("q", "u1", 16)),
    7: _format("Q5_1", 32, _q5_1, _D, _M, ("high", "u1", 4), ("q", "u1", 16)),
    8: _format("Q8_0", 32, _q8_0, _D, ("q", "i1", 32)),
    10: _format("Q2_K", SUPER, _q2_k, ("scales", "u1", 16), ("q", "u1", 64), _D, _DMIN),
    11: _format(
        "Q3_K", SUPER, _q3_k, ("high", "u1", 32), ("q", "u1", 64), _SCALES12, _D
    ),
    12: _format("Q4_K", SUPER, _q4_k, _D, _DMIN, _SCALES12, ("q", "u1", 128)),
    13: _format(
        "Q5_K", SUPER, _q5_k, _D, _DMIN, _SCALES12, ("high", "u1", 32), ("q", "u1", 128)
    ),
    14: _format(
        "Q6_K", SUPER, _q6_k, ("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), _D
    ),
}  # fmt: skip

# ggml's other types, for messages.
_UNREAD = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def type_name(kind: int) -> str:
    """ggml's name of a type, or its number if the name is unknown."""
    if kind in FORMATS:
        return FORMATS[kind].name
    return _UNREAD.get(kind, f"number {kind}")

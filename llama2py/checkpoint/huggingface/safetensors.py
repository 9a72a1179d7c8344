"""Reads safetensors: eight bytes of length, a JSON header, then every tensor without a gap.

Source: the format's description in huggingface/safetensors' README.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...formats.json_text import MAX_SIZE, parse_json_object
from ...formats.mapped_file import MappedFile
from ...formats.sniff import HEAD, kind_of
from ..weights import Weight

# dtype: its name and NumPy's, bfloat16 by its bits, what is no weight by its size.
_DTYPES = {
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    **{name: (name, "V8") for name in ("F64", "I64", "U64")},
    **{name: (name, "V4") for name in ("I32", "U32")},
    **{name: (name, "V2") for name in ("I16", "U16")},
    **{name: (name, "V1") for name in ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2")},
}


def read_safetensors(file: MappedFile) -> dict[str, Weight]:
    """Read the tensors of a file.

    Parameters
    ----------
    file : MappedFile
        The file; the tensors are views of it.

    Returns
    -------
    dict of str to Weight
        By name.

    Raises
    ------
    CheckpointError
        If the header is cut short, malformed or above `MAX_SIZE`, or the tensors overlap, leave
        gaps, lie outside the file, or are of an unknown dtype.
    """
    try:
        return _read(file)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from None


def _read(file: MappedFile) -> dict[str, Weight]:
    head = file.read(0, HEAD)
    if head[8:9] != b"{" and (kind := kind_of(head)) is not None:
        raise CheckpointError(f"this is {kind}, expected safetensors")
    length = int.from_bytes(file.read(0, 8), "little")
    if file.size < 8 or length > min(MAX_SIZE, file.size - 8):
        raise CheckpointError(
            f"its header is said to have {length} bytes,"
            f" expected at most {max(0, min(MAX_SIZE, file.size - 8))}"
        )
    header = parse_json_object(file.read(8, length))
    header.pop("__metadata__", None)
    begin = 8 + length
    size = file.size - begin
    weights, spans = {}, []
    for name, about in header.items():
        dtype, numpy, shape, first, last = _entry(name, about, size)
        spans.append((first, last))
        if first == last:
            array = np.zeros(0, numpy)
        else:
            array = file.view(begin + first, numpy, (math.prod(shape),)).reshape(shape)
        weights[name] = Weight(dtype, array)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            trouble = "overlap" if first < end else "leave a gap"
            raise CheckpointError(f"its tensors {trouble} at byte {first} behind the header,"
                                  f" expected the next one at {end}")  # fmt: skip
        end = last
    if end != size:
        raise CheckpointError(
            f"its tensors end at byte {end} behind the header, expected them to fill {size}"
        )
    return weights


def _entry(name: str, about: Any, size: int) -> tuple[str, str, tuple[int, ...], int, int]:
    """The dtype's two names, the shape, and the first and last byte behind the header."""
    label = repr(name[:80])
    match about:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [first, last]}:
            pass
        case _:
            raise CheckpointError(
                f"the header's {label} has no dtype, shape and two data_offsets, expected all three"
            )
    if dtype not in _DTYPES:
        raise CheckpointError(f"{label} is of dtype {dtype[:20]!r}, expected one of the format")
    numbers = [*shape, first, last]
    if len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise CheckpointError(
            f"{label} has a shape or data_offsets that are no sizes, expected whole numbers"
        )
    wanted = math.prod(shape) * np.dtype(_DTYPES[dtype][1]).itemsize
    if first > last or last > size or last - first != wanted:
        raise CheckpointError(
            f"{label} lies from byte {first} to {last} of {size} behind the header,"
            f" expected {wanted} bytes within it"
        )
    return *_DTYPES[dtype], tuple(shape), first, last

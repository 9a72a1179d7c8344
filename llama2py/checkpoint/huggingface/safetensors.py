"""Safetensors, read and written: eight bytes of length, a JSON header, then tensors without a gap.

Source: the description of the format in huggingface/safetensors' README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...formats.atomic_write import replacing
from ...formats.bounded_json import MODEL_LIMITS, parse_object
from ...formats.input_file import InputFile, named
from ...formats.sniff import HEAD, SAFETENSORS, kind_of
from ..checkpoint import Checkpoint
from ..export import Adapt, Item, write_item
from ..state_dict import Weight

# The format's name of a dtype: our name and NumPy's. bfloat16 is its bits; a dtype that no weight
# has is opaque bytes.
_DTYPES = {
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    **{name: (name, "V8") for name in ("F64", "I64", "U64")},
    **{name: (name, "V4") for name in ("I32", "U32")},
    **{name: (name, "V2") for name in ("I16", "U16")},
    **{name: (name, "V1") for name in ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2")},
}
_NAMES = {ours: name for name, (ours, _) in _DTYPES.items()}


@dataclass(slots=True)
class Allowance:
    """What the files of one model may hold together; reading uses it up."""

    header_bytes: int = 8 << 20
    """The headers of a model of 405 billion parameters have 0.2 MB."""
    tensors: int = 1 << 15
    """Such a model has 1,137."""


def read_safetensors(file: InputFile, allowance: Allowance | None = None) -> dict[str, Weight]:
    """Read the header of a file.

    Parameters
    ----------
    file : InputFile
        The file. The tensors are read from it when they are used.
    allowance : Allowance, optional
        What is left for this file, where it is one of several.

    Returns
    -------
    dict of str to Weight
        The tensors by name.

    Raises
    ------
    CheckpointError
        If the header is cut short, malformed or too large, or the tensors overlap, leave gaps, lie
        outside the file, or are of an unknown dtype.
    """
    try:
        return _read(file, allowance or Allowance())
    except CheckpointError as error:
        raise named(file.path, error) from None


def _read(file: InputFile, allowance: Allowance) -> dict[str, Weight]:
    kind = kind_of(file.read(0, HEAD))
    if kind not in (SAFETENSORS, None):
        raise CheckpointError(f"this is {kind}, expected safetensors")
    length = int.from_bytes(file.read(0, 8), "little")
    most = max(0, min(MODEL_LIMITS.size, allowance.header_bytes, file.size - 8))
    if file.size < 8 or length > most:
        raise CheckpointError(f"its header has {length} bytes, expected at most {most}")
    allowance.header_bytes -= length
    header = parse_object(file.read(8, length))
    header.pop("__metadata__", None)
    if len(header) > allowance.tensors:
        raise CheckpointError(
            f"its header lists {len(header)} tensors, expected at most {allowance.tensors}"
        )
    allowance.tensors -= len(header)
    begin = 8 + length
    size = file.size - begin
    weights, spans = {}, []
    for name, about in header.items():
        dtype, numpy, shape, first, last = _entry(name, about, size)
        spans.append((first, last))
        weights[name] = Weight(dtype, file.array(begin + first, numpy, shape))
    end = 0
    for first, last in sorted(spans):
        if first != end:
            trouble = "overlap" if first < end else "leave a gap"
            raise CheckpointError(
                f"its tensors {trouble} at byte {first} after the header,"
                f" expected the next one at {end}"
            )
        end = last
    if end != size:
        raise CheckpointError(
            f"its tensors end at byte {end} after the header, expected them to fill {size}"
        )
    return weights


def _entry(name: str, about: Any, size: int) -> tuple[str, str, tuple[int, ...], int, int]:
    """The dtype's two names, the shape, and the first and last byte after the header."""
    label = repr(name[:80])
    match about:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [first, last]}:
            pass
        case _:
            raise CheckpointError(
                f"the header's {label} does not have a dtype, a shape and two data_offsets"
            )
    if dtype not in _DTYPES:
        raise CheckpointError(f"{label} is of dtype {dtype[:20]!r}, which the format does not have")
    numbers = [*shape, first, last]
    if len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise CheckpointError(
            f"{label} has a shape or data_offsets that are not sizes, expected whole numbers"
        )
    wanted = math.prod(shape) * np.dtype(_DTYPES[dtype][1]).itemsize
    if first > last or last > size or last - first != wanted:
        raise CheckpointError(
            f"{label} lies from byte {first} to {last} of {size} after the header,"
            f" expected {wanted} bytes within it"
        )
    return *_DTYPES[dtype], tuple(shape), first, last


def write_safetensors(
    path: Path,
    tensors: Sequence[Item],
    checkpoint: Checkpoint,
    progress: Callable[[int], object],
    adapt: Adapt,
) -> None:
    """Write tensors of a checkpoint as one file, whole or not at all.

    Parameters
    ----------
    path : Path
        The output file.
    tensors : sequence of Item
        What to write, in order.
    checkpoint : Checkpoint
        The model.
    progress, adapt : callable
        As in `write_item`.

    Raises
    ------
    CheckpointError
        If a dtype cannot hold a weight, the source cannot be read, or the file cannot be written.
    """
    # "pt": transformers asks which framework wrote the tensors.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in tensors:
        begin, end = end, end + item.nbytes
        header[item.name] = {
            "dtype": _NAMES[item.dtype],
            "shape": item.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with replacing(path, CheckpointError) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for item in tensors:
            write_item(out, item, checkpoint, progress, adapt)

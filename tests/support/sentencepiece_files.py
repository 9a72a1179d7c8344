"""sentencepiece's tokenizer.model made by hand, field by field, without the code under test.

A protocol buffer is a sequence of fields: a varint of number * 8 + wire type, and a value.
"""

from __future__ import annotations

import struct


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


PIECES = [(b"<unk>", 2), (b"<s>", 3), (b"</s>", 3), *((b"<0x%02X>" % b, 6) for b in range(256))]
PIECES += [("▁".encode(), 1), (b"a", 1)]


def model(trainer: bytes = field(3, 2), normalizer: bytes = b"", tail: bytes = b"") -> bytes:
    pieces = [field(1, field(1, p) + field(2, 0.0) + field(3, kind)) for p, kind in PIECES]
    return b"".join(pieces) + field(2, trainer) + field(3, normalizer) + tail


GOOD = model()

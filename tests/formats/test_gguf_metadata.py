"""GGUF's metadata: values of every type, and hostile files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from llama2py.errors import CheckpointError
from llama2py.formats.gguf_metadata import GGUFArray, read_gguf_metadata
from tests.support.gguf_files import ARRAY, BOOL, STRING, U32, array, pair, string
from tests.support.vocabulary_files import TOKENIZER_BIN, gguf_pairs_file


def test_every_type_of_value_is_read(tmp_path: Path) -> None:
    values = [(kind, struct.pack("<" + letter, 1)) for kind, letter in enumerate("BbHhIif?")]
    values += [(10, struct.pack("<Q", 2)), (11, struct.pack("<q", -3)), (12, struct.pack("<d", 4))]
    values += [(STRING, string(b"five")), (ARRAY, array(BOOL, [b"\0", b"\1"]))]
    pairs = [pair(str(i), *typed) for i, typed in enumerate(values)]
    path = tmp_path / "types.gguf"
    data = gguf_pairs_file(len(pairs), b"".join(pairs), version=2)
    path.write_bytes(data + b"tensors")
    read = read_gguf_metadata(path, CheckpointError)
    *plain, flags = read.pairs.values()
    assert plain == [1] * 8 + [2, -3, 4, b"five"]
    assert isinstance(flags, GGUFArray)
    assert (flags.kind, len(flags), flags.tolist()) == (BOOL, 2, [False, True])
    assert (read.version, read.n_tensors, read.end) == (2, 0, len(data))


HOSTILE = {
    "empty": (b"", "the file is empty, expected a GGUF file"),
    "another file": (TOKENIZER_BIN, "this is not a GGUF file: it starts with b'"),
    "header cut": (
        b"GGUF\3\0\0\0\0",
        "the file is cut short: the header needs 8 bytes at offset 8, the file ends at 9",
    ),
    "version 1": (gguf_pairs_file(0, b"", version=1), "GGUF version 1, expected 2 or 3"),
    "big-endian": (
        gguf_pairs_file(0, b"", version=3 << 24),
        "GGUF version 50331648, expected 2 or 3",
    ),
    "too many pairs": (
        gguf_pairs_file(2**64 - 1, bytes(26)),
        "the header promises 18446744073709551615 metadata pairs, expected at most 2 here",
    ),
    "key past the end": (
        gguf_pairs_file(1, struct.pack("<Q", 2**63) + bytes(9)),
        "the file is cut short: the key of metadata pair 0 needs 9223372036854775808",
    ),
    "long key": (
        gguf_pairs_file(1, pair("\0" * 65537, 0, b"\0")),
        "the key of metadata pair 0 has 65537 bytes",
    ),
    "same key twice": (
        gguf_pairs_file(2, pair("k", 0, b"\0") * 2),
        "the metadata has the key 'k' twice",
    ),
    "unknown type": (
        gguf_pairs_file(1, pair("k", 13, b"\0")),
        "the metadata value 'k' is of type 13, expected 0 to 12",
    ),
    "value past the end": (
        gguf_pairs_file(1, pair("k", STRING, struct.pack("<Q", 2**64 - 1))),
        "the file is cut short: the metadata value 'k' needs 18446744073709551615",
    ),
    "huge array": (
        gguf_pairs_file(1, pair("k", ARRAY, struct.pack("<IQ", U32, 2**64 - 1))),
        "the metadata value 'k' is an array of 18446744073709551615, expected at most 16777216",
    ),
    "array past the end": (
        gguf_pairs_file(1, pair("k", ARRAY, struct.pack("<IQ", U32, 2**24))),
        "the file is cut short: the metadata value 'k' needs 67108864",
    ),
    "strings past the end": (
        gguf_pairs_file(1, pair("k", ARRAY, struct.pack("<IQ", STRING, 2**21) + bytes(80))),
        "the file is cut short: the metadata value 'k' needs 8 bytes at offset 129",
    ),
    "array of arrays": (
        gguf_pairs_file(1, pair("k", ARRAY, array(ARRAY, [b"\0"]))),
        "the metadata value 'k' is an array of type 9, expected numbers or strings",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_metadata_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_gguf_metadata(path, CheckpointError)
    assert str(caught.value).startswith(f"{path}: {message}")

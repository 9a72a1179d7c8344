"""GGUF files that are cut short or lie: one clear sentence each, in no time and little memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.checkpoint import open_checkpoint
from llama2py.errors import CheckpointError
from llama2py.formats.gguf_metadata import Allowance, _Cursor, read_gguf_metadata
from tests.support import gguf_files as made

MAX_PAIRS, MAX_TENSORS = Allowance().pairs, Allowance().tensors
GOOD = made.float_file()
LLAMA = made.metadata()


def info(name: str = "token_embd.weight", kind: int = 0, offset: int = 0, *dims: int) -> bytes:
    return made.tensor_info(name, dims or (32, 6), kind, offset)


def one(entry: bytes, data: int = 768, n_tensors: int | None = None, **pairs: object) -> bytes:
    """A file with one tensor."""
    more = {key.replace("__", "."): value for key, value in pairs.items()}
    return made.gguf_file({**LLAMA, **more}, [entry], bytes(data), n_tensors=n_tensors)


def reshaped(name: str, *shape: int) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """The whole model, one tensor of another shape."""
    return {
        key: (0, shape if key == name else values.shape, values.tobytes())
        for key, values in made.weights().items()
    }


U64 = 2**64 - 1
HOSTILE = {
    "no tensors": (made.gguf_file(LLAMA), "it has no tensor 'token_embd.weight'"),
    "nothing": (made.gguf_file({}), "the metadata lacks general.architecture"),
    "only one": (one(info()), "'blk.0.attn_norm.weight', 'blk.1.attn_norm.weight',"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "GGUF version 50331648, expected"),
    "version 1": (made.gguf_file({}, version=1), "GGUF version 1, expected 2 or 3"),
    "more tensors than bytes": (
        one(info(), n_tensors=U64),
        f"the header promises {U64} tensors, expected at most",
    ),
    "too many tensors": (
        made.gguf_file(LLAMA, [info()], bytes(2 << 20), n_tensors=MAX_TENSORS + 1),
        f"the header promises {MAX_TENSORS + 1} tensors, expected at most {MAX_TENSORS} here",
    ),
    "too many pairs": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, MAX_PAIRS + 1) + bytes(1 << 20),
        f"the header promises {MAX_PAIRS + 1} metadata pairs, expected at most {MAX_PAIRS} here",
    ),
    "a list that ends": (
        made.gguf_file(LLAMA, [info()], n_tensors=2)[:-20],
        "the header promises 2 tensors, expected at most 1 here",
    ),
    "a long name": (one(info("x" * 65)), "the entry of tensor 0 has 65 bytes, expected at most 64"),
    "a name past the end": (
        one(struct.pack("<Q", U64) + info()),
        f"the file is cut short: the entry of tensor 0 needs {U64} bytes at offset",
    ),
    "no dimensions": (
        one(made.string(b"x") + struct.pack("<IIQ", 0, 0, 0)),
        "tensor 'x' has 0 dimensions, expected 1 to 4",
    ),
    "many dimensions": (
        one(made.string(b"x") + struct.pack("<I", 2**32 - 1)),
        "tensor 'x' has 4294967295 dimensions, expected 1 to 4",
    ),
    "unknown type": (
        one(info(kind=99)),
        "tensor 'token_embd.weight' is of type number 99, which is not read, expected F32, F16,",
    ),
    "unread type": (one(info(kind=20)), "tensor 'token_embd.weight' is of type IQ4_NL, which is"),
    "a dimension of 0": (
        one(info("x", 0, 0, 32, 0)),
        "tensor 'x' is of shape (32, 0), expected whole blocks of 1 F32 weights",
    ),
    "half a block": (
        one(info("x", 12, 0, 128, 2)),
        "tensor 'x' is of shape (128, 2), expected whole blocks of 256 Q4_K weights",
    ),
    "huge dimensions": (
        one(info("x", 0, 0, U64, U64, U64, U64)),
        f"tensor 'x' needs {4 * U64**4} bytes at offset",
    ),
    "an offset past the end": (one(info(offset=U64 - 31)), "tensor 'token_embd.weight' needs 768"),
    "an odd offset": (
        one(info(offset=8)),
        "tensor 'token_embd.weight' begins at 8 in the data, expected a multiple of 32",
    ),
    "one byte short": (one(info(), data=767), "tensor 'token_embd.weight' needs 768 bytes at"),
    "twice the same": (
        made.gguf_file(LLAMA, [info(), info()], bytes(768)),
        "tensor 'token_embd.weight' is in the list twice",
    ),
    "overlapping": (
        made.gguf_file(LLAMA, [info(), info("x", 0, 736)], bytes(2000)),
        "tensor 'x' begins at offset",
    ),
    "overlapping in part": (
        made.gguf_file(LLAMA, [info("a", 0, 32), info("b", 0, 0, 16, 1)], bytes(2000)),
        "tensor 'a' begins at offset",
    ),
    "no alignment": (
        one(info(), general__alignment=0),
        "general.alignment is 0, expected a power of two up to 65536",
    ),
    "odd alignment": (one(info(), general__alignment=24), "general.alignment is 24, expected"),
    "wide alignment": (one(info(), general__alignment=1 << 31), "general.alignment is 2147483648"),
    "alignment of text": (one(info(), general__alignment=b"32"), "general.alignment is b'32'"),
    "array of arrays": (
        made.gguf_file({"k": (made.ARRAY, made.array(made.ARRAY, [made.array(0, [])] * 9))}),
        "the metadata value 'k' is an array of type 9, expected numbers or strings",
    ),
    "deep arrays": (
        made.gguf_file({"k": (made.ARRAY, struct.pack("<IQ", 9, 1) * 100_000)}),
        "the metadata value 'k' is an array of type 9",
    ),
    "many layers": (
        one(info(), llama__block_count=4096),
        "'blk.0.attn_norm.weight', 'blk.1.attn_norm.weight', 'blk.2.attn_norm.weight' and 36862",
    ),
    "too many layers": (one(info(), llama__block_count=2**32 - 1), "n_layers is 4294967295"),
    "no heads": (one(info(), llama__attention__head_count=0), "n_heads is 0, expected 1 to"),
    "a matrix of four dimensions": (
        made.gguf_file(LLAMA, *made.lay_out(reshaped("token_embd.weight", 6, 1, 1, 32))),
        "token_embd.weight has shape (6, 1, 1, 32), expected (6, 32)",
    ),
}


def opens_or_refuses(path: Path) -> str | None:
    """Open a file and read all of it within the bounds; return the error, if any."""
    size = path.stat().st_size
    started = time.process_time()
    tracemalloc.start()
    try:
        with open_checkpoint(path) as checkpoint:
            assert tracemalloc.get_traced_memory()[1] < 2 * size + (16 << 20)
            tracemalloc.stop()
            for row in checkpoint.tensors.values():
                for tensor in row:
                    tensor.dequantize().tobytes()
        return None
    except CheckpointError as error:
        if tracemalloc.is_tracing():
            assert tracemalloc.get_traced_memory()[1] < 2 * size + (16 << 20)
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message.removeprefix(f"{path}: ")
    finally:
        tracemalloc.stop()
        assert time.process_time() - started < 2


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    refusal = opens_or_refuses(path)
    assert refusal is not None
    assert refusal.startswith(message)


def borders(path: Path) -> Iterator[int]:
    """Every offset at which a number or a string of the file's head begins or ends."""
    found = []
    skip = _Cursor.skip

    def noting(cursor: _Cursor, size: int, what: str) -> None:
        found.extend([cursor.offset, cursor.offset + size])
        skip(cursor, size, what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Cursor, "skip", noting)
        open_checkpoint(path).close()
    yield from sorted({offset + by for offset in found for by in (-1, 0, 1)})


def test_a_file_cut_at_any_border_is_an_error(tmp_path: Path) -> None:
    path, cut = tmp_path / "whole.gguf", tmp_path / "cut.gguf"
    path.write_bytes(GOOD)
    lengths = [*borders(path), len(GOOD) - 1, len(GOOD) // 2]
    assert len(lengths) > 200
    for length in lengths:
        if 4 <= length < len(GOOD):
            cut.write_bytes(GOOD[:length])
            assert opens_or_refuses(cut) is not None, length
    path.write_bytes(GOOD + b"more")  # what nobody points at does no harm
    assert opens_or_refuses(path) is None


def string_array(count: int) -> bytes:
    return made.gguf_file(
        {"k": (made.ARRAY, made.array(made.STRING, [made.string(b"ab")] * count))}
    )


@pytest.mark.slow
def test_long_arrays_cost_no_memory(tmp_path: Path) -> None:
    """A million short strings, a million flags: as Python objects many times the file's size."""
    path = tmp_path / "long.gguf"
    flags = made.gguf_file({"k": (made.ARRAY, made.array(made.BOOL, [b"\1"] * (1 << 20)))})
    for data in (string_array(1 << 20), flags):
        path.write_bytes(data)
        tracemalloc.start()
        try:
            pairs = read_gguf_metadata(path, CheckpointError).pairs
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert len(pairs["k"]) == 1 << 20


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for hypothesis to write over and over."""
    return tmp_path_factory.mktemp("fuzz") / "fuzz.gguf"


HEAD = len(GOOD) - sum(len(v.tobytes()) for v in made.weights().values())


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(4, HEAD), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    )
)
def test_a_mutated_head_opens_or_is_an_error(
    scratch: Path, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(GOOD)
    for offset, junk in changes:
        data[offset : offset + len(junk)] = junk
    scratch.write_bytes(data)
    opens_or_refuses(scratch)


NUMBERS = st.sampled_from([0, 1, 2, 3, 31, 32, 33, 64, 255, 2**16, 2**31, 2**32 - 1, 2**63, U64])


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(st.sampled_from(sorted(made.CONFIG)), NUMBERS.filter(lambda n: n < 2**32)),
    st.sampled_from(sorted(made.shapes())),
    st.integers(0, 40),
    NUMBERS,
    st.lists(NUMBERS, min_size=1, max_size=4),
)
def test_a_wrong_number_opens_or_is_an_error(
    scratch: Path, config: dict[str, int], name: str, kind: int, offset: int, dims: list[int]
) -> None:
    """Good entries, but for one."""
    tensors = {n: (0, values.shape, values.tobytes()) for n, values in made.weights().items()}
    infos, data = made.lay_out(tensors)
    infos[list(tensors).index(name)] = made.tensor_info(name, dims, kind, offset)
    pairs = LLAMA | {f"llama.{key}": value for key, value in config.items()}
    scratch.write_bytes(made.gguf_file(pairs, infos, data))
    opens_or_refuses(scratch)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=400))
def test_random_bytes_are_an_error(scratch: Path, junk: bytes) -> None:
    for head in (b"GGUF", GOOD[:8], GOOD[:24], GOOD[: HEAD // 2]):
        scratch.write_bytes(head + junk)
        opens_or_refuses(scratch)

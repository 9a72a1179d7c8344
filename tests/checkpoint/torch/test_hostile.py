"""PyTorch's files that are cut short, lie, or attack: a clear error each, at no cost."""

from __future__ import annotations

import contextlib
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.checkpoint.torch.file import read_torch_file
from llama2py.errors import CheckpointError
from llama2py.formats.input_file import InputFile
from tests.support.foreign_files import (
    Storage,
    dict_program,
    evil,
    huggingface,
    number,
    opens,
    program,
    refusal,
    sizes,
    tensor_program,
    text,
    tiny_tensors,
    torch_file,
    torch_state,
    whole,
)

# ---- pickles ----


@pytest.mark.parametrize("protocol", range(6))
def test_a_command_is_named_and_never_run(tmp_path: Path, protocol: int) -> None:
    path = huggingface(tmp_path / "evil", "torch")
    trace = tmp_path / "it ran"
    torch_file(path, evil(f"touch '{trace}'", protocol), {})
    assert re.search("'(posix|nt).system', which is never run|instruction", refusal(path))
    assert not trace.exists()


NORM_STORAGE = Storage("0", np.ones(8, "<f4"))


def bomb(depth: int) -> bytes:
    """Tuples of the one before, twice: 2**depth items for one who walks through them."""
    return b")" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(depth))


def same_hash(count: int) -> bytes:
    """Keys, each with a None; Python hashes whole numbers modulo 2**61 - 1."""
    multiples = (i * (2**61 - 1) for i in range(1, count + 1))
    return b"".join(b"\x8a\x0a" + n.to_bytes(10, "little") + b"N" for n in multiples)


BROKEN_PICKLES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cut short"),
    "no end": (b"\x80\x02}", "cut short"),
    "only an end": (b".", "damaged"),
    "a mark as the object": (b"\x80\x02(.", "did not put on the stack"),
    "things over": (program(b"}}"), "more than one object"),
    "protocol 9": (b"\x80\x09}.", "protocol 9"),
    "eval": (program(b"cbuiltins\neval\n" + text("1") + b"\x85R"), "'builtins.eval'"),
    "stacked name": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "'os.system'"),
    "torch.load inside": (program(b"ctorch\nload\n)R"), "'torch.load'"),
    "getattr": (program(b"cbuiltins\ngetattr\n)R"), "'builtins.getattr'"),
    "codecs": (program(b"c_codecs\nencode\n)R"), "'_codecs.encode'"),
    "a dotted way out": (program(b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n"), "never run"),
    "new object": (program(b"ccollections\nOrderedDict\n)\x81"), "instruction 0x81"),
    "instance": (program(b"(ios\nsystem\n"), "instruction 0x69"),
    "extension": (program(b"\x82\x01"), "instruction 0x82"),
    "calls a text": (program(text("x") + b")R"), "not a function"),
    "calls with a list": (program(b"ccollections\nOrderedDict\n]R"), "not a function"),
    "wrong arguments": (program(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), "wrong arguments"),
    "wrong pairs": (program(b"ccollections\nOrderedDict\n" + sizes([1]) + b"\x85R"), "wrong arg"),
    "unknown memo": (program(b"h\x07"), "recalls object 7"),
    "memo of a mark": (program(b"(q\0"), "stores a mark"),
    "memo of nothing": (program(b"q\0"), "damaged"),
    "appends to a dict": (program(b"}Na"), "not a list"),
    "sets in a list": (program(b"]NNs"), "not a dict"),
    "half an item": (program(b"}(Nu"), "without a value"),
    "a list as a key": (program(b"}]Ns"), "a key in the pickle is neither a string nor"),
    "a bomb as a key": (program(b"}" + bomb(60) + b"Ns"), "a key in the pickle is neither"),
    "keys of one hash": (
        program(b"}(" + same_hash(20_000) + b"u"),
        "a key in the pickle is neither",
    ),
    "a bomb": (program(bomb(60)), "not a state_dict"),
    "a text without an end": (program(b"X\xff\xff\xff\xff"), "far more|cut short"),
    "a huge text": (program(b"\x8d" + b"\xff" * 8), "far more|cut short"),
    "no UTF-8": (program(b"X\x01\0\0\0\xff"), "not UTF-8"),
    "a name without an end": (program(b"cos"), "does not end"),
    "many lists": (program(b"]" * 400_000), "far more"),
    "many dicts": (program(b"}(" + b"}" * 400_000 + b"l"), "far more"),
    "many steps": (program(b"N0" * 400_000 + b"N"), "steps|far more"),
    "many texts": (program(b"(" + b"X\x02\0\0\0ab" * 200_000 + b"t"), "far more"),
    "an odd storage": (program(text("x") + b"Q"), "not a storage"),
    "a list": (program(b"]"), "not a state_dict"),
    "a number by name": (program(dict_program({"a": number(1)})), "is not a tensor"),
    "itself": (program(b"}q\0" + text("me") + b"h\0s"), "is not a tensor"),
    "unknown storage": (program(whole(Storage("9", np.ones(8, "<f4")))), "'9' is missing"),
    "odd key": (program(whole(Storage("../x", np.ones(8, "<f4")))), "'../x' is missing"),
    "other dtype": (program(whole(Storage("0", np.ones(8, "<f4"), "HalfStorage"))), "32 bytes"),
    "negative numel": (program(whole(Storage("0", np.ones(8, "<f4"), numel=-8))), "has 32 bytes"),
    "huge numel": (program(whole(Storage("0", np.ones(8, "<f4"), numel=1 << 62))), "has 32 bytes"),
    "past the end": (program(tensor_program(NORM_STORAGE, 1, (8,), (1,))), "does not fit"),
    "in front": (program(tensor_program(NORM_STORAGE, -1, (8,), (1,))), "does not fit"),
    "far strides": (program(tensor_program(NORM_STORAGE, 0, (2,), (8,))), "does not fit"),
    "negative strides": (program(tensor_program(NORM_STORAGE, 7, (8,), (-1,))), "lacks a storage"),
    "blown up": (program(tensor_program(NORM_STORAGE, 0, (1 << 40,), (0,))), "does not fit"),
    "blown up twice": (program(tensor_program(NORM_STORAGE, 0, (8, 8), (0, 1))), "does not fit"),
    "huge shape": (program(tensor_program(NORM_STORAGE, 0, (1 << 61,) * 4, (1,) * 4)), "not fit"),
    "huge and empty": (program(tensor_program(NORM_STORAGE, 0, (0, 1 << 61), (1, 1))), "."),
    "strides missing": (program(tensor_program(NORM_STORAGE, 0, (2, 2), (1,))), "1 strides"),
    "deep": (program(b"}" + b"(" * 50_000 + b"t" * 50_000 + b"0"), "."),
}


@pytest.mark.parametrize("name", BROKEN_PICKLES)
def test_a_broken_pickle_is_an_error(tmp_path: Path, name: str) -> None:
    pickled, complaint = BROKEN_PICKLES[name]
    path = huggingface(tmp_path / "bad", "torch")
    torch_file(path, pickled, {"0": np.ones(8, "<f4")})
    message = refusal(path)
    assert any(part in message for part in complaint.split("|")), message


# ---- zip archives ----


def test_an_archive_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    path = huggingface(tmp_path / "cut", "torch")
    data = path.read_bytes()
    borders = [i for i in range(len(data)) if data[i : i + 2] == b"PK"]
    for border in borders:
        for size in range(max(1, border - 1), min(border + 47, len(data)), 3):
            path.write_bytes(data[:size])
            assert opens(path)


def test_odd_archives_are_errors(tmp_path: Path) -> None:
    path = huggingface(tmp_path / "bad", "torch")
    pickled, storages = torch_state(tiny_tensors())
    torch_file(path, pickled, storages, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(path)
    torch_file(path, pickled, storages, byteorder="big")
    assert "big-endian" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("b/data.pkl", pickled)
    assert "has 2 files data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "has 0 files data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", pickled)
    assert "two entries are named 'archive/data.pkl'" in refusal(path)
    torch_file(path, pickled, storages)
    path.write_bytes(path.read_bytes() + b"more")
    assert "goes on after its end" in refusal(path)


@pytest.mark.parametrize(
    ("at", "value", "complaint"),
    [
        (8, 1, "is encrypted"),
        (10, 8, "is compressed"),
        (20, 1 << 30, "is compressed"),
        (42, 1, "is not at byte 1"),
        (42, 0xFFFFFFF0, "is not at byte"),
        (42, 0xFFFFFFFF, "lacks the 64-bit sizes"),
        (28, 0xFFFF, "ends inside an entry"),
        (0, 0, "directory is damaged"),
    ],
)
def test_a_wrong_archive_directory_is_an_error(
    tmp_path: Path, at: int, value: int, complaint: str
) -> None:
    """The first entry's record of the central directory, one field changed."""
    path = huggingface(tmp_path / "bad", "torch")
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02") + at
    form = "<I" if at in (0, 20, 42) else "<H"
    struct.pack_into(form, data, start, value)
    path.write_bytes(data)
    assert complaint in refusal(path)


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (10, "<H", 0xFFFF),
        (12, "<I", 0xFFFFFFFF),
        (16, "<I", 0xFFFFFFFF),
        (16, "<I", 3),
        (4, "<H", 1),
    ],
)
def test_a_wrong_end_record_is_an_error(tmp_path: Path, at: int, form: str, value: int) -> None:
    path = huggingface(tmp_path / "bad", "torch")
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.rindex(b"PK\x05\x06") + at, value)
    path.write_bytes(data)
    assert refusal(path)


def test_overlapping_entries_are_an_error(tmp_path: Path) -> None:
    """The quoted overlap of a zip bomb: one entry's size reaches over the next."""
    path = huggingface(tmp_path / "bad", "torch")
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    (size,) = struct.unpack_from("<I", data, start + 24)
    struct.pack_into("<2I", data, start + 20, size + 64, size + 64)
    path.write_bytes(data)
    assert "overlap at byte" in refusal(path)


def test_zip64_records_are_read_and_checked(tmp_path: Path) -> None:
    """A good archive whose end says that the real numbers are in 64 bits; then lies there."""
    path = huggingface(tmp_path / "wide", "torch")
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    count, size, offset = struct.unpack_from("<H2I", data, end + 10)

    def wide(count: int, size: int, offset: int, at: int = end) -> bytes:
        record = struct.pack(
            "<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset
        )
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
        closing = struct.pack(
            "<4s4H2IH", b"PK\x05\x06", *[0] * 2, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0
        )
        return data[:end] + record + locator + closing

    path.write_bytes(wide(count, size, offset))
    assert opens(path) == ""
    for lie in (
        wide(1 << 63, size, offset),
        wide(count, 1 << 63, offset),
        wide(count, size, 1 << 63),
        wide(count, size, offset, at=1 << 63),
        wide(count, size, offset, at=end + 1),
        wide(0, size, offset),
    ):
        path.write_bytes(lie)
        assert refusal(path)


# ---- any program ----


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "random.bin"


OPCODES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"}",
                b"]",
                b")",
                b"(",
                b"t",
                b"u",
                b"s",
                b"a",
                b"e",
                b"0",
                b"1",
                b"R",
                b"Q",
                b"b",
                b"N",
                b"\x88",
                b"\x85",
                b"\x86",
                b"\x87",
                b"q\0",
                b"h\0",
                b"\x94",
                b"\x93",
                b"K\x01",
            ]
        ),
        st.just(text("storage")),
        st.just(text("0")),
        st.just(b"ccollections\nOrderedDict\n"),
        st.just(b"ctorch._utils\n_rebuild_tensor_v2\n"),
        st.just(b"ctorch\nSize\n"),
        st.just(b"ctorch\nFloatStorage\n"),
        st.integers(-9, 1 << 70).map(number),
        st.lists(st.integers(0, 9), max_size=3).map(sizes),
        st.binary(max_size=3),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(OPCODES)
def test_a_random_pickle_reads_or_is_an_error(scratch: Path, parts: list[bytes]) -> None:
    torch_file(scratch, program(b"".join(parts)), {"0": np.ones(8, "<f4")})
    file = InputFile(scratch)
    with contextlib.closing(file), contextlib.suppress(CheckpointError):
        read_torch_file(file)

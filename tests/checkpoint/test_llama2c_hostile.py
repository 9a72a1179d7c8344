"""Files that are cut short, lie, or are something else: one clear sentence each, at no cost."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# Readers are imported on first use, which must not count as the cost of an error.
import llama2py.checkpoint.gguf.reader
import llama2py.checkpoint.huggingface.reader
import llama2py.checkpoint.meta  # noqa: F401
from llama2py.checkpoint import open_checkpoint
from llama2py.errors import CheckpointError
from tests.support.foreign_files import huggingface
from tests.support.tiny_checkpoints import GROUPED, MAGIC, SHAPES, make_file

INT_MAX = 2**31 - 1
#            dim hidden layers heads kv_heads vocab seq_len
GOOD = (8, 12, 2, 4, 2, 5, 3)


def v0(*numbers: int, body: int = 0) -> bytes:
    return struct.pack("<7i", *numbers) + bytes(body)


def v1(*numbers: int, version: int = 1, shared: int = 0, body: int = 0) -> bytes:
    return struct.pack("<Ii7iB", MAGIC, version, *numbers, shared).ljust(256, b"\0") + bytes(body)


def v2(group_size: int, body: int = 4096, dim: int = GOOD[0]) -> bytes:
    head = struct.pack("<Ii7iBi", MAGIC, 2, dim, *GOOD[1:], 0, group_size)
    return head.ljust(256, b"\0") + bytes(body)


def refusal(path: Path) -> str:
    """Return the error without the path, and check what every error must fulfil."""
    started = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000, "a refusal allocates next to nothing"
    assert time.perf_counter() - started < 0.5
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    message = message.removeprefix(f"{path}: ")
    assert "\n" not in message
    return message


WILD = "not a llama2.c checkpoint: it has no magic number, and read as a v0 header, "
WIDE = 1 << 20  # the largest dim there may be
# Floats of a model of width WIDE, 4096 layers, vocabulary and context of 2^24, two heads.
PRODUCT = 4096 * (7 * WIDE**2 + 2 * WIDE) + WIDE * 2**24 + WIDE + 2**24 * WIDE // 2

HOSTILE: dict[str, tuple[bytes, str]] = {
    # Cut off, or nothing there.
    "empty": (b"", "the file is empty, expected"),
    "one byte": (b"\x07", "it has 1 bytes, expected at least the 28 of a header"),
    "half a v0 header": (v0(*GOOD)[:27], "it has 27 bytes, expected at least the 28"),
    "v0 header alone": (v0(*GOOD), "cut short: it has 28 bytes, expected 4212 by its llama2.c v0"),
    "the magic alone": (v1(*GOOD)[:4], "ends after 4 bytes, inside its header, expected at least"),
    "half a v1 header": (v1(*GOOD)[:255], "ends after 255 bytes, inside its header"),
    "v1 header alone": (v1(*GOOD), "cut short: it has 256 bytes, expected 4576 by its llama2.c v1"),
    "v2 header alone": (v2(8, 0), "cut short: it has 256 bytes, expected 1976 by its llama2.c v2"),
    "v1 with a tail": (v1(*GOOD, body=4321), "too long: it has 4577 bytes, expected 4576"),
    # The header of v1 and v2.
    "version 0": (v1(*GOOD, version=0), "llama2.c version 0, expected 1 or 2"),
    "version 3": (v1(*GOOD, version=3), "llama2.c version 3, expected 1 or 2"),
    "version -1": (v1(*GOOD, version=-1), "llama2.c version -1, expected 1 or 2"),
    "shared 2": (v1(*GOOD, shared=2), "shared_classifier is 2, expected 0 or 1"),
    "shared 255": (v1(*GOOD, shared=255), "shared_classifier is 255, expected 0 or 1"),
    "v1 negative vocab": (v1(8, 12, 2, 4, 2, -5, 3), "vocab_size is -5, expected 1 to"),
    "v1 zero layers": (v1(8, 12, 0, 4, 2, 5, 3), "n_layers is 0, expected 1 to"),
    "group 0": (v2(0), "group_size is 0, expected a positive divisor of dim 8"),
    "group -8": (v2(-8), "group_size is -8, expected a positive divisor of dim 8"),
    "group 3": (v2(3), "group_size is 3, expected a positive divisor of dim 8"),
    "group past 32 bits": (
        v2(1 << 17, dim=1 << 17),
        "group_size is 131072, expected a positive divisor of dim 131072, up to 65536",
    ),
    "group huge": (v2(INT_MAX), f"group_size is {INT_MAX}, expected a positive divisor of dim 8"),
    # Numbers that make no model.
    "all zero but one": (v0(0, 0, 0, 0, 0, 0, 1), WILD + "dim is 0, expected 1 to 1048576"),
    "dim negative": (v0(-8, 12, 2, 4, 2, 5, 3), WILD + "dim is -8, expected 1 to"),
    "hidden zero": (v0(8, 0, 2, 4, 2, 5, 3), WILD + "hidden_dim is 0, expected 1 to"),
    "layers negative": (v0(8, 12, -2, 4, 2, 5, 3), WILD + "n_layers is -2, expected"),
    "heads zero": (v0(8, 12, 2, 0, 2, 5, 3), WILD + "n_heads is 0, expected"),
    "kv heads zero": (v0(8, 12, 2, 4, 0, 5, 3), WILD + "n_kv_heads is 0, expected"),
    "vocab zero": (v0(8, 12, 2, 4, 2, 0, 3), WILD + "vocab_size is 0, expected"),
    "vocab lowest": (v0(8, 12, 2, 4, 2, -(2**31), 3), WILD + "vocab_size is 2147483648, expected"),
    "seq_len negative": (v0(8, 12, 2, 4, 2, 5, -3), WILD + "seq_len is -3, expected"),
    "absurd everywhere": (v0(*[INT_MAX] * 7), WILD + f"dim is {INT_MAX}, expected 1 to 1048576"),
    "v1 absurd": (v1(*[INT_MAX] * 7), f"dim is {INT_MAX}, expected 1 to 1048576"),
    "heads": (v0(8, 12, 2, 3, 3, 5, 3), WILD + "n_heads 3 does not divide dim 8"),
    "kv heads": (v0(8, 12, 2, 4, 3, 5, 3), WILD + "n_kv_heads 3 does not divide n_heads 4"),
    "kv heads above": (v1(8, 12, 2, 4, 8, 5, 3), "n_kv_heads 8 does not divide n_heads 4"),
    "odd head": (v1(12, 12, 2, 4, 2, 5, 3), "the head size dim / n_heads = 3 is odd"),
    # Every number the largest allowed: no wrapping, no allocation.
    "product": (
        v0(WIDE, WIDE, 4096, 2, 2, 1 << 24, 1 << 24),
        f"cut short: it has 28 bytes, expected {28 + 4 * PRODUCT} by its",
    ),
    "many layers": (v1(2, 2, 4096, 1, 1, 1, 1), "cut short: it has 256 bytes, expected 524568 by"),
    "big-endian v0": (struct.pack(">7i", *GOOD) + bytes(4184), WILD + "dim is 134217728"),
    "big-endian v1": (struct.pack(">Ii7iB", MAGIC, 1, *GOOD, 0), "in big-endian byte order"),
    # Something else.
    "gguf": (b"GGUF\x03\0\0\0" + bytes(64), "the metadata lacks general.architecture"),
    "ggjt": (b"tjgg\x03\0\0\0" + bytes(64), "this is an old llama.cpp model (GGJT)"),
    "safetensors": (
        struct.pack("<Q", 64) + b'{"a":{"dtype":"F32"',
        "the file lacks the model's numbers, expected a config.json",
    ),
    "zip": (b"PK\x03\x04\0\0\x08\x08" + bytes(64), "the archive has no directory at its end"),
    "old pickle": (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "this is an old PyTorch file"),
    "pickle": (b"\x80\x04\x95" + bytes(7) + b"}\x94" + b"x" * 40, "this is a Python pickle"),
    "npy": (b"\x93NUMPY\x01\0" + bytes(64), "this is a NumPy array"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 60816028\n",
        "this is a git-lfs pointer to a file, not the file itself (git lfs pull gets it)",
    ),
    "html": (b"\n<!DOCTYPE html>\n<html><head>", "this is an HTML page, not the file it links to"),
    "short html": (b"<html></html>", "this is an HTML page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "this is an XML document"),
    "json": (b'{"error": "Repository not found"}', "this is a JSON text"),
    "text": (b"Entry not found", "this is a text file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(64), "this is a PNG image"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "this is a gzip archive"),
    "zeros": (bytes(4096), "this is a file of zeros"),
    "tokenizer": (
        struct.pack("<Ifi", 7, 0.0, 5) + b"<unk>" + bytes(32),
        "this is a llama2.c tokenizer",
    ),
    "sentencepiece": (b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0", "this is a sentencepiece tokenizer"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_an_error(tmp_path: Path, name: str) -> None:
    content, expected = HOSTILE[name]
    path = tmp_path / "hostile.bin"
    path.write_bytes(content)
    assert expected in refusal(path)


POINTER = HOSTILE["lfs"][0]


@pytest.mark.parametrize(
    ("about", "weights", "format"),
    [
        ("config.json", "pytorch_model.bin", "a file of PyTorch"),
        ("config.json", "model.safetensors", "safetensors"),
        ("params.json", "consolidated.00.pth", "a file of PyTorch"),
    ],
)
def test_a_directory_cloned_without_git_lfs_is_named_as_such(
    tmp_path: Path, about: str, weights: str, format: str
) -> None:
    """Its small files are whole, and the large ones say where they are."""
    huggingface(tmp_path).unlink()
    (tmp_path / "config.json").rename(tmp_path / about)
    (tmp_path / weights).write_bytes(POINTER)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / weights}: this is a git-lfs pointer to a file, not the file itself"
        f" (git lfs pull gets it), expected {format}"
    )


@pytest.mark.parametrize("second", [2, 3, 4, 5])
def test_a_header_length_may_look_like_a_pickle(tmp_path: Path, second: int) -> None:
    path = huggingface(tmp_path)
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    padded = content[8:data].ljust(0x10000 + second * 0x100 + 0x80)
    path.write_bytes(len(padded).to_bytes(8, "little") + padded + content[data:])
    assert path.read_bytes()[:2] == bytes([0x80, second])
    open_checkpoint(tmp_path).close()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.bin") == "no such file, expected a checkpoint"
    assert "no such file" in refusal(tmp_path / "no folder" / "none.bin")


def test_a_directory_without_a_model_is_an_error(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        "this is a directory without a model,"
        " expected a config.json (Hugging Face) or a params.json (Meta) in it"
    )


def test_a_file_without_permission_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret.bin"
    path.write_bytes(make_file(GROUPED, 0).data)

    def refuse(*_: object) -> int:  # chmod would not keep root out
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert refusal(path) == "no permission to read it"


def test_pipes_sockets_and_devices_do_not_hang(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), Path("/dev/null")):
        assert refusal(path) == "this is a device, pipe or socket, expected a checkpoint"
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(tmp_path, os.O_RDONLY)  # a socket's path may be too long for bind
        try:
            listener.bind(f"/proc/self/fd/{folder}/socket")
        except OSError:
            pytest.skip("no /proc to reach a socket in a deep folder by")
        finally:
            os.close(folder)
        assert "this is a device, pipe or socket" in refusal(tmp_path / "socket")


def test_a_path_that_no_file_can_have_is_an_error(tmp_path: Path) -> None:
    assert "cannot be opened" in refusal(tmp_path / "nul\0byte")
    assert "cannot be opened" in refusal(tmp_path / ("long" * 100))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "cannot be opened" in refusal(loop)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_a_file_cut_at_any_border_is_an_error(tmp_path: Path, name: str, version: int) -> None:
    tiny = make_file(SHAPES[name], version)
    path, whole = tmp_path / "cut.bin", len(tiny.data)
    lengths = {border + step for border in (*tiny.borders, whole) for step in (-1, 0, 1)}
    for length in sorted(lengths - {-1, whole}):
        path.write_bytes((tiny.data + b"\0")[:length])
        message = refusal(path)
        if length >= (256 if version else 28):
            assert f"it has {length} bytes, expected {whole} by its" in message
        elif length >= 4 or (length and not version):
            assert f" {length} bytes" in message
    path.write_bytes(tiny.data)
    open_checkpoint(path).close()


def test_a_lying_header_in_a_sparse_file_allocates_nothing(tmp_path: Path) -> None:
    """The file is as long as its header says, 30 GB of zeros, and opens without being read."""
    path = tmp_path / "sparse.bin"
    dim, hidden, layers, vocab, seq_len = 4096, 4096, 64, 4096, 16
    per_layer = 2 * dim + 4 * dim * dim + 3 * dim * hidden
    size = 28 + 4 * (vocab * dim + layers * per_layer + dim + seq_len * 128)
    with open(path, "wb") as out:
        out.write(v0(dim, hidden, layers, 32, 32, vocab, seq_len))
        try:
            out.truncate(size)
        except OSError:
            pytest.skip("no sparse files here")
    tracemalloc.start()
    try:
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.file_size == size
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for hypothesis to write over and over."""
    return tmp_path_factory.mktemp("fuzz") / "fuzz.bin"


def opens_or_refuses(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint:
            for layers in checkpoint.tensors.values():
                for tensor in layers:
                    tensor.dequantize().tobytes()  # every byte of it can be read
    except CheckpointError:
        pass


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=600), st.sampled_from([b"", v1(*GOOD)[:4], v1(*GOOD)[:8]]))
def test_random_bytes_are_an_error(scratch: Path, content: bytes, prefix: bytes) -> None:
    opens_or_refuses(scratch, prefix + content)


NUMBERS = st.one_of(
    st.integers(-9, 16), st.sampled_from([2**31 - 1, -(2**31), 1 << 20, 1 << 24, 1 << 16])
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from([0, 1, 2]),
    st.dictionaries(st.integers(0, 9), NUMBERS, min_size=1, max_size=3),
    st.booleans(),
)
def test_a_header_with_other_numbers_opens_or_is_an_error(
    scratch: Path, name: str, version: int, changes: dict[int, int], fit: bool
) -> None:
    """Numbers of a good header replaced, and, half the time, the file padded to a likely length."""
    data = bytearray(make_file(SHAPES[name], version).data)
    for index, number in changes.items():
        offset = 4 * index if version == 0 else 4 + 4 * index
        struct.pack_into("<i", data, min(offset, 37 if version else 24), number)
    opens_or_refuses(scratch, bytes(data))
    if fit:  # the refusal says how long it should have been: give it that
        try:
            open_checkpoint(scratch).close()
        except CheckpointError as error:
            words = str(error).split(" by its ")[0].split()
            if "by its" in str(error) and int(words[-1]) < 100_000:
                opens_or_refuses(scratch, bytes(data).ljust(int(words[-1]), b"\x7f"))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([0, 1, 2]),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_flipped_bytes_open_or_are_an_error(
    scratch: Path, version: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(make_file(GROUPED, version).data)
    for offset, value in flips:
        data[offset] = value
    opens_or_refuses(scratch, bytes(data))

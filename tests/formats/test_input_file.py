"""Reading with checked lengths: what a file gives, and what another program can do to it."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from llama2py.errors import CheckpointError, ClosedError, TokenizerError
from llama2py.formats.input_file import FileArray, InputFile, c_strides, read_whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.bin"
    path.write_bytes(np.arange(24, dtype="<f4").tobytes())
    return path


def test_read_ends_where_the_file_ends(path: Path) -> None:
    file = InputFile(path)
    assert file.size == 96
    assert file.read(92, 100) == np.float32(23).tobytes()
    assert file.read(96, 4) == file.read(1000, 4) == b""


def test_an_array_is_read_at_any_offset(path: Path) -> None:
    array = InputFile(path).array(8, "<f4", (3, 4))
    assert (array.ndim, array.size, array.nbytes, array.span) == (2, 12, 48, 48)
    np.testing.assert_array_equal(array.read(), np.arange(2, 14).reshape(3, 4))
    odd = InputFile(path).array(1, "u1", (4,)).read()
    assert odd.tolist() == list(path.read_bytes()[1:5])


def test_an_array_with_strides_reads_as_numpy_has_it(path: Path) -> None:
    whole = np.arange(24, dtype="<f4").reshape(4, 6)
    file = InputFile(path)
    for view in (whole.T, whole[:, 1:4], whole[1:3, ::2], whole[:, 5], whole[2:2]):
        offset = view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        array = FileArray(file, offset, view.dtype, view.shape, view.strides)
        np.testing.assert_array_equal(array.read(), view)
    turned = FileArray(file, 0, whole.dtype, (1, 24), (4, 4))  # a dimension of 1 has no stride
    assert turned.strides is None


def test_strides_in_c_order_are_numpys() -> None:
    for shape in ((), (3,), (2, 3), (4, 1, 5)):
        assert c_strides(np.dtype("<f4"), shape) == np.empty(shape, "<f4").strides


def test_a_slice_reads_only_its_elements(path: Path) -> None:
    array = InputFile(path).array(0, "<f4", (24,))
    os.truncate(path, 40)
    np.testing.assert_array_equal(array[2:9], np.arange(2, 9))
    assert array[5:5].size == 0
    with pytest.raises(CheckpointError, match="shorter than the 96 bytes"):
        array[2:11]


def test_a_file_that_shrinks_is_an_error_of_the_class_that_was_given(path: Path) -> None:
    file = InputFile(path, TokenizerError)
    os.truncate(path, 0)
    with pytest.raises(TokenizerError, match=r"numbers\.bin: the file is shorter than the 96"):
        file.read(0, 1)


def test_a_closed_file_cannot_be_read(path: Path) -> None:
    file = InputFile(path)
    array = file.array(0, "<f4", (4,))
    file.close()
    file.close()
    with pytest.raises(ClosedError, match="the file is closed"):
        array.read()


def test_a_file_is_closed_with_its_last_user(path: Path) -> None:
    array = InputFile(path).array(0, "<f4", (4,))
    assert array.read().size == 4
    descriptor = array.file.fileno()
    del array
    gc.collect()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)


def test_read_whole_takes_regular_files_within_the_size(path: Path, tmp_path: Path) -> None:
    assert len(read_whole(path, 96, CheckpointError, "numbers")) == 96
    with pytest.raises(CheckpointError, match="96 bytes, expected numbers of at most 95"):
        read_whole(path, 95, CheckpointError, "numbers")
    empty = tmp_path / "empty"
    empty.touch()
    assert read_whole(empty, 0, CheckpointError, "numbers") == b""
    os.mkfifo(tmp_path / "fifo")
    for odd in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="this is a device, pipe or socket"):
            read_whole(odd, 96, CheckpointError, "numbers")
    with pytest.raises(CheckpointError, match="no such file, expected numbers"):
        read_whole(tmp_path / "none", 96, CheckpointError, "numbers")

"""Text files are read within bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama2py.errors import ConfigError
from llama2py.formats.text_file import read_text_file


def test_lines_end_in_lf_and_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfA.\r\nB.\rC.\n")
    assert read_text_file(path, ConfigError) == "A.\nB.\rC.\n"


def test_a_file_of_the_largest_size_is_read_and_a_larger_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 1000)
    assert read_text_file(path, ConfigError, 1000) == "x" * 1000
    with pytest.raises(ConfigError, match=r"a\.txt: the file is larger than 999 bytes"):
        read_text_file(path, ConfigError, 999)


@pytest.mark.parametrize("name", ["missing", "x" * 300, "nul\0"])
def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \("):
        read_text_file(tmp_path / name, ConfigError)


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this is a directory, not a text file"):
        read_text_file(tmp_path, ConfigError)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device here")
def test_a_device_that_never_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (Path("/dev/zero"), tmp_path / "link"):
        with pytest.raises(ConfigError, match="this is a device, pipe or socket"):
            read_text_file(path, ConfigError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="this is a device, pipe or socket"):
        read_text_file(tmp_path / "fifo", ConfigError)

"""Descriptors are closed when an exception comes at any moment, as from a signal handler."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType

import pytest

from llama2py.errors import CheckpointError
from llama2py.formats.atomic_write import replacing, replacing_folder
from llama2py.formats.descriptor import Descriptor
from llama2py.formats.input_file import InputFile, read_whole

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_a_descriptor_is_closed_with_its_block_or_its_object(tmp_path: Path) -> None:
    before = open_descriptors()
    with Descriptor(tmp_path, os.O_RDONLY) as folder:
        assert os.path.samestat(os.fstat(folder.fileno()), os.stat(tmp_path))
        assert open_descriptors() == before + 1
    folder.close()
    with pytest.raises(ValueError, match="closed"):
        folder.fileno()
    folder = Descriptor(tmp_path, os.O_RDONLY)
    assert open_descriptors() == before + 1
    del folder
    assert open_descriptors() == before
    with pytest.raises(FileNotFoundError):
        Descriptor(tmp_path / "missing", os.O_RDONLY)
    assert open_descriptors() == before


class Interrupt(Exception):
    """What a signal handler raises."""


def with_interrupts(work: Callable[[], None]) -> int:
    """Do the work again and again; the n-th time, an exception follows its n-th call of C."""
    left = 0

    def profile(frame: FrameType, event: str, function: object) -> None:
        nonlocal left
        if event == "c_return" and "llama2py/formats" in frame.f_code.co_filename:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise Interrupt

    for n in count():
        left = n
        try:
            sys.setprofile(profile)
            work()
            return n
        except Interrupt:
            pass
        finally:
            sys.setprofile(None)
    raise AssertionError


def read_file(folder: Path) -> None:
    InputFile(folder / "input").close()
    read_whole(folder / "input", 9, CheckpointError, "a file")


def write_file(folder: Path) -> None:
    with replacing(folder / "output", CheckpointError) as out:
        out.write(b"x")


def write_folder(folder: Path) -> None:
    target = folder / f"made-{len(os.listdir(folder))}"
    with replacing_folder(target, CheckpointError) as made:
        (made / "weights").write_bytes(b"x")


def fill_folder(folder: Path) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (folder / "empty" / "weights").unlink()
    with replacing_folder(folder / "empty", CheckpointError) as made:
        (made / "weights").write_bytes(b"x")


def remove_leftovers(folder: Path) -> None:
    leftover = folder / ".llama2py-e0ee8bb5-0123456789abcdef.tmp"  # the hash of "output"
    leftover.touch()
    try:
        write_file(folder)
        assert not leftover.exists()
    finally:
        leftover.unlink(missing_ok=True)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a file that its last reference closes
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "work", [read_file, write_file, write_folder, fill_folder, remove_leftovers]
)
def test_an_exception_after_any_call_leaves_no_descriptor_and_no_file(
    work: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "input").write_bytes(b"x")
    work(tmp_path)
    before = open_descriptors()
    assert with_interrupts(lambda: work(tmp_path)) > 5
    assert open_descriptors() == before
    assert [path.name for path in tmp_path.rglob(".*")] == []

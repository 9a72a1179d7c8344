"""Locks on files and folders: one holder at a time, dropped when a process ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llama2py
from llama2py.formats.descriptor import Descriptor
from llama2py.formats.file_lock import HAVE_LOCKS, is_at, is_locked_by_another, lock

pytestmark = pytest.mark.skipif(not HAVE_LOCKS, reason="this system has no flock")

HOLD = """
import os, sys, time
from llama2py.formats.file_lock import is_locked_by_another
print(is_locked_by_another(os.open(sys.argv[1], os.O_RDONLY)), flush=True)
time.sleep(60)
"""


def test_another_process_holds_a_lock_until_it_is_killed(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(llama2py.__file__).parents[1])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "False\n"
        with Descriptor(tmp_path, os.O_RDONLY) as folder:
            assert is_locked_by_another(folder.fileno())
            assert not lock(folder.fileno(), wait=False)
    finally:
        holder.kill()
        holder.wait(60)
        holder.stdout.close()
    with Descriptor(tmp_path, os.O_RDONLY) as folder:
        assert not is_locked_by_another(folder.fileno())


def test_a_lock_ends_with_its_descriptor(tmp_path: Path) -> None:
    with (
        Descriptor(tmp_path, os.O_RDONLY) as first,
        Descriptor(tmp_path, os.O_RDONLY) as second,
    ):
        assert lock(first.fileno(), wait=False)
        assert is_locked_by_another(second.fileno())
        first.close()
        assert not is_locked_by_another(second.fileno())


def test_a_file_that_was_replaced_is_not_at_its_path(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with Descriptor(path, os.O_RDONLY) as file:
        assert is_at(file.fileno(), path)
        path.rename(tmp_path / "other")
        assert not is_at(file.fileno(), path)
        path.touch()
        assert not is_at(file.fileno(), path)

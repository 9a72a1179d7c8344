"""Files and folders are written completely or not at all, whatever ends the process."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import llama2py
from llama2py.errors import CheckpointError
from llama2py.formats import file_lock
from llama2py.formats.atomic_write import check_name, replacing, replacing_folder

WRITE = """
import sys, time
from pathlib import Path
from llama2py.errors import CheckpointError
from llama2py.formats.atomic_write import replacing, replacing_folder

target, kind = Path(sys.argv[1]), sys.argv[2]
if kind == "file":
    with replacing(target, CheckpointError) as out:
        out.write(b"half")
        out.flush()
        print("writing", flush=True)
        time.sleep(60)
else:
    with replacing_folder(target, CheckpointError) as folder, replacing(
        folder / "weights", CheckpointError
    ) as out:
        out.write(b"half")
        print("writing", flush=True)
        time.sleep(60)
"""


@contextmanager
def writer(target: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that has begun to write the target and does not end."""
    root = str(Path(llama2py.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, target, kind],
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()


def write(target: Path, kind: str) -> None:
    if kind == "file":
        with replacing(target, CheckpointError) as out:
            out.write(b"whole")
    else:
        with replacing_folder(target, CheckpointError) as folder:
            (folder / "weights").write_bytes(b"whole")


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name.startswith(".llama2py")]


KINDS = ("file", "folder", "empty folder")


def target_of(tmp_path: Path, kind: str) -> Path:
    target = tmp_path / "target"
    if kind == "empty folder":
        target.mkdir()
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_run_removes_what_a_killed_one_left(kind: str, tmp_path: Path) -> None:
    target = target_of(tmp_path, kind)
    for _ in range(2):
        with writer(target, kind) as process:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        assert hidden(tmp_path)
    write(target, kind)
    assert hidden(tmp_path) == []
    assert (target if kind == "file" else target / "weights").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_living_process_keeps_its_temporary_files(kind: str, tmp_path: Path) -> None:
    target = target_of(tmp_path, kind)
    with writer(target, kind):
        before = hidden(tmp_path)
        assert before
        write(target, kind)
        assert hidden(tmp_path) == before


def test_what_another_target_left_stays(tmp_path: Path) -> None:
    with writer(tmp_path / "other", "file") as process:
        process.kill()
        process.wait(60)
    before = hidden(tmp_path)
    write(tmp_path / "target", "file")
    assert hidden(tmp_path) == before
    write(tmp_path / "other", "file")
    assert hidden(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_what_another_user_left_stays(tmp_path: Path) -> None:
    with writer(tmp_path / "target", "file") as process:
        process.kill()
        process.wait(60)
    (left,) = hidden(tmp_path)
    os.chown(left, 12345, -1)
    write(tmp_path / "target", "file")
    assert hidden(tmp_path) == [left]


def test_a_link_with_the_name_of_a_leftover_stays(tmp_path: Path) -> None:
    with writer(tmp_path / "target", "file") as process:
        process.kill()
        process.wait(60)
    (left,) = hidden(tmp_path)
    left.unlink()
    (tmp_path / "mine").write_text("mine")
    left.symlink_to(tmp_path / "mine")
    write(tmp_path / "target", "file")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_that_looks_empty_is_not_refused_without_a_reason(tmp_path: Path) -> None:
    """An older version's temporary file may be in use: the error names it."""
    target = target_of(tmp_path, "empty folder")
    (target / ".llama2py-0123456789abcdef.tmp").touch()
    message = r"target: the folder is not empty \(it holds \.llama2py-0123456789abcdef\.tmp\)"
    with pytest.raises(CheckpointError, match=message):
        write(target, "empty folder")


def refuse_locks(descriptor: int, wait: bool) -> bool:
    return False


def test_a_disk_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama2py.formats.atomic_write.lock", refuse_locks)
    for kind in ("file", "folder", "empty folder"):
        (tmp_path / kind).mkdir()
        write(target_of(tmp_path / kind, kind), kind)
    assert hidden(tmp_path) == []


def wait_for_another(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Path], None]) -> None:
    """Let another run come between the creation of a temporary file and its lock, once."""
    real, calls = file_lock.lock, list[int]()

    def lock(descriptor: int, wait: bool) -> bool:
        if wait and not calls:
            calls.append(descriptor)
            meanwhile(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        return real(descriptor, wait)

    monkeypatch.setattr("llama2py.formats.atomic_write.lock", lock)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux")
@pytest.mark.parametrize("kind", KINDS)
def test_a_temporary_file_that_another_run_removes_is_made_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Path.unlink if kind == "file" else Path.rmdir
    wait_for_another(monkeypatch, remove)
    target = target_of(tmp_path, kind)
    write(target, kind)
    assert (target if kind == "file" else target / "weights").read_bytes() == b"whole"


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_names_that_the_system_refuses_are_errors(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        check_name(tmp_path / name, CheckpointError)
    check_name(tmp_path / "new", CheckpointError)
    check_name(tmp_path / "none" / "new", CheckpointError)


class Alarm(Exception):
    """What the signal handler of the next test raises."""


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a file that its last reference closes
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
def test_signals_leave_no_file_and_no_descriptor(tmp_path: Path) -> None:
    """A handler raises at random moments, also between the steps of creating the file."""

    def handler(number: int, frame: object) -> None:
        raise Alarm

    descriptors = len(os.listdir("/proc/self/fd"))
    previous = signal.signal(signal.SIGALRM, handler)
    try:
        for i in range(400):
            with contextlib.suppress(Alarm):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 2e-5 + i % 40 * 1e-5)
                    with replacing(tmp_path / "file", CheckpointError) as out:
                        out.write(b"x")
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    gc.collect()
    assert [path.name for path in tmp_path.iterdir() if path.name != "file"] == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1

"""Write a file or a folder completely or not at all.

The data goes to a hidden temporary file next to the target, ``.llama2py-TARGET-RANDOM.tmp`` with a
hash of the target's name, and takes the target's name at the end. The temporary file is locked
while it is written. If the process is killed, the system drops the lock, and the next run to the
same target removes the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .._util import amount
from ..errors import Llama2pyError
from .descriptor import Descriptor
from .file_lock import HAVE_LOCKS, is_at, lock

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: Path, error_class: type[Llama2pyError]) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``path`` if the block ends without an error.

    Parameters
    ----------
    path : Path
        The file to write: a new name or a regular file. A symbolic link stays; its target is
        replaced.
    error_class : type of Llama2pyError
        The class of the error to raise if the file cannot be written.
    """
    target = _followed(path, error_class)
    if target.exists() and not target.is_file():
        raise error_class(f"{path}: not a regular file; choose a new name or a regular file")
    try:
        _remove_leftovers(target.parent, target)
        while True:
            # The name is known before the file exists, and the file is open as an object: an
            # exception that a signal handler raises leaves neither of them.
            temporary = _new_name(target.parent, target)
            try:
                with open(temporary, "xb") as out:
                    lock(out.fileno(), wait=True)
                    if HAVE_LOCKS and not is_at(out.fileno(), temporary):
                        continue  # another run removed it before it was locked
                    yield out
                    out.flush()
                    os.fsync(out.fileno())  # or a crash could leave the new name without its data
                    if HAVE_LOCKS:  # the lock keeps other runs from removing it until it is moved
                        os.replace(temporary, target)
                if not HAVE_LOCKS:  # Windows cannot rename an open file
                    os.replace(temporary, target)
                return
            finally:
                with contextlib.suppress(OSError):  # after a success it has its new name
                    temporary.unlink()
    except OSError as error:
        raise _unwritable(path, error, error_class) from error


@contextlib.contextmanager
def replacing_folder(
    path: Path, error_class: type[Llama2pyError], last: str = ""
) -> Iterator[Path]:
    """Make a new folder that takes the name of ``path`` if the block ends without an error.

    Parameters
    ----------
    path : Path
        The folder to write: a new name or an empty folder. No file of the user is ever removed.
    error_class : type of Llama2pyError
        The class of the error to raise if the folder cannot be written.
    last : str
        The file that makes the folder complete. An existing empty folder is kept, because it may be
        a mount point or the current directory; the files are moved into it one by one, this one
        last.
    """
    target = _followed(path, error_class)
    try:
        _remove_leftovers(target.parent, target)
        exists = os.path.lexists(target)
        if exists:
            _remove_leftovers(target, target)
            _check_is_empty(path, target, error_class)
        while True:
            temporary = _new_name(target if exists else target.parent, target)
            try:
                temporary.mkdir()
                with _locked_folder(temporary) as is_ours:
                    if not is_ours:
                        continue  # another run removed it before it was locked
                    yield temporary
                    if exists:
                        files = sorted(temporary.iterdir(), key=lambda file: file.name == last)
                        _move(files, target)
                    else:
                        os.replace(temporary, target)
                return
            finally:
                shutil.rmtree(temporary, ignore_errors=True)  # after a success it is gone
    except OSError as error:
        raise _unwritable(path, error, error_class) from error


def check_name(path: Path, error_class: type[Llama2pyError]) -> None:
    """Raise an error if the system cannot have a file of this name, such as one that is too long.

    Call it for a second file before the first one is written.
    """
    _followed(path, error_class)


def check_space(path: Path, size: int, error_class: type[Llama2pyError]) -> None:
    """Raise an error if the disk of ``path`` has less than ``size`` bytes of free space.

    The current content of ``path`` does not count as free: it stays until the new one is complete.
    """
    try:
        target = Path(os.path.realpath(path))
        free = shutil.disk_usage(target if target.is_dir() else target.parent).free
    except (OSError, ValueError):
        return  # for example, there is no such folder: the code that writes the file reports it
    if size > free:
        raise error_class(f"{path}: needs {amount(size)} of disk space, {amount(free)} are free")


def _check_is_empty(path: Path, target: Path, error_class: type[Llama2pyError]) -> None:
    if not target.is_dir():
        raise error_class(f"{path}: already exists; choose a new name or an empty folder")
    names = sorted(entry.name for entry in target.iterdir())
    if names:
        shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
        raise error_class(
            f"{path}: the folder is not empty (it holds {shown}); choose a new name or an empty"
            " folder"
        )


def _move(files: list[Path], folder: Path) -> None:
    """Move all files into a folder, or none."""
    moved = [folder / file.name for file in files]
    try:
        for file, place in zip(files, moved, strict=True):
            os.replace(file, place)
    except BaseException:  # including Ctrl-C
        for place in moved:
            place.unlink(missing_ok=True)
        raise


# ---- temporary files ----


def _temporary_names(target: Path) -> str:
    """Return the pattern of the names of a target's temporary files."""
    tag = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    return f".llama2py-{tag}-*.tmp"


def _new_name(folder: Path, target: Path) -> Path:
    return folder / _temporary_names(target).replace("*", secrets.token_hex(8))


@contextlib.contextmanager
def _locked_folder(path: Path) -> Iterator[bool]:
    """Lock a folder during the block, if locks exist. Yield False if it is gone already."""
    if not HAVE_LOCKS:
        yield True
        return
    try:
        folder = Descriptor(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    with folder:
        lock(folder.fileno(), wait=True)
        yield is_at(folder.fileno(), path)


def _remove_leftovers(folder: Path, target: Path) -> None:
    """Remove the temporary files of this target and this user that no living process has locked."""
    if not HAVE_LOCKS:
        return
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    for path in folder.glob(_temporary_names(target)):
        try:
            opened = Descriptor(path, flags)
        except OSError:
            continue
        with opened:
            about = os.fstat(opened.fileno())
            if about.st_uid != os.geteuid() or not lock(opened.fileno(), wait=False):
                continue
            if stat.S_ISDIR(about.st_mode):
                shutil.rmtree(path, ignore_errors=True)
            elif stat.S_ISREG(about.st_mode):
                path.unlink(missing_ok=True)
            _log.info("%s: removed, a process that was killed had left it", path)


def _followed(path: Path, error_class: type[Llama2pyError]) -> Path:
    """Return the path that links lead to; raise if the system does not allow such a name."""
    try:
        target = Path(os.path.realpath(path))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(target)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise _unwritable(path, error, error_class) from error
    return target


def _unwritable(path: Path, error: Exception, error_class: type[Llama2pyError]) -> Llama2pyError:
    reason = getattr(error, "strerror", None) or error
    hint = "; choose a shorter one" if getattr(error, "errno", None) == errno.ENAMETOOLONG else ""
    return error_class(f"{path}: cannot be written ({reason}){hint}")

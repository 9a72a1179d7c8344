"""Writing a file or a folder whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .._util import amount
from ..errors import Llama2pyError


@contextlib.contextmanager
def replacing(path: Path, error_class: type[Llama2pyError]) -> Iterator[BinaryIO]:
    """Open a new file in the folder of ``path`` that takes its place if the block ends well.

    Parameters
    ----------
    path : Path
        The file to write, new or a regular one. A link stays a link.
    error_class : type of Llama2pyError
        Raised, with one sentence, if it cannot be written.
    """
    target = _place(path, error_class)
    if target.exists() and not target.is_file():
        raise error_class(f"{path}: this is no regular file, expected one or a new name")
    temporary = target.parent / _temporary_name()
    try:
        with open(temporary, "xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())  # or a crash could leave the new name without its data
        os.replace(temporary, target)
    except OSError as error:
        raise _unwritable(path, error, error_class) from error
    finally:
        with contextlib.suppress(OSError):  # it is gone where all went well
            temporary.unlink()


@contextlib.contextmanager
def replacing_folder(
    path: Path, error_class: type[Llama2pyError], last: str = ""
) -> Iterator[Path]:
    """Make a new folder that takes the name of ``path`` if the block ends well.

    Parameters
    ----------
    path : Path
        The folder to write: a new name, or an empty folder. Files are never removed.
    error_class : type of Llama2pyError
        Raised, with one sentence, if it cannot be written.
    last : str
        The file without which the others are nothing. An empty folder stays the one that it is (it
        may be a disk's own, or somebody's current one), and its files get there one by one: this
        is the last.
    """
    target = _place(path, error_class)
    is_there = os.path.lexists(target)
    temporary = (target if is_there else target.parent) / _temporary_name()
    try:
        if is_there and (not target.is_dir() or any(target.iterdir())):
            raise error_class(
                f"{path}: it is there already, expected a new name or an empty folder"
            )
        temporary.mkdir()
        yield temporary
        if is_there:
            _move(sorted(temporary.iterdir(), key=lambda file: file.name == last), target)
        else:
            os.replace(temporary, target)
    except OSError as error:
        raise _unwritable(path, error, error_class) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # it is gone where all went well


def _move(files: list[Path], folder: Path) -> None:
    """Move all of them into a folder, or none."""
    moved = [folder / file.name for file in files]
    try:
        for file, place in zip(files, moved, strict=True):
            os.replace(file, place)
    except BaseException:  # Ctrl-C, too
        for place in moved:
            place.unlink(missing_ok=True)
        raise


def _temporary_name() -> str:
    return f".llama2py-{secrets.token_hex(8)}.tmp"


def _place(path: Path, error_class: type[Llama2pyError]) -> Path:
    """What a path leads to, links followed, if the system knows such names."""
    try:
        target = Path(os.path.realpath(path))
        target.exists()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise _unwritable(path, error, error_class) from error
    return target


def _unwritable(path: Path, error: Exception, error_class: type[Llama2pyError]) -> Llama2pyError:
    reason = getattr(error, "strerror", None) or error
    return error_class(f"{path}: cannot be written ({reason}), expected a writable folder")


def check_space(path: Path, size: int, error_class: type[Llama2pyError]) -> None:
    """Make sure that a file or folder of ``size`` bytes fits onto the disk that ``path`` is on.

    What ``path`` holds now does not count: it goes only once the new one is there.
    """
    try:
        target = Path(os.path.realpath(path))
        free = shutil.disk_usage(target if target.is_dir() else target.parent).free
    except (OSError, ValueError):
        return  # no such folder, say: whoever writes the file tells
    if size > free:
        raise error_class(
            f"{path}: {amount(size)} do not fit, expected at least that much free space"
            f" where {amount(free)} are"
        )

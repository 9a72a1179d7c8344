"""Writing a file or a folder whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import Llama2pyError


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
    if path.exists() and not path.is_file():
        raise error_class(f"{path}: this is no regular file, expected one or a new name")
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".llama2py-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())  # or a crash could leave the new name without its data
        os.replace(temporary, target)
    except OSError as error:
        raise error_class(
            f"{path}: cannot be written ({error.strerror or error}), expected a writable folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is gone where all went well
            temporary.unlink()


@contextlib.contextmanager
def replacing_folder(path: Path, error_class: type[Llama2pyError]) -> Iterator[Path]:
    """Make a new folder beside ``path`` that takes its name if the block ends well.

    Parameters
    ----------
    path : Path
        The folder to write: a new name, or an empty folder. Files are never removed.
    error_class : type of Llama2pyError
        Raised, with one sentence, if it cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".llama2py-{secrets.token_hex(8)}.tmp"
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise error_class(
                f"{path}: it is there already, expected a new name or an empty folder"
            )
        temporary.mkdir()
        yield temporary
        os.replace(temporary, target)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise error_class(
            f"{path}: cannot be written ({reason}), expected a writable folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # it is gone where all went well


def check_space(path: Path, size: int, error_class: type[Llama2pyError]) -> None:
    """Make sure that a file or folder of ``size`` bytes fits onto the disk that ``path`` is on.

    What ``path`` holds now does not count: it goes only once the new one is there.
    """
    try:
        free = shutil.disk_usage(Path(os.path.realpath(path)).parent).free
    except (OSError, ValueError):
        return  # no such folder, say: whoever writes the file tells
    if size > free:
        raise error_class(
            f"{path}: {size / 1e9:.2f} GB do not fit, expected at least that much free space"
            f" where {free / 1e9:.2f} GB are"
        )

"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
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

"""Read a text file whole, within bounds."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import Llama2pyError


def read_text_file(
    path: Path, error_class: type[Llama2pyError], max_size: int | None = None
) -> str:
    """Read a UTF-8 text file.

    Parameters
    ----------
    path : Path
        A regular file. Devices, pipes and sockets are refused: some never end.
    error_class : type of Llama2pyError
        The error to raise.
    max_size : int, optional
        The largest size to accept, in bytes.

    Returns
    -------
    str
        The text without a byte order mark, its lines ending in LF.

    Raises
    ------
    Llama2pyError
        Of ``error_class``, if the file is missing, not a regular file, too large, or not UTF-8.
    """
    try:
        # Check before opening: opening a FIFO waits for a writer, opening a device may act.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
            raise error_class(f"{path}: this is {kind}, not a text file")
        with path.open("rb") as file:
            data = file.read() if max_size is None else file.read(max_size + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise error_class(f"{path}: cannot be read ({reason})") from None
    if max_size is not None and len(data) > max_size:
        raise error_class(f"{path}: the file is larger than {max_size:,} bytes")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise error_class(f"{path}: byte {error.start} is not UTF-8") from None

"""An open file or folder that no signal handler makes leak."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from .._util import Closing


class Descriptor(Closing):
    """A descriptor that is closed with its object, whatever exception comes when.

    A signal handler may raise an exception between any two instructions of Python, such as between
    the return of `os.open` and the assignment of its result. So one call of C opens the file and
    stores the descriptor, and another one takes the descriptor out and closes it.

    Parameters
    ----------
    path : str or path-like
        The file or folder.
    flags, mode : int
        As of `os.open`.

    Raises
    ------
    OSError, ValueError
        As `os.open` does.
    """

    def __init__(self, path: str | os.PathLike[str], flags: int, mode: int = 0o777) -> None:
        self._open: list[int] = []
        self._open.extend(map(os.open, (path,), (flags,), (mode,)))

    def fileno(self) -> int:
        """Return the descriptor.

        Raises
        ------
        ValueError
            After `close`.
        """
        for number in self._open:
            return number
        raise ValueError("the file is closed")

    def close(self) -> None:
        """Close the file. A second call has no effect."""
        with contextlib.suppress(IndexError):  # of a list without a descriptor
            list(map(os.close, map(list.pop, (self._open,))))

    def __del__(self, errors: Any = (AttributeError, OSError)) -> None:
        with contextlib.suppress(*errors):  # __init__ failed, or exit has begun
            self.close()

"""MappedFile: one file, mapped read-only, seen through zero-copy NumPy views."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError


class MappedFile:
    """A regular file mapped into memory.

    Parameters
    ----------
    path : str or path-like
        The file. It must not be truncated while it is mapped: the system would end the process.

    Attributes
    ----------
    path : Path
        As given.
    size : int
        Length in bytes, at least 1.

    Raises
    ------
    CheckpointError
        If there is no such file, it is no regular file, is empty, or cannot be read or mapped.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            # Look before opening: opening a FIFO waits for a writer, opening a device may act.
            mode = os.stat(self.path).st_mode
            if not stat.S_ISREG(mode):
                kind = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
                raise CheckpointError(f"{self.path}: this is {kind}, expected a checkpoint file")
            # Should a FIFO take the file's place just now, O_NONBLOCK still does not wait.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                self.size = os.fstat(descriptor).st_size
                if self.size == 0:
                    raise CheckpointError(f"{self.path}: the file is empty, expected a checkpoint")
                mapping = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)  # the mapping stays
        except FileNotFoundError:
            raise CheckpointError(f"{self.path}: no such file, expected a checkpoint") from None
        except PermissionError:
            raise CheckpointError(
                f"{self.path}: no permission to read it, expected a readable checkpoint"
            ) from None
        except (OSError, ValueError, OverflowError) as error:  # ValueError: a path with a NUL
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(
                f"{self.path}: cannot be opened ({reason}), expected a readable checkpoint"
            ) from error
        self._mapping: mmap.mmap | None = mapping
        self._address: int = self.view(0, np.uint8, (1,)).ctypes.data

    def read(self, offset: int, count: int) -> bytes:
        """Copy up to ``count`` bytes from byte ``offset`` on; fewer where the file ends."""
        assert self._mapping is not None, "a closed file is not read"
        return self._mapping[offset : offset + count]

    def view(self, offset: int, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """Make a read-only array of the bytes at ``offset``, without a copy.

        Parameters
        ----------
        offset : int
            Where the array begins, in bytes. It need not be aligned to the dtype: NumPy copes.
        dtype : dtype-like
            Type of the elements.
        shape : tuple of int
            Shape of the array. The caller has checked that it fits into the file.

        Returns
        -------
        ndarray
            It keeps the mapping alive, even after `close`.
        """
        assert self._mapping is not None, "a closed file is not viewed"
        return np.frombuffer(self._mapping, dtype, math.prod(shape), offset).reshape(shape)

    def release(self, array: NDArray[Any]) -> None:
        """Tell the system that the pages of a view may be dropped from memory.

        Only pages that lie fully inside the view are, so that neighbours keep theirs. The view
        stays valid: its next use reads the file again. Does nothing for an array from elsewhere,
        after `close`, or where the system has no such call.
        """
        begin = array.ctypes.data - self._address
        end = begin + array.nbytes
        if self._mapping is None or begin < 0 or end > self.size:
            return
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            with contextlib.suppress(OSError):  # advice; nothing depends on it
                self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Unmap the file, or let its last view do so. Closing twice does no harm."""
        # Not mmap.close(): with a view still in use that raises, and every view holds the mapping,
        # which goes with the last of them, or right here if there is none.
        self._mapping = None

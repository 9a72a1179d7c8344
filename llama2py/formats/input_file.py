"""Input files: opening one never blocks, it is never mapped, and every read is checked.

If another program truncates a mapped file, a process that touches the missing pages is killed
(SIGBUS). So nothing here is mapped: every byte is copied by a read whose length is checked.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ..errors import CheckpointError, ClosedError, Llama2pyError
from .descriptor import Descriptor

_MOST = 1 << 30  # bytes in one read: systems take at most 2 GiB


class InputFile:
    """A regular file that any number of threads may read, at any offset.

    Parameters
    ----------
    path : str or path-like
        The file.
    error : type of Llama2pyError
        What to raise.
    what : str
        What the file should be, for messages.
    may_be_empty : bool
        Whether a file of no bytes is accepted.

    Attributes
    ----------
    path : Path
        As given.
    size : int
        Length in bytes when the file was opened.

    Raises
    ------
    Llama2pyError
        Of the class ``error``: there is no such file, it is not a regular file, it is empty, or it
        cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        error: type[Llama2pyError] = CheckpointError,
        what: str = "a checkpoint",
        may_be_empty: bool = False,
    ) -> None:
        self.path = Path(path)
        self._error = error
        try:
            # Look before opening: opening a FIFO waits for a writer, opening a device may act.
            mode = os.stat(self.path).st_mode
            if not stat.S_ISREG(mode):
                kind = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
                raise error(f"{self.path}: this is {kind}, expected {what}")
            # O_NONBLOCK: if a FIFO has just replaced the file, opening it must not wait either.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = Descriptor(self.path, flags)
            found = os.fstat(self._descriptor.fileno())
        except FileNotFoundError:
            raise error(f"{self.path}: no such file, expected {what}") from None
        except PermissionError:
            raise error(f"{self.path}: no permission to read it") from None
        except (OSError, ValueError, OverflowError) as trouble:  # ValueError: a path with a NUL
            reason = getattr(trouble, "strerror", None) or trouble
            raise error(f"{self.path}: cannot be opened ({reason})") from trouble
        self.size = found.st_size
        if not stat.S_ISREG(found.st_mode) or (self.size == 0 and not may_be_empty):
            self.close()
            raise error(f"{self.path}: the file is empty, expected {what}")

    def read(self, offset: int, count: int) -> bytes:
        """Read up to ``count`` bytes from byte ``offset`` on; fewer where the file ends.

        Raises
        ------
        Llama2pyError
            The file is shorter than when it was opened, or cannot be read.
        """
        out = bytearray(max(0, min(count, self.size - offset)))
        self.read_into(offset, out)
        return bytes(out)

    def read_into(self, offset: int, out: Any) -> None:
        """Fill a buffer with the bytes from byte ``offset`` on.

        Raises
        ------
        Llama2pyError
            The file ends before the buffer is full, or cannot be read.
        """
        descriptor = self.fileno()
        left = memoryview(out).cast("B")
        while left:
            try:
                count = os.preadv(descriptor, [left[:_MOST]], offset)
            except OSError as trouble:
                reason = trouble.strerror or trouble
                raise self._error(f"{self.path}: cannot be read ({reason})") from trouble
            if count == 0:
                raise self._error(
                    f"{self.path}: the file is shorter than the {self.size} bytes that it had when"
                    " it was opened: another program changed it"
                )
            offset += count
            left = left[count:]

    def fileno(self) -> int:
        """Return the descriptor, for code that has its own checks of reads.

        Raises
        ------
        ClosedError
            After `close`.
        """
        try:
            return self._descriptor.fileno()
        except ValueError:
            raise ClosedError(
                f"{self.path}: the file is closed, so its tensors cannot be read"
            ) from None

    def array(self, offset: int, dtype: Any, shape: tuple[int, ...]) -> FileArray:
        """Describe an array in C order that begins at byte ``offset``, without reading it."""
        return FileArray(self, offset, np.dtype(dtype), shape)

    def close(self) -> None:
        """Close the file. Its arrays can no longer be read. Closing twice does no harm."""
        self._descriptor.close()


class FileArray:
    """An array in a file, which is read again on each use.

    Parameters
    ----------
    file : InputFile
        The file. The array cannot be read after it is closed.
    offset : int
        Where the first element is, in bytes. The caller has checked that all elements lie within
        the file.
    dtype : dtype
        Type of the elements.
    shape : tuple of int
        Shape of the array.
    strides : tuple of int, optional
        Bytes from one element to the next along each dimension, none of them negative. By default
        the array is in C order.
    """

    __slots__ = ("dtype", "file", "offset", "shape", "strides")

    def __init__(
        self,
        file: InputFile,
        offset: int,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self.file, self.offset, self.dtype, self.shape = file, offset, dtype, shape
        self.strides = strides
        """None: C order."""
        if strides is not None:
            steps = zip(shape, strides, c_strides(dtype, shape), strict=True)
            if all(n <= 1 or step == in_order for n, step, in_order in steps):
                self.strides = None

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Bytes from the first element to the end of the last: what `read` reads."""
        if self.strides is None or not self.size:
            return self.nbytes
        steps = zip(self.shape, self.strides, strict=True)
        return sum((n - 1) * step for n, step in steps) + self.dtype.itemsize

    def read(self) -> NDArray[Any]:
        """Read the array.

        Returns
        -------
        ndarray
            A read-only copy, of this array's dtype, shape and strides.

        Raises
        ------
        Llama2pyError
            The file was closed, is shorter than when it was opened, or cannot be read.
        """
        data = np.empty(self.span, np.uint8)
        self.file.read_into(self.offset, data)
        data.flags.writeable = False
        if self.strides is None:
            return data.view(self.dtype).reshape(self.shape)
        first = data[: self.dtype.itemsize].view(self.dtype)
        return as_strided(first, self.shape, self.strides, writeable=False)

    def rows(self, first: int, last: int) -> FileArray:
        """Describe the rows [first, last) of an array, without reading them."""
        step = (self.strides or c_strides(self.dtype, self.shape))[0]
        shape = (last - first, *self.shape[1:])
        return FileArray(self.file, self.offset + first * step, self.dtype, shape, self.strides)

    def __getitem__(self, band: slice) -> NDArray[Any]:
        """Read some elements of a vector in C order: ``array[first:last]``."""
        first, last, _ = band.indices(self.size)
        offset = self.offset + first * self.dtype.itemsize
        return FileArray(self.file, offset, self.dtype, (max(0, last - first),)).read()


def c_strides(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes from one element to the next along each dimension of an array in C order."""
    strides = [dtype.itemsize]
    for n in shape[:0:-1]:
        strides.append(strides[-1] * n)
    return tuple(reversed(strides)) if shape else ()


def in_memory(array: NDArray[Any] | FileArray) -> NDArray[Any]:
    """The array itself, or a copy that is read from its file."""
    return array.read() if isinstance(array, FileArray) else array


def read_whole(
    path: str | os.PathLike[str], max_size: int, error: type[Llama2pyError], what: str
) -> bytes:
    """Read a small file whole.

    Parameters
    ----------
    path : str or path-like
        The file. It must be a regular one: a pipe or a device may never end.
    max_size : int
        The maximum size in bytes, which is checked before anything is read.
    error : type of Llama2pyError
        What to raise.
    what : str
        What the file should be, for messages: ``'a JSON file'``.

    Raises
    ------
    Llama2pyError
        The file cannot be opened or read, is not a regular file, or is too large.
    """
    file = InputFile(path, error, what, may_be_empty=True)
    try:
        if file.size > max_size:
            raise error(f"{path}: {file.size} bytes, expected {what} of at most {max_size}")
        return file.read(0, file.size)
    finally:
        file.close()


def named(path: str | os.PathLike[str], error: Llama2pyError) -> Llama2pyError:
    """Return an error whose message begins with the file's name, adding the name if necessary."""
    text = str(error)
    return error if text.startswith(f"{path}: ") else type(error)(f"{path}: {text}")

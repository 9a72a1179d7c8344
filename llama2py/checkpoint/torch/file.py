"""Files of ``torch.save``, read without PyTorch: tensors in plain containers.

The file is a zip archive: ``data.pkl`` describes the objects, each ``data/<key>`` holds a storage;
a tensor is a window into a storage, with strides.

Source: PyTorch's ``torch/serialization.py`` and ``torch/_utils.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from ...errors import CheckpointError
from ...formats.input_file import FileArray, InputFile, named
from ...formats.sniff import HEAD, ZIP, kind_of
from ..state_dict import Weight
from .unpickler import Function, Limits, fill, unpickle
from .zip_archive import Entry, read_entries

MAX_PICKLE = 8 << 20  # bytes; the pickle of a 70-billion-parameter model has 0.1 MB
MAX_TENSOR_DIMS = 8
_MAX_SIZES = 64  # numbers of a shape that are looked at
_MAX_KEY = 1000  # characters
# The elements of a real tensor lie close together, even of a slice of a larger one.
_MAX_SPREAD = 8

# Storage class: the dtype's name and NumPy's. bfloat16 is its bits; a dtype that no weight has is
# opaque bytes.
_STORAGES = {
    "FloatStorage": ("float32", "<f4"),
    "HalfStorage": ("float16", "<f2"),
    "BFloat16Storage": ("bfloat16", "<u2"),
    "DoubleStorage": ("float64", "V8"),
    "LongStorage": ("int64", "V8"),
    "IntStorage": ("int32", "V4"),
    "ShortStorage": ("int16", "V2"),
    "CharStorage": ("int8", "V1"),
    "ByteStorage": ("uint8", "V1"),
    "BoolStorage": ("bool", "V1"),
}


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str
    numpy: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    array: FileArray  # (numel,)
    key: str


@dataclass(slots=True)
class Allowance:
    """What the files of one model may hold together; reading uses it up.

    A model of 405 billion parameters in 16 shards has 18,000 tensors, each an entry of an archive
    and about 30 steps of a pickle.
    """

    entries: int = 50_000
    limits: Limits = field(default_factory=lambda: Limits(steps=1_000_000))
    """Each file adds memory in proportion to its size."""


class Opened(NamedTuple):
    """A file that is open already, with its contents."""

    file: InputFile
    saved: object
    """From `read_torch_file`; None if it has not been read or the file has another format."""


def open_each(paths: Iterable[Path], opened: Opened | None, stack: ExitStack) -> Iterator[Opened]:
    """Open the files of a directory, one at a time.

    Parameters
    ----------
    paths : iterable of Path
        The files.
    opened : Opened, optional
        One of them that is open already, and is not opened again.
    stack : ExitStack
        Closes the others.

    Raises
    ------
    CheckpointError
        If a file cannot be opened.
    """
    for path in paths:
        if opened is not None and opened.file.path == path:
            yield opened
        else:
            file = InputFile(path)
            stack.callback(file.close)
            yield Opened(file, None)


def read_torch_file(file: InputFile, allowance: Allowance | None = None) -> object:
    """Read a file of ``torch.save`` (PyTorch 1.6 or later).

    Parameters
    ----------
    file : InputFile
        The file. The tensors are read from it when they are used.
    allowance : Allowance, optional
        What is left for this file, where it is one of several.

    Returns
    -------
    object
        What was saved, of dict, list, tuple, str, numbers and None, each tensor a `Weight`.

    Raises
    ------
    CheckpointError
        If the file is malformed, cut short or big-endian, or names anything but tensors and plain
        containers. Nothing that it names is ever run.
    """
    allowance = allowance or Allowance()
    kind = kind_of(file.read(0, HEAD))
    if kind not in (ZIP, None):
        raise CheckpointError(f"{file.path}: this is {kind}, expected a file of PyTorch")
    entries = read_entries(file, allowance.entries)
    allowance.entries -= len(entries)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{file.path}: this zip archive has {len(pickles)} files data.pkl,"
            " a file of PyTorch has 1"
        )
    prefix = pickles[0].removesuffix("data.pkl")
    try:
        entry = entries[pickles[0]]
        if entry.size > MAX_PICKLE:
            raise CheckpointError(
                f"its data.pkl has {entry.size} bytes, expected at most {MAX_PICKLE}"
            )
        order = entries.get(prefix + "byteorder", Entry(0, 0))
        if file.read(order.offset, min(order.size, 16)) not in (b"", b"little"):
            raise CheckpointError("its tensors are big-endian, which is not supported")
        loader = _Loader(file, prefix, entries)
        data = file.read(entry.offset, entry.size)
        allowance.limits.memory += 2 * file.size
        return unpickle(data, _NAMES, loader.load, allowance.limits)
    except CheckpointError as error:
        raise named(file.path, error) from None


class _Loader:
    """Finds storages among the archive's entries."""

    def __init__(self, file: InputFile, prefix: str, entries: Mapping[str, Entry]) -> None:
        self.file, self.prefix, self.entries = file, prefix, entries

    def load(self, description: object) -> _Storage:
        match description:
            case ("storage", _StorageType() as kind, str(key), str(_), int(numel)):
                pass
            case _:
                raise CheckpointError("the pickle loads an object that is not a storage")
        # A long key costs its length at each use, and a pickle can use it again and again.
        entry = self.entries.get(f"{self.prefix}data/{key}") if len(key) <= _MAX_KEY else None
        if entry is None:
            raise CheckpointError(f"the storage {key[:40]!r} is missing from the file")
        dtype = np.dtype(kind.numpy)
        if numel < 0 or numel * dtype.itemsize != entry.size:
            raise CheckpointError(
                f"the storage {key[:40]!r} has {entry.size} bytes,"
                f" expected {numel * dtype.itemsize} for {numel} of {kind.dtype}"
            )
        return _Storage(kind.dtype, self.file.array(entry.offset, dtype, (numel,)), key)


def _rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, *_: object
) -> Weight:
    """A window into a storage. The further arguments concern gradients."""
    if not isinstance(storage, _Storage) or not _is_sizes(shape) or not _is_sizes(strides):
        raise CheckpointError("a tensor in the pickle lacks a storage, a shape or strides")
    if len(shape) > MAX_TENSOR_DIMS or len(shape) != len(strides):
        raise CheckpointError(
            f"a tensor in the pickle has {len(shape)} dimensions and {len(strides)} strides,"
            f" expected at most {MAX_TENSOR_DIMS} of both, and as many strides as dimensions"
        )
    whole, item = storage.array, storage.array.dtype.itemsize
    count = math.prod(shape)
    begin = offset if type(offset) is int else -1
    last = begin + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # count: a tensor that repeats its storage with strides of 0 would be larger than the file.
    if begin < 0 or (count and last >= whole.size) or count > whole.size:
        raise CheckpointError(
            f"a tensor of shape {_short(shape)}, strides {_short(strides)} and offset"
            f" {_short(offset)} does not fit into its storage of {whole.size} values"
        )
    if count and last - begin >= _MAX_SPREAD * count + 4096:
        raise CheckpointError(
            f"the {count} values of a tensor are spread over {last - begin + 1} of its storage,"
            f" expected at most {_MAX_SPREAD} times as many"
        )
    steps = tuple(stride * item for stride in strides)
    array = FileArray(whole.file, whole.offset + begin * item, whole.dtype, shape, steps)
    return Weight(storage.dtype, array, (storage.key, begin, shape, strides))


def _is_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    # The length first: a pickle can use one long tuple again and again.
    if not isinstance(value, tuple) or len(value) > _MAX_SIZES:
        return False
    return all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _short(value: object) -> str:
    """A value for an error: never a container of containers, which could be endless."""
    if isinstance(value, tuple):
        return f"({', '.join(map(str, value[:8]))})"
    return str(value) if type(value) is int and abs(value) < 1 << 64 else "?"


def _ordered_dict(pairs: object = ()) -> dict[Any, Any]:
    if not isinstance(pairs, list | tuple):
        raise TypeError
    result: dict[Any, Any] = {}
    fill(result, [(key, value) for key, value in pairs])
    return result


def _parameter(data: object, *_: object) -> object:
    return data


def _size(sizes: object) -> object:
    if not isinstance(sizes, tuple):
        raise TypeError
    return sizes


_FUNCTIONS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered_dict,
}
_NAMES: dict[str, object] = {
    **{name: Function(name, function) for name, function in _FUNCTIONS.items()},
    **{f"torch.{name}": _StorageType(*types) for name, types in _STORAGES.items()},
}

"""Reads what ``torch.save`` wrote, without PyTorch: tensors as views, around them plain containers.

The file is a zip archive: ``data.pkl`` describes the objects, ``data/<key>`` holds a storage each;
a tensor is a window into a storage, with strides.

Source: PyTorch's ``torch/serialization.py`` and ``torch/_utils.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...errors import CheckpointError
from ...formats.mapped_file import MappedFile
from ...formats.sniff import HEAD, kind_of
from ..weights import Weight
from .unpickler import Function, fill, unpickle
from .zip_archive import MAGIC, Entry, read_entries

MAX_PICKLE = 8 << 20  # a 70-billion-parameter model's is 0.1 MB

# Storage class: the dtype's name and NumPy's, bfloat16 by its bits, what is no weight by its size.
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
    array: np.ndarray[Any, Any]  # (numel,), a view
    key: str


def read_torch_file(file: MappedFile) -> object:
    """Read a file of ``torch.save`` (PyTorch 1.6 or later).

    Parameters
    ----------
    file : MappedFile
        The file; the tensors are views of it.

    Returns
    -------
    object
        What was saved, of dict, list, tuple, str, numbers and None, each tensor a `Weight`.

    Raises
    ------
    CheckpointError
        If the file is malformed, cut short, of big-endian byte order, or names anything that is no
        tensor and no plain container; nothing that it names is ever run.
    """
    head = file.read(0, HEAD)
    if not head.startswith(MAGIC) and (kind := kind_of(head)) is not None:
        raise CheckpointError(f"{file.path}: this is {kind}, expected a file of PyTorch")
    entries = read_entries(file)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{file.path}: this zip archive holds {len(pickles)} data.pkl, expected one:"
            " a file of PyTorch"
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
            raise CheckpointError("its tensors are not little-endian, expected them to be")
        loader = _Loader(file, prefix, entries)
        return unpickle(file.read(entry.offset, entry.size), _NAMES, loader.load)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from None


class _Loader:
    """Makes storages of the archive's entries."""

    def __init__(self, file: MappedFile, prefix: str, entries: Mapping[str, Entry]) -> None:
        self.file, self.prefix, self.entries = file, prefix, entries

    def load(self, description: object) -> _Storage:
        match description:
            case ("storage", _StorageType() as kind, str(key), str(_), int(numel)):
                pass
            case _:
                raise CheckpointError("the pickle describes no storage, expected one")
        entry = self.entries.get(f"{self.prefix}data/{key}")
        if entry is None:
            raise CheckpointError(f"the storage {key[:40]!r} is missing, expected it in the file")
        dtype = np.dtype(kind.numpy)
        if numel < 0 or numel * dtype.itemsize != entry.size:
            raise CheckpointError(
                f"the storage {key[:40]!r} has {entry.size} bytes,"
                f" expected {numel * dtype.itemsize} for {numel} of {kind.dtype}"
            )
        if numel == 0:
            return _Storage(kind.dtype, np.zeros(0, dtype), key)
        return _Storage(kind.dtype, self.file.view(entry.offset, dtype, (numel,)), key)


def _rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, *_: object
) -> Weight:
    """A window into a storage; what else torch passes concerns gradients."""
    if not isinstance(storage, _Storage) or not _is_sizes(shape) or not _is_sizes(strides):
        raise CheckpointError(
            "a tensor in the pickle has no storage, shape or strides, expected it"
        )
    size = storage.array.size
    count = math.prod(shape)
    begin = offset if type(offset) is int else -1
    last = begin + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # count: one that repeats its storage with strides of 0 would be larger than the file.
    if begin < 0 or (count and last >= size) or count > size or len(shape) > 8:
        raise CheckpointError(
            f"a tensor of shape {_short(shape)}, strides {_short(strides)} and offset"
            f" {_short(offset)} does not fit, expected it within its storage of {size} values"
        )
    if not count:
        return Weight(storage.dtype, np.zeros(shape, storage.array.dtype))
    item = storage.array.itemsize
    steps = [stride * item if n > 1 else 0 for n, stride in zip(shape, strides, strict=True)]
    array = as_strided(storage.array[begin:], shape, steps, writeable=False)
    return Weight(storage.dtype, array, (storage.key, begin, tuple(shape), tuple(strides)))


def _is_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _short(value: object) -> str:
    """For an error: never a container of containers, which could be endless."""
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

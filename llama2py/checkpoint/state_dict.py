"""Map the tensors of another program's file, with its names, to a model's, with llama2.c's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import CheckpointError
from ..formats.input_file import FileArray
from .tensors import DTYPES, Array, DenseTensor, RowsTensor, StoredTensor, Tensor, tensor_shapes

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One tensor of a file.

    Attributes
    ----------
    dtype : str
        The file's name for its dtype, such as ``'bfloat16'``.
    array : FileArray
        Where its data is, with any strides. bfloat16 is read as its bits, in uint16. A dtype that
        llama2py does not support is read as opaque bytes.
    window : tuple
        Which part of which storage it is, in a format whose tensors share storages.
    rows : ndarray of int, optional
        Which rows of the array the tensor has, where several tensors share an array.
    """

    dtype: str
    array: FileArray
    window: tuple[Any, ...] = ()
    rows: NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        whole = self.array.shape
        return whole if self.rows is None else (len(self.rows), *whole[1:])

    def tensor(self) -> Tensor:
        """Make the tensor; half precision is widened when it is used."""
        whole = to_tensor(self.array)
        return whole if self.rows is None else RowsTensor(whole, self.rows)


def collect(
    path: Path,
    weights: Mapping[str, Entry],
    config: ModelConfig,
    names: Mapping[str, str],
    make: Callable[[str, str, Entry, tuple[int, ...]], Tensor],
    may_be_left: Callable[[str], bool],
) -> dict[str, tuple[Tensor, ...]]:
    """Find every tensor of a model.

    Parameters
    ----------
    path : Path
        The file's path, for error messages.
    weights : mapping of str to entry
        The file's tensors under the file's names, each a `Weight` or another format's entry.
    config : ModelConfig
        Determines which tensors are required.
    names : mapping of str to str
        The file's name for each of llama2.c's; ``{}`` stands for the layer.
    make : callable
        Makes a tensor from llama2.c's name, the file's name, the entry and the expected shape. It
        raises CheckpointError if the entry has another shape or dtype.
    may_be_left : callable
        Whether a tensor of the file, by its name, may be ignored.

    Raises
    ------
    CheckpointError
        If a tensor is missing, unexpected, or has the wrong shape or dtype.
    """
    shapes = tensor_shapes(config)
    wanted = {
        kind: [names[kind].format(layer) for layer in range(count)]
        for kind, (count, _) in shapes.items()
    }
    missing = [name for of_kind in wanted.values() for name in of_kind if name not in weights]
    if missing:
        raise CheckpointError(
            f"{path}: {listed(missing)} missing from a model of {config.n_layers} layers"
        )
    known = {name for of_kind in wanted.values() for name in of_kind}
    left = sorted(name for name in weights if name not in known and not may_be_left(name))
    if left:
        raise CheckpointError(
            f"{path}: {listed(left)} not part of a model of {config.n_layers} layers with these"
            " numbers"
        )
    return {
        kind: tuple(make(kind, name, weights[name], shape) for name in wanted[kind])
        for kind, (_, shape) in shapes.items()
    }


def check_dtype(path: Path, name: str, weight: Weight) -> None:
    """Refuse a tensor that does not hold floating-point numbers.

    Raises
    ------
    CheckpointError
        The message names the file, the tensor and its dtype.
    """
    if weight.array.dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} is of dtype {weight.dtype}, expected float32, float16 or bfloat16"
        )


def check_shape(path: Path, name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse a tensor with the wrong shape.

    Raises
    ------
    CheckpointError
        The message names the file, the tensor, and both shapes.
    """
    if found != shape:
        raise CheckpointError(f"{path}: {name} has shape {found}, expected {shape}")


def to_tensor(array: Array) -> Tensor:
    """Make the tensor of a vector or matrix; half precision is widened when it is used."""
    return DenseTensor(array) if array.dtype == np.float32 else StoredTensor(array)


def check_sharing(path: Path, tensors: Mapping[str, tuple[Tensor, ...]], file_size: int) -> None:
    """Refuse tensors that are far larger than their files.

    Many tensors over the same bytes would take memory without bound when the model is loaded.

    Raises
    ------
    CheckpointError
        The message has both sizes.
    """
    size = sum(tensor.nbytes for layers in tensors.values() for tensor in layers)
    if size > 2 * file_size:  # a classifier may share the embedding's bytes
        raise CheckpointError(
            f"{path}: its tensors share bytes: they have {size} bytes,"
            f" expected at most twice the {file_size} of the files"
        )


def largest_dtype(tensors: Mapping[str, tuple[Tensor, ...]]) -> str:
    """The dtype of the largest tensor, which stands for the model."""
    everything = (tensor for layers in tensors.values() for tensor in layers)
    return max(everything, key=lambda tensor: tensor.nbytes).dtype


def check_state_dict(path: Path, state: object) -> dict[str, Weight]:
    """Check that an object holds tensors by name, and remove ``torch.compile``'s prefix.

    Raises
    ------
    CheckpointError
        If it holds anything else, or two tensors have the same name.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: this is not a state_dict: tensors by name")
    weights: dict[str, Weight] = {}
    for name, weight in state.items():
        if not isinstance(name, str) or not isinstance(weight, Weight):
            raise CheckpointError(
                f"{path}: its {str(name)[:80]!r} is not a tensor, but a state_dict holds only"
                " tensors by name"
            )
        name = name.removeprefix("_orig_mod.")
        if name in weights:
            raise CheckpointError(f"{path}: two tensors are named {name[:80]!r}")
        weights[name] = weight
    return weights


def listed(names: Collection[str]) -> str:
    """The first three names, the number of others, and the verb: ``"'a', 'b' are"``."""
    first = [repr(name[:80]) for name in list(names)[:3]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(first)}{more} {'is' if len(names) == 1 else 'are'}"


def heads_of_pairs(config: ModelConfig) -> dict[str, int]:
    """The tensors that RoPE's order of channels concerns, and the heads that each one has."""
    heads = {"wq": config.n_heads, "bq": config.n_heads}
    heads |= {"wk": config.n_kv_heads, "bk": config.n_kv_heads}
    all_heads = config.qk_norm == "all"
    heads["rms_q_weight"] = config.n_heads if all_heads else 1
    heads["rms_k_weight"] = config.n_kv_heads if all_heads else 1
    return heads

"""From the tensors of a file, by its own names, to those of a model, by llama2.c's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import CheckpointError
from ..formats.mapped_file import MappedFile
from .base import Checkpoint
from .conventions import Conventions
from .stored import DTYPES
from .tensors import Tensor, tensor_shapes

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One tensor of a file.

    Attributes
    ----------
    dtype : str
        Its name, such as ``'bfloat16'``.
    array : ndarray
        A view of any strides. bfloat16 stands as its bits, in uint16; what is no floating-point
        dtype that llama2py reads, as opaque bytes.
    window : tuple
        Which part of which storage it is, where tensors share storages.
    """

    dtype: str
    array: NDArray[Any]
    window: tuple[Any, ...] = ()


def collect(
    path: Path,
    weights: Mapping[str, Entry],
    config: ModelConfig,
    names: Mapping[str, str],
    check: Callable[[Path, str, Entry, tuple[int, ...]], None],
    make: Callable[[str, Entry], Tensor],
    ignored: Callable[[str], bool],
) -> dict[str, tuple[Tensor, ...]]:
    """Gather the tensors of a model.

    Parameters
    ----------
    path : Path
        For errors.
    weights : mapping of str to entry
        The file's tensors by its names, each a `Weight` or what else the format has.
    config : ModelConfig
        Says which there must be.
    names : mapping of str to str
        The file's name for each of llama2.c's; ``{}`` stands for the layer.
    check : callable
        Of path, the file's name, entry and shape: refuses what is no such tensor.
    make : callable
        From llama2.c's name and an entry to the tensor.
    ignored : callable
        Whether a name of the file may be left over.

    Raises
    ------
    CheckpointError
        If a tensor is missing, of another shape or dtype, or one is left over.
    """
    shapes = tensor_shapes(config)
    wanted = {
        kind: [names[kind].format(layer) for layer in range(count)]
        for kind, (count, _) in shapes.items()
    }
    missing = [name for of_kind in wanted.values() for name in of_kind if name not in weights]
    if missing:
        raise CheckpointError(
            f"{path}: {listed(missing)} missing, expected all tensors of a LLaMA of"
            f" {config.n_layers} layers"
        )
    known = {name for of_kind in wanted.values() for name in of_kind}
    left = sorted(name for name in weights if name not in known and not ignored(name))
    if left:
        biases = " (biases are not supported)" if left[0].endswith(".bias") else ""
        raise CheckpointError(
            f"{path}: {listed(left)} too much{biases}, expected only the tensors of a LLaMA of"
            f" {config.n_layers} layers"
        )
    tensors = {}
    for kind, (_, shape) in shapes.items():
        for name in wanted[kind]:
            check(path, name, weights[name], shape)
        tensors[kind] = tuple(make(kind, weights[name]) for name in wanted[kind])
    return tensors


def check_weight(path: Path, name: str, weight: Weight, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape, or of a dtype that is no weight.

    Raises
    ------
    CheckpointError
        With the file, the tensor, and what was expected.
    """
    if weight.array.dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} is of dtype {weight.dtype}, expected float32, float16 or bfloat16"
        )
    check_shape(path, name, weight.array.shape, shape)


def check_shape(path: Path, name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape.

    Raises
    ------
    CheckpointError
        With the file, the tensor, and both shapes.
    """
    if found != shape:
        raise CheckpointError(f"{path}: {name} has shape {found}, expected {shape}")


def cut_to_window(seq_len: int, window: int) -> tuple[int, list[str]]:
    """The context within which sliding-window attention sees all, and a note if that is shorter.

    A window of 0 is none.
    """
    if not 0 < window < seq_len:
        return seq_len, []
    return window, [f"its context of {seq_len} is cut to its sliding window of {window}"]


def listed(names: Collection[str]) -> str:
    """The first names, how many more there are, and the verb."""
    first = [repr(name[:80]) for name in list(names)[:3]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(first)}{more} {'is' if len(names) == 1 else 'are'}"


def make_checkpoint(
    path: Path,
    format: str,
    config: ModelConfig,
    tensors: Mapping[str, tuple[Tensor, ...]],
    files: Sequence[MappedFile],
    tokenizer: Path | None = None,
    notes: Sequence[str] = (),
    conventions: Conventions | None = None,
) -> Checkpoint:
    """The checkpoint of tensors that were all found; its dtype is the largest one's.

    Raises
    ------
    CheckpointError
        If the tensors are far larger than the files: many of them stand on the same bytes, and
        loading would take memory without bound.
    """
    everything = [tensor for layers in tensors.values() for tensor in layers]
    size, held = sum(t.nbytes for t in everything), sum(file.size for file in files)
    if size > 2 * held:  # a classifier may share the embedding's bytes
        raise CheckpointError(
            f"{path}: its tensors share storages: {size} bytes, expected at most twice the {held}"
            " of the files"
        )
    largest = max(everything, key=lambda tensor: tensor.nbytes)
    dtype = DTYPES[largest.arrays[0].dtype]
    return Checkpoint(
        path, format, config, tensors, files, None, tokenizer, dtype, notes, conventions
    )


def unwrapped(path: Path, state: object) -> dict[str, Weight]:
    """Check that an object is a state_dict and take ``torch.compile``'s prefix off its names.

    Raises
    ------
    CheckpointError
        If it holds anything but tensors, or two have one name.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: this is no state_dict, expected tensors by name")
    weights: dict[str, Weight] = {}
    for name, weight in state.items():
        if not isinstance(name, str) or not isinstance(weight, Weight):
            raise CheckpointError(
                f"{path}: its {str(name)[:80]!r} is no tensor, expected only tensors by name"
            )
        name = name.removeprefix("_orig_mod.")
        if name in weights:
            raise CheckpointError(f"{path}: two tensors are named {name[:80]!r}, expected one")
        weights[name] = weight
    return weights

"""The tensors of a model in the order other programs' files have them, written one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from .base import Checkpoint
from .tensors import Tensor, tensor_shapes
from .write_numbers import Q8_0, WIDTHS, encode, encode_q8_0

Turn = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor of a file to be written.

    Attributes
    ----------
    name : str
        The file's name of it.
    kind, layer : str, int
        llama2.c's name, and which of that name's tensors.
    shape : tuple of int
        ``(n,)`` or ``(rows, cols)``.
    dtype : {'float32', 'float16', 'bfloat16', 'int8'}
        What it is written as; int8 is ggml's Q8_0.
    """

    name: str
    kind: str
    layer: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        size = math.prod(self.shape)
        if self.dtype == "int8":
            return size // Q8_0.size * Q8_0.record.itemsize
        return size * WIDTHS[self.dtype]


def items(
    config: ModelConfig, names: Mapping[str, str], dtype: Callable[[tuple[int, ...]], str]
) -> Iterator[Item]:
    """List a model's tensors: the embedding, each layer's, the norm and the classifier.

    Parameters
    ----------
    config : ModelConfig
        The model.
    names : mapping of str to str
        The file's name for each of llama2.c's; ``{}`` stands for the layer.
    dtype : callable
        From a tensor's shape to what it is written as.
    """
    shapes = tensor_shapes(config)
    in_layers = [kind for kind in shapes if "{}" in names[kind]]
    ends = [kind for kind in shapes if kind not in in_layers]
    order = [(kind, 0) for kind in ends[:1]]
    order += [(kind, layer) for layer in range(config.n_layers) for kind in in_layers]
    order += [(kind, 0) for kind in ends[1:]]
    for kind, layer in order:
        shape = shapes[kind][1]
        yield Item(names[kind].format(layer), kind, layer, shape, dtype(shape))


def write_item(
    out: BinaryIO,
    item: Item,
    checkpoint: Checkpoint,
    progress: Callable[[int], object],
    turn: Turn | None = None,
) -> None:
    """Write one tensor, then let its pages go.

    Parameters
    ----------
    out : binary file
        Where to.
    item : Item
        What.
    checkpoint : Checkpoint
        Where from.
    progress : callable
        Told the number of weights once they are written.
    turn : callable, optional
        Of llama2.c's name and the weights: what to write in their place.

    Raises
    ------
    CheckpointError
        Without a file's name: if the dtype cannot hold a weight.
    """
    tensor: Tensor = checkpoint.tensors[item.kind][item.layer]
    if item.dtype == "int8":
        parts = encode_q8_0(tensor, item.name)
    else:
        weights = tensor.dequantize()
        parts = encode(turn(item.kind, weights) if turn else weights, item.dtype, item.name)
    for part in parts:
        out.write(np.ascontiguousarray(part).view(np.uint8).data)
    checkpoint.release(tensor)
    progress(math.prod(item.shape))

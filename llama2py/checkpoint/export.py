"""Tensors as other programs' files have them: in their order, as their bytes, one at a time.

Numbers are rounded to the nearest, ties to even. A number that a format cannot hold is an error
that names the tensor, never an infinity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .gguf.blocks import FORMATS
from .quantize import round_to_bfloat16
from .state_dict import heads_of_pairs
from .tensors import QuantizedTensor, Tensor, in_rows, pair_rows, tensor_shapes

FileDtype: TypeAlias = Literal["float32", "float16", "bfloat16", "int8"]

# From llama2.c's name and a tensor to the tensor that a file has.
Adapt: TypeAlias = Callable[[str, Tensor], Tensor]

_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
_Q8_0 = FORMATS[8]
_BAND = 1 << 17  # weights that are converted at a time: intermediate results stay in the cache


# ---- which tensors ----


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor of a file to be written.

    Attributes
    ----------
    name : str
        The file's name.
    kind, layer : str, int
        llama2.c's name, and which of the tensors of that name. A tensor that joins several, rows
        below rows, has their names with ``+`` between them: ``'w1+w3'``.
    shape : tuple of int
        ``(n,)`` or ``(rows, cols)``.
    dtype : {'float32', 'float16', 'bfloat16', 'int8'}
        The dtype in the file; int8 is ggml's Q8_0.
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
            return size // _Q8_0.size * _Q8_0.record.itemsize
        return size * _WIDTHS[self.dtype]


def items(
    config: ModelConfig, names: Mapping[str, str], dtype: Callable[[tuple[int, ...]], str]
) -> Iterator[Item]:
    """List a model's tensors: the embedding, those of each layer, the norm and the classifier.

    Parameters
    ----------
    config : ModelConfig
        The model.
    names : mapping of str to str
        The file's name for each of llama2.c's, or of several with ``+`` between them that the file
        joins; ``{}`` stands for the layer.
    dtype : callable
        From a tensor's shape to its dtype in the file.
    """
    shapes = tensor_shapes(config)
    for kind in names:
        parts = kind.split("+")
        if len(parts) > 1:
            shapes = _joined(shapes, kind, parts)
    in_layers = [kind for kind in shapes if "{}" in names[kind]]
    ends = [kind for kind in shapes if kind not in in_layers]
    order = [(kind, 0) for kind in ends[:1]]
    order += [(kind, layer) for layer in range(config.n_layers) for kind in in_layers]
    order += [(kind, 0) for kind in ends[1:]]
    for kind, layer in order:
        shape = shapes[kind][1]
        yield Item(names[kind].format(layer), kind, layer, shape, dtype(shape))


def _joined(
    shapes: Mapping[str, tuple[int, tuple[int, ...]]], kind: str, parts: Sequence[str]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """The shapes with one tensor instead of its parts, in the place of the first."""
    count, (_, cols) = shapes[parts[0]]
    rows = sum(shapes[part][1][0] for part in parts)
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if name == parts[0]:
            found[kind] = (count, (rows, cols))
        elif name not in parts:
            found[name] = shape
    return found


def write_item(
    out: BinaryIO,
    item: Item,
    checkpoint: Checkpoint,
    progress: Callable[[int], object],
    adapt: Adapt,
) -> None:
    """Write one tensor.

    Parameters
    ----------
    out : binary file
        The output.
    item : Item
        The tensor.
    checkpoint : Checkpoint
        The model.
    progress : callable
        Called with the number of weights after they are written.
    adapt : callable
        From llama2.c's name and a tensor to the tensor with the rows in the order of the file.

    Raises
    ------
    CheckpointError
        Without the output's name: the dtype cannot hold a weight, or the source cannot be read.
    """
    for kind in item.kind.split("+"):  # rows below rows are bytes after bytes
        tensor = adapt(kind, checkpoint.tensors[kind][item.layer])
        if item.dtype == "int8":
            parts = encode_q8_0(tensor, item.name)
        else:
            parts = encode(tensor.dequantize(), item.dtype, item.name)
        for part in parts:
            out.write(np.ascontiguousarray(part).view(np.uint8).data)
    progress(math.prod(item.shape))


def in_halves(config: ModelConfig) -> Adapt:
    """Return what puts the rows of queries and keys into Hugging Face's order, as `pair_rows` says.

    Biases and norms have the order of the matrices.
    """
    heads = heads_of_pairs(config)

    def adapt(kind: str, tensor: Tensor) -> Tensor:
        if kind not in heads:
            return tensor
        rows = pair_rows(heads[kind], config.head_dim, config.rotated_dim)
        return in_rows(tensor, np.argsort(rows))

    return adapt


def same_steps(a: ModelConfig, b: ModelConfig) -> bool:
    """Whether two configs mean the same model, as far as float32 numbers can say."""

    def numbers(config: ModelConfig) -> list[Any]:
        others = {"rope_theta": 0, "rope_scaling": 0, "window_rope_theta": 0, "unrotated_layers": 0}
        values = [getattr(config, each.name) for each in fields(config) if each.name not in others]
        ropes = [config.rotation(layer) for layer in range(config.n_layers)]
        return [*values, *(number for freqs, scale in ropes for number in (*freqs, scale))]

    return all(
        math.isclose(x, y, rel_tol=1e-6)
        if isinstance(x, float) and isinstance(y, float)
        else x == y
        for x, y in itertools.zip_longest(numbers(a), numbers(b))
    )


def steps_of(config: ModelConfig) -> str:
    """List what sets a model apart from a LLaMA, for an error message."""
    usual = {each.name: each.default for each in fields(config)}
    rope = ("norm_eps", "rope_theta", "head_size", "rope_scaling", "shared_classifier")
    own = [name for name in usual if usual[name] != getattr(config, name) and name not in rope]
    return ", ".join(name for name in own if usual[name] is not MISSING)


# ---- their bytes ----


def encode(weights: NDArray[np.float32], dtype: str, name: str) -> Iterator[NDArray[Any]]:
    """Convert weights to a float dtype.

    Parameters
    ----------
    weights : ndarray, float32, any shape
        The weights, in C order.
    dtype : {'float32', 'float16', 'bfloat16'}
        The dtype.
    name : str
        Name of the tensor, for errors.

    Yields
    ------
    ndarray, float32, float16, or uint16 for bfloat16's bits, shape (n,)
        Together, all of the weights. NaN and infinities stay as they are.

    Raises
    ------
    CheckpointError
        Without a file's name: a finite weight is beyond the largest number of the dtype.
    """
    flat = weights.reshape(-1)
    for first in range(0, flat.size, _BAND):
        band = flat[first : first + _BAND]
        if dtype == "float32":
            yield band.astype("<f4", copy=False)
            continue
        if dtype == "float16":
            with np.errstate(over="ignore"):
                rounded: NDArray[Any] = band.astype("<f2")
            overflow = np.isinf(rounded) & np.isfinite(band)
        else:
            wide = round_to_bfloat16(band)
            overflow = np.isinf(wide) & np.isfinite(band)
            rounded = (wide.view(np.uint32) >> 16).astype("<u2")
            # A NaN whose bits are all in the lower half would become an infinity.
            rounded[np.isnan(band)] |= 0x40
        _refuse(name, dtype, band, overflow)
        yield rounded


def encode_q8_0(tensor: Tensor, name: str) -> Iterator[NDArray[Any]]:
    """Convert a matrix to blocks of ggml's Q8_0: 32 int8 values and a half-precision scale.

    Parameters
    ----------
    tensor : Tensor, shape (rows, cols), cols a multiple of 32
        A tensor with int8 values in groups of 32, and scales that half precision holds, keeps both.
        Others are quantized as in ggml's own reference: half away from zero.
    name : str
        Name of the tensor, for errors.

    Yields
    ------
    ndarray of records, shape (n,)
        Together, all of the blocks.

    Raises
    ------
    CheckpointError
        Without a file's name: a weight is not finite, or a scale is beyond half precision.
    """
    if isinstance(tensor, QuantizedTensor) and tensor.group_size == _Q8_0.size:
        values, scales = tensor.parts()
        with np.errstate(over="ignore"):
            halves = scales.astype("<f2")
        if np.array_equal(halves.astype(np.float32), scales):
            blocks = np.empty(halves.size, _Q8_0.record)
            blocks["d"] = halves.reshape(blocks["d"].shape)
            blocks["q"] = values.reshape(-1, _Q8_0.size)
            yield blocks
            return
    groups = tensor.dequantize().reshape(-1, _Q8_0.size)  # (n_blocks, 32)
    for first in range(0, len(groups), _BAND // _Q8_0.size):
        band = groups[first : first + _BAND // _Q8_0.size]
        yield _quantize_q8_0(band, name)


def _quantize_q8_0(groups: NDArray[np.float32], name: str) -> NDArray[Any]:
    """Quantize n groups of weights (n, 32) to n blocks."""
    scales = np.abs(groups).max(axis=1) / np.float32(127)  # (n,); NaN and infinity show in it
    if not np.isfinite(scales).all():
        raise CheckpointError(f"{name} has NaN or infinite weights, which int8 cannot hold")
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        halves = scales.astype("<f2")
        factors = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
        ratios = groups * factors[:, np.newaxis]
    if not np.isfinite(factors).all():
        # Where 1 / scale overflows the half is 0, so that any value stands for a weight of 0.
        ratios[~np.isfinite(factors)] = 0
    _refuse(name, "the float16 scales of int8", scales, np.isinf(halves))
    sizes = np.abs(ratios)
    whole = np.floor(sizes)
    sizes -= whole
    whole += sizes >= 0.5
    blocks = np.empty(len(groups), _Q8_0.record)
    blocks["d"] = halves.reshape(blocks["d"].shape)
    blocks["q"] = np.copysign(whole, ratios, out=ratios)
    return blocks


def _refuse(
    name: str, dtype: str, weights: NDArray[np.float32], overflow: NDArray[np.bool_]
) -> None:
    if overflow.any():
        worst = float(weights[overflow][0])
        raise CheckpointError(
            f"{name} holds {worst:g}, which is too large for {dtype}: use another dtype"
        )

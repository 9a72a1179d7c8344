"""The tensors of a checkpoint: their kinds, their llama2.c names, their shapes.

A tensor in a file is only a description. Each use of its weights reads them again, so that a
caller who goes through a checkpoint tensor by tensor holds one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import ParameterError
from ..formats.input_file import FileArray, in_memory

Array: TypeAlias = NDArray[Any] | FileArray
"""An array in memory, or one that lies in a file."""

# NumPy has no bfloat16: its bits are kept in a uint16.
DTYPES = {
    np.dtype(np.float32): "float32",
    np.dtype(np.float16): "float16",
    np.dtype(np.uint16): "bfloat16",
}


class Tensor(Protocol):
    """What every kind of tensor can do, however its file stores it.

    The engine packs `DenseTensor`, `StoredTensor` and `QuantizedTensor` as they are. From any other
    kind it takes the float32 values.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n,)`` or ``(rows, cols)``."""

    @property
    def dtype(self) -> str:
        """What the weights are stored as: ``'float32'``, ``'bfloat16'``, ``'int8'``, ``'Q4_K'``."""

    @property
    def nbytes(self) -> int:
        """Size in bytes, as stored."""

    @property
    def rows_in_file(self) -> FileArray | None:
        """Where the rows of a matrix lie in a file, one after the other; None if they do not."""

    def count_non_finite(self) -> int:
        """Return how many weights are NaN or infinite (of a quantized tensor, how many scales)."""

    def has_values(self) -> bool:
        """Whether any stored byte is not zero."""

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights as float32, in this tensor's shape.

        A tensor in a file reads them again each time. The array may be read-only.
        """


class DenseTensor:
    """A float32 vector or matrix.

    Parameters
    ----------
    data : ndarray or FileArray, float32, shape (n,) or (rows, cols)
        The weights.

    Raises
    ------
    ParameterError
        If ``data`` has another dtype or number of dimensions.
    """

    __slots__ = ("_data",)

    def __init__(self, data: Array) -> None:
        if data.dtype != np.float32 or data.ndim not in (1, 2):
            raise ParameterError(
                f"a dense tensor got {data.dtype} of shape {data.shape},"
                " expected a float32 vector or matrix"
            )
        self._data = data

    @property
    def data(self) -> NDArray[np.float32]:
        """The weights, of this tensor's shape: read again on each use if they are in a file."""
        return in_memory(self._data)

    @property
    def rows_in_file(self) -> FileArray | None:
        """Where the rows of a matrix lie in a file, one after the other; None if they do not."""
        return _rows_in_file(self._data)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n,)`` or ``(rows, cols)``."""
        return self._data.shape

    @property
    def dtype(self) -> str:
        """``'float32'``."""
        return "float32"

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._data.nbytes

    def count_non_finite(self) -> int:
        """Return how many weights are NaN or infinite."""
        data = self.data
        return int(data.size - np.count_nonzero(np.isfinite(data)))

    def has_values(self) -> bool:
        """Whether any weight is not zero."""
        return bool(self.data.any())

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights themselves; not a copy where they are in memory."""
        return self.data


class StoredTensor:
    """A vector or matrix as other programs store it: widened to float32 when it is used.

    Parameters
    ----------
    stored : ndarray or FileArray, float32, float16, or uint16 for bfloat16's bits
        The weights, shape (n,) or (rows, cols), with any strides.
    n_heads : int
        For wq and wk of Hugging Face: the number of heads. In each head the rows are ordered by
        the first channel of every rotary pair, then the second of every pair. `dequantize` puts
        the two channels of a pair side by side, as llama2.c rotates them. 0: rows stay.

    Raises
    ------
    ParameterError
        If the dtype or the number of dimensions is another.
    """

    __slots__ = ("_stored", "n_heads")

    def __init__(self, stored: Array, n_heads: int = 0) -> None:
        if stored.dtype not in DTYPES or stored.ndim not in (1, 2):
            raise ParameterError(
                f"a stored tensor got {stored.dtype} of shape {stored.shape},"
                " expected a vector or matrix of float32, float16 or bfloat16's bits"
            )
        self._stored = stored
        self.n_heads = n_heads

    @property
    def stored(self) -> NDArray[Any]:
        """The weights as they are stored: read again on each use if they are in a file."""
        return in_memory(self._stored)

    @property
    def is_plain(self) -> bool:
        """Whether the stored rows are this tensor's rows, one after the other."""
        in_c_order = (
            self._stored.strides is None
            if isinstance(self._stored, FileArray)
            else self._stored.flags.c_contiguous
        )
        return in_c_order and not self.n_heads

    @property
    def rows_in_file(self) -> FileArray | None:
        """Where the rows of a matrix lie in a file, one after the other; None if they do not."""
        return _rows_in_file(self._stored) if self.is_plain else None

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n,)`` or ``(rows, cols)``."""
        return self._stored.shape

    @property
    def dtype(self) -> str:
        """``'float32'``, ``'float16'`` or ``'bfloat16'``."""
        return DTYPES[self._stored.dtype]

    @property
    def nbytes(self) -> int:
        """Size in bytes, as stored."""
        return self._stored.nbytes

    def count_non_finite(self) -> int:
        """Return how many weights are NaN or infinite."""
        data = self.stored
        if data.dtype == np.uint16:
            return int(np.count_nonzero((data & 0x7F80) == 0x7F80))
        return int(data.size - np.count_nonzero(np.isfinite(data)))

    def has_values(self) -> bool:
        """Whether any weight is not zero."""
        return bool(self.stored.any())

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights, widened exactly.

        Returns
        -------
        ndarray, float32, of this tensor's shape
            A new array in C order.
        """
        data = self.stored
        if self.n_heads:
            rows, *cols = self.shape
            heads = data.reshape(self.n_heads, 2, rows // self.n_heads // 2, *cols)
            data = heads.swapaxes(1, 2)  # (n_heads, pairs, 2, cols)
        if data.dtype == np.uint16:  # bfloat16 is the upper half of a float32
            bits = data.astype(np.uint32, order="C")
            bits <<= 16
            return bits.view(np.float32).reshape(self.shape)
        return data.astype(np.float32, order="C").reshape(self.shape)


class JoinedTensor:
    """A matrix whose parts lie in several files.

    Parameters
    ----------
    parts : sequence of Tensor, matrices
        In order.
    axis : {0, 1}
        0: rows below rows; 1: columns beside columns.

    Raises
    ------
    ParameterError
        If the parts do not fit together.
    """

    __slots__ = ("axis", "parts")

    def __init__(self, parts: Sequence[Tensor], axis: int) -> None:
        across = {part.shape[1 - axis] for part in parts if len(part.shape) == 2}
        if len(across) != 1 or any(len(part.shape) != 2 for part in parts):
            raise ParameterError(
                f"shapes {[part.shape for part in parts]} do not join along axis {axis}"
            )
        self.parts, self.axis = parts, axis

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, cols)``."""
        long = sum(part.shape[self.axis] for part in self.parts)
        other = self.parts[0].shape[1 - self.axis]
        return (other, long) if self.axis else (long, other)

    @property
    def dtype(self) -> str:
        """What all parts are stored as, or ``'float32'`` where they differ."""
        dtypes = {part.dtype for part in self.parts}
        return dtypes.pop() if len(dtypes) == 1 else "float32"

    @property
    def rows_in_file(self) -> None:
        """None: the parts lie apart."""

    @property
    def nbytes(self) -> int:
        """Size of all parts in bytes, as stored."""
        return sum(part.nbytes for part in self.parts)

    def count_non_finite(self) -> int:
        """Return how many weights are NaN or infinite."""
        return sum(part.count_non_finite() for part in self.parts)

    def has_values(self) -> bool:
        """Whether any weight is not zero."""
        return any(part.has_values() for part in self.parts)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the whole matrix.

        Returns
        -------
        ndarray, float32, shape (rows, cols)
            A new array. At most one part is held beside it.
        """
        whole = np.empty(self.shape, np.float32)
        begin = 0
        for part in self.parts:
            end = begin + part.shape[self.axis]
            target = whole[:, begin:end] if self.axis else whole[begin:end]
            target[...] = part.dequantize()
            begin = end
        return whole


class RowsTensor:
    """Some rows of another tensor, in another order.

    Parameters
    ----------
    base : Tensor
        A vector, whose numbers count as rows, or a matrix.
    rows : ndarray of int, shape (n,)
        Which of its rows this tensor has.
    """

    __slots__ = ("base", "rows")

    def __init__(self, base: Tensor, rows: NDArray[np.int64]) -> None:
        self.base, self.rows = base, rows

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n,)`` or ``(n, cols)``."""
        return len(self.rows), *self.base.shape[1:]

    @property
    def dtype(self) -> str:
        """What the other tensor is stored as."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:
        """Size of these rows in bytes, as stored."""
        return self.base.nbytes * len(self.rows) // self.base.shape[0]

    @property
    def rows_in_file(self) -> None:
        """None: the rows do not lie one after the other."""

    def count_non_finite(self) -> int:
        """Return how many weights are NaN or infinite."""
        weights = self.dequantize()
        return int(weights.size - np.count_nonzero(np.isfinite(weights)))

    def has_values(self) -> bool:
        """Whether any weight is not zero."""
        return bool(self.dequantize().any())

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights, float32, of this tensor's shape: a new array."""
        return self.base.dequantize()[self.rows]


def pair_rows(n_heads: int, head_dim: int, rotary_dim: int) -> NDArray[np.int64]:
    """Return which row of Hugging Face's order each row of llama2.c's is.

    In each head, Hugging Face has the first channel of every rotary pair, then the second of every
    pair; llama2.c has the two channels of a pair side by side. Channels that are not rotated come
    last in both.

    Returns
    -------
    ndarray of int64, shape (n_heads * head_dim,)
    """
    pairs = np.arange(rotary_dim).reshape(2, -1).T.reshape(-1)  # 0, n / 2, 1, n / 2 + 1, ...
    head = np.concatenate([pairs, np.arange(rotary_dim, head_dim)])
    rows: NDArray[np.int64] = np.arange(n_heads)[:, np.newaxis] * head_dim + head
    return rows.reshape(-1)


class QuantizedTensor:
    """An int8 matrix with one float32 scale for each group of consecutive values.

    Groups run over the *flattened* matrix, so a group may reach from one row into the next.

    Parameters
    ----------
    values : ndarray or FileArray, int8, shape (rows, cols)
        The quantized weights.
    scales : ndarray or FileArray, float32, shape (rows * cols / group_size,)
        Each group's values are multiplied by its scale.
    group_size : int
        Number of values that share a scale.

    Attributes
    ----------
    bits : int
        8; or 4 for a kind of tensor whose rows are whole groups of 32 values from -8 to 7 with
        scales that are float16 numbers, which int4 holds exactly.

    Raises
    ------
    ParameterError
        If the parts do not fit together.
    """

    __slots__ = ("_scales", "_values", "group_size")

    bits: ClassVar[int] = 8

    def __init__(self, values: Array, scales: Array, group_size: int) -> None:
        if values.dtype != np.int8 or values.ndim != 2 or scales.dtype != np.float32:
            raise ParameterError(
                f"a quantized tensor got {values.dtype} values of shape {values.shape} and"
                f" {scales.dtype} scales, expected an int8 matrix and float32 scales"
            )
        if group_size < 1 or scales.ndim != 1 or values.size != scales.size * group_size:
            raise ParameterError(
                f"a quantized tensor got {values.size} values, group size {group_size} and"
                f" scales of shape {scales.shape}, expected one scale for each whole group"
            )
        self._values, self._scales, self.group_size = values, scales, group_size

    def parts(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return values (rows, cols) and scales (n_groups,), read in one go from a file."""
        return in_memory(self._values), in_memory(self._scales)

    @property
    def values(self) -> NDArray[np.int8]:
        """The quantized weights, int8, (rows, cols): read again on each use if in a file."""
        return in_memory(self._values)

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scales, (n_groups,): read again on each use if they are in a file."""
        return in_memory(self._scales)

    @property
    def rows_in_file(self) -> FileArray | None:
        """Where the rows of values lie in a file, one after the other; None if they do not."""
        return _rows_in_file(self._values)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, cols)``."""
        rows, cols = self._values.shape
        return rows, cols

    @property
    def dtype(self) -> str:
        """``'int8'``."""
        return "int8"

    @property
    def nbytes(self) -> int:
        """Size in bytes, values and scales together."""
        return self._values.nbytes + self._scales.nbytes

    def count_non_finite(self) -> int:
        """Return how many scales are NaN or infinite; each spoils its group."""
        scales = self.scales
        return int(scales.size - np.count_nonzero(np.isfinite(scales)))

    def has_values(self) -> bool:
        """Whether any value or scale is not zero."""
        return bool(self.scales.any() or self.values.any())

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights that this tensor stands for.

        Returns
        -------
        ndarray, float32, shape (rows, cols)
            Each value times its group's scale, a new array.
        """
        values, scales = self.parts()
        groups = values.reshape(-1, self.group_size)  # (n_groups, group_size)
        # int8 x float32: each product is rounded once. The scale of a damaged file may be NaN or
        # infinite: it stays so, without a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            return (groups * scales[:, np.newaxis]).reshape(self.shape)


class QuantizedRows(QuantizedTensor):
    """Some rows of a quantized matrix, in another order, with their values and scales.

    Parameters
    ----------
    base : QuantizedTensor
        The matrix. Its rows are whole groups.
    rows : ndarray of int, shape (n,)
        Which of its rows this tensor has.
    """

    __slots__ = ("base", "rows")

    def __init__(self, base: QuantizedTensor, rows: NDArray[np.int64]) -> None:
        # Not the parent's: it wants the values and the scales, which are made on use.
        self.base, self.rows, self.group_size = base, rows, base.group_size

    def parts(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return values (n, cols) and scales (n_groups,), new arrays."""
        values, scales = self.base.parts()
        return values[self.rows], scales.reshape(len(values), -1)[self.rows].reshape(-1)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Those of the other matrix."""
        return self.base.bits

    @property
    def values(self) -> NDArray[np.int8]:
        """The quantized weights, int8, (n, cols): a new array."""
        return self.parts()[0]

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scales, (n_groups,): a new array."""
        return self.parts()[1]

    @property
    def rows_in_file(self) -> None:
        """None: the rows do not lie one after the other."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, cols)``."""
        return len(self.rows), self.base.shape[1]

    @property
    def dtype(self) -> str:
        """That of the other matrix."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:
        """Size of these rows in bytes, values and scales together."""
        return self.base.nbytes * len(self.rows) // self.base.shape[0]


def in_rows(tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """Return some rows of a tensor in another order; one that is quantized stays so."""
    if isinstance(tensor, QuantizedTensor) and tensor.shape[1] % tensor.group_size == 0:
        return QuantizedRows(tensor, rows)
    return RowsTensor(tensor, rows)


def _rows_in_file(array: Array) -> FileArray | None:
    if isinstance(array, FileArray) and array.ndim == 2 and array.strides is None:
        return array
    return None


def quantize(weights: NDArray[np.float32], group_size: int) -> QuantizedTensor:
    """Quantize a matrix to int8 as llama2.c's exporter does for its v2 files.

    All in float32, over groups of the flattened matrix: ``scale = max|w| / 127``,
    ``value = w / scale`` rounded half to even.

    Parameters
    ----------
    weights : ndarray, float32, shape (rows, cols)
        The weights.
    group_size : int
        Number of consecutive values that share a scale; it divides ``rows * cols``.

    Returns
    -------
    QuantizedTensor, shape (rows, cols)
        A group of zeros gets scale 0 and values 0. (The exporter divides 0 by 0 there; the NaN that
        it casts to int8 becomes 0 on x86, so the file is the same.)

    Raises
    ------
    ParameterError
        If ``group_size`` does not divide the matrix, or a weight is not finite: no scale holds it.

    Notes
    -----
    Source: ``quantize_q80`` in llama2.c's ``export.py``.
    """
    if weights.ndim != 2 or not weights.size:
        raise ParameterError(f"cannot quantize shape {weights.shape}, expected a matrix")
    if group_size < 1 or weights.size % group_size:
        raise ParameterError(
            f"group_size is {group_size}, expected a positive divisor of the"
            f" {weights.size} weights of shape {weights.shape}"
        )
    groups = np.asarray(weights, dtype=np.float32).reshape(-1, group_size)  # (n_groups, group_size)
    # max and min rather than abs: no copy of the matrix. The outer abs turns a peak of -0 into 0.
    peaks = np.abs(np.maximum(groups.max(axis=1), -groups.min(axis=1)))  # (n_groups,)
    if not np.isfinite(peaks).all():
        raise ParameterError("cannot quantize NaN or infinity")
    scales = peaks / np.float32(127)  # (n_groups,)
    # A scale of 0 (a group of zeros, or of numbers so small that the division underflows) would
    # divide by 0; dividing by 1 rounds that group to the zeros it should be.
    divisors = np.where(scales > 0, scales, np.float32(1))
    ratios = groups / divisors[:, np.newaxis]  # (n_groups, group_size)
    np.rint(ratios, out=ratios)
    # Only where a scale is subnormal, and so coarse, can a ratio exceed 127; int8 would wrap it.
    np.clip(ratios, -127, 127, out=ratios)
    return QuantizedTensor(ratios.astype(np.int8).reshape(weights.shape), scales, group_size)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, tuple[int, ...]]]:
    """List the tensors of a model.

    Parameters
    ----------
    config : ModelConfig
        The model.

    Returns
    -------
    dict of str to (int, tuple of int)
        For each of llama2.c's names: the number of tensors (``n_layers``, or 1) and the shape of
        each. Matrices are (outputs, inputs): ``W (d, n) @ x (n,) -> (d,)``. ``wcls`` is there only
        where the classifier is not the token embedding. Vectors that llama2.c's models lack are
        there if the config has their step: the norms ``rms_att_post_weight``,
        ``rms_ffn_post_weight``, ``rms_q_weight`` and ``rms_k_weight``, and the bias of each matrix,
        ``bq`` for ``wq`` and so on.
    """
    layers, dim, hidden = config.n_layers, config.dim, config.hidden_dim
    vectors = config.layer_vectors
    shapes: dict[str, tuple[int, tuple[int, ...]]] = {
        "token_embedding_table": (1, (config.vocab_size, dim)),
        "rms_att_weight": (layers, (dim,)),
        "wq": (layers, (config.q_dim, dim)),
        "wk": (layers, (config.kv_dim, dim)),
        "wv": (layers, (config.kv_dim, dim)),
        "wo": (layers, (dim, config.q_dim)),
        "rms_ffn_weight": (layers, (dim,)),
        "w1": (layers, (hidden, dim)),
        "w2": (layers, (dim, hidden)),
        "w3": (layers, (hidden, dim)),
    }
    if not config.pre_norm:
        del shapes["rms_att_weight"], shapes["rms_ffn_weight"]
    shapes |= {name: (layers, (length,)) for name, length in vectors.items() if name not in shapes}
    shapes["rms_final_weight"] = (1, (dim,))
    if not config.shared_classifier:
        shapes["wcls"] = (1, (config.vocab_size, dim))
    return shapes


def check_tensors(config: ModelConfig, tensors: Mapping[str, Sequence[Tensor]]) -> None:
    """Refuse tensors whose names, counts or shapes are not those of a model.

    Raises
    ------
    ParameterError
        With what was found and expected.
    """
    shapes = tensor_shapes(config)
    if tensors.keys() != shapes.keys():
        raise ParameterError(f"the tensors are {sorted(tensors)}, expected {sorted(shapes)}")
    for name, (count, shape) in shapes.items():
        found = [tensor.shape for tensor in tensors[name]]
        if found != [shape] * count:
            raise ParameterError(f"{name} has shapes {found}, expected {count} of {shape}")

"""The tensors of a checkpoint: dense or quantized, their llama2.c names and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import ParameterError


@dataclass(frozen=True, slots=True, eq=False)
class DenseTensor:
    """A float32 vector or matrix.

    Parameters
    ----------
    data : ndarray, float32, shape (n,) or (rows, cols)
        The weights. Often a read-only view into a mapped file, and then maybe not aligned to four
        bytes (``data.flags.aligned``): NumPy reads such a view as any other, C must go by bytes.

    Raises
    ------
    ParameterError
        If ``data`` has another dtype or number of dimensions.
    """

    data: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.data.dtype != np.float32 or self.data.ndim not in (1, 2):
            raise ParameterError(
                f"a dense tensor got {self.data.dtype} of shape {self.data.shape},"
                " expected a float32 vector or matrix"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n,)`` or ``(rows, cols)``."""
        return self.data.shape

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.data.nbytes

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The array behind it."""
        return (self.data,)

    def count_non_finite(self) -> int:
        """How many weights are NaN or infinite."""
        return int(self.data.size - np.count_nonzero(np.isfinite(self.data)))

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights themselves, so that callers may treat both kinds alike.

        Returns
        -------
        ndarray, float32, of this tensor's shape
            ``data``, not a copy.
        """
        return self.data


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """An int8 matrix with one float32 scale for each group of consecutive values.

    Groups run over the *flattened* matrix, so a group may reach from one row into the next.

    Parameters
    ----------
    values : ndarray, int8, shape (rows, cols)
        The quantized weights.
    scales : ndarray, float32, shape (rows * cols / group_size,)
        What to multiply each group's values with. Maybe not aligned, as in `DenseTensor`.
    group_size : int
        Number of values that share a scale.

    Attributes
    ----------
    bits : int
        8; or 4 of a kind of tensor whose rows are whole groups of 32 values from -8 to 7, with
        scales that are float16 numbers: what int4 holds exactly.

    Raises
    ------
    ParameterError
        If the parts do not fit together.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    group_size: int
    bits: ClassVar[int] = 8

    def __post_init__(self) -> None:
        values, scales = self.values, self.scales
        if values.dtype != np.int8 or values.ndim != 2 or scales.dtype != np.float32:
            raise ParameterError(
                f"a quantized tensor got {values.dtype} values of shape {values.shape} and"
                f" {scales.dtype} scales, expected an int8 matrix and float32 scales"
            )
        if self.group_size < 1 or scales.ndim != 1 or values.size != scales.size * self.group_size:
            raise ParameterError(
                f"a quantized tensor got {values.size} values, group size {self.group_size} and"
                f" scales of shape {scales.shape}, expected one scale for each whole group"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, cols)``."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Size in bytes, values and scales together."""
        return self.values.nbytes + self.scales.nbytes

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The two arrays behind it."""
        return (self.values, self.scales)

    def count_non_finite(self) -> int:
        """How many scales are NaN or infinite; each spoils its group."""
        return int(self.scales.size - np.count_nonzero(np.isfinite(self.scales)))

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights this tensor stands for.

        Returns
        -------
        ndarray, float32, shape (rows, cols)
            Each value times its group's scale, a new array.
        """
        groups = self.values.reshape(-1, self.group_size)  # (n_groups, group_size)
        # int8 x float32: each product is rounded once. A damaged file's scale may be anything: an
        # infinity or a NaN stays one, without a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            return (groups * self.scales[:, np.newaxis]).reshape(self.shape)


class Tensor(Protocol):
    """What every kind of tensor can do, however its file stores it.

    `DenseTensor` and `QuantizedTensor` are what backends compute with; from any other kind they
    take the float32 values, one tensor at a time.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n,)`` or ``(rows, cols)``."""

    @property
    def nbytes(self) -> int:
        """Size in bytes, as stored."""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays behind it, views into mapped files as a rule: what to release."""

    def count_non_finite(self) -> int:
        """How many weights (or scales) are NaN or infinite."""

    def dequantize(self) -> NDArray[np.float32]:
        """The weights as float32, of this tensor's shape: a view where possible, or a new array."""


def quantize(weights: NDArray[np.float32], group_size: int) -> QuantizedTensor:
    """Quantize a matrix to int8 as llama2.c's exporter does for its v2 files.

    All in float32, over groups of the flattened matrix: ``scale = max|w| / 127``,
    ``value = w / scale`` rounded half to even.

    Parameters
    ----------
    weights : ndarray, float32, shape (rows, cols)
        What to quantize.
    group_size : int
        Number of consecutive values that share a scale; it divides ``rows * cols``.

    Returns
    -------
    QuantizedTensor, shape (rows, cols)
        A group of zeros gets scale 0 and values 0. (The exporter divides 0 by 0 there; the NaN it
        casts to int8 comes out as 0 on x86, so the file is the same.)

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
        raise ParameterError("cannot quantize NaN or infinity, expected finite weights")
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
    """Name every tensor of a model, with how many there are and their shape.

    Parameters
    ----------
    config : ModelConfig
        The model.

    Returns
    -------
    dict of str to (int, tuple of int)
        By llama2.c's names: the number of tensors (``n_layers``, or 1) and the shape of each.
        Matrices are (outputs, inputs): ``W (d, n) @ x (n,) -> (d,)``. ``wcls`` is there only where
        the classifier is not the token embedding.
    """
    layers, dim, hidden = config.n_layers, config.dim, config.hidden_dim
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
        "rms_final_weight": (1, (dim,)),
    }
    if not config.shared_classifier:
        shapes["wcls"] = (1, (config.vocab_size, dim))
    return shapes

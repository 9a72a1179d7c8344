"""Writes llama2.c's own checkpoints, v0, v1 and v2, whole or not at all."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import CheckpointError, ParameterError
from ..formats.atomic_write import replacing
from .base import Checkpoint
from .llama2c_layout import Section, header_config, header_numbers, lay_out, pack_header
from .tensors import QuantizedTensor, Tensor, quantize, tensor_shapes

_Place: TypeAlias = tuple[Section, int]  # and a layer


def write_checkpoint(
    path: str | os.PathLike[str], config: ModelConfig, tensors: Mapping[str, tuple[Tensor, ...]]
) -> None:
    """Write tensors as a llama2.c checkpoint of version 0; see `write_llama2c`.

    Parameters
    ----------
    path : str or path-like
        Where to.
    config : ModelConfig
        The numbers of the model.
    tensors : mapping of str to tuple of Tensor
        Names, counts and shapes as `tensor_shapes` has them. Of any kind: what is written is the
        float32 that they stand for.

    Raises
    ------
    ParameterError
        If the tensors are not those of the model.
    CheckpointError
        If the format has no place for one of the model's numbers, or the file cannot be written.
    """
    path = Path(path)
    _check_tensors(config, tensors)
    write_llama2c(path, Checkpoint(path, "in memory", config, tensors, ()), version=0)


def write_llama2c(
    path: Path,
    checkpoint: Checkpoint,
    version: int,
    group_size: int | None = None,
    threads: int = 1,
    progress: Callable[[int], object] = lambda weights: None,
) -> None:
    """Write any checkpoint as llama2.c's, holding as many tensors at a time as there are threads.

    The file appears, or takes an older one's place, only once it is complete and on disk; where
    anything goes wrong the older one stays. Writing over the checkpoint's very own file is fine.

    Parameters
    ----------
    path : Path
        Where to. A symbolic link is followed.
    checkpoint : Checkpoint
        The model, of any format.
    version : {0, 1, 2}
        Of the file. v0's two unused RoPE tables are written as zeros.
    group_size : int, optional
        For v2, and only for it: values per scale. int8 matrices with groups of this size are kept
        as they are, all others are quantized.
    threads : int
        How many matrices are quantized at once: NumPy's work runs beside itself.
    progress : callable
        Told the number of weights of each tensor that is written.

    Raises
    ------
    ParameterError
        If ``group_size`` does not divide ``dim``.
    CheckpointError
        If the format has no place for one of the model's numbers, a weight that is to be quantized
        is not finite, or the file cannot be written.
    """
    config = checkpoint.config
    check_config(path, config)
    if group_size is not None and (group_size < 1 or config.dim % group_size):
        raise ParameterError(
            f"group_size is {group_size}, expected a positive divisor of dim {config.dim}"
        )

    def prepare(place: _Place) -> Tensor:
        section, layer = place
        tensor = checkpoint.tensors[section.name][layer]
        if not section.quantized or getattr(tensor, "group_size", None) == group_size:
            return tensor
        assert group_size is not None, "only v2 has quantized sections"
        try:
            return quantize(tensor.dequantize(), group_size)
        except ParameterError as error:
            raise CheckpointError(f"{path}: {section.name}: {error}") from None

    def in_order(places: list[_Place]) -> Iterator[Tensor]:
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque[Future[Tensor]] = deque()
            left = iter(places)
            for section, layer in places:
                ahead += [
                    pool.submit(prepare, place) for place in islice(left, threads - len(ahead))
                ]
                yield ahead.popleft().result()
                checkpoint.release(checkpoint.tensors[section.name][layer])
                progress(math.prod(section.shape))

    sections, file_size = lay_out(config, version, group_size)
    places = [(section, layer) for section in sections for layer in range(section.count)]
    with replacing(path, CheckpointError) as out:
        out.write(pack_header(config, version, group_size))
        for (section, layer), tensor in zip(places, in_order(places), strict=True):
            # The RoPE tables of v0.
            out.write(bytes(section.offset + layer * section.stride - out.tell()))
            for array in _arrays(section, tensor):
                out.write(np.ascontiguousarray(array).data)
        out.write(bytes(file_size - out.tell()))  # the RoPE tables, with no classifier behind


def _arrays(section: Section, tensor: Tensor) -> Iterator[NDArray[Any]]:
    if section.quantized and isinstance(tensor, QuantizedTensor):
        yield tensor.values
        yield tensor.scales.astype("<f4", copy=False)
    else:
        yield tensor.dequantize().astype("<f4", copy=False)


def check_config(path: Path, config: ModelConfig) -> None:
    """Refuse a model of which the header would say less than it needs (another RoPE base, say)."""
    if config.head_size is not None:
        raise CheckpointError(
            f"{path}: a llama2.c file cannot say that the head size is {config.head_dim},"
            f" expected dim {config.dim} / n_heads {config.n_heads}, or the format gguf or hf"
        )
    implied = header_config(header_numbers(config), config.shared_classifier)
    for name in (field.name for field in fields(config)):
        value, expected = getattr(config, name), getattr(implied, name)
        if value != expected:
            raise CheckpointError(
                f"{path}: a llama2.c file cannot say that {name} is {value},"
                f" expected the {expected} that llama2.c means, or the format gguf or hf"
            )


def _check_tensors(config: ModelConfig, tensors: Mapping[str, tuple[Tensor, ...]]) -> None:
    shapes = tensor_shapes(config)
    if tensors.keys() != shapes.keys():
        raise ParameterError(f"the tensors are {sorted(tensors)}, expected {sorted(shapes)}")
    for name, (count, shape) in shapes.items():
        found = [tensor.shape for tensor in tensors[name]]
        if found != [shape] * count:
            raise ParameterError(f"{name} has shapes {found}, expected {count} of {shape}")

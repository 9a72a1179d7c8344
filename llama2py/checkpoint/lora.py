"""LoRA adapters, merged into a checkpoint's matrices: W + scale * B A.

Source: ``peft/tuners/lora`` of huggingface/peft (``adapter_config.json`` and its weights), and
``convert_lora_to_gguf.py`` of ggml-org/llama.cpp (GGUF adapters).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from ..formats import sniff
from ..formats.bounded_json import read_object
from ..formats.gguf_metadata import GGUFFields
from ..formats.input_file import InputFile, named
from .checkpoint import Checkpoint
from .gguf.config import ARCHITECTURES, architecture_of
from .gguf.files import open_model
from .gguf.reader import NAMES as GGUF_NAMES
from .huggingface.reader import names as huggingface_names
from .huggingface.safetensors import read_safetensors
from .state_dict import (
    Weight,
    check_dtype,
    check_shape,
    check_state_dict,
    heads_of_pairs,
    listed,
)
from .tensors import RowsTensor, Tensor, in_rows, pair_rows
from .torch.file import read_torch_file

_MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls")
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# Matrices that some families join, and their parts in order.
_JOINED = {"self_attn.qkv_proj": ("wq", "wk", "wv"), "mlp.gate_up_proj": ("w1", "w3")}
_BAND = 1 << 16  # weights that are added up at a time: they stay in the cache


class Factors(NamedTuple):
    """What an adapter adds to one matrix: ``scale * b @ a``."""

    a: Tensor
    """(rank, cols)"""
    b: Tensor
    """(rows, rank)"""
    scale: float


class LoraTensor:
    """A matrix with what an adapter adds to it.

    Parameters
    ----------
    base : Tensor, shape (rows, cols)
        The matrix.
    factors : Factors
        What is added to it.
    """

    __slots__ = ("base", "factors")

    def __init__(self, base: Tensor, factors: Factors) -> None:
        self.base, self.factors = base, factors

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, cols)``."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """``'float32'``: the sum is computed on use."""
        return "float32"

    @property
    def nbytes(self) -> int:
        """Size of the matrix in bytes, as stored."""
        return self.base.nbytes

    @property
    def rows_in_file(self) -> None:
        """None: the file has other numbers."""

    def count_non_finite(self) -> int:
        """Return how many weights are NaN or infinite."""
        weights = self.dequantize()
        return int(weights.size - np.count_nonzero(np.isfinite(weights)))

    def has_values(self) -> bool:
        """Whether any weight is not zero."""
        return bool(self.dequantize().any())

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights, float32, of this tensor's shape: a new array.

        Products are added in the order of the ranks, in float32, so that the weights have the same
        bits on every machine.
        """
        weights = np.array(self.base.dequantize())
        a, scale = self.factors.a.dequantize(), np.float32(self.factors.scale)
        b = self.factors.b.dequantize()
        rows = max(1, _BAND // a.shape[1])
        with np.errstate(all="ignore"):  # NaN and infinity stay, without a warning
            for first in range(0, len(b), rows):
                band = b[first : first + rows]
                total = np.zeros((len(band), a.shape[1]), np.float32)
                term = np.empty_like(total)
                for i in range(len(a)):
                    np.multiply(band[:, i : i + 1], a[i], out=term)
                    total += term
                total *= scale
                weights[first : first + rows] += total
        return weights


def merge_lora(checkpoint: Checkpoint, path: Path) -> None:
    """Add an adapter's products to the matrices of a checkpoint, which are computed on use.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model. It closes the adapter's file.
    path : Path
        A directory with an ``adapter_config.json`` and its weights, one of these files, or a GGUF
        adapter.

    Raises
    ------
    CheckpointError
        If the adapter is missing or malformed, belongs to a model of another shape, or has parts
        other than LoRA's factors of matrices.
    """
    is_file = path.is_file() and path.name not in (*_WEIGHTS, "adapter_config.json")
    with contextlib.ExitStack() as stack:
        if is_file:
            file = InputFile(path)
            stack.callback(file.close)
            if sniff.kind_of(file.read(0, sniff.HEAD)) != sniff.GGUF:
                raise CheckpointError(
                    f"{path}: this is no LoRA adapter, expected a directory with an"
                    " adapter_config.json, or a GGUF adapter"
                )
            found = _read_gguf(file, checkpoint.config)
        else:
            folder = path if path.is_dir() else path.parent
            file, found = _read_peft(folder, checkpoint.config, stack)
        tensors = {kind: list(layers) for kind, layers in checkpoint.tensors.items()}
        for (kind, layer), factors in found.items():
            base = tensors[kind][layer]
            _check_shapes(file.path, kind, base, factors)
            tensors[kind][layer] = LoraTensor(base, factors)
        adapted = {kind: tuple(layers) for kind, layers in tensors.items()}
        checkpoint.adapt(adapted, file, f"{len(found)} matrices are changed by {path}")
        stack.pop_all()


def _check_shapes(path: Path, kind: str, base: Tensor, factors: Factors) -> None:
    a, b = factors.a.shape, factors.b.shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != base.shape:
        raise CheckpointError(
            f"{path}: the factors of a {kind} have shapes {b} and {a}, which do not make"
            f" {base.shape}: the adapter belongs to another model"
        )


# ---- PEFT ----


def _read_peft(
    folder: Path, config: ModelConfig, stack: contextlib.ExitStack
) -> tuple[InputFile, dict[tuple[str, int], Factors]]:
    about = read_object(folder / "adapter_config.json")
    if about.text("peft_type", "LORA") != "LORA":
        raise about.error("peft_type", '"LORA"')
    for name in ("use_dora", "fan_in_fan_out"):
        if about.flag(name):
            raise about.error(name, "false")
    for name in ("modules_to_save", "alpha_pattern"):
        if about.values.get(name):
            raise about.error(name, "empty: only LoRA's factors with one alpha are supported")
    alpha, root = about.number("lora_alpha", 8.0), about.flag("use_rslora")
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: the adapter has no weights, expected {_WEIGHTS[0]}")
    file = InputFile(path)
    stack.callback(file.close)
    if path.suffix == ".safetensors":
        weights = read_safetensors(file)
    else:
        weights = check_state_dict(path, read_torch_file(file))
    halves: dict[str, dict[str, Weight]] = {}
    other = []
    for name, weight in weights.items():
        check_dtype(path, name, weight)
        if len(weight.shape) != 2:
            raise CheckpointError(f"{path}: {name} has shape {weight.shape}, expected a matrix")
        match = _NAME.fullmatch(name)
        if match is None:
            other.append(name)
        else:
            halves.setdefault(match[1], {})[match[2]] = weight
    other += [name for name, parts in halves.items() if len(parts) != 2]
    places = _peft_places(config)
    other += [name for name in halves if name not in places]
    if other:
        raise CheckpointError(
            f"{path}: {listed(sorted(other))} not LoRA factors of the model's matrices"
        )
    found: dict[tuple[str, int], Factors] = {}
    for name, parts in halves.items():
        n_rows = sum(len(rows) for _, _, rows in places[name])
        rank = parts["B"].shape[-1] if parts["B"].shape else 0
        check_shape(path, f"{name}.lora_B.weight", parts["B"].shape, (n_rows, rank))
        check_shape(path, f"{name}.lora_A.weight", parts["A"].shape[:1], (rank,))
        a, b = parts["A"].tensor(), parts["B"].tensor()
        scale = alpha / (math.sqrt(max(rank, 1)) if root else max(rank, 1))
        for kind, layer, rows in places[name]:
            found[kind, layer] = Factors(a, RowsTensor(b, rows), scale)
    return file, found


def _peft_places(config: ModelConfig) -> dict[str, list[tuple[str, int, NDArray[np.int64]]]]:
    """From a module's name to the matrices in it: llama2.c's name, the layer, and its rows."""
    names, heads = huggingface_names(config), heads_of_pairs(config)
    hidden, dim, kv = config.hidden_dim, config.dim, config.kv_dim
    n_rows = {"wq": config.q_dim, "wk": kv, "wv": kv, "wo": dim, "w1": hidden, "w2": dim}
    n_rows |= {"w3": hidden, "wcls": config.vocab_size}
    orders = {kind: np.arange(n) for kind, n in n_rows.items()}
    for kind in ("wq", "wk"):
        orders[kind] = pair_rows(heads[kind], config.head_dim, config.rotated_dim)
    found: dict[str, list[tuple[str, int, NDArray[np.int64]]]] = {}
    for kind in _MATRICES:
        if kind == "wcls" and config.shared_classifier:
            continue
        for layer in range(1 if kind == "wcls" else config.n_layers):
            name = names[kind].format(layer).removesuffix(".weight")
            found[name] = [(kind, layer, orders[kind])]
    for layer in range(config.n_layers):
        for joined, kinds in _JOINED.items():
            first, parts = 0, []
            for kind in kinds:
                parts.append((kind, layer, first + orders[kind]))
                first += n_rows[kind]
            found[f"model.layers.{layer}.{joined}"] = parts
    return found


# ---- GGUF ----


def _read_gguf(file: InputFile, config: ModelConfig) -> dict[tuple[str, int], Factors]:
    model = open_model(file)
    if len(model.files) > 1:
        for part in model.files:
            part.close()
        raise CheckpointError(f"{file.path}: the adapter is in several files, expected one")
    fields = GGUFFields(model.pairs, CheckpointError)
    try:
        if fields.text("general.type", b"model") != b"adapter":
            raise fields.wrong("general.type", "b'adapter'")
        if fields.text("adapter.type") != b"lora":
            raise fields.wrong("adapter.type", "b'lora'")
        alpha = fields.number("adapter.lora.alpha", 0.0)
        in_pairs = ARCHITECTURES[architecture_of(model.pairs)].in_pairs
    except (CheckpointError, ConfigError) as error:
        raise named(file.path, CheckpointError(str(error))) from None
    heads: Mapping[str, int] = {} if in_pairs else heads_of_pairs(config)
    found: dict[tuple[str, int], Factors] = {}
    known = set()
    for kind in _MATRICES:
        if kind == "wcls" and config.shared_classifier:
            continue
        for layer in range(1 if kind == "wcls" else config.n_layers):
            names = [f"{GGUF_NAMES[kind].format(layer)}.lora_{half}" for half in "ab"]
            if not all(name in model.places for name in names):
                continue
            known |= set(names)
            shapes = [model.places[name].dims[::-1] for name in names]
            check_shape(file.path, names[1], shapes[1][1:], shapes[0][:1])  # the rank
            a, b = (model.places[name].tensor() for name in names)
            rank = max(shapes[0][0], 1)
            if kind in heads:
                check_shape(file.path, names[1], b.shape[:1], (heads[kind] * config.head_dim,))
                b = in_rows(b, pair_rows(heads[kind], config.head_dim, config.rotated_dim))
            # As in llama.cpp, an alpha of 0 means a scale of 1.
            found[kind, layer] = Factors(a, b, alpha / rank if alpha else 1.0)
    other = sorted(model.places.keys() - known)
    if other:
        raise CheckpointError(
            f"{file.path}: {listed(other)} not LoRA factors of the model's matrices"
        )
    return found

"""The reader of Hugging Face directories: ``config.json``, and safetensors or PyTorch's files.

Source: the ``modeling_*.py`` of each family of models, and ``convert_llama_weights_to_hf.py``, of
huggingface/transformers; InternLM2's own code.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...config import ModelConfig
from ...errors import CheckpointError
from ...formats.bounded_json import read_object
from ...formats.input_file import InputFile
from ..checkpoint import Checkpoint, Details
from ..conventions import huggingface_conventions
from ..state_dict import (
    Weight,
    check_dtype,
    check_shape,
    check_sharing,
    check_state_dict,
    collect,
    heads_of_pairs,
    largest_dtype,
)
from ..tensors import RowsTensor, StoredTensor, Tensor, pair_rows
from ..torch.file import Allowance as TorchAllowance
from ..torch.file import Opened, open_each, read_torch_file
from .config import Family, read_config
from .safetensors import Allowance as SafetensorsAllowance
from .safetensors import read_safetensors

_NAMES = {
    "token_embedding_table": "model.embed_tokens.weight",
    "rms_att_weight": "model.layers.{}.input_layernorm.weight",
    "wq": "model.layers.{}.self_attn.q_proj.weight",
    "wk": "model.layers.{}.self_attn.k_proj.weight",
    "wv": "model.layers.{}.self_attn.v_proj.weight",
    "wo": "model.layers.{}.self_attn.o_proj.weight",
    "rms_ffn_weight": "model.layers.{}.post_attention_layernorm.weight",
    "w1": "model.layers.{}.mlp.gate_proj.weight",
    "w2": "model.layers.{}.mlp.down_proj.weight",
    "w3": "model.layers.{}.mlp.up_proj.weight",
    "rms_final_weight": "model.norm.weight",
    "wcls": "lm_head.weight",
    # Of the optional steps.
    "rms_att_post_weight": "model.layers.{}.post_attention_layernorm.weight",
    "rms_ffn_post_weight": "model.layers.{}.post_feedforward_layernorm.weight",
    "rms_q_weight": "model.layers.{}.self_attn.q_norm.weight",
    "rms_k_weight": "model.layers.{}.self_attn.k_norm.weight",
    "bq": "model.layers.{}.self_attn.q_proj.bias",
    "bk": "model.layers.{}.self_attn.k_proj.bias",
    "bv": "model.layers.{}.self_attn.v_proj.bias",
    "bo": "model.layers.{}.self_attn.o_proj.bias",
    "b1": "model.layers.{}.mlp.gate_proj.bias",
    "b2": "model.layers.{}.mlp.down_proj.bias",
    "b3": "model.layers.{}.mlp.up_proj.bias",
}
# InternLM2's names, and LLaMA's.
_INTERNLM2 = (
    ("model.tok_embeddings.", "model.embed_tokens."),
    ("output.", "lm_head."),
    (".attention.wo.", ".self_attn.o_proj."),
    (".attention_norm.", ".input_layernorm."),
    (".ffn_norm.", ".post_attention_layernorm."),
    (".feed_forward.w1.", ".mlp.gate_proj."),
    (".feed_forward.w2.", ".mlp.down_proj."),
    (".feed_forward.w3.", ".mlp.up_proj."),
)
MAX_FILES = 512
_BAND = 1 << 20  # weights that are compared at a time
_ROTARY_TABLE = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def names(config: ModelConfig) -> dict[str, str]:
    """Return the directory's name of each tensor by llama2.c's name; ``{}`` is the layer."""
    if config.pre_norm and config.post_norm:  # then the former is not named as in a LLaMA
        return {**_NAMES, "rms_ffn_weight": "model.layers.{}.pre_feedforward_layernorm.weight"}
    return _NAMES


@dataclass(frozen=True, slots=True)
class _Kind:
    """A format of the weights."""

    name: str
    single: str
    """The file that has all tensors."""
    index: str
    """The file that names the file of each tensor, where they are in several."""


_SAFETENSORS = _Kind("safetensors", "model.safetensors", "model.safetensors.index.json")
_PYTORCH = _Kind("PyTorch", "pytorch_model.bin", "pytorch_model.bin.index.json")
_KINDS = (_SAFETENSORS, _PYTORCH)  # the preferred one first


def read_huggingface_directory(
    folder: Path, tokenizer: Path | None, opened: Opened | None = None
) -> Checkpoint:
    """Read a directory with a ``config.json``.

    Parameters
    ----------
    folder : Path
        The directory.
    tokenizer : Path, optional
        The vocabulary beside the weights.
    opened : Opened, optional
        The file of it that the user named, open already. Its siblings are read with it if there is
        an index. By default safetensors are read, or else PyTorch's files. The checkpoint closes
        it.

    Raises
    ------
    CheckpointError
        If a file is missing or malformed, or llama2py does not compute the model: other model
        types and activations, other kinds of RoPE scaling, quantized weights.
    """
    about = read_object(folder / "config.json")
    config, family, notes = read_config(about)
    conventions = huggingface_conventions(folder, about, config.vocab_size)
    kind, paths, mapping = _find_weights(folder, None if opened is None else opened.file.path)
    with contextlib.ExitStack() as stack:
        allowances = (SafetensorsAllowance(), TorchAllowance())
        files: list[InputFile] = []
        weights: dict[str, Weight] = {}
        for file, saved in open_each(paths, opened, stack):
            files.append(file)
            if kind is _SAFETENSORS:
                found = read_safetensors(file, allowances[0])
            else:
                saved = read_torch_file(file, allowances[1]) if saved is None else saved
                found = check_state_dict(file.path, saved)
            for name, weight in found.items():
                if mapping is None or mapping.get(name) == file.path.name:  # the index decides
                    weights[name] = weight
        if config.shared_classifier and _NAMES["wcls"] in weights:
            if _are_equal(weights[_NAMES["wcls"]], weights.get(_NAMES["token_embedding_table"])):
                del weights[_NAMES["wcls"]]
            else:  # as in transformers
                config = replace(config, shared_classifier=False)
                notes.append(
                    f"tie_word_embeddings is true, but {_NAMES['wcls']} is not the token embedding:"
                    " the model has both"
                )
        tensors = _tensors(folder, config, family, weights)
        check_sharing(folder, tensors, sum(file.size for file in files))
        many = f", {len(paths)} files" if len(paths) > 1 else ""
        checkpoint = Checkpoint(
            folder,
            f"Hugging Face ({kind.name}{many})",
            config,
            tensors,
            files,
            details=Details(largest_dtype(tensors), tokenizer, notes, conventions),
        )
        stack.pop_all()
    if opened is not None and opened.file not in files:
        opened.file.close()
    return checkpoint


def _are_equal(a: Weight, b: Weight | None) -> bool:
    """Whether two tensors have the same bytes; True if there is only one.

    They are read in bands: an embedding may have gigabytes.
    """
    if b is None or (a.window and a.window == b.window):
        return True
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    first, second = a.array, b.array
    if first.strides is not None or second.strides is not None:
        return first.read().tobytes() == second.read().tobytes()
    bands = (slice(begin, begin + _BAND) for begin in range(0, first.size, _BAND))
    return all(first[band].tobytes() == second[band].tobytes() for band in bands)


def _tensors(
    folder: Path, config: ModelConfig, family: Family, weights: dict[str, Weight]
) -> dict[str, tuple[Tensor, ...]]:
    heads = heads_of_pairs(config)

    def make(kind: str, name: str, weight: Weight, shape: tuple[int, ...]) -> Tensor:
        check_dtype(folder, name, weight)
        check_shape(folder, name, weight.shape, shape)
        tensor = weight.tensor()
        if kind in heads and config.rotary_dim is None and weight.rows is None:
            tensor = StoredTensor(weight.array, heads[kind])
        elif kind in heads:
            rows = pair_rows(heads[kind], config.head_dim, config.rotated_dim)
            tensor = RowsTensor(tensor, rows)
        return PlusOne(tensor) if family.norms_less_one and kind.startswith("rms_") else tensor

    return collect(
        folder,
        separated(weights, config, family),
        config,
        names(config),
        make,
        lambda name: bool(_ROTARY_TABLE.fullmatch(name)),
    )


class PlusOne:
    """A norm whose file has its weights minus 1.

    Parameters
    ----------
    base : Tensor, a vector
        What the file has.
    """

    __slots__ = ("base",)

    def __init__(self, base: Tensor) -> None:
        self.base = base

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n,)``."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """``'float32'``: the sum need not fit the file's dtype."""
        return "float32"

    @property
    def nbytes(self) -> int:
        """Size in bytes, as stored."""
        return self.base.nbytes

    @property
    def rows_in_file(self) -> None:
        """None: the file has other numbers."""

    def count_non_finite(self) -> int:
        """Return how many weights are NaN or infinite."""
        return self.base.count_non_finite()

    def has_values(self) -> bool:
        """True: the file's zeros are ones."""
        return True

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights, float32, of this tensor's shape: a new array."""
        return self.base.dequantize() + np.float32(1)


def separated(
    weights: Mapping[str, Weight], config: ModelConfig, family: Family
) -> Mapping[str, Weight]:
    """Return the weights under LLaMA's names, each tensor on its own."""
    if family.tensors == "separate":
        return weights
    found: dict[str, Weight] = {}
    for name, weight in weights.items():
        for theirs, ours in _INTERNLM2 if family.tensors == "internlm2" else ():
            if theirs in name:
                name = name.replace(theirs, ours)
                break
        for fused in ("attention.wqkv.", "self_attn.qkv_proj.", "mlp.gate_up_proj."):
            if fused in name:
                for part, rows in _parts(weight, config, fused).items():
                    found[name.replace(fused, part)] = rows
                break
        else:
            found[name] = weight
    return found


def _parts(weight: Weight, config: ModelConfig, fused: str) -> dict[str, Weight]:
    """The parts of a tensor that joins several, by the middle of their names."""
    q, kv, hidden = config.q_dim, config.kv_dim, config.hidden_dim
    in_order = {"self_attn.q_proj.": q, "self_attn.k_proj.": kv, "self_attn.v_proj.": kv}
    if fused == "mlp.gate_up_proj.":
        in_order = {"mlp.gate_proj.": hidden, "mlp.up_proj.": hidden}
    total = sum(in_order.values())
    if weight.array.ndim == 0 or weight.array.shape[0] != total:
        return {fused: weight}  # it is reported as a tensor that the model does not have
    if fused != "attention.wqkv.":
        parts, first = {}, 0
        for name, n in in_order.items():
            array = weight.array.rows(first, first + n)
            parts[name] = Weight(weight.dtype, array, weight.window)
            first += n
        return parts
    # InternLM2's: for each key head, its queries, then the key, then the value.
    group, head = config.n_heads // config.n_kv_heads, config.head_dim
    rows = np.arange(total).reshape(config.n_kv_heads, group + 2, head)
    kinds = zip(in_order, (rows[:, :group], rows[:, group], rows[:, group + 1]), strict=True)
    return {
        name: Weight(weight.dtype, weight.array, weight.window, which.reshape(-1))
        for name, which in kinds
    }


def _find_weights(
    folder: Path, wanted: Path | None
) -> tuple[_Kind, list[Path], dict[str, str] | None]:
    """The format of the weights, their files, and the name of each tensor's file."""
    for kind in _KINDS:
        if wanted is not None and (wanted.suffix == ".safetensors") != (kind is _SAFETENSORS):
            continue
        if wanted is not None and "-of-" not in wanted.name:
            return kind, [wanted], None
        if wanted is None and (folder / kind.single).exists():
            return kind, [folder / kind.single], None
        if (folder / kind.index).exists():
            mapping = _read_index(folder / kind.index)
            return kind, [folder / name for name in sorted(set(mapping.values()))], mapping
    expected = " or ".join(name for kind in _KINDS for name in (kind.single, kind.index))
    raise CheckpointError(f"{folder}: there are no weights in it, expected {expected}")


def _read_index(path: Path) -> dict[str, str]:
    mapping = read_object(path).values.get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{path}: it has no weight_map")
    names = set()
    for name in mapping.values():
        # Nothing outside of the directory, and no longer than a file system's names.
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,254}", name, re.ASCII):
            found = repr(name[:80]) if isinstance(name, str) else "not a string"
            raise CheckpointError(
                f"{path}: the file of a tensor is {found}, expected the name of a file beside it"
            )
        names.add(name)
    if len(names) > MAX_FILES:
        raise CheckpointError(f"{path}: {len(names)} files, expected at most {MAX_FILES}")
    return mapping

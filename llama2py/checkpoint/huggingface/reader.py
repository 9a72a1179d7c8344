"""The reader of Hugging Face directories: ``config.json``, and safetensors or PyTorch's files.

Source: ``configuration_llama.py``, ``modeling_llama.py``, ``modeling_rope_utils.py`` and
``convert_llama_weights_to_hf.py`` of huggingface/transformers.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from ...config import ModelConfig, RopeScaling
from ...errors import CheckpointError, ConfigError
from ...formats.bounded_json import JsonObject, read_object
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
    cut_to_window,
    largest_dtype,
    to_tensor,
)
from ..tensors import StoredTensor, Tensor
from ..torch.file import Allowance as TorchAllowance
from ..torch.file import Opened, open_each, read_torch_file
from .safetensors import Allowance as SafetensorsAllowance
from .safetensors import read_safetensors

NAMES = {
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
}
MODEL_TYPES = ("llama", "mistral")
MAX_FILES = 512
_ROTARY_TABLE = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


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
        types, biases, RoPE scaling other than linear and llama3, quantized weights.
    """
    about = read_object(folder / "config.json")
    config, notes = _model_config(about)
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
        if config.shared_classifier:
            weights.pop(NAMES["wcls"], None)  # transformers ignores its contents
        tensors = _tensors(folder, config, weights)
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


def _tensors(
    folder: Path, config: ModelConfig, weights: dict[str, Weight]
) -> dict[str, tuple[Tensor, ...]]:
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}

    def make(kind: str, name: str, weight: Weight, shape: tuple[int, ...]) -> Tensor:
        check_dtype(folder, name, weight)
        check_shape(folder, name, weight.array.shape, shape)
        if kind in heads:
            return StoredTensor(weight.array, heads[kind])
        return to_tensor(weight.array)

    return collect(
        folder, weights, config, NAMES, make, lambda name: bool(_ROTARY_TABLE.fullmatch(name))
    )


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


def _model_config(about: JsonObject) -> tuple[ModelConfig, list[str]]:
    """The numbers, and what a user should know about them."""
    model_type = about.text("model_type", "llama")
    if model_type not in MODEL_TYPES:
        raise about.error("model_type", " or ".join(MODEL_TYPES))
    if about.text("hidden_act", "silu") not in ("silu", "swish"):
        raise about.error("hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias"):
        if about.flag(name):
            raise about.error(name, "false: biases are not supported")
    if about.values.get("quantization_config") is not None:
        raise about.error("quantization_config", "null: weights of other quantizers are not read")
    if about.number("partial_rotary_factor", 1.0) != 1:
        raise about.error("partial_rotary_factor", "1")
    window = about.integer("sliding_window", 0) if model_type == "mistral" else 0
    seq_len, notes = cut_to_window(about.integer("max_position_embeddings", 2048), window)
    # transformers 5 has both in rope_parameters; older versions have rope_theta and rope_scaling.
    rope = about.object("rope_parameters") or about.object("rope_scaling")
    has_theta = rope is not None and "rope_theta" in rope.values
    theta = (rope if rope and has_theta else about).number("rope_theta", 10000.0)
    heads, head_dim = about.integer("num_attention_heads"), about.values.get("head_dim")
    try:
        config = ModelConfig(
            dim=about.integer("hidden_size"),
            hidden_dim=about.integer("intermediate_size"),
            n_layers=about.integer("num_hidden_layers"),
            n_heads=heads,
            n_kv_heads=about.integer("num_key_value_heads", heads),
            vocab_size=about.integer("vocab_size"),
            seq_len=seq_len,
            shared_classifier=about.flag("tie_word_embeddings"),
            norm_eps=about.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            head_size=None if head_dim is None else about.integer("head_dim"),
            rope_scaling=None if rope is None else _rope_scaling(rope, about),
        )
    except ConfigError as error:
        raise CheckpointError(f"{about.path}: {error}") from None
    return config, notes


def _rope_scaling(rope: JsonObject, about: JsonObject) -> RopeScaling | None:
    name = "rope_type" if "rope_type" in rope.values else "type"
    match rope.text(name, "default"):
        case "default":
            return None
        case "linear":
            return RopeScaling("linear", rope.number("factor"))
        case "llama3":
            return RopeScaling(
                "llama3",
                rope.number("factor"),
                rope.number("low_freq_factor"),
                rope.number("high_freq_factor"),
                rope.integer("original_max_position_embeddings"),
            )
    raise about.error("rope_scaling", "default, linear or llama3")

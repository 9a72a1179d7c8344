"""Reads Hugging Face's directories: ``config.json``, and safetensors or PyTorch's files.

Source: ``configuration_llama.py``, ``modeling_llama.py``, ``modeling_rope_utils.py`` and
``convert_llama_weights_to_hf.py`` of huggingface/transformers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from ...config import ModelConfig, RopeScaling
from ...errors import CheckpointError, ConfigError
from ...formats.json_text import JsonFile
from ...formats.mapped_file import MappedFile
from ..base import Checkpoint
from ..conventions import huggingface_conventions
from ..stored import stored, unpermuted
from ..tensors import Tensor
from ..torch.file import read_torch_file
from ..weights import Weight, check_weight, collect, cut_to_window, make_checkpoint, unwrapped
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

# In the order of preference: the file with all tensors, its index if they are in several, and what
# reads one.
_KINDS: tuple[tuple[str, str, str, Callable[[MappedFile], dict[str, Weight]]], ...] = (
    ("safetensors", "model.safetensors", "model.safetensors.index.json", read_safetensors),
    (
        "PyTorch",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        lambda file: unwrapped(file.path, read_torch_file(file)),
    ),
)


def read_huggingface_directory(
    folder: Path, tokenizer: Path | None, weights_file: Path | None = None
) -> Checkpoint:
    """Read a directory with a ``config.json``.

    Parameters
    ----------
    folder : Path
        The directory.
    tokenizer : Path, optional
        What was found beside the weights.
    weights_file : Path, optional
        The one file of it that was asked for; its siblings are read with it where there is an
        index. By default safetensors, or else PyTorch's.

    Raises
    ------
    CheckpointError
        If a file is missing or malformed, or the model is no LLaMA that llama2py computes: other
        model types, biases, RoPE scaling but linear and llama3, quantized weights.
    """
    about = JsonFile(folder / "config.json")
    config, notes = _model_config(about)
    conventions = huggingface_conventions(folder, about, config.vocab_size)
    kind, paths, mapping, read = _find_weights(folder, weights_file)
    with contextlib.ExitStack() as stack:
        files: list[MappedFile] = []
        weights: dict[str, Weight] = {}
        for path in paths:
            file = MappedFile(path)
            stack.callback(file.close)
            files.append(file)
            for name, weight in read(file).items():
                if mapping is not None and mapping.get(name) != path.name:
                    continue  # the index decides
                weights[name] = weight
        if config.shared_classifier:
            weights.pop(NAMES["wcls"], None)  # transformers ties it, whatever it holds
        tensors = collect(
            folder,
            weights,
            config,
            NAMES,
            check_weight,
            _maker(config),
            lambda n: bool(_ROTARY_TABLE.fullmatch(n)),
        )
        many = f", {len(paths)} files" if len(paths) > 1 else ""
        how = f"Hugging Face ({kind}{many})"
        checkpoint = make_checkpoint(
            folder, how, config, tensors, files, tokenizer, notes, conventions
        )
        stack.pop_all()
    return checkpoint


def _maker(config: ModelConfig) -> Callable[[str, Weight], Tensor]:
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}

    def make(kind: str, weight: Weight) -> Tensor:
        return unpermuted(weight.array, heads[kind]) if kind in heads else stored(weight.array)

    return make


def _find_weights(
    folder: Path, wanted: Path | None
) -> tuple[str, list[Path], dict[str, str] | None, Callable[[MappedFile], dict[str, Weight]]]:
    """Which kind of weights, their files, which tensor is in which, and what reads them."""
    for kind, single, index, read in _KINDS:
        if wanted is not None and (wanted.suffix == ".safetensors") != (kind == "safetensors"):
            continue
        if wanted is not None and "-of-" not in wanted.name:
            return kind, [wanted], None, read
        if wanted is None and (folder / single).exists():
            return kind, [folder / single], None, read
        if (folder / index).exists():
            mapping = _read_index(folder / index)
            paths = [folder / name for name in sorted(set(mapping.values()))]
            return kind, paths, mapping, read
    expected = " or ".join(name for kind in _KINDS for name in kind[1:3])
    raise CheckpointError(f"{folder}: there are no weights in it, expected {expected}")


def _read_index(path: Path) -> dict[str, str]:
    mapping = JsonFile(path).values.get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{path}: there is no weight_map in it, expected one")
    names = set()
    for name in mapping.values():
        # Nothing outside of the directory.
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            found = repr(name[:80]) if isinstance(name, str) else "what is no text"
            raise CheckpointError(
                f"{path}: a tensor is in {found}, expected the name of a file beside it"
            )
        names.add(name)
    if len(names) > MAX_FILES:
        raise CheckpointError(f"{path}: {len(names)} files, expected at most {MAX_FILES}")
    return mapping


def _model_config(about: JsonFile) -> tuple[ModelConfig, list[str]]:
    """The numbers, and what a user should know about them."""
    path = about.path
    model_type = about.text("model_type", "llama")
    if model_type not in MODEL_TYPES:
        raise about.error("model_type", " or ".join(MODEL_TYPES))
    if about.text("hidden_act", "silu") not in ("silu", "swish"):
        raise about.error("hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias"):
        if about.flag(name):
            raise about.error(name, "false: biases are not supported")
    if about.values.get("quantization_config") is not None:
        raise about.error("quantization_config", "none: float32, float16 or bfloat16 weights")
    if about.number("partial_rotary_factor", 1.0) != 1:
        raise about.error("partial_rotary_factor", "1")
    window = about.integer("sliding_window", 0) if model_type == "mistral" else 0
    seq_len, notes = cut_to_window(about.integer("max_position_embeddings", 2048), window)
    # transformers 5 gathers both in rope_parameters; before, there are rope_theta and rope_scaling.
    rope = about.of("rope_parameters") or about.of("rope_scaling")
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
        raise CheckpointError(f"{path}: {error}") from None
    return config, notes


def _rope_scaling(rope: JsonFile, about: JsonFile) -> RopeScaling | None:
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

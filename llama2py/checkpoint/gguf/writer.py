"""The writer of GGUF files, version 3, of the architecture llama or another that fits.

The layout is that of `gguf_metadata`. Which order the rows of wq and wk have: see `reader`.

Source: the GGUF specification, github.com/ggml-org/ggml, ``docs/gguf.md``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...config import ModelConfig
from ...errors import CheckpointError, ConfigError
from ...formats.atomic_write import replacing
from ...formats.gguf_metadata import ARRAY, MAX_NAME, NUMBERS, STRING
from ..checkpoint import Checkpoint
from ..export import Item, in_halves, items, same_steps, steps_of, write_item
from .blocks import FORMATS
from .config import ARCHITECTURES, read_config
from .reader import FACTORS_BY_LENGTH, NAMES, ROPE_FACTORS

ALIGNMENT = 32
VERSION = 3
_KINDS = {"float32": 0, "float16": 1, "bfloat16": 30, "int8": 8}
# general.file_type: the type of most tensors.
_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, "int8": 7}
_INTEGER, _REAL, _BOOL, _SIGNED = 4, 6, 7, 5  # uint32, float32, bool, int32

Pairs = Mapping[str, Any]

# Phi-3's joined matrices.
_FUSED = {"wq+wk+wv": "blk.{}.attn_qkv.weight", "w1+w3": "blk.{}.ffn_up.weight"}


def gguf_items(config: ModelConfig, dtype: str, name: str) -> list[Item]:
    """List the tensors of a file of an architecture, with matrices of a dtype.

    Norms are float32. With int8, matrices whose rows are no multiple of 32 are float16.
    """

    def of(shape: tuple[int, ...]) -> str:
        if len(shape) == 1:
            return "float32"
        return "float16" if dtype == "int8" and shape[1] % FORMATS[8].size else dtype

    return list(items(config, {**NAMES, **_FUSED} if name == "phi3" else NAMES, of))


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    dtype: str,
    vocabulary: Pairs,
    progress: Callable[[int], object] = lambda weights: None,
    check: Callable[[Path], object] = lambda path: None,
) -> None:
    """Write a model as one GGUF file, whole or not at all.

    Parameters
    ----------
    path : Path
        The output file.
    checkpoint : Checkpoint
        The model, of any format.
    dtype : {'float32', 'float16', 'bfloat16', 'int8'}
        Dtype of the matrices; int8 is Q8_0. Matrices whose rows are no multiple of 32, which Q8_0
        cannot hold, are then float16, as in llama.cpp.
    vocabulary : mapping of str to value
        The pairs ``tokenizer.*``.
    progress : callable
        Called after each tensor with its number of weights.
    check : callable
        Called with the path of the complete file, before it replaces the output.

    Raises
    ------
    CheckpointError
        If the dtype cannot hold a weight, no architecture has the model's steps, the source cannot
        be read, or the file cannot be written.
    """
    config = checkpoint.config
    name = architecture_for(checkpoint)
    tensors = gguf_items(config, dtype, name)
    adapt = (lambda kind, tensor: tensor) if ARCHITECTURES[name].in_pairs else in_halves(config)
    pairs = {**_model_pairs(path, config, dtype, name), **vocabulary}
    factors = _factors(config)
    places = [(item.name, item.shape, _KINDS[item.dtype], item.nbytes) for item in tensors]
    factor_names = FACTORS_BY_LENGTH if name == "phi3" else (ROPE_FACTORS,)
    if factors is not None:
        places += [(each, factors.shape, 0, factors.nbytes) for each in factor_names]
    head = _head(pairs, places)
    with replacing(path, CheckpointError) as out:
        out.write(head)
        for item in tensors:
            _pad(out)
            write_item(out, item, checkpoint, progress, adapt)
        for _ in factor_names if factors is not None else ():
            _pad(out)
            out.write(factors.tobytes())
        _pad(out)
        out.flush()
        check(Path(out.name))


def _pad(out: Any) -> None:
    out.write(bytes(-out.tell() % ALIGNMENT))


def architecture_for(checkpoint: Checkpoint) -> str:
    """Return the architecture whose metadata says all about a model.

    Raises
    ------
    CheckpointError
        No architecture has this model's steps.
    """
    config = checkpoint.config
    tensors = [item.name for item in gguf_items(config, "float32", "llama")]
    factors = _factors(config)
    only_qkv = config.qkv_bias and not (config.output_bias or config.mlp_bias)
    for name in _ORDER:
        if (name == "qwen2" and not only_qkv) or (
            (config.output_bias or config.mlp_bias) and name not in _ALL_BIASES
        ):
            continue
        pairs = {"general.architecture": name.encode(), **_numbers(config, name)}
        try:
            found, _ = read_config(
                pairs, tensors, config.vocab_size, () if factors is None else factors.tolist()
            )
        except ConfigError:
            continue
        if same_steps(found, config):
            return name
    raise CheckpointError(
        f"{checkpoint.path}: GGUF has no architecture with these steps together:"
        f" {steps_of(config)}; use the format hf for this model"
    )


# The architectures in which llama.cpp reads biases of other matrices than wq, wk and wv.
_ALL_BIASES = ("llama", "granite")
# The architectures that are written; the first that fits is taken. llama may have biases, too, but
# llama.cpp's converter gives models with biases of queries, keys and values another name.
_ORDER = ("qwen2", "llama", "qwen3", "smollm3", "olmo2", "granite", "gemma", "gemma3", "phi3")


def _numbers(config: ModelConfig, name: str) -> dict[str, Any]:
    """The pairs of the model's numbers in an architecture."""
    numbers: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.seq_len,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.hidden_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.rotated_dim,
        "rope.freq_base": config.rope_theta,
    }
    if config.windows:
        numbers["attention.sliding_window"] = max(config.windows)
    if config.window_rope_theta is not None:
        numbers["rope.freq_base_swa"] = config.window_rope_theta
    if name == "granite":
        numbers |= {
            "embedding_scale": config.embedding_scale,
            "residual_scale": config.residual_scale,
            "logit_scale": 1 / config.logit_scale,
        }
        if config.attention_scale is not None:
            numbers["attention.scale"] = config.attention_scale
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        numbers |= {"rope.scaling.type": b"linear", "rope.scaling.factor": scaling.factor}
    elif scaling is not None and scaling.kind == "yarn":
        growth = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
        numbers |= {
            "rope.scaling.type": b"yarn",
            "rope.scaling.factor": scaling.factor,
            "rope.scaling.original_context_length": scaling.original_seq_len,
            "rope.scaling.attn_factor": scaling.attention_factor / growth,
            "rope.scaling.yarn_beta_fast": scaling.beta_fast,
            "rope.scaling.yarn_beta_slow": scaling.beta_slow,
        }
    elif scaling is not None and scaling.attention_factor != 1:
        numbers["rope.scaling.attn_factor"] = scaling.attention_factor
    if name == "phi3" and scaling is not None:
        numbers["rope.scaling.type"] = b"longrope"
        numbers["rope.scaling.original_context_length"] = config.seq_len
    return {f"{name}.{key}": value for key, value in numbers.items()}


def _model_pairs(path: Path, config: ModelConfig, dtype: str, name: str) -> dict[str, Any]:
    return {
        "general.architecture": name.encode(),
        "general.type": b"model",
        "general.name": path.stem.encode(errors="replace"),
        "general.file_type": _FILE_TYPES[dtype],
        "general.alignment": ALIGNMENT,
        "general.quantization_version": 2,
        **_numbers(config, name),
    }


def _factors(config: ModelConfig) -> Any:
    """The divisor of each rotary frequency, unless numbers say it: (rotary_dim / 2,)."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("linear", "yarn"):
        return None
    return np.array(scaling.divisors(config.rotated_dim, config.rope_theta), "<f4")


def _head(pairs: Pairs, places: Sequence[tuple[str, tuple[int, ...], int, int]]) -> bytes:
    """Everything before the first tensor."""
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(places), len(pairs))]
    for key, value in pairs.items():
        kind, data = pack_value(value)
        parts += [_string(key.encode()), struct.pack("<I", kind), data]
    offset = 0
    for name, shape, kind, nbytes in places:
        assert len(name) < MAX_NAME, "the names are ours"
        layout = f"<I{len(shape)}QIQ"
        parts += [_string(name.encode())]
        parts += [struct.pack(layout, len(shape), *shape[::-1], kind, offset)]
        offset += nbytes + -nbytes % ALIGNMENT
    return b"".join(parts)


def _string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def pack_value(value: Any) -> tuple[int, bytes]:
    """Return GGUF's number of a value's type, and the value's bytes.

    The value is a bool, an int (uint32), a float (float32), bytes (a string), or a list of ints
    (int32), floats or bytes.
    """
    if isinstance(value, list):
        if value and isinstance(value[0], bytes):
            return ARRAY, struct.pack("<IQ", STRING, len(value)) + b"".join(map(_string, value))
        kind = _REAL if value and isinstance(value[0], float) else _SIGNED
        data = struct.pack(f"<{len(value)}{NUMBERS[kind]}", *value)
        return ARRAY, struct.pack("<IQ", kind, len(value)) + data
    if isinstance(value, bytes):
        return STRING, _string(value)
    kind = {bool: _BOOL, int: _INTEGER, float: _REAL}[type(value)]
    return kind, struct.pack("<" + NUMBERS[kind], value)

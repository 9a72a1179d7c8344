"""The reader of GGUF files, version 2 and 3, of the architecture llama and others like it.

Such a file has Meta's tensors under its own names. For llama and some others, llama.cpp's converter
undoes Hugging Face's rotary permutation of wq and wk, so RoPE rotates neighbouring rows, as in
llama2.c. Files of the other architectures have Hugging Face's order, which this reader undoes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...config import ModelConfig
from ...errors import CheckpointError, ConfigError
from ...formats.input_file import InputFile, named
from ..checkpoint import Checkpoint, Details
from ..conventions import gguf_conventions
from ..state_dict import check_shape, collect, heads_of_pairs
from ..tensors import DTYPES, Tensor, in_rows, pair_rows
from .config import ARCHITECTURES, architecture_of, read_config
from .files import GGUFModel, Place, open_model

_EMBEDDING, _CLASSIFIER = "token_embd.weight", "output.weight"
ROPE_FACTORS = "rope_freqs.weight"
# Divisors for contexts up to the one before a model was stretched, and for longer ones.
FACTORS_BY_LENGTH = ("rope_factors_short.weight", "rope_factors_long.weight")
# llama2.c's name -> GGUF's; {} stands for the layer.
NAMES = {
    "token_embedding_table": _EMBEDDING,
    "rms_att_weight": "blk.{}.attn_norm.weight",
    "wq": "blk.{}.attn_q.weight",
    "wk": "blk.{}.attn_k.weight",
    "wv": "blk.{}.attn_v.weight",
    "wo": "blk.{}.attn_output.weight",
    "rms_ffn_weight": "blk.{}.ffn_norm.weight",
    "w1": "blk.{}.ffn_gate.weight",
    "w2": "blk.{}.ffn_down.weight",
    "w3": "blk.{}.ffn_up.weight",
    "rms_final_weight": "output_norm.weight",
    "wcls": _CLASSIFIER,
    # Of the optional steps.
    "rms_att_post_weight": "blk.{}.post_attention_norm.weight",
    "rms_ffn_post_weight": "blk.{}.post_ffw_norm.weight",
    "rms_q_weight": "blk.{}.attn_q_norm.weight",
    "rms_k_weight": "blk.{}.attn_k_norm.weight",
    "bq": "blk.{}.attn_q.bias",
    "bk": "blk.{}.attn_k.bias",
    "bv": "blk.{}.attn_v.bias",
    "bo": "blk.{}.attn_output.bias",
    "b1": "blk.{}.ffn_gate.bias",
    "b2": "blk.{}.ffn_down.bias",
    "b3": "blk.{}.ffn_up.bias",
}
_FUSED_QKV = re.compile(r"blk\.\d+\.attn_qkv\.(weight|bias)")
_FUSED_GATE_UP = re.compile(r"blk\.\d+\.ffn_up\.(weight|bias)")
# Formats whose numbers and scales the engine keeps, and the dtypes that keep them.
_KEPT = {"Q4_0": "int4 or int8", "Q8_0": "int8"}
_GROUP = 32  # values per scale of both
MAX_FACTORS = 1 << 12  # pairs of a head; real heads have 32 to 128


def read_gguf(file: InputFile) -> Checkpoint:
    """Read a GGUF file.

    Parameters
    ----------
    file : InputFile
        A whole model, or any part of a split one. The checkpoint closes it.

    Returns
    -------
    Checkpoint
        Its ``dtype`` is int4 if all matrices are Q4_0, and int8 if each is Q8_0 or Q4_0; either has
        a scale for every 32 values. Otherwise it is that of the largest matrix, or float32 if the
        largest matrix is quantized: its blocks are dequantized when they are used. In such a mixed
        file, loading as int4 keeps the Q4_0 matrices unchanged, and loading as int8 the Q8_0 and
        Q4_0 matrices; ``notes`` say how many. ``tokenizer_path`` is the file itself if it has a
        vocabulary, whose metadata is in ``gguf_pairs``.

    Raises
    ------
    CheckpointError
        If a file is malformed or truncated, its tensors are not those of the model, or the engine
        does not support the model.
    """
    model = open_model(file)
    try:
        return _read(model)
    except BaseException as error:
        for part in model.files:
            if part is not file:  # the caller closes that one
                part.close()
        if isinstance(error, ConfigError):
            raise named(model.files[0].path, CheckpointError(str(error))) from None
        raise


def _read(model: GGUFModel) -> Checkpoint:
    first = model.files[0]
    places = model.places
    embedding = places.get(_EMBEDDING)
    if embedding is None:
        architecture_of(model.pairs)  # a better error, if it is one of another kind
        raise CheckpointError(f"{first.path}: it has no tensor {_EMBEDDING!r}")
    factors = _rope_factors(places.get(ROPE_FACTORS, places.get(FACTORS_BY_LENGTH[0])), first.path)
    config, notes = read_config(model.pairs, places.keys(), embedding.dims[-1], factors)
    name = architecture_of(model.pairs)
    heads = {} if ARCHITECTURES[name].in_pairs else heads_of_pairs(config)

    def make(kind: str, name: str, place: Place, shape: tuple[int, ...]) -> Tensor:
        check_shape(first.path, name, place.dims[::-1], shape)
        if kind not in heads:
            return place.tensor()
        return in_rows(place.tensor(), pair_rows(heads[kind], config.head_dim, config.rotated_dim))

    matrices = [place for place in places.values() if len(place.dims) == 2]
    tensors = collect(
        first.path,
        _separated(places, config, name == "phi3"),
        config,
        NAMES,
        make,
        {ROPE_FACTORS, *FACTORS_BY_LENGTH}.__contains__,
    )
    counts = Counter(place.format.name for place in matrices)
    dtype = _dtype(matrices)
    # All groups of an int8 model have the same size. They must divide dim.
    grouped = not counts.keys().isdisjoint(_KEPT) and config.dim % _GROUP == 0
    if grouped and dtype not in ("int4", "int8"):
        notes += _what_is_kept(counts)
    return Checkpoint(
        first.path,
        f"GGUF ({'/'.join(sorted(counts))})",
        config,
        tensors,
        model.files,
        group_size=_GROUP if grouped else None,
        details=Details(
            dtype,
            first.path if "tokenizer.ggml.tokens" in model.pairs else None,
            notes,
            gguf_conventions(model.pairs, config.vocab_size, first.path),
            model.pairs,
        ),
    )


def _separated(
    places: Mapping[str, Place], config: ModelConfig, gate_up: bool
) -> Mapping[str, Place]:
    """The places of the tensors, each on its own where a file has some of them as one."""
    q, kv, hidden = config.q_dim, config.kv_dim, config.hidden_dim
    found: dict[str, Place] = {}
    for name, place in places.items():
        parts: dict[str, int] = {}
        if _FUSED_QKV.fullmatch(name):
            parts = {
                name.replace("qkv", kind): n for kind, n in zip("qkv", (q, kv, kv), strict=True)
            }
        elif gate_up and _FUSED_GATE_UP.fullmatch(name):
            parts = {name.replace("ffn_up", "ffn_gate"): hidden, name: hidden}
        if sum(parts.values()) != place.dims[-1]:
            parts = {name: place.dims[-1]}  # it has the shape of no joined tensor
        first = 0
        for part, n in parts.items():
            found[part] = place.rows(first, n)
            first += n
    return found


def _dtype(matrices: Sequence[Place]) -> str:
    """The dtype that keeps all matrices unchanged, or else that of the largest."""
    names = {place.format.name for place in matrices}
    if names == {"Q4_0"}:
        return "int4"
    if names <= _KEPT.keys():
        return "int8"
    largest = max(matrices, key=lambda place: place.nbytes)
    return DTYPES.get(largest.format.record, "float32")


def _what_is_kept(counts: Mapping[str, int]) -> list[str]:
    """Notes on a mixed file, from the number of matrices in each format."""
    return [
        f"{counts[name]} of {sum(counts.values())} matrices are {name},"
        f" which dtype {dtypes} keeps as they are"
        for name, dtypes in _KEPT.items()
        if name in counts
    ]


def _rope_factors(place: Place | None, path: Path) -> list[float]:
    """The divisor of each rotary frequency: how Llama 3.1 and later stretch the slow ones."""
    if place is None:
        return []
    if len(place.dims) != 1 or place.dims[0] > MAX_FACTORS:
        raise CheckpointError(
            f"{path}: tensor {ROPE_FACTORS!r} is of shape {place.dims[::-1]},"
            " expected a factor for each pair of a head's channels"
        )
    factors: list[float] = place.tensor().dequantize().tolist()
    return factors

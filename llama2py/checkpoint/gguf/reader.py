"""The reader of GGUF files, version 2 and 3, of the architecture llama.

Such a file has Meta's tensors under its own names. llama.cpp's converter undoes Hugging Face's
rotary permutation of wq and wk, so RoPE rotates neighbouring rows, as in llama2.c, and this reader
permutes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import CheckpointError, ConfigError
from ...formats.input_file import InputFile, named
from ..checkpoint import Checkpoint, Details
from ..conventions import gguf_conventions
from ..state_dict import check_shape, collect
from ..tensors import DTYPES, Tensor
from .config import check_architecture, read_config
from .files import GGUFModel, Place, open_model

_EMBEDDING, _CLASSIFIER = "token_embd.weight", "output.weight"
ROPE_FACTORS = "rope_freqs.weight"
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
}
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
        check_architecture(model.pairs)  # a better error, if it is not a llama
        raise CheckpointError(f"{first.path}: it has no tensor {_EMBEDDING!r}")
    factors = _rope_factors(places.get(ROPE_FACTORS), first.path)
    config, notes = read_config(model.pairs, embedding.dims[-1], _CLASSIFIER not in places, factors)

    def make(_: str, name: str, place: Place, shape: tuple[int, ...]) -> Tensor:
        check_shape(first.path, name, place.dims[::-1], shape)
        return place.tensor()

    matrices = [place for place in places.values() if len(place.dims) == 2]
    tensors = collect(
        first.path,
        places,
        config,
        NAMES,
        make,
        ROPE_FACTORS.__eq__,
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

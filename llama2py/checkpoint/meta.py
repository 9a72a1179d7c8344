"""Reads what Meta's own code and llama2.c's trainer saved: tensors by Meta's names, in pickles.

Source: ``model.py`` of meta-llama/llama and llama3 (which tensor is split along which axis), and
``train.py`` and ``export.py`` of karpathy/llama2.c.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import ModelConfig, RopeScaling
from ..errors import CheckpointError, ConfigError, ParameterError
from ..formats.json_text import JsonFile
from ..formats.mapped_file import MappedFile
from .base import Checkpoint
from .conventions import Conventions
from .stored import DTYPES, JoinedTensor, stored
from .tensors import Tensor, tensor_shapes
from .torch.file import read_torch_file
from .weights import Weight, check_weight, collect, listed, make_checkpoint, unwrapped

NAMES = {
    "token_embedding_table": "tok_embeddings.weight",
    "rms_att_weight": "layers.{}.attention_norm.weight",
    "wq": "layers.{}.attention.wq.weight",
    "wk": "layers.{}.attention.wk.weight",
    "wv": "layers.{}.attention.wv.weight",
    "wo": "layers.{}.attention.wo.weight",
    "rms_ffn_weight": "layers.{}.ffn_norm.weight",
    "w1": "layers.{}.feed_forward.w1.weight",
    "w2": "layers.{}.feed_forward.w2.weight",
    "w3": "layers.{}.feed_forward.w3.weight",
    "rms_final_weight": "norm.weight",
    "wcls": "output.weight",
}
# Tables of rotary angles: the engine has its own.
_IGNORED = {"rope.freqs", "freqs_cos", "freqs_sin"}
MAX_SHARDS = 64

# Meta's files do not say for which context a model was trained. llama2.c's exporter means 2048.
SEQ_LEN, SEQ_LEN_LLAMA3 = 2048, 8192


def is_trainer_state(saved: object) -> bool:
    """Whether what a file holds is a ``ckpt.pt`` of llama2.c's trainer."""
    return isinstance(saved, dict) and "model" in saved and "model_args" in saved


def read_trainer_state(file: MappedFile, saved: Mapping[Any, Any]) -> Checkpoint:
    """Read a ``ckpt.pt`` of llama2.c's trainer.

    Parameters
    ----------
    file : MappedFile
        The file. The checkpoint closes it.
    saved : mapping
        What `read_torch_file` found in it.

    Raises
    ------
    CheckpointError
        If its numbers or its tensors are not those of a LLaMA.
    """
    args = saved["model_args"]
    weights = unwrapped(file.path, saved["model"])

    def number(name: str, default: object = None) -> Any:
        value = args.get(name) if isinstance(args, dict) else None
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{file.path}: model_args has no number {name}, expected one")
        return value

    def whole(name: str, default: int | None = None) -> int:
        value = number(name, default)
        if not isinstance(value, int):
            raise CheckpointError(f"{file.path}: {name} is {value}, expected a whole number")
        return value

    try:
        config = ModelConfig(
            dim=whole("dim"),
            hidden_dim=_first_size(file.path, weights, NAMES["w1"].format(0)),
            n_layers=whole("n_layers"),
            n_heads=whole("n_heads"),
            n_kv_heads=whole("n_kv_heads", whole("n_heads")),
            vocab_size=whole("vocab_size"),
            seq_len=whole("max_seq_len"),
            shared_classifier=_is_shared(weights),
            norm_eps=float(number("norm_eps", 1e-5)),
        )
    except ConfigError as error:
        raise CheckpointError(f"{file.path}: {error}") from None
    tensors = collect(
        file.path, weights, config, NAMES, check_weight, _as_stored, _may_be_left(config)
    )
    return make_checkpoint(file.path, "llama2.c ckpt.pt", config, tensors, [file])


def read_meta_directory(folder: Path, tokenizer: Path | None) -> Checkpoint:
    """Read a directory of Meta's: ``params.json`` and ``consolidated.NN.pth``.

    Parameters
    ----------
    folder : Path
        The directory.
    tokenizer : Path, optional
        What was found beside the weights.

    Raises
    ------
    CheckpointError
        If a file is missing or malformed, or the shards do not fit together.
    """
    params = JsonFile(folder / "params.json")
    paths = sorted(folder.glob("consolidated.*.pth"))
    numbers = [re.fullmatch(r"consolidated\.(\d{2})\.pth", path.name) for path in paths]
    found = [int(match[1]) for match in numbers if match]
    if not paths or found != list(range(len(paths))) or len(paths) > MAX_SHARDS:
        raise CheckpointError(
            f"{folder}: its weights are {[path.name for path in paths[:9]]},"
            " expected consolidated.00.pth, consolidated.01.pth and so on, without a gap"
        )
    with contextlib.ExitStack() as stack:
        files, shards = [], []
        for path in paths:
            file = MappedFile(path)
            stack.callback(file.close)
            files.append(file)
            shards.append(unwrapped(path, read_torch_file(file)))
        for path, shard in zip(paths, shards, strict=True):
            if odd := sorted(shard.keys() ^ shards[0].keys()):
                raise CheckpointError(
                    f"{path}: {listed(odd)} only here or only in {paths[0].name},"
                    " expected the same tensors in every shard"
                )
        config = _meta_config(params, shards)
        if len(shards) == 1:
            tensors = collect(
                paths[0], shards[0], config, NAMES, check_weight, _as_stored, _may_be_left(config)
            )
        else:
            tensors = _join(folder, config, paths, shards)
        how = "Meta" if len(paths) == 1 else f"Meta, {len(paths)} shards"
        ends = Conventions(eos_ends=True)
        checkpoint = make_checkpoint(
            folder, how, config, tensors, files, tokenizer, conventions=ends
        )
        stack.pop_all()
    return checkpoint


def _meta_config(params: JsonFile, shards: list[dict[str, Weight]]) -> ModelConfig:
    path, first = params.path, shards[0]
    dim = params.integer("dim")
    vocab_size = params.integer("vocab_size", -1)
    if vocab_size == -1:  # the tokenizer's, Meta says; output is split by rows
        vocab_size = _first_size(path, first, NAMES["wcls"]) * len(shards)
    theta = params.number("rope_theta", 10000.0)
    try:
        return ModelConfig(
            dim=dim,
            hidden_dim=_hidden_dim(params, dim, first, len(shards)),
            n_layers=params.integer("n_layers"),
            n_heads=params.integer("n_heads"),
            n_kv_heads=params.integer("n_kv_heads", params.integer("n_heads")),
            vocab_size=vocab_size,
            seq_len=params.integer("max_seq_len", SEQ_LEN if theta < 5e5 else SEQ_LEN_LLAMA3),
            shared_classifier=_is_shared(first),
            norm_eps=params.number("norm_eps", 1e-5),
            rope_theta=theta,
            head_size=params.integer("head_dim") if "head_dim" in params.values else None,
            rope_scaling=_rope_scaling(params),
        )
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _rope_scaling(params: JsonFile) -> RopeScaling | None:
    """What Meta's code makes of these parameters, which may name two numbers of it.

    Those of Llama 3.1 and 3.2 name none, and that code takes 8 and 4 for all of them.
    """
    factor = params.number("rope_scaling_factor", 8.0)
    high = params.number("rope_high_freq_factor", 4.0)
    if not params.flag("use_scaled_rope"):
        return None
    return RopeScaling("llama3", factor, high_freq_factor=high)


def _hidden_dim(params: JsonFile, dim: int, first: dict[str, Weight], n_shards: int) -> int:
    """By Meta's formula, or, where its numbers are not given, as wide as w1 is."""
    if "hidden_dim" in params.values:
        return params.integer("hidden_dim")
    if "multiple_of" not in params.values:
        return _first_size(params.path, first, NAMES["w1"].format(0)) * n_shards
    multiple = params.integer("multiple_of")
    if not 1 <= multiple <= 1 << 20 or not 1 <= dim <= 1 << 20:
        raise params.error("multiple_of", "1 to 1048576, and as much for dim")
    hidden = int(2 * (4 * dim) / 3)
    hidden = int(params.number("ffn_dim_multiplier", 1.0) * hidden)
    return multiple * -(-hidden // multiple)


def _first_size(path: Path, weights: Mapping[str, Weight], name: str) -> int:
    """The number of rows of a tensor."""
    if name not in weights or weights[name].array.ndim != 2:
        raise CheckpointError(f"{path}: there is no matrix {name!r}, expected one")
    return int(weights[name].array.shape[0])


def _is_shared(weights: Mapping[str, Weight]) -> bool:
    """Whether the classifier is the token embedding: the very same part of the same storage."""
    embedding, output = (weights.get(NAMES[n]) for n in ("token_embedding_table", "wcls"))
    return output is None or (embedding is not None and embedding.window == output.window)


def _may_be_left(config: ModelConfig) -> Any:
    shared = {NAMES["wcls"]} if config.shared_classifier else set()
    return (_IGNORED | shared).__contains__


def _as_stored(kind: str, weight: Weight) -> Tensor:
    return stored(weight.array)


def _join(
    folder: Path, config: ModelConfig, paths: list[Path], shards: list[dict[str, Weight]]
) -> dict[str, tuple[Tensor, ...]]:
    """Join each tensor of model-parallel shards as Meta's layers split it.

    ColumnParallelLinear (wq, wk, wv, w1, w3, output) splits the rows of a matrix, RowParallelLinear
    (wo, w2) its columns; the token embedding is split by columns in Llama 1 and 2 and by rows in
    Llama 3, which its shape tells; norms are in every shard.
    """
    shapes = tensor_shapes(config)
    tensors: dict[str, tuple[Tensor, ...]] = {}
    known = set(_IGNORED) | ({NAMES["wcls"]} if config.shared_classifier else set())
    for kind, (count, shape) in shapes.items():
        layers = []
        for layer in range(count):
            name = NAMES[kind].format(layer)
            known.add(name)
            if name not in shards[0]:
                raise CheckpointError(f"{paths[0]}: {name!r} is missing, expected it")
            layers.append(_joined(folder, name, kind, shape, [shard[name] for shard in shards]))
        tensors[kind] = tuple(layers)
    if left := sorted(shards[0].keys() - known):
        raise CheckpointError(
            f"{paths[0]}: {listed(left)} too much, expected only the tensors of a LLaMA"
        )
    return tensors


def _joined(
    folder: Path, name: str, kind: str, shape: tuple[int, ...], weights: list[Weight]
) -> Tensor:
    for weight in weights:
        if weight.array.dtype not in DTYPES:
            raise CheckpointError(
                f"{folder}: {name} is of dtype {weight.dtype},"
                " expected float32, float16 or bfloat16"
            )
    parts = [stored(w.array) if w.array.ndim in (1, 2) else None for w in weights]
    found = [weight.array.shape for weight in weights]
    if len(shape) == 1:
        if all(part == shape for part in found):
            return stored(weights[0].array)  # every shard has all of it
    else:
        axis = 1 if kind in ("wo", "w2") else 0
        if kind == "token_embedding_table" and found[0][:1] == shape[:1]:
            axis = 1
        with contextlib.suppress(ParameterError):
            joined = JoinedTensor([part for part in parts if part is not None], axis)
            if joined.shape == shape and None not in parts:
                return joined
    raise CheckpointError(
        f"{folder}: the shards of {name} have shapes {found[:9]}, expected parts of {shape}"
    )

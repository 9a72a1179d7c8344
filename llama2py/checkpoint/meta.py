"""Checkpoints of Meta's own code and of llama2.c's trainer: tensors by Meta's names, in pickles.

Source: ``model.py`` of meta-llama/llama and llama3 (which tensor is split along which axis), and
``train.py`` and ``export.py`` of karpathy/llama2.c.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import ModelConfig, RopeScaling
from ..errors import CheckpointError, ConfigError, ParameterError
from ..formats.bounded_json import JsonObject, read_object
from ..formats.input_file import InputFile
from .checkpoint import Checkpoint, Details
from .conventions import Conventions
from .state_dict import (
    Weight,
    check_dtype,
    check_shape,
    check_sharing,
    check_state_dict,
    collect,
    largest_dtype,
    listed,
    to_tensor,
)
from .tensors import JoinedTensor, Tensor
from .torch.file import Allowance, Opened, open_each, read_torch_file

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
# Tables of rotary angles: the engine computes its own.
_IGNORED = {"rope.freqs", "freqs_cos", "freqs_sin"}
MAX_SHARDS = 64

# Meta's files do not say for which context a model was trained. llama2.c's exporter assumes 2048.
SEQ_LEN, SEQ_LEN_LLAMA3 = 2048, 8192

# The axis along which model-parallel shards split a matrix: ColumnParallelLinear (wq, wk, wv, w1,
# w3, output) its rows, RowParallelLinear its columns. Llama 1 and 2 split the token embedding by
# columns, Llama 3 by rows.
_SPLIT_BY_COLUMNS = ("wo", "w2")


# ---- ckpt.pt of llama2.c's trainer ----


def is_trainer_state(saved: object) -> bool:
    """Whether the contents of a file are a ``ckpt.pt`` of llama2.c's trainer."""
    return isinstance(saved, dict) and "model" in saved and "model_args" in saved


def read_trainer_state(file: InputFile, saved: Mapping[Any, Any]) -> Checkpoint:
    """Read a ``ckpt.pt`` of llama2.c's trainer.

    Parameters
    ----------
    file : InputFile
        The file. The checkpoint closes it.
    saved : mapping
        Its contents, from `read_torch_file`.

    Raises
    ------
    CheckpointError
        If its numbers or its tensors are not those of a LLaMA.
    """
    args = saved["model_args"]
    weights = check_state_dict(file.path, saved["model"])

    def number(name: str, default: object = None) -> Any:
        value = args.get(name) if isinstance(args, dict) else None
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{file.path}: model_args has no number {name}")
        return value

    def whole(name: str, default: int | None = None) -> int:
        value = number(name, default)
        if not isinstance(value, int):
            raise CheckpointError(f"{file.path}: {name} is {value}, expected a whole number")
        return value

    try:
        config = ModelConfig(
            dim=whole("dim"),
            hidden_dim=_n_rows(file.path, weights, NAMES["w1"].format(0)),
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
    tensors = _whole_tensors(file.path, config, weights)
    check_sharing(file.path, tensors, file.size)
    details = Details(largest_dtype(tensors))
    return Checkpoint(file.path, "llama2.c ckpt.pt", config, tensors, [file], details=details)


# ---- Meta's directories ----


def read_meta_directory(
    folder: Path, tokenizer: Path | None, opened: Opened | None = None
) -> Checkpoint:
    """Read a directory of Meta's: ``params.json`` and ``consolidated.NN.pth``.

    Parameters
    ----------
    folder : Path
        The directory.
    tokenizer : Path, optional
        The vocabulary beside the weights.
    opened : Opened, optional
        One of the shards, if it is open already. The checkpoint closes it.

    Raises
    ------
    CheckpointError
        If a file is missing or malformed, or the shards do not fit together.
    """
    params = read_object(folder / "params.json")
    paths = sorted(folder.glob("consolidated.*.pth"))
    numbers = [re.fullmatch(r"consolidated\.(\d{2})\.pth", path.name) for path in paths]
    found = [int(match[1]) for match in numbers if match]
    if not paths or found != list(range(len(paths))) or len(paths) > MAX_SHARDS:
        raise CheckpointError(
            f"{folder}: its weights are {[path.name for path in paths[:9]]},"
            " expected consolidated.00.pth, consolidated.01.pth and so on, without a gap"
        )
    with contextlib.ExitStack() as stack:
        allowance = Allowance()
        files: list[InputFile] = []
        shards: list[dict[str, Weight]] = []
        for file, saved in open_each(paths, opened, stack):
            files.append(file)
            saved = read_torch_file(file, allowance) if saved is None else saved
            shards.append(check_state_dict(file.path, saved))
        for path, shard in zip(paths, shards, strict=True):
            if odd := sorted(shard.keys() ^ shards[0].keys()):
                raise CheckpointError(
                    f"{path}: {listed(odd)} only in this file or only in {paths[0].name},"
                    " but every shard has a part of every tensor"
                )
        config = _meta_config(params, shards)
        if len(shards) == 1:
            tensors = _whole_tensors(paths[0], config, shards[0])
        else:
            tensors = _joined_tensors(folder, config, shards)
        check_sharing(folder, tensors, sum(file.size for file in files))
        checkpoint = Checkpoint(
            folder,
            "Meta" if len(paths) == 1 else f"Meta, {len(paths)} shards",
            config,
            tensors,
            files,
            details=Details(
                largest_dtype(tensors),
                tokenizer,
                conventions=Conventions(eos_ends=True, end_texts=frozenset(["<|eot_id|>"])),
            ),
        )
        stack.pop_all()
    return checkpoint


def _meta_config(params: JsonObject, shards: list[dict[str, Weight]]) -> ModelConfig:
    path, first = Path(params.path), shards[0]
    dim = params.integer("dim")
    vocab_size = params.integer("vocab_size", -1)
    if vocab_size == -1:  # "the tokenizer's", Meta's code says; output is split by rows
        vocab_size = _n_rows(path, first, NAMES["wcls"]) * len(shards)
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


def _rope_scaling(params: JsonObject) -> RopeScaling | None:
    """Scale as Meta's code does, with two numbers that newer parameters may name.

    The params.json of Llama 3.1 and 3.2 name neither, and that code uses 8 and 4 for all of them.
    """
    factor = params.number("rope_scaling_factor", 8.0)
    high = params.number("rope_high_freq_factor", 4.0)
    if not params.flag("use_scaled_rope"):
        return None
    return RopeScaling("llama3", factor, high_freq_factor=high)


def _hidden_dim(params: JsonObject, dim: int, first: dict[str, Weight], n_shards: int) -> int:
    """By Meta's formula, or, where its numbers are missing, the rows of w1."""
    if "hidden_dim" in params.values:
        return params.integer("hidden_dim")
    if "multiple_of" not in params.values:
        return _n_rows(Path(params.path), first, NAMES["w1"].format(0)) * n_shards
    multiple = params.integer("multiple_of")
    if not 1 <= multiple <= 1 << 20 or not 1 <= dim <= 1 << 20:
        raise params.error("multiple_of", "1 to 1048576, and dim too")
    hidden = int(2 * (4 * dim) / 3)
    hidden = int(params.number("ffn_dim_multiplier", 1.0) * hidden)
    return multiple * -(-hidden // multiple)


def _n_rows(path: Path, weights: Mapping[str, Weight], name: str) -> int:
    """The number of rows of a matrix."""
    if name not in weights or weights[name].array.ndim != 2:
        raise CheckpointError(f"{path}: there is no matrix {name!r}")
    return int(weights[name].array.shape[0])


def _is_shared(weights: Mapping[str, Weight]) -> bool:
    """Whether the classifier is the token embedding: the same part of the same storage."""
    embedding, output = (weights.get(NAMES[n]) for n in ("token_embedding_table", "wcls"))
    return output is None or (embedding is not None and embedding.window == output.window)


def _may_be_left(config: ModelConfig) -> Callable[[str], bool]:
    shared = {NAMES["wcls"]} if config.shared_classifier else set()
    return (_IGNORED | shared).__contains__


def _whole_tensors(
    path: Path, config: ModelConfig, weights: Mapping[str, Weight]
) -> dict[str, tuple[Tensor, ...]]:
    """The tensors of a file that has all of the model."""

    def make(kind: str, name: str, weight: Weight, shape: tuple[int, ...]) -> Tensor:
        check_dtype(path, name, weight)
        check_shape(path, name, weight.array.shape, shape)
        return to_tensor(weight.array)

    return collect(path, weights, config, NAMES, make, _may_be_left(config))


def _joined_tensors(
    folder: Path, config: ModelConfig, shards: list[dict[str, Weight]]
) -> dict[str, tuple[Tensor, ...]]:
    """Join each tensor of model-parallel shards as Meta's layers split it."""

    def make(kind: str, name: str, _: Weight, shape: tuple[int, ...]) -> Tensor:
        return _join(folder, name, kind, shape, [shard[name] for shard in shards])

    return collect(folder, shards[0], config, NAMES, make, _may_be_left(config))


def _join(
    folder: Path, name: str, kind: str, shape: tuple[int, ...], weights: list[Weight]
) -> Tensor:
    for weight in weights:
        check_dtype(folder, name, weight)
    found = [weight.array.shape for weight in weights]
    if len(shape) == 1:
        if all(part == shape for part in found):
            return to_tensor(weights[0].array)  # norms are whole in every shard
    elif all(len(part) == 2 for part in found):
        by_columns = kind in _SPLIT_BY_COLUMNS
        if kind == "token_embedding_table":
            by_columns = found[0][0] == shape[0]
        with contextlib.suppress(ParameterError):
            joined = JoinedTensor([to_tensor(w.array) for w in weights], 1 if by_columns else 0)
            if joined.shape == shape:
                return joined
    raise CheckpointError(
        f"{folder}: the shards of {name} have shapes {found[:9]}, expected parts of {shape}"
    )

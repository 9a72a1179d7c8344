"""TrainConfig: every hyperparameter of a training run, named as in llama2.c's ``train.py``."""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from ..checkpoint import open_checkpoint
from ..config import ModelConfig
from ..errors import ConfigError
from ..formats.text_file import read_text_file
from ..hub import find_model

T = TypeVar("T")

DTYPES = ("bfloat16", "float32", "float16")
OPTIMIZERS = ("muon", "adamw")
MAX_INT = (1 << 31) - 1
MAX_SEED = (1 << 63) - 1
MAX_FILE_SIZE = 1 << 14  # bytes: a file that sets every hyperparameter has 1 kB

_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def _hyperparameter(default: T, meaning: str) -> T:
    """Define a field with a one-line meaning, which ``llama2py train --help`` prints."""
    default_field: T = field(default=default, metadata={"meaning": meaning})
    return default_field


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What to train, how long, and how. The defaults suit a small story model.

    Each field has a one-line meaning beside its default. `meanings` returns them.

    Raises
    ------
    ConfigError
        If a value has the wrong type or is out of range.

    Notes
    -----
    Source of the names: karpathy/llama2.c, ``train.py``.
    """

    dim: int = _hyperparameter(128, "width of the model")
    n_layers: int = _hyperparameter(8, "number of transformer layers")
    n_heads: int = _hyperparameter(4, "attention heads per layer")
    n_kv_heads: int = _hyperparameter(2, "key/value heads per layer; 0: as many as n_heads")
    hidden_dim: int = _hyperparameter(
        0, "width of the feed-forward layers; 0: 8/3 of dim, rounded up to multiple_of"
    )
    multiple_of: int = _hyperparameter(128, "rounds an automatic hidden_dim up")
    max_seq_len: int = _hyperparameter(512, "context in tokens; longer stories are split")
    vocab_size: int = _hyperparameter(2048, "size of the vocabulary that is trained first")
    dropout: float = _hyperparameter(0.0, "share of activations dropped in training")
    batch_size: int = _hyperparameter(
        8, "rows of max_seq_len tokens per forward pass; of shorter stories, more rows"
    )
    gradient_accumulation_steps: int = _hyperparameter(
        4, "forward passes per optimizer step, over all processes"
    )
    max_iters: int = _hyperparameter(5000, "optimizer steps of the whole run")
    learning_rate: float = _hyperparameter(1e-2, "highest learning rate, reached after warm-up")
    min_lr: float = _hyperparameter(0.0, "learning rate at the end of the cosine decay")
    warmup_iters: int = _hyperparameter(100, "steps of linear warm-up")
    decay_lr: bool = _hyperparameter(True, "decay the learning rate along a cosine")
    weight_decay: float = _hyperparameter(0.1, "weight decay of the matrices")
    beta1: float = _hyperparameter(0.9, "AdamW's decay of the first moment")
    beta2: float = _hyperparameter(0.95, "AdamW's decay of the second moment")
    grad_clip: float = _hyperparameter(1.0, "largest norm of the gradient; 0: no clipping")
    optimizer: str = _hyperparameter(
        "muon", "muon (with AdamW for embedding and norms), or adamw for all as in llama2.c"
    )
    valid_share: float = _hyperparameter(0.02, "share of the stories held out for measuring")
    eval_interval: int = _hyperparameter(250, "steps between measurements; 0: only at the end")
    log_interval: int = _hyperparameter(10, "steps between lines of the log; 0: no lines")
    sample_interval: int = _hyperparameter(1000, "steps between sample stories; 0: no samples")
    eval_iters: int = _hyperparameter(0, "most batches of one measurement; 0: all held-out stories")
    always_save_checkpoint: bool = _hyperparameter(
        False, "keep the latest checkpoint, not the best"
    )
    dtype: str = _hyperparameter("bfloat16", "type to compute in: bfloat16, float32 or float16")
    device: str = _hyperparameter("cpu", "cpu, cuda, cuda:1, mps or another PyTorch device")
    compile: bool = _hyperparameter(True, "speed up training with torch.compile")
    init_from: str = _hyperparameter(
        "", "checkpoint whose weights the run starts from, and whose shape the model has"
    )
    teacher: str = _hyperparameter(
        "", "checkpoint whose probabilities the model learns, too; it has the same vocabulary"
    )
    teacher_share: float = _hyperparameter(0.5, "the teacher's share of the loss; 1: all of it")
    teacher_temperature: float = _hyperparameter(
        1.0, "divides the logits of teacher and model; above 1: learn improbable tokens, too"
    )
    seed: int = _hyperparameter(1337, "seed of weights, split, order, dropout and samples")

    def __post_init__(self) -> None:
        for each in fields(self):
            self._check_type(each.name, type(each.default))
        at_least_1 = {"batch_size", "gradient_accumulation_steps", "max_iters", "multiple_of"}
        for each in fields(self):
            name, value = each.name, getattr(self, each.name)
            if type(value) is int:
                low, high = int(name in at_least_1), MAX_SEED if name == "seed" else MAX_INT
                self._check(name, low <= value <= high, f"an integer from {low} to {high}")
        for name in ("learning_rate", "min_lr", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            self._check(name, math.isfinite(value) and value >= 0, "a finite number, 0 or more")
        for name in ("dropout", "beta1", "beta2", "valid_share"):
            self._check(name, 0 <= getattr(self, name) < 1, "a number of at least 0 and below 1")
        self._check("teacher_share", 0 <= self.teacher_share <= 1, "a number from 0 to 1")
        temperature = self.teacher_temperature
        is_positive = math.isfinite(temperature) and temperature > 0
        self._check("teacher_temperature", is_positive, "a finite number above 0")
        self._check("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        self._check("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        self.model_config(self.vocab_size)  # checks the shape

    def _check_type(self, name: str, kind: type) -> None:
        """Refuse a value of another type; make NumPy's numbers, and integers for floats, plain."""
        value = getattr(self, name)
        accepted = {int: Integral, float: Real}.get(kind, kind)
        is_bool = isinstance(value, bool)  # True is an integer to Python, but not to a user
        self._check(name, isinstance(value, accepted) and is_bool == (kind is bool), _KINDS[kind])
        try:
            object.__setattr__(self, name, kind(value))
        except OverflowError:  # an integer beyond the range of a float
            self._check(name, False, "a finite number")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"{name} is {_shown(getattr(self, name))}, expected {expected}")

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """Return the one-line meaning of each hyperparameter, by name."""
        return {each.name: each.metadata["meaning"] for each in fields(cls)}

    def model_config(self, vocab_size: int) -> ModelConfig:
        """Return the shape of the model for a vocabulary of ``vocab_size`` tokens."""
        hidden = self.hidden_dim
        if not hidden:
            hidden = 2 * (4 * self.dim) // 3
            hidden = -(-hidden // self.multiple_of) * self.multiple_of
        return ModelConfig(
            dim=self.dim,
            hidden_dim=hidden,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads or self.n_heads,
            vocab_size=vocab_size,
            seq_len=self.max_seq_len,
        )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step (the first is 0): linear warm-up, then a cosine."""
        if step < self.warmup_iters:
            return self.learning_rate * (step + 1) / (self.warmup_iters + 1)
        if not self.decay_lr:
            return self.learning_rate
        done = (step - self.warmup_iters) / max(1, self.max_iters - self.warmup_iters)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.min_lr + cosine * (self.learning_rate - self.min_lr)


def config_from(path: str | os.PathLike[str] | None, changes: Mapping[str, Any]) -> TrainConfig:
    """Make a configuration from a TOML file and changes to it.

    With ``init_from``, the shape is the checkpoint's where neither names another.

    Parameters
    ----------
    path : str or path-like, optional
        A TOML file of ``name = value`` lines, named as the fields of `TrainConfig`.
    changes : mapping of str to value
        Values that override the file's.

    Raises
    ------
    ConfigError
        If the file is missing or malformed, a name is unknown, or a value has the wrong type or is
        out of range.
    CheckpointError
        If the checkpoint of ``init_from`` cannot be read.
    """
    values = {} if path is None else _read_toml(Path(path))
    try:
        config = TrainConfig(**{**values, **changes})
        if not config.init_from:
            return config
        return TrainConfig(**{**_shape_of(config.init_from), **values, **changes})
    except ConfigError as error:
        if path is None:
            raise
        raise ConfigError(f"{path}: {error}") from None


def _shape_of(path: str) -> dict[str, int]:
    """Return the shape of a checkpoint as hyperparameters."""
    with open_checkpoint(find_model(path)) as checkpoint:
        config = checkpoint.config
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")
    return {name: getattr(config, name) for name in names} | {"max_seq_len": config.seq_len}


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    text = read_text_file(path, ConfigError, MAX_FILE_SIZE)
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML (nested too deeply)") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from None
    names = TrainConfig.meanings()
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {close[0]}?" if close else "; see llama2py train --help"
            raise ConfigError(f"{path}: {name[:80]!r} is not a hyperparameter{hint}")
    return values


def _shown(value: Any) -> str:
    """Return a value as a short text for an error message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of over 4300 digits, deep nesting
        return f"a value of type {type(value).__name__} too long to print"
    return text if len(text) <= 80 else f"{text[:80]}..."

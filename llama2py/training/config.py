"""TrainConfig: every number of a training run, by the names that llama2.c's train.py gave them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")
OPTIMIZERS = ("muon", "adamw")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What to train, how long, and how. The defaults are those of the built-in model.

    Parameters
    ----------
    dim, n_layers, n_heads, n_kv_heads : int
        The shape; ``n_kv_heads`` 0 stands for ``n_heads``.
    hidden_dim : int
        Width of the feed-forward layer; 0: two thirds of ``4 * dim``, rounded up to a multiple of
        ``multiple_of``, as in LLaMA.
    multiple_of : int
        See ``hidden_dim``.
    max_seq_len : int
        The context, in tokens. A longer story is trained in pieces.
    vocab_size : int
        Of the vocabulary that is trained first, where none is given.
    dropout : float
        Share of activations dropped; 0 for none.
    batch_size : int
        Stories of ``max_seq_len`` tokens in one forward pass; of shorter stories as many more as
        make up the same number of tokens.
    gradient_accumulation_steps : int
        Forward passes for one step of the optimizer, over all processes.
    max_iters : int
        Steps of the optimizer.
    learning_rate, min_lr : float
        The highest, reached after the warm-up, and the last, reached along a cosine.
    warmup_iters : int
        Steps of a linear warm-up.
    decay_lr : bool
        False keeps the learning rate where the warm-up left it.
    weight_decay : float
        Of matrices; norms have none.
    beta1, beta2 : float
        Of AdamW. Muon's momentum is 0.95.
    grad_clip : float
        Largest norm of a gradient; 0: not clipped.
    optimizer : {'muon', 'adamw'}
        Muon for the matrices inside the blocks, with AdamW for the embedding and the norms; or
        AdamW for all, as in llama2.c.
    valid_share : float
        Share of the stories that is held out to measure the loss on.
    eval_interval, log_interval, sample_interval : int
        Steps between two measurements on the held-out stories, two lines of the log, two samples;
        0: never.
    eval_iters : int
        Most forward passes of one measurement; 0: all held-out stories.
    always_save_checkpoint : bool
        Keep the last checkpoint, not the best.
    dtype : {'bfloat16', 'float32', 'float16'}
        What the forward pass computes in. Weights are float32 all along.
    device : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...
    compile : bool
        Let ``torch.compile`` make faster code first; needs a C++ compiler.
    seed : int
        Of weights, held-out stories, the order of stories, dropout and samples.

    Raises
    ------
    ConfigError
        If a number is out of range.

    Notes
    -----
    Source of the names: karpathy/llama2.c, ``train.py``.
    """

    dim: int = 128
    n_layers: int = 8
    n_heads: int = 4
    n_kv_heads: int = 2
    hidden_dim: int = 0
    multiple_of: int = 128
    max_seq_len: int = 512
    vocab_size: int = 2048
    dropout: float = 0.0
    batch_size: int = 8
    gradient_accumulation_steps: int = 4
    max_iters: int = 5000
    learning_rate: float = 1e-2
    min_lr: float = 0.0
    warmup_iters: int = 100
    decay_lr: bool = True
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0
    optimizer: str = "muon"
    valid_share: float = 0.02
    eval_interval: int = 250
    log_interval: int = 10
    sample_interval: int = 1000
    eval_iters: int = 0
    always_save_checkpoint: bool = False
    dtype: str = "bfloat16"
    device: str = "cpu"
    compile: bool = True
    seed: int = 1337

    def __post_init__(self) -> None:
        for name in ("vocab_size", "batch_size", "gradient_accumulation_steps", "multiple_of"):
            self._check(name, getattr(self, name) >= 1, "a whole number from 1 up")
        for name in ("max_iters", "warmup_iters", "eval_interval", "log_interval", "eval_iters"):
            self._check(name, getattr(self, name) >= 0, "a whole number from 0 up")
        for name in ("sample_interval", "hidden_dim", "n_kv_heads", "seed"):
            self._check(name, getattr(self, name) >= 0, "a whole number from 0 up")
        for name in ("learning_rate", "min_lr", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            self._check(name, math.isfinite(value) and value >= 0, "a finite number from 0 up")
        for name in ("dropout", "beta1", "beta2", "valid_share"):
            self._check(name, 0 <= getattr(self, name) < 1, "a number from 0 up, below 1")
        self._check("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        self._check("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        self.model_config(self.vocab_size)  # its numbers have their own checks

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The shape of the model, for a vocabulary of that size."""
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
        """The learning rate of a step, the first being 0: up a line, then down a cosine."""
        if step < self.warmup_iters:
            return self.learning_rate * (step + 1) / (self.warmup_iters + 1)
        if not self.decay_lr:
            return self.learning_rate
        done = (step - self.warmup_iters) / max(1, self.max_iters - self.warmup_iters)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.min_lr + cosine * (self.learning_rate - self.min_lr)


def config_from(path: str | os.PathLike[str] | None, changes: Mapping[str, Any]) -> TrainConfig:
    """A configuration from a TOML file, with some of its numbers changed.

    Parameters
    ----------
    path : str or path-like, optional
        ``name = value`` lines, names as in `TrainConfig`.
    changes : mapping of str to value
        What outweighs the file.

    Raises
    ------
    ConfigError
        If the file is missing or malformed, a name is not known, or a value is of another type or
        out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}, expected a TOML file") from None
    types = {field.name: type(field.default) for field in fields(TrainConfig)}
    for name, value in values.items():
        if name not in types:
            raise ConfigError(f"{path}: {name!r} is not known, expected one of {', '.join(types)}")
        if types[name] is float and type(value) is int:
            values[name] = float(value)
        elif type(value) is not types[name]:
            raise ConfigError(f"{path}: {name} is {value!r}, expected {types[name].__name__}")
    try:
        return TrainConfig(**{**values, **changes})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path is not None else str(error)) from None

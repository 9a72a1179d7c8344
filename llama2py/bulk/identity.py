"""Load a model for a batch, and say exactly which model it is and how it computes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

import llama2py

from .._data import bundled_tokenizer
from ..checkpoint import open_checkpoint
from ..config import CacheDtype, Dtype
from ..engine.backend import Backend
from ..errors import BatchError
from ..hub import find_model
from ..model import Model, load, own_tokenizer
from ..tokenizers.tokenizer import Tokenizer

Identity: TypeAlias = dict[str, dict[str, str]]

_BLOCK = 1 << 20
_PROBE = 32  # tokens


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model each process of a batch loads, and how; the parameters are those of `load`."""

    path: str | None = None
    tokenizer: str | None = None
    threads: int | None = None
    dtype: Dtype | None = None
    cache_dtype: CacheDtype = "float32"

    def located(self) -> ModelSpec:
        """Return this spec with absolute paths, for processes that run in other folders."""
        path = self.path
        if path is not None and os.path.lexists(path):
            path = os.path.abspath(path)
        tokenizer = None if self.tokenizer is None else os.path.abspath(self.tokenizer)
        return ModelSpec(path, tokenizer, self.threads, self.dtype, self.cache_dtype)


def versions() -> dict[str, str]:
    """Return the versions that the texts may depend on."""
    return {"llama2py": llama2py.__version__, "numpy": np.__version__}


def load_identified(spec: ModelSpec) -> tuple[Model, Identity]:
    """Load a model and compute what identifies it.

    Returns
    -------
    model : Model
        The model. It stays in memory, so that a file that is replaced later changes nothing.
    identity : dict
        ``model``: the SHA-256 of its files and of what its metadata says, its dtypes, and
        ``numerics``, the SHA-256 of its logits after a few tokens. Instruction sets that give the
        same bits have the same numerics. ``versions``: those of llama2py and NumPy.

    Raises
    ------
    BatchError
        If a file of the model changes while it is read.
    CheckpointError, TokenizerError, EngineError
        As `load` does.
    """
    path = find_model(spec.path)
    with open_checkpoint(path) as checkpoint:
        tokenizer = spec.tokenizer or own_tokenizer(checkpoint) or bundled_tokenizer()
        files = [*checkpoint.file_paths, Path(tokenizer)]
        conventions, config = checkpoint.conventions, checkpoint.config
    before = [_state(file) for file in files]
    model = load(path, tokenizer, spec.threads, "c", spec.dtype, spec.cache_dtype)
    digest = hashlib.sha256()
    about = [(item.name, _ordered(getattr(conventions, item.name))) for item in fields(conventions)]
    digest.update(repr((repr(config), about, model.backend.dtype, spec.cache_dtype)).encode())
    digest.update(_vocabulary(model.tokenizer).encode())
    for file in files:
        digest.update(_file_digest(file))
    if before != [_state(file) for file in files]:
        raise BatchError(f"{path}: the model changed while it was read; run the batch again")
    facts = {
        "sha256": digest.hexdigest(),
        "dtype": model.backend.dtype,
        "cache_dtype": spec.cache_dtype,
        "numerics": _numerics(model.backend),
    }
    return model, {"model": facts, "versions": versions()}


def _ordered(value: Any) -> Any:
    """Return a value whose ``repr`` is the same in each process."""
    if isinstance(value, Mapping):
        return sorted(value.items())
    return sorted(value) if isinstance(value, frozenset) else value


def _vocabulary(tokenizer: Tokenizer) -> str:
    """Return a digest of all tokens: files beside a vocabulary may add some."""
    specials = tokenizer.specials
    pieces = [tokenizer.piece(token) for token in range(len(tokenizer))]
    about = pieces, sorted(specials.control.items()), sorted(specials.added.items())
    return hashlib.sha256(repr(about).encode()).hexdigest()


def _state(file: Path) -> tuple[int, int, int]:
    about = os.stat(file)
    return about.st_ino, about.st_size, about.st_mtime_ns


def _file_digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with open(file, "rb") as data:
        while block := data.read(_BLOCK):
            digest.update(block)
    return digest.digest()


def _numerics(backend: Backend) -> str:
    """Return a digest of the logits (n, vocab_size) of a few tokens."""
    config = backend.config
    n = min(_PROBE, config.seq_len, config.vocab_size)
    tokens = [i * config.vocab_size // n for i in range(n)]
    cache = backend.new_cache()
    try:
        logits = backend.run(tokens, [cache] * n, range(n), range(n))
    finally:
        cache.close()
    return hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest()


def difference(old: object, new: object, place: str = "") -> str | None:
    """Say in which entry two descriptions differ, or return None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in _union(old, new):
            inside = f"{place}.{name}" if place else str(name)
            if found := difference(old.get(name), new.get(name), inside):
                return found
        return None
    return None if old == new else f"{place} is {_shown(new)}, and was {_shown(old)}"


def _union(old: dict[str, object], new: dict[str, object]) -> Iterable[str]:
    return dict.fromkeys([*old, *new])


def _shown(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

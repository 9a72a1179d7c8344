"""A backend with a script: a test chooses the tokens that the model generates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llama2py.config import CacheDtype, Dtype, ModelConfig
from llama2py.engine.backend import Backend, Logits


class ScriptedCache:
    """Record which token was run at which position."""

    def __init__(self) -> None:
        self.tokens: dict[int, int] = {}

    def copy(self, n_positions: int) -> ScriptedCache:
        made = ScriptedCache()
        made.tokens.update(self.tokens)
        return made

    def read(self, n_positions: int) -> tuple[Logits, Logits]:
        raise NotImplementedError  # there are no keys

    def write(self, keys: Logits, values: Logits) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.tokens.clear()


class ScriptedBackend(Backend):
    """Rank the script's next token first in every forward pass; ``runs`` records the tokens run."""

    def __init__(self, script: Iterable[int], vocab_size: int, seq_len: int = 256) -> None:
        self.config = ModelConfig(
            dim=8,
            hidden_dim=8,
            n_layers=1,
            n_heads=1,
            n_kv_heads=1,
            vocab_size=vocab_size,
            seq_len=seq_len,
        )
        self.dtype: Dtype = "float32"
        self.cache_dtype: CacheDtype = "float32"
        self.cache_bytes = self.config.cache_bytes
        self.isa = "script"
        self.threads = 1
        self.nbytes = self.non_finite = 0
        self.runs: list[tuple[int, int]] = []  # (position, token)
        self.coins: list[float] = []
        self._script = iter(script)

    def new_cache(self) -> ScriptedCache:
        return ScriptedCache()

    def forward(
        self,
        tokens: Sequence[int],
        caches: Sequence[Any],
        positions: Sequence[int],
        logits_rows: Sequence[int],
    ) -> Logits:
        self.runs += zip(positions, tokens, strict=True)
        logits = np.zeros((len(logits_rows), self.config.vocab_size), np.float32)
        for row in logits:
            row[next(self._script)] = 1
        return logits

    def digest(self) -> bytes:
        return b"script"

    def argmax(self, logits: Logits) -> int:
        return int(np.argmax(logits))

    def sample(self, logits: Logits, temperature: float, top_p: float, coin: float) -> int:
        self.coins.append(coin)
        return self.argmax(logits)

    def close(self) -> None:
        pass

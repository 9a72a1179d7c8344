"""A backend that follows a script, so that tests choose the tokens a model generates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llama2py.config import CacheDtype, Dtype, ModelConfig
from llama2py.engine.backend import Backend, Draw, Logits, draw_rows


class ScriptedCache:
    """Records which token was run at which position."""

    def __init__(self) -> None:
        self.tokens: dict[int, int] = {}

    def copy(self, n_positions: int) -> ScriptedCache:
        made = ScriptedCache()
        made.tokens.update(self.tokens)
        return made

    def read(self, n_positions: int) -> tuple[Logits, Logits]:
        raise NotImplementedError  # it has no keys

    def write(self, keys: Logits, values: Logits) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.tokens.clear()


class ScriptedBackend(Backend):
    """Each row of logits ranks the script's next token first. ``runs`` lists what was run."""

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

    def run(
        self,
        tokens: Sequence[int],
        caches: Sequence[Any],
        positions: Sequence[int],
        rows: Sequence[int],
        draws: Sequence[Sequence[Draw]] | None = None,
        stop_tokens: Sequence[int] = (),
    ) -> Any:
        if draws is not None:
            return draw_rows(self, tokens, caches, positions, rows, draws, stop_tokens)
        self.runs += zip(positions, tokens, strict=True)
        logits = np.zeros((len(rows), self.config.vocab_size), np.float32)
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

"""What a batch costs beside its texts: a million rows through an engine that computes nothing.

Prints the memory of the process as it goes, and the CPU time per row, in all and beyond what
`Model.generate_many` takes for the same prompts with the same engine.

    python benchmarks/bulk_overhead.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np

from llama2py import Model, load
from llama2py.bulk.output import OutputFolder
from llama2py.bulk.sources import open_source
from llama2py.bulk.texts import Settings, ShardMaker
from llama2py.engine.backend import Backend, Draw, Logits


class StubCache:
    """A KV cache without keys and values."""

    def copy(self, n_positions: int) -> StubCache:
        """Return another one."""
        return self

    def read(self, n_positions: int) -> tuple[Logits, Logits]:
        """There is nothing to read."""
        raise NotImplementedError

    def write(self, keys: Logits, values: Logits) -> None:
        """There is nothing to write."""
        raise NotImplementedError

    def close(self) -> None:
        """There is nothing to free."""


class StubBackend(Backend):
    """An engine whose every text is one token long, and then ends."""

    def __init__(self, like: Backend) -> None:
        self.config = like.config
        self.dtype, self.cache_dtype = like.dtype, like.cache_dtype
        self.isa, self.threads = "stub", 1
        self.nbytes = self.cache_bytes = self.non_finite = 0

    def new_cache(self) -> StubCache:
        """Return a cache without memory."""
        return StubCache()

    def run(
        self,
        tokens: Sequence[int],
        caches: Sequence[Any],
        positions: Sequence[int],
        rows: Sequence[int],
        draws: Sequence[Sequence[Draw]] | None = None,
        stop_tokens: Sequence[int] = (),
    ) -> Any:
        """Draw token 300 after a prompt, and BOS after that."""
        if draws is None:
            return np.zeros((len(rows), self.config.vocab_size), np.float32)
        return [[1 if tokens[row] == 300 else 300] for row in rows]

    def digest(self) -> bytes:
        """Return a constant."""
        return b"stub"

    def argmax(self, logits: Logits) -> int:
        """Return the first index of the largest of logits (vocab_size,)."""
        return int(np.argmax(logits))

    def sample(self, logits: Logits, temperature: float, top_p: float, coin: float) -> int:
        """Return the first index of the largest of logits (vocab_size,)."""
        return int(np.argmax(logits))

    def close(self) -> None:
        """There is nothing to free."""


def memory() -> float:
    """Return this process's memory, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def prompt(number: int) -> str:
    """Return a short prompt that differs from the others."""
    return f"Once there was a cat number {number}"


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shard-rows", type=int, default=10_000)
    args = parser.parse_args()
    real = load()
    model = Model(StubBackend(real.backend), real.tokenizer)
    identity = {"model": {"sha256": "stub"}, "versions": {}}
    maker = ShardMaker(model, identity, Settings(parameters={"max_tokens": 8}))
    seen, batch, plain = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / "in.jsonl", "w", encoding="utf-8") as file:
            for number in range(args.rows):
                file.write(json.dumps({"id": str(number), "prompt": prompt(number)}) + "\n")
        begun = process_time()
        source = open_source(folder / "in.jsonl", None, args.shard_rows)
        checking = (process_time() - begun) / args.rows
        with OutputFolder(folder / "out", "jsonl") as output:
            output.begin({})
            shards = maker.shards(source.shards(range(source.n_shards)))
            for number in range(source.n_shards):
                begun = process_time()
                shard = next(shards)
                output.write(shard)
                batch.append((process_time() - begun) / shard.rows)
                rows = range(shard.first_row, shard.first_row + min(shard.rows, 1000))
                begun = process_time()
                for _ in model.generate_many(map(prompt, rows), 8, seed=rows):
                    pass
                plain.append((process_time() - begun) / len(rows))
                seen.append(memory())
                if number % max(1, source.n_shards // 10) == 0:
                    print(
                        f"{shard.first_row + shard.rows:>10,} rows: {seen[-1]:.1f} MB", flush=True
                    )
            output.finish()
    overhead = median(one - other for one, other in zip(batch, plain, strict=True)) + checking
    print(f"memory grew by {max(seen) - seen[0]:.1f} MB after the first shard")
    for what, seconds in (
        ("checking the input", checking),
        ("generate_many", median(plain)),
        ("batch, beyond generate_many", overhead),
    ):
        print(f"{what}: {seconds * 1e6:.1f} us of CPU time per row")


if __name__ == "__main__":
    main()

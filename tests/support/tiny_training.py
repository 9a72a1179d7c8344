"""A made-up corpus, and a model small enough to train within seconds."""

from __future__ import annotations

import random
from pathlib import Path

from llama2py.training import TrainConfig

NOUNS = ("dragon", "kitten", "tree", "bird", "girl", "boat", "café", "queue")
VERBS = ("sang", "ran away", "ate 12 cakes", 'said: "Don\'t!"', "slept", "was happy")

TINY = TrainConfig(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    multiple_of=8,
    max_seq_len=256,
    vocab_size=300,
    batch_size=1,
    gradient_accumulation_steps=2,
    max_iters=30,
    warmup_iters=5,
    learning_rate=0.02,
    valid_share=0.1,
    eval_interval=10,
    sample_interval=0,
    dtype="float32",
    compile=False,
    seed=3,
)


def made_up_stories(n: int, seed: int = 1) -> list[str]:
    """Return stories that need no file."""
    rng = random.Random(seed)
    return [
        "\n".join(
            f"Once a {rng.choice(NOUNS)} {rng.choice(VERBS)}, and the {rng.choice(NOUNS)}"
            f" {rng.choice(VERBS)}."
            for _ in range(rng.randint(1, 4))
        )
        for _ in range(n)
    ]


def write_corpus(path: Path, n: int = 120, seed: int = 1) -> Path:
    """Write made-up stories as a corpus, and return its path."""
    path.write_text("\n<|endoftext|>\n".join(made_up_stories(n, seed)), encoding="utf-8")
    return path


def train_command(corpus: Path, out: Path, *more: str) -> list[str]:
    """Return Python's arguments for the command that trains `TINY`."""
    numbers = "dim n_layers n_heads n_kv_heads max_seq_len vocab_size batch_size seed max_iters"
    flags = [f"--{name}={getattr(TINY, name)}" for name in numbers.split()]
    flags += ["--eval_interval=5", "--dtype=float32", "--no-compile", "--warmup-iters", "5"]
    flags += ["--gradient_accumulation_steps=2", "--valid_share=0.1"]
    return ["-m", "llama2py", "train", str(corpus), "-o", str(out), *flags, *more]

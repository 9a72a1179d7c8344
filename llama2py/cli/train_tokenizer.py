"""``llama2py train-tokenizer``: train a vocabulary on a corpus and write it as tokenizer.bin."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TrainingError
from ..formats.corpus import read_stories
from ..tokenizers.llama2c import write_tokenizer_bin
from . import options

if TYPE_CHECKING:
    from .options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "train-tokenizer",
        help="train a vocabulary on a corpus of stories",
        description="Train a byte-pair vocabulary with byte fallback on a text file of stories, "
        "separated by lines of <|endoftext|>, and write it as a tokenizer.bin.",
    )
    add = parser.add_argument
    add("corpus", metavar="CORPUS", type=Path, help="text file of stories")
    add(
        "--vocab-size",
        type=options.count,
        default=2048,
        metavar="N",
        help="number of tokens (default 2048)",
    )
    add(
        *("-o", "--output"),
        type=Path,
        required=True,
        metavar="FILE",
        help="vocabulary to write, such as tok.bin",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, write, and print the bytes per token."""
    try:
        from ..training.vocabulary import train_vocabulary
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"training a vocabulary needs sentencepiece: pip install 'llama2py[train]' ({error})"
        ) from None
    stories = read_stories(args.corpus)
    tokenizer = train_vocabulary(stories, args.vocab_size)
    write_tokenizer_bin(tokenizer, args.output)
    sample = stories[:: max(1, len(stories) // 200)]
    n_bytes = sum(len(story.encode()) for story in sample)
    n_tokens = sum(len(tokenizer.encode(story, bos=False)) for story in sample)
    print(
        f"{args.output}: {len(tokenizer):,} tokens, {n_bytes / n_tokens:.2f} bytes per token",
        file=sys.stderr,
    )
    return 0

"""``llama2py export-tokenizer``: write a vocabulary as a tokenizer.bin, .json or .model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..tokenizers.export import export_tokenizer

if TYPE_CHECKING:
    from .options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "export-tokenizer",
        help="write a vocabulary as a tokenizer.bin, .json or .model",
        description="Write the vocabulary of a GGUF file, a directory or a tokenizer file as "
        "llama2.c's tokenizer.bin, Hugging Face's tokenizer.json or sentencepiece's "
        "tokenizer.model. The suffix of OUT says which.",
    )
    parser.add_argument(
        "source",
        metavar="IN",
        type=Path,
        help="a GGUF file, a directory, a tokenizer file, or the name of a downloaded model",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="the file to write"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert; print the number of tokens."""
    tokenizer = export_tokenizer(args.source, args.output)
    print(f"{args.output}: {len(tokenizer)} token{'s' if len(tokenizer) != 1 else ''}")
    return 0

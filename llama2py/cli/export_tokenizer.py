"""``llama2py export-tokenizer``: a tokenizer.bin out of the vocabulary in a GGUF file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..tokenizer_files import write_tokenizer_bin
from ..tokenizer_gguf import read_gguf_vocabulary

if TYPE_CHECKING:
    from .options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "export-tokenizer",
        help="write the vocabulary of a GGUF file as a tokenizer.bin",
        description="Write the vocabulary of a GGUF file as a llama2.c tokenizer.bin.",
    )
    parser.add_argument("gguf", metavar="IN.gguf", type=Path, help="a GGUF file, v2 or v3")
    parser.add_argument(
        "-o", "--output", metavar="OUT.bin", type=Path, required=True, help="the file to write"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert; a ``TokenizerError`` says what is wrong with either file."""
    tokenizer = read_gguf_vocabulary(args.gguf)
    write_tokenizer_bin(tokenizer, args.output)
    print(f"{args.output}: {len(tokenizer)} tokens")
    return 0

"""``llama2py convert``: write a checkpoint in another program's format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..checkpoint.export import FileDtype
from ..conversion import FileFormat, convert
from ..engine.cpu import default_threads
from . import options

if TYPE_CHECKING:
    from .options import Subparsers

_FORMAT = (
    "v0, v1 or v2: a llama2.c file; hf: a directory for Hugging Face's transformers; gguf: a file"
    " for llama.cpp (default: from OUT's name: *.bin is v0, or v2 for int8; *.gguf is gguf; a name"
    " without a suffix is hf)"
)
_DTYPE = "dtype of the matrices (default: IN's if the format holds it, else float32; v2: int8)"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "convert",
        help="write a checkpoint in another format",
        description="Write a checkpoint in another format, with its vocabulary. One tensor at a "
        "time is held in memory. OUT appears only when all of it is written.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="IN", help="a model, as in run, or 'builtin'")
    add(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="a file, or a new directory"
    )
    add("--format", choices=get_args(FileFormat), help=_FORMAT)
    add("--dtype", choices=get_args(FileDtype), help=_DTYPE)
    add("--group-size", type=options.count, metavar="N", help="for v2: weights per scale")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "-z", "--tokenizer", type=Path, metavar="FILE", help="default: the checkpoint's own"
    )
    vocabulary.add_argument(
        "--no-tokenizer", action="store_true", help="write the weights without a vocabulary"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert; print the size of the output on stderr."""
    with options.progress() as progress:
        convert(
            args.checkpoint,
            args.output,
            args.format,
            args.dtype,
            False if args.no_tokenizer else args.tokenizer,
            args.group_size,
            threads=default_threads(),
            progress=progress,
        )
    whole = [args.output] if args.output.is_file() else list(args.output.iterdir())
    size = sum(path.stat().st_size for path in whole)
    print(f"{args.output}: {size / 1e6:.1f} MB", file=sys.stderr)
    return 0

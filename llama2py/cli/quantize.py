"""``llama2py quantize``: write a checkpoint as int8, a quarter of the size and faster."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint import open_checkpoint
from ..conversion import convert
from ..engine.cpu import default_threads
from ..hub import find_model
from . import options

if TYPE_CHECKING:
    from .options import Subparsers

_GROUP = (
    "weights per scale (default: 64, halved until it divides dim, as in llama2.c; int8 weights"
    " keep their own groups)"
)


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "quantize",
        help="write a checkpoint as int8",
        description="Quantize a checkpoint's matrices to int8 and write a llama2.c v2 file, which "
        "is a quarter of the size and runs faster, with its vocabulary.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="IN", help="a model, as in run, or 'builtin'")
    add(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="such as stories15M_q80.bin"
    )
    add("--dtype", choices=("int8",), default="int8", help="the dtype of a v2 file")
    add("--group-size", type=options.count, metavar="N", help=_GROUP)
    add("--threads", type=options.threads, metavar="N", help="default: the physical cores")
    add("--no-tokenizer", action="store_true", help="write the weights without a vocabulary")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize and write; print on stderr how much smaller the file is."""
    with open_checkpoint(find_model(args.checkpoint)) as source:
        before = source.file_size
    with options.progress() as progress:
        convert(
            args.checkpoint,
            args.output,
            format="v2",
            tokenizer=False if args.no_tokenizer else None,
            group_size=args.group_size,
            threads=args.threads or default_threads(),
            progress=progress,
        )
    with open_checkpoint(args.output) as quantized:
        after, group_size = quantized.file_size, quantized.group_size
    print(
        f"{args.output}: {after / 1e6:.1f} MB, {before / after:.1f} times smaller,"
        f" one scale for {group_size} weight{'s' if group_size != 1 else ''}",
        file=sys.stderr,
    )
    return 0

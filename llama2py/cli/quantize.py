"""``llama2py quantize``: a checkpoint as int8, a quarter of the size and faster."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint import (
    default_group_size,
    open_checkpoint,
    quantize_checkpoint,
    write_checkpoint,
)
from ..cpu import default_threads
from ..errors import TokenizerError
from ..files import replacing
from ..model import beside
from . import options

if TYPE_CHECKING:
    from .options import Subparsers

_GROUP = "weights that share a scale (default: 64, halved until it divides dim, as in llama2.c)"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "quantize",
        help="write a checkpoint as int8",
        description="Quantize a checkpoint's matrices to int8 and write a llama2.c v2 file, which "
        "is a quarter of the size and runs faster. A vocabulary beside it is copied along.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="IN", type=Path, help="a checkpoint")
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="as stories15M_q80.bin")
    add("--dtype", choices=("int8",), default="int8", help="what a v2 file holds")
    add("--group-size", type=options.count, metavar="N", help=_GROUP)
    add("--threads", type=options.threads, metavar="N", help="default: the physical cores")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize and write; say what it saved."""
    from ..progress import Bar

    with open_checkpoint(args.checkpoint) as checkpoint:
        config = checkpoint.config
        group_size = args.group_size or default_group_size(config)
        bar = Bar(total=config.n_params, unit="w", unit_scale=True, delay=1, disable=None)
        with bar:
            tensors = quantize_checkpoint(
                checkpoint, group_size, args.threads or default_threads(), bar.update
            )
        write_checkpoint(args.output, config, tensors, version=2)
        before = checkpoint.file_size
    own, copy = beside(args.checkpoint), beside(args.output)
    if own.is_file() and own.resolve() != copy.resolve():
        with open(own, "rb") as source, replacing(copy, TokenizerError) as out:
            shutil.copyfileobj(source, out)
    after = args.output.stat().st_size
    print(
        f"{args.output}: {after / 1e6:.1f} MB, {before / after:.1f} times smaller,"
        f" a scale for every {group_size} weights",
        file=sys.stderr,
    )
    return 0

"""``llama2py bench``: measure tokens per second; print a table, Markdown or JSON, or draw it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..config import Dtype
from . import options
from .bench_report import PICTURES, check_picture, markdown, plot, table

if TYPE_CHECKING:
    from .options import Subparsers


_THREADS = "thread counts (default: 1, 2, 4, ... up to the physical cores)"
_TOKENS = "tokens to generate (default 128)"
_PROMPT = "tokens of the prompt (default 128)"
_DTYPES = "weight types, or 'all' (default: the checkpoint's own)"
_BATCHES = "batch sizes: texts to generate at the same time (default 1,4,16,64)"
_PLOT = "also draw the speeds into a .svg, .png or .pdf file (needs llama2py[plot])"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "bench",
        help="measure tokens per second",
        description="Measure this machine's limits, load time, time to the first token, prompt and "
        "generation speed, batches and memory. Print medians of several runs that take turns.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", nargs="?", help=options.CHECKPOINT)
    add("--dtype", type=dtypes, metavar="T[,T...]", help=_DTYPES)
    add("--cache-dtype", choices=options.CACHE_DTYPES, default="float32", help=options.CACHE_DTYPE)
    add("--threads", type=options.thread_counts, metavar="N[,N...]", help=_THREADS)
    add("--batch", type=options.counts, default=[1, 4, 16, 64], metavar="N[,N...]", help=_BATCHES)
    add("--repeats", type=options.count, default=5, metavar="N", help="measured runs (default 5)")
    add("--prompt-tokens", type=options.count, default=128, metavar="N", help=_PROMPT)
    add("--tokens", type=options.count, default=128, metavar="N", help=_TOKENS)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print a table for a README")
    add("--plot", type=picture, metavar="FILE", help=_PLOT)
    parser.set_defaults(run=run)


def dtypes(text: str) -> list[Dtype]:
    """Parse weight types separated by commas; drop duplicates."""
    known: tuple[Dtype, ...] = get_args(Dtype)
    if text == "all":
        return list(known)
    for part in text.split(","):
        if part not in known:
            raise argparse.ArgumentTypeError(f"{part!r} is not one of {', '.join(known)}, all")
    return [dtype for dtype in known if dtype in text.split(",")]


def picture(text: str) -> Path:
    """Parse the name of a picture: its suffix says the format."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(PICTURES)}")
    return path


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from .measure import Plan, benchmark  # not at the top: it would slow down the other commands

    plan = Plan(
        args.dtype,
        args.cache_dtype,
        args.threads,
        args.batch,
        args.prompt_tokens,
        args.tokens,
        args.repeats,
    )
    if args.plot:
        check_picture(args.plot)

    with options.progress(desc="measuring", unit="run", leave=False) as progress:
        report = benchmark(args.checkpoint, plan, progress)
    peak = peak_memory()
    if args.plot:
        plot(report, args.plot)
    if args.json:
        print(json.dumps(report.as_dict() | {"peak_memory_bytes": peak}, indent=2))
    elif args.markdown:
        print(markdown(report))
    else:
        print(table(report, peak))
    return 0


def peak_memory() -> int:
    """Return the most memory that this process has used, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

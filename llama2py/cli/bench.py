"""``llama2py bench``: tokens per second, as a table, Markdown, JSON or a picture."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..config import Dtype
from . import options

if TYPE_CHECKING:
    from .options import Subparsers


_THREADS = "thread counts (default: 1, 2, 4.. up to the physical cores)"
_TOKENS = "tokens to generate (default 128)"
_DTYPES = "weight types, or all (default: the checkpoint's own)"
_BATCHES = "texts to generate at once (default 1,4,16,64)"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "bench",
        help="measure tokens per second",
        description="Measure what this machine can do, then load time, time to the first token, "
        "prompt and generation speed, batches and memory: medians of several runs that take turns.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", nargs="?", help=options.CHECKPOINT)
    add("--dtype", type=dtypes, metavar="T[,T..]", help=_DTYPES)
    add("--cache-dtype", choices=options.CACHE_DTYPES, default="float32", help=options.CACHE_DTYPE)
    add("--threads", type=options.thread_counts, metavar="N[,N..]", help=_THREADS)
    add("--batch", type=options.counts, default=[1, 4, 16, 64], metavar="N[,N..]", help=_BATCHES)
    add("--repeats", type=options.count, default=5, metavar="N", help="runs that count (default 5)")
    add("--prompt-tokens", type=options.count, default=128, metavar="N", help="default 128")
    add("--tokens", type=options.count, default=128, metavar="N", help=_TOKENS)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print a table for a README")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the speeds, too (needs llama2py[plot])")
    parser.set_defaults(run=run)


def dtypes(text: str) -> list[Dtype]:
    """Different weight types, with commas between them."""
    known: tuple[Dtype, ...] = get_args(Dtype)
    if text == "all":
        return list(known)
    for part in text.split(","):
        if part not in known:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(known)}, all")
    return [dtype for dtype in known if dtype in text.split(",")]


def run(args: argparse.Namespace) -> int:
    """Measure, then print."""
    from ..bench import benchmark  # its imports would slow down `run`
    from .bench_report import markdown, plot, table

    with options.progress(desc="measuring", unit="run", leave=False) as progress:
        report = benchmark(
            args.checkpoint,
            args.threads,
            args.repeats,
            args.prompt_tokens,
            args.tokens,
            args.dtype,
            args.batch,
            progress,
            args.cache_dtype,
        )
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
    """The most memory this process has held, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

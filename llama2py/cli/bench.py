"""``llama2py bench``: tokens per second, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import options

if TYPE_CHECKING:
    from ..bench import Figure, Report
    from .options import Subparsers


_THREADS = "thread counts (default: 1, 2, 4.. up to the physical cores)"
_TOKENS = "tokens to generate (default 128)"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "bench",
        help="measure tokens per second",
        description="Measure load time, prompt and generation speed and memory: medians of "
        "several runs, thread counts taking turns.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", type=Path, nargs="?", help=options.CHECKPOINT)
    add("--threads", type=options.thread_counts, metavar="N[,N..]", help=_THREADS)
    add("--repeats", type=options.count, default=5, metavar="N", help="runs that count (default 5)")
    add("--prompt-tokens", type=options.count, default=128, metavar="N", help="default 128")
    add("--tokens", type=options.count, default=128, metavar="N", help=_TOKENS)
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, then print."""
    from ..bench import benchmark  # its imports would slow down `run`

    report = benchmark(args.checkpoint, args.threads, args.repeats, args.prompt_tokens, args.tokens)
    peak = peak_memory()
    if args.json:
        print(json.dumps(report.as_dict() | {"peak_memory_bytes": peak}, indent=2))
    else:
        print(table(report, peak))
    return 0


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def table(report: Report, peak: int) -> str:
    """For people: medians, and the range of the runs behind them."""
    mib = 2**20
    lines = [
        f"{report.checkpoint}: {report.parameters / 1e6:.1f}M parameters, {report.dtype}",
        f"{report.cpu}, {report.cores} cores, {report.isa}",
        f"prompt of {report.prompt_tokens}, {report.generated_tokens} generated; "
        f"median (min to max) of {report.repeats} runs",
        "",
        f"{'threads':>7}  {'load, ms':^22}  {'prompt, tok/s':^24}  "
        f"{'greedy, tok/s':^24}  {'t=1.0 p=0.9, tok/s':^24}",
    ]
    for row in report.rows:
        load = row.load_seconds
        lines.append(
            f"{row.threads:>7}  "
            f"{load.median * 1e3:>7.1f} ({load.min * 1e3:.1f} to {load.max * 1e3:.1f})".ljust(33)
            + "  ".join(
                _speed(figure).ljust(24)
                for figure in (
                    row.prompt_tokens_per_second,
                    row.greedy_tokens_per_second,
                    row.sampled_tokens_per_second,
                )
            ).rstrip()
        )
    lines += [
        "",
        f"memory: weights {report.weight_bytes / mib:.1f} MiB, "
        f"a session up to {report.session_bytes / mib:.1f} MiB, "
        f"peak of the process {peak / mib:.1f} MiB",
    ]
    return "\n".join(lines)


def _speed(figure: Figure) -> str:
    return f"{figure.median:>7.0f} ({figure.min:.0f} to {figure.max:.0f})"

"""``llama2py batch``: a text for each row of a file, in shards that are the same on every run."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from .._util import counted, progress_bar
from ..bulk.identity import ModelSpec
from ..bulk.processes import InProcess, OnRows, Processes, Runner
from ..bulk.run import Progress, run_batch
from ..bulk.shards import OutputFormat
from ..bulk.sources import InputFormat, Source, open_source, stories
from ..bulk.texts import Settings
from ..chat.templates import TEMPLATES
from ..engine.cpu import default_threads
from ..errors import BatchError
from ..hub import BUILTIN
from ..model import MAX_BATCH
from . import options
from .options import sampling_number

if TYPE_CHECKING:
    from tqdm import tqdm

    from .options import Subparsers

_INPUT = (
    "a file of rows: JSONL (prompt or messages, id, parameters), OpenAI's batch format, CSV or"
    " Parquet"
)
_OUTPUT = "the folder for the shards; the same command continues a run that was interrupted"
_COUNT = "write N stories from nothing, instead of IN"
_PROMPT = "a template that makes the prompt of a row's fields: 'Tell a story about {animal}'"
_FORMAT = "of the shards; openai: OpenAI's batch output (default jsonl)"
_RAY = "run on the Ray cluster at ADDRESS (default: the running one, or a new one on this machine)"
_SHARD = "rows of a shard, the unit of work and of an interrupted run (default 1000)"
_BAR_EVERY, _LINE_EVERY = 0.2, 30.0  # seconds
# The options of `Model.generate` that have a flag of the same name.
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "batch",
        help="a text for each row of a file, in reproducible shards",
        description="Generate a text for each row of a file. A text depends on its row, the seed "
        "and the parameters alone, so the shards are the same bytes on every run, whatever the "
        "number of processes or nodes. Progress goes to standard error.",
    )
    add = parser.add_argument
    add("input", metavar="IN", type=Path, nargs="?", help=_INPUT)
    add("-o", "--output", metavar="DIR", type=Path, required=True, help=_OUTPUT)
    add("-m", "--model", metavar="MODEL", help=f"as in run (default: {BUILTIN})")
    add("--count", type=options.count, metavar="N", help=_COUNT)
    add("--about", metavar="TEXT", help="with --count: the subject of the stories")
    add("--max-words", type=options.count, metavar="N", help="with --count: as in story")
    add("--input-format", choices=get_args(InputFormat), help="default: by the name of IN")
    add("--prompt", metavar="TEXT", help=_PROMPT)
    add("--format", choices=get_args(OutputFormat), default="jsonl", help=_FORMAT)
    add("--shard-rows", type=options.count, default=1000, metavar="N", help=_SHARD)
    add("-s", "--seed", type=options.seed, default=0, metavar="N", help="of the job (default 0)")
    add("-n", "--max-tokens", type=options.natural_number, metavar="N", help="of a text")
    group = parser.add_argument_group("sampling", "As in run. A row's own parameters come first.")
    for name in _SAMPLING:
        short = {"temperature": ("-t",), "top_p": ("-p",)}.get(name, ())
        kind: Any = options.natural_number if name == "top_k" else sampling_number(name)
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(*short, flag, type=kind, metavar="X")
    group.add_argument("--stop", action="append", metavar="TEXT")
    add("--template", choices=sorted(TEMPLATES), help="the format of turns, for rows with messages")
    add("--max-batch", type=options.count, default=MAX_BATCH, metavar="N", help="texts at once")
    add("--processes", type=options.count, default=1, metavar="N", help="each with its own model")
    add("--ray", nargs="?", const="", metavar="ADDRESS", help=_RAY)
    add("--actors", type=options.count, metavar="N", help="with --ray (default: one per CPU)")
    add("-z", "--tokenizer", type=Path, metavar="FILE", help=options.TOKENIZER)
    add("--threads", type=options.threads, metavar="N", help="of each process or actor")
    add("--dtype", choices=options.DTYPES, help=options.DTYPE)
    add("--cache-dtype", choices=options.CACHE_DTYPES, default="float32", help=options.CACHE_DTYPE)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the batch, and print what it did."""
    source, settings = _source(args), _settings(args)
    with _Show() as show:
        summary = run_batch(source, settings, args.output, partial(_start, args, settings), show)
    parts = [
        f"{counted(summary.rows, 'row')} in {counted(summary.shards, 'shard')}",
        f"{counted(summary.errors, 'row')} with an error",
        counted(summary.tokens, "token"),
    ]
    if summary.new_rows < summary.rows:
        parts.append(f"{counted(summary.new_rows, 'row')} of them new")
    if summary.new_tokens and summary.seconds:
        parts.append(f"{summary.new_tokens / summary.seconds:,.0f} tokens/s")
    print(f"{args.output}: {', '.join(parts)}", file=sys.stderr)
    return 0


def _source(args: argparse.Namespace) -> Source:
    if (args.input is None) == (args.count is None):
        raise BatchError("expected a file of rows, or --count N for stories from nothing")
    if args.count is None:
        if args.about is not None or args.max_words is not None:
            raise BatchError("--about and --max-words are for stories from nothing (--count N)")
        return open_source(args.input, args.input_format, args.shard_rows)
    for name in ("prompt", "input_format", "template"):
        if getattr(args, name) is not None:
            raise BatchError(f"--{name.replace('_', '-')} is for a file of rows, not for --count")
    return stories(args.count, args.shard_rows)


def _settings(args: argparse.Namespace) -> Settings:
    names = ("max_tokens", *_SAMPLING, "stop")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    wish = None
    if args.count is not None:
        if unused := given.keys() - {"temperature", "top_p"}:
            flag = min(unused).replace("_", "-")
            raise BatchError(f"--{flag} is for a file of rows; stories take --max-words")
        wish = {"about": args.about, "max_words": args.max_words}
        wish = {name: value for name, value in wish.items() if value is not None}
    return Settings(
        seed=args.seed,
        parameters=given,
        template=args.prompt,
        chat_template=args.template,
        format=args.format,
        stories=wish,
        max_batch=args.max_batch,
    )


def _start(args: argparse.Namespace, settings: Settings, on_rows: OnRows) -> Runner:
    """Load the model where the texts are made."""
    if args.ray is not None and args.processes > 1:
        raise BatchError("--processes is for one machine; with --ray, use --actors")
    if args.ray is None and args.actors is not None:
        raise BatchError("--actors is for a Ray cluster (--ray)")
    tokenizer = None if args.tokenizer is None else str(args.tokenizer)
    threads = args.threads
    if threads is None and args.processes > 1:
        threads = max(1, default_threads() // args.processes)
    spec = ModelSpec(args.model, tokenizer, threads, args.dtype, args.cache_dtype).located()
    if args.ray is not None:
        from ..bulk.ray import RayRunner

        return RayRunner(args.ray or None, args.actors, spec, settings, on_rows)
    if args.processes > 1:
        return Processes(args.processes, spec, settings, on_rows)
    return InProcess(spec, settings, on_rows)


class _Show(ExitStack):
    """Show progress on standard error: a bar on a terminal, or else a line now and then."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._shown_at = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show it, unless something was shown a moment ago."""
        is_terminal = sys.stderr.isatty()
        if progress.seconds - self._shown_at < (_BAR_EVERY if is_terminal else _LINE_EVERY):
            return
        self._shown_at = progress.seconds
        rate = progress.new_tokens / progress.seconds
        speed = f"{counted(progress.new_tokens, 'token')}, {rate:,.0f} tokens/s"
        done = progress.earlier + progress.new_rows
        if is_terminal:
            if self._bar is None:
                made: tqdm[Any] = progress_bar(
                    total=progress.total, initial=progress.earlier, unit="row"
                )
                self._bar = self.enter_context(made)
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        left = (progress.total - done) * progress.seconds / max(1, progress.new_rows)
        text = f"{done:,} of {counted(progress.total, 'row')}, {speed}, {left / 60:,.0f} min left"
        print(text, file=sys.stderr, flush=True)

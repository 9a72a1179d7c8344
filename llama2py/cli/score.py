"""``llama2py score``: score a text with a model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CorpusError
from ..formats.corpus import read_stories, split_stories
from ..generation.scoring import score_texts
from ..hub import BUILTIN
from ..model import load
from . import options
from .loading import loading_bar

if TYPE_CHECKING:
    from .options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "score",
        help="bits per byte and nats per token of a text",
        description="Print a model's loss on a text in bits per byte and nats per token: lower is "
        "better. Lines of <|endoftext|> separate stories. Each story is scored from its beginning "
        "to its end, without surrounding white space.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="MODEL", help=f"as in run; {BUILTIN!r} is the built-in model")
    add("file", metavar="FILE", help="a text file, or - for standard input")
    add("-z", "--tokenizer", type=Path, metavar="FILE", help="default: as in run")
    add("--dtype", choices=options.DTYPES, help=options.DTYPE)
    add("--cache-dtype", choices=options.CACHE_DTYPES, default="float32", help=options.CACHE_DTYPE)
    add("--threads", type=options.threads, metavar="N", help="default: the physical cores")
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def read_stdin() -> list[str]:
    """Read stories from standard input."""
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"standard input: byte {error.start} is not UTF-8") from None
    return split_stories(text.replace("\r\n", "\n"), "standard input")


def run(args: argparse.Namespace) -> int:
    """Score a text story by story."""
    stories = read_stdin() if args.file == "-" else read_stories(args.file)
    with loading_bar() as progress:
        model = load(
            args.checkpoint,
            args.tokenizer,
            args.threads,
            dtype=args.dtype,
            cache_dtype=args.cache_dtype,
            progress=progress,
        )
    with model:
        quiet = not sys.stderr.isatty()
        from .._util import progress_bar

        score = score_texts(model, progress_bar(stories, unit="story", leave=False, disable=quiet))
    facts = {
        "bits_per_byte": score.bits_per_byte,
        "nats_per_token": score.nats_per_token,
        "stories": score.texts,
        "bytes": score.bytes,
        "tokens": score.tokens,
    }
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"bits per byte   {score.bits_per_byte:.4f}")
    print(f"nats per token  {score.nats_per_token:.4f}")
    texts = "1 story" if score.texts == 1 else f"{score.texts:,} stories"
    print(f"read            {texts}, {score.bytes:,} bytes, {score.tokens:,} tokens")
    return 0

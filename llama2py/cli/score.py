"""``llama2py score``: how well a model knows a text."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.corpus import read_stories
from ..model import load
from ..scoring import score_texts
from . import options
from .loading import loading_bar

if TYPE_CHECKING:
    from .options import Subparsers


# Not an optional argument: argparse could not tell it from FILE behind an option.
BUILTIN = "builtin"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "score",
        help="bits per byte and nats per token of a text",
        description="Print how many bits a byte of a text costs a model, and how many nats a "
        "token: the fewer the better. Stories are parted by lines of <|endoftext|>, and each is "
        "scored from its beginning to its end, white space around it left out.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="MODEL", help=f"as in run; {BUILTIN!r}: the built-in one")
    add("file", metavar="FILE", type=Path, help="the text")
    add("-z", "--tokenizer", type=Path, metavar="FILE", help="default: as in run")
    add("--dtype", choices=options.DTYPES, help=options.DTYPE)
    add("--cache-dtype", choices=options.CACHE_DTYPES, default="float32", help=options.CACHE_DTYPE)
    add("--threads", type=options.threads, metavar="N", help="default: the physical cores")
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score story by story."""
    stories = read_stories(args.file)
    path = None if args.checkpoint == BUILTIN else args.checkpoint
    where, dtypes = (path, args.tokenizer, args.threads), (args.dtype, args.cache_dtype)
    with loading_bar() as progress:
        model = load(*where, "c", *dtypes, progress)
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
    print(
        f"read            {score.texts:,} stories, {score.bytes:,} bytes, {score.tokens:,} tokens"
    )
    return 0

"""``llama2py story``: tell a story about something."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..generation.sampling import random_seed
from ..stories.teller import StoryTeller
from . import options

if TYPE_CHECKING:
    from .options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "story",
        help="tell a story about something",
        description="Tell whole stories: they begin as stories do, and end at a sentence's end.",
    )
    add = parser.add_argument
    add("about", metavar="ABOUT", nargs="?", default="", help='as "a dragon who is afraid of fire"')
    add("-i", "--opening", metavar="TEXT", default="", help="the first words, instead of ABOUT")
    add("-w", "--word", metavar="WORD", action="append", default=[], help="must appear; repeatable")
    add("-s", "--seed", type=options.seed, default=0, metavar="N", help="0: a new one (default)")
    add("-n", "--count", type=options.count, default=1, metavar="N", help="stories (default 1)")
    add("--max-words", type=options.count, default=300, metavar="N", help="default 300")
    add("-t", "--temperature", type=options.temperature, default=0.7, metavar="T", help="0.7")
    add("-p", "--top-p", type=options.top_p, default=0.9, metavar="P", help="default 0.9")
    add("-m", "--model", metavar="FILE", help=options.CHECKPOINT)
    add("-z", "--tokenizer", type=Path, metavar="FILE", help="default: as in run")
    add("--threads", type=options.threads, metavar="N", help="default: the physical cores")
    add("--width", type=options.whole_number, default=80, metavar="N", help="wrap lines; 0: do not")
    add("--jsonl", action="store_true", help="print a line of JSON for each story")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tell one story after the other."""
    seed = args.seed if args.seed > 0 else random_seed()
    with StoryTeller(
        args.model, args.tokenizer, args.threads, args.temperature, args.top_p
    ) as tell:
        stories = tell.many(
            args.count,
            seed=seed,
            about=args.about,
            opening=args.opening,
            words=args.word,
            max_words=args.max_words,
        )
        for number, story in enumerate(stories):
            if args.jsonl:
                print(json.dumps(asdict(story), ensure_ascii=False), flush=True)
                continue
            if number:
                print()
            for line in story.text.split("\n"):
                print(textwrap.fill(line, args.width) if args.width > 0 else line, flush=True)
    return 0

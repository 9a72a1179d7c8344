"""``llama2py story``: write complete stories."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from dataclasses import asdict

from .._util import counted
from ..errors import ParameterError
from ..generation.sampling import random_seed
from ..stories.teller import CANDIDATES, Story, StoryTeller
from . import options
from .loading import load_model, looks_like_model
from .options import Subparsers, sampling_number

_CHECKPOINT = (
    f"{options.CHECKPOINT}. A single argument is the subject, unless it looks like a model"
)
_ABOUT = "the subject, such as 'a dragon who is afraid of fire' (default: the model chooses)"
_WORD = "a word that must appear; repeatable"
_SEED = "seed of the first story; the next story has the next seed; 0: a random seed (default 0)"
_MAX_WORDS = "maximum length of a story (default 300)"
_TEMPERATURE = "as in run (default 1.0 in the first sentence, then 0.6, or 0.5 with a subject)"
_TOP_P = "as in run (default 0.95 in the first sentence, then 0.9)"
_CANDIDATES = "write N texts for each story and print the best (default 8)"
_WIDTH = "wrap lines at N columns; 0: do not (default: the terminal's width; 0 in a pipe or file)"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "story",
        help="write a complete story about a subject",
        description="Write complete stories, which begin like stories and end with a sentence. "
        "The stories go to standard output, their seeds to standard error.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", nargs="?", help=_CHECKPOINT)
    add("about", metavar="ABOUT", nargs="?", help=_ABOUT)
    add("-i", "--opening", metavar="TEXT", default="", help="the first words, instead of ABOUT")
    add("-w", "--word", metavar="WORD", action="append", default=[], help=_WORD)
    add("-s", "--seed", type=options.seed, default=0, metavar="N", help=_SEED)
    add(
        "-n",
        "--count",
        type=options.count,
        default=1,
        metavar="N",
        help="number of stories (default 1)",
    )
    add("--max-words", type=options.count, default=300, metavar="N", help=_MAX_WORDS)
    temperature, top_p = sampling_number("temperature"), sampling_number("top_p")
    add("-t", "--temperature", type=temperature, metavar="T", help=_TEMPERATURE)
    add("-p", "--top-p", type=top_p, metavar="P", help=_TOP_P)
    add("--candidates", type=options.count, default=CANDIDATES, metavar="N", help=_CANDIDATES)
    add("-m", "--model", metavar="CHECKPOINT", help="the model, instead of the first argument")
    options.add_loading_options(parser)
    add("--width", type=options.natural_number, metavar="N", help=_WIDTH)
    add("--jsonl", action="store_true", help="print one line of JSON per story")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write one story after the other."""
    args.checkpoint, about = _model_and_subject(args)
    seed = args.seed or random_seed()
    width = _terminal_width() if args.width is None else args.width
    with (
        load_model(args) as model,
        StoryTeller(
            model, temperature=args.temperature, top_p=args.top_p, candidates=args.candidates
        ) as tell,
    ):
        stories = tell.many(
            args.count,
            seed=seed,
            about=about,
            opening=args.opening,
            words=args.word,
            max_words=args.max_words,
        )
        for number, story in enumerate(stories):
            if args.jsonl:
                _print_json(story)
                continue
            if number:
                print()
            _print_story(story, width)
    return 0


def _model_and_subject(args: argparse.Namespace) -> tuple[str | None, str]:
    """Return the model's name, if there is one, and the subject."""
    first, about, model = args.checkpoint, args.about, args.model
    if about is None and first is not None and not looks_like_model(first):
        first, about = None, first
    if model is not None and first is not None:
        raise ParameterError(f"there are two models, {first} and -m {model}: name only one")
    return first if model is None else model, about or ""


def _terminal_width() -> int:
    """Return the width of the terminal that standard output is, or 0."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def _print_story(story: Story, width: int) -> None:
    for line in story.text.split("\n"):
        print(textwrap.fill(line, width) if width else line)
    sys.stdout.flush()
    details = f"{counted(story.words, 'word')}, seed {story.seed}"
    print(details, file=sys.stderr, flush=True)


def _print_json(story: Story) -> None:
    """Print a line of JSON, with escapes if standard output is not UTF-8."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(asdict(story), ensure_ascii=not is_utf8), flush=True)

"""``llama2py download``: a model from the Hugging Face hub."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from ..hub import STORIES, download

if TYPE_CHECKING:
    from .options import Subparsers

_MODEL = f"{', '.join(STORIES)}, owner/repo, or owner/repo:file"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "download",
        help="get a model from the Hugging Face hub",
        description="Get a model from the Hugging Face hub into its usual cache and print where "
        "it lies. The other commands then take the same name. Needs llama2py[hub].",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Download, then print the path."""
    theirs = logging.getLogger("huggingface_hub")  # which prints its warnings itself
    passed_on, theirs.propagate = theirs.propagate, False
    try:
        print(download(args.model))
    finally:
        theirs.propagate = passed_on
    return 0

"""``llama2py download``: get a model from the Hugging Face hub."""

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
        description="Get a model from the Hugging Face hub into the hub's usual cache, and print "
        "its path. The other commands then take the same name. An interrupted download resumes. "
        "Needs llama2py[hub].",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Download and print the path."""
    hub_log = logging.getLogger("huggingface_hub")  # it has its own handler, which prints
    propagate, hub_log.propagate = hub_log.propagate, False
    try:
        print(download(args.model))
    finally:
        hub_log.propagate = propagate
    return 0

"""``llama2py train``: train a model on a corpus of stories, and go on where it was stopped."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..errors import TrainingError
from ..training import TrainConfig, config_from, train
from . import options

if TYPE_CHECKING:
    from .options import Subparsers

EXTRA = "training needs PyTorch: pip install 'llama2py[train]'"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "train",
        help="train a model on a corpus of stories",
        description="Train a model on a text file of stories, parted by lines of <|endoftext|>. "
        "The best checkpoint yet is kept in FILE. Stopped at any moment (Ctrl-C, kill, power), "
        "the same command goes on. Several GPUs: torchrun --nproc_per_node=N -m llama2py train ...",
    )
    add = parser.add_argument
    add("corpus", metavar="CORPUS", type=Path, help="the stories")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="as story.bin")
    add("-z", "--tokenizer", type=Path, metavar="FILE", help="default: one is trained first")
    add("--config", type=Path, metavar="FILE", help="hyperparameters: a TOML file of name = value")
    add("--int8", action="store_true", help="write llama2.c's v2 (int8), not v0 (float32)")
    add("--group-size", type=options.count, metavar="N", help="int8: weights that share a scale")
    add("--fresh", action="store_true", help="start anew where an earlier run was stopped")
    group = parser.add_argument_group(
        "hyperparameters", "By llama2.c's names. What they mean: pydoc llama2py.training.config"
    )
    for field in fields(TrainConfig):
        flags = list(dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}")))
        kind, text = type(field.default), f"default {field.default}"
        if kind is bool:
            for flag, shown in zip(flags, (text, argparse.SUPPRESS), strict=False):
                group.add_argument(
                    flag, dest=field.name, action=argparse.BooleanOptionalAction, help=shown
                )
        else:
            group.add_argument(
                *flags, dest=field.name, type=kind, metavar=kind.__name__.upper(), help=text
            )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; 130 if it was stopped."""
    changes = {
        field.name: value
        for field in fields(TrainConfig)
        if (value := getattr(args, field.name)) is not None
    }
    stop = threading.Event()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signum, signal.default_int_handler)  # a second one ends it at once

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, on_signal)
    try:
        result = train(
            args.corpus,
            args.output,
            config_from(args.config, changes),
            tokenizer=args.tokenizer,
            version=2 if args.int8 else 0,
            group_size=args.group_size,
            fresh=args.fresh,
            report=_say,
            stop=stop.is_set,
        )
    except ModuleNotFoundError as error:
        raise TrainingError(f"{EXTRA} ({error})") from None
    if not result.finished:
        _say(f"stopped after step {result.step}; the same command goes on from there")
        return 130
    _say(f"{args.output} is done; python -m llama2py run {args.output}")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

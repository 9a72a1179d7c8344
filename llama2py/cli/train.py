"""``llama2py train``: train a model on a corpus of stories, or continue a stopped run."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..errors import TrainingError
from ..training import Output, TrainConfig, config_from, train
from . import options

if TYPE_CHECKING:
    from .options import Subparsers

EXTRA = "training needs PyTorch: pip install 'llama2py[train]'"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "train",
        help="train a model on a corpus of stories",
        description="Train a model on a text file of stories, separated by lines of "
        "<|endoftext|>. FILE is always the best checkpoint so far. If the run stops for any reason "
        "(Ctrl-C, kill, power failure), the same command continues it. Several GPUs: "
        "torchrun --nproc_per_node=N -m llama2py train ...",
    )
    add = parser.add_argument
    add("corpus", metavar="CORPUS", type=Path, help="text file of stories")
    add(
        *("-o", "--output"),
        type=Path,
        required=True,
        metavar="FILE",
        help="checkpoint to write, such as story.bin",
    )
    add(
        *("-z", "--tokenizer"),
        type=Path,
        metavar="FILE",
        help="vocabulary to use (default: train one first)",
    )
    add("--config", type=Path, metavar="FILE", help="TOML file of hyperparameters: name = value")
    add("--int8", action="store_true", help="write llama2.c's v2 (int8) instead of v0 (float32)")
    add(
        "--group-size",
        type=options.count,
        metavar="N",
        help="with --int8: how many weights share a scale",
    )
    add("--fresh", action="store_true", help="start again: delete an earlier run, FILE included")
    group = parser.add_argument_group(
        "hyperparameters", "Named as in llama2.c. Dashes work in place of underscores."
    )
    meanings = TrainConfig.meanings()
    for field in fields(TrainConfig):
        flags = list(dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}")))
        kind = type(field.default)
        text = f"{meanings[field.name]} (default {field.default})"
        if kind is bool:
            text = f"{meanings[field.name]} (default {'yes' if field.default else 'no'})"
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
    """Train; if a signal stopped it, return 128 plus its number, as shells do."""
    changes = {
        field.name: value
        for field in fields(TrainConfig)
        if (value := getattr(args, field.name)) is not None
    }
    config = config_from(args.config, changes)
    output = Output(args.output, int8=args.int8, group_size=args.group_size)
    stop = StopOnSignal()
    try:
        with stop.installed():
            if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, only the first
                _say(f"reading {args.corpus}")
            result = train(
                args.corpus,
                output,
                config,
                tokenizer=args.tokenizer,
                fresh=args.fresh,
                report=_say,
                stop=stop,
            )
    except ModuleNotFoundError as error:
        raise TrainingError(f"{EXTRA} ({error})") from None
    if not result.finished:
        _say(f"stopped after step {result.step}; the same command continues from there")
        return 128 + stop.signum
    _say(f"{args.output} is done: python -m llama2py run {args.output}")
    return 0


class StopOnSignal:
    """Make `train` stop after SIGINT, SIGTERM or SIGHUP: pass an instance as its ``stop``.

    Until `train` asks for the first time nothing has been trained, so a signal ends the program at
    once. Later the first signal lets the current batch end and the state be saved; a second one
    ends the program at once.

    Attributes
    ----------
    signum : int
        The signal that arrived; 0 if none did.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._training = False

    def __call__(self) -> bool:
        self._training = True
        return self.signum != 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block, except those that are ignored, as by nohup."""
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        before = {
            signum: handler
            for name in names
            if (signum := getattr(signal, name, None)) is not None
            and (handler := signal.getsignal(signum)) != signal.SIG_IGN
        }
        try:
            for signum in before:
                signal.signal(signum, self._on_signal)
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._training and not self.signum:
            with contextlib.suppress(OSError):  # not print(): the signal may have interrupted one
                os.write(2, b"stopping after this batch; a second signal stops at once\n")
            self.signum = signum
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + signum)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""Load the model of a command line, with a progress bar if that takes a while."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import PurePath
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..hub import STORIES
from ..model import Model, load

if TYPE_CHECKING:
    from tqdm import tqdm

_DELAY = 1.0  # seconds until the bar appears
_SUFFIXES = {".bin", ".gguf", ".pt", ".pth", ".safetensors"}  # of files that are models


def looks_like_model(text: str) -> bool:
    """Return whether an argument is a model, by its form: a path, a file name or a known name.

    The files that happen to be in the current folder make no difference.
    """
    if text in STORIES or text == "builtin":
        return True
    has_space = any(map(str.isspace, text))
    return not has_space and ("/" in text or PurePath(text).suffix in _SUFFIXES)


def load_model(args: argparse.Namespace) -> Model:
    """Load ``args.checkpoint`` with the options of `options.add_loading_options`."""
    with loading_bar() as progress:
        return load(
            args.checkpoint,
            args.tokenizer,
            args.threads,
            args.backend,
            args.dtype,
            args.cache_dtype,
            progress,
            args.lora,
        )


@contextlib.contextmanager
def loading_bar() -> Iterator[Callable[[int, int], None]]:
    """Yield a ``progress`` callback for `load`, which draws a bar on a terminal after one second.

    The bar disappears at the end of the block.
    """
    with contextlib.ExitStack() as stack:
        start, bar = perf_counter(), None

        def progress(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                if perf_counter() - start < _DELAY or not sys.stderr.isatty():
                    return
                from .._util import progress_bar

                made: tqdm[Any] = progress_bar(
                    desc="loading",
                    initial=done,
                    total=total,
                    unit="w",
                    unit_scale=True,
                    leave=False,
                )
                bar = stack.enter_context(made)
            bar.update(done - bar.n)

        yield progress

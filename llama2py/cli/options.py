"""Options that several commands share, and the types of their values.

argparse turns an ArgumentTypeError of a type into a usage error.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, get_args

from ..config import CacheDtype, Dtype
from ..engine.cpu import MAX_THREADS
from ..engine.parameters import shown
from ..errors import ParameterError
from ..generation.sampling import SamplingParams


class Subparsers(Protocol):
    """The part of argparse's subparsers that commands use."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser:
        """Add the parser of a command."""


DTYPES = get_args(Dtype)
CACHE_DTYPES = get_args(CacheDtype)
CACHE_DTYPE = "dtype of keys and values (default float32; bfloat16 takes half the memory)"
DTYPE = "convert or quantize the weights while loading (default: the checkpoint's dtype)"
CHECKPOINT = (
    "a llama2.c or GGUF file, such as stories15M.bin; a directory in Meta's or Hugging Face's"
    " format; or the name of a downloaded model, such as stories15M (default: the built-in story"
    " model)"
)
THREADS = "number of threads (default: the physical cores)"
BACKEND = "c: the C engine; numpy: the slow NumPy reference (default c)"
LORA = "a LoRA adapter, merged into the model: a directory of PEFT's, or a GGUF adapter"
TOKENIZER = "tokenizer.bin, .model or .json (default: the model's own, or Llama 2's)"


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `load`: see `llama2py.cli.loading.load_model`."""
    add = parser.add_argument
    add("-z", "--tokenizer", type=Path, metavar="FILE", help=TOKENIZER)
    add("--threads", type=threads, metavar="N", help=THREADS)
    add("--dtype", choices=DTYPES, help=DTYPE)
    add("--cache-dtype", choices=CACHE_DTYPES, default="float32", help=CACHE_DTYPE)
    add("--backend", choices=("c", "numpy"), default="c", help=BACKEND)
    add("--lora", type=Path, metavar="PATH", help=LORA)


def sampling_number(name: str) -> Callable[[str], float]:
    """Return the type of a float parameter of `SamplingParams`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None
        try:
            SamplingParams(**{name: value})  # type: ignore[arg-type]  # the name of a float
        except ParameterError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return number


def whole_number(text: str) -> int:
    """Any whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number") from None


def natural_number(text: str) -> int:
    """A whole number of at least 0."""
    value = whole_number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{shown(value)} is negative, expected 0 or more")
    return value


def seed(text: str) -> int:
    """A seed; 0 stands for a random one."""
    value = natural_number(text)
    if value >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{shown(value)} is above 2**64 - 1")
    return value


def threads(text: str) -> int:
    """A number of threads."""
    value = count(text)
    if value > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{shown(value)} is above {MAX_THREADS}")
    return value


def count(text: str) -> int:
    """A whole number of at least 1."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{shown(value)} is less than 1")
    return value


def thread_counts(text: str) -> list[int]:
    """Numbers of threads, separated by commas; repeated ones count once."""
    return list(dict.fromkeys(threads(part) for part in text.split(",")))


def counts(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas; repeated ones count once."""
    return list(dict.fromkeys(count(part) for part in text.split(",")))


@contextlib.contextmanager
def progress(**bar_options: Any) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that draws a progress bar, by default of weights.

    The default bar appears after one second.
    """
    from .._util import progress_bar

    bar_options = bar_options or {"unit": "w", "unit_scale": True, "delay": 1}
    with progress_bar(disable=None, **bar_options) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show

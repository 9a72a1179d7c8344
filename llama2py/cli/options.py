"""Types of command-line values: argparse turns their complaint into a usage error."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, get_args

from ..config import CacheDtype, Dtype
from ..engine.cpu import MAX_THREADS
from ..errors import ParameterError
from ..generation.sampling import SamplingParams

if TYPE_CHECKING:  # generic for type checkers only
    Subparsers = argparse._SubParsersAction[Any]

DTYPES = get_args(Dtype)
CACHE_DTYPES = get_args(CacheDtype)
CACHE_DTYPE = "what to keep keys and values in (default float32; bfloat16: half the memory)"
DTYPE = "convert or quantize the weights while loading (default: as the checkpoint has them)"
CHECKPOINT = (
    "a llama2.c or GGUF model, as stories15M.bin, a directory of Meta's or Hugging Face's, or the"
    " name of a downloaded one, as stories15M (default: the built-in story model)"
)


def temperature(text: str) -> float:
    """A temperature; below 0 it becomes 0, as in llama2.c."""
    value = _number(text)
    value = 0.0 if value < 0 else value  # not max(): it would make a 0 of nan, too
    return _checked(SamplingParams, temperature=value).temperature


def top_p(text: str) -> float:
    """A top-p, 0 to 1."""
    return _checked(SamplingParams, top_p=_number(text)).top_p


def whole_number(text: str) -> int:
    """Any whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def seed(text: str) -> int:
    """A seed; 0 or less asks for a new one."""
    value = whole_number(text)
    if value >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{value} is above 2**64 - 1")
    return value


def threads(text: str) -> int:
    """A thread count that the engine takes."""
    value = count(text)
    if value > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{value} is above {MAX_THREADS}")
    return value


def count(text: str) -> int:
    """A whole number from 1 up."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number from 1 up")
    return value


def thread_counts(text: str) -> list[int]:
    """Different thread counts, with commas between them."""
    return list(dict.fromkeys(threads(part) for part in text.split(",")))


def counts(text: str) -> list[int]:
    """Different whole numbers from 1 up, with commas between them."""
    return list(dict.fromkeys(count(part) for part in text.split(",")))


@contextlib.contextmanager
def progress(**looks: Any) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told (done, total); by default of weights, for what takes over a second."""
    from .._util import progress_bar

    looks = looks or {"unit": "w", "unit_scale": True, "delay": 1}
    with progress_bar(disable=None, **looks) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _checked(params: type[SamplingParams], **values: float) -> SamplingParams:
    try:
        return params(**values)  # type: ignore[arg-type]  # those whose values are numbers
    except ParameterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

"""A bar for models that take a while to load."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from time import perf_counter

_PATIENCE = 1.0  # seconds without one


@contextlib.contextmanager
def loading_bar() -> Iterator[Callable[[int, int], None]]:
    """Give a ``progress`` for `load`: after a second it draws a bar on a terminal.

    The bar is gone when the block ends.
    """
    with contextlib.ExitStack() as stack:
        start, bar = perf_counter(), None

        def progress(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                if perf_counter() - start < _PATIENCE or not sys.stderr.isatty():
                    return
                from .._util import progress_bar

                made = progress_bar(
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

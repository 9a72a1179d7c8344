"""Small helpers that several packages share."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from tqdm import tqdm

Self = TypeVar("Self", bound="Closing")
T = TypeVar("T")

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Format a count: ``'1 word'``, ``'2 words'``, ``'1,000 words'``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def amount(nbytes: int) -> str:
    """Format a number of bytes: ``'7.2 GB'``, ``'2.3 MB'``."""
    unit, name = next(pair for pair in _UNITS if nbytes >= pair[0] or pair == _UNITS[-1])
    return f"{nbytes / unit:.1f} {name}"


class Closing:
    """A context manager that returns itself and closes itself."""

    def close(self) -> None:
        """Free the resources. A second call has no effect."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def progress_bar(iterable: Iterable[T] | None = None, **options: Any) -> tqdm[T]:
    """Wrap an iterable in tqdm's progress bar, without the monitor thread that tqdm starts."""
    return cast("tqdm[T]", _bar_class()(iterable, **options))


@cache
def _bar_class() -> type[tqdm[Any]]:
    from tqdm import tqdm  # slow to import, and most programs never show a bar

    class Bar(tqdm):  # type: ignore[type-arg]  # generic for type checkers only
        monitor_interval = 0

    return Bar

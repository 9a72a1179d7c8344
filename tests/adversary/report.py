"""The report that the adversary's parts share: their time, their attempts, their findings."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeAlias


class Report:
    """Counts attempts and prints findings, one per place in the code."""

    def __init__(self, keep: Path) -> None:
        self._keep = keep
        self._name = ""
        self._deadline = 0.0
        self._tried: Counter[str] = Counter()
        self._found: set[str] = set()

    def begin(self, name: str, seconds: float) -> None:
        self._name = name
        self._deadline = time.monotonic() + seconds
        self._tried.clear()

    @property
    def has_time(self) -> bool:
        return time.monotonic() < self._deadline

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def tried(self, what: str, count: int = 1) -> None:
        self._tried[what] += count

    def found(self, place: str, what: str, data: bytes | None = None) -> None:
        """Print a finding, unless this place has had one; keep the input that led to it."""
        if place in self._found:
            return
        self._found.add(place)
        kept = ""
        if data is not None:
            path = self._keep / f"{place.split()[0]}-{hashlib.sha1(data).hexdigest()[:12]}"
            path.write_bytes(data)
            kept = f" ({path})"
        print(f"FOUND {self._name}: {place}: {what:.400}{kept}", flush=True)

    def end(self) -> None:
        tried = ", ".join(f"{count} {what}" for what, count in sorted(self._tried.items()))
        print(f"{self._name}: {tried or 'nothing tried'}", flush=True)

    def status(self) -> int:
        print(f"{len(self._found)} findings", flush=True)
        return 1 if self._found else 0


Part: TypeAlias = Callable[[Report, Random], None]

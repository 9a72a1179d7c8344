"""A progress bar that leaves nothing behind."""

from __future__ import annotations

from tqdm import tqdm


class Bar(tqdm):  # type: ignore[type-arg]  # generic for type checkers only
    """tqdm's, without the thread that it would start to watch itself."""

    monitor_interval = 0

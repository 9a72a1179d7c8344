"""Clean up when a command that writes large files is told to end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def cleanup_on_termination() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit in the block, so that temporary files are removed.

    Signals that somebody else handles or ignores (nohup) are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    signals = [signum for signum in signals if signal.getsignal(signum) is signal.SIG_DFL]

    def stop(signum: int, frame: FrameType | None) -> None:
        for each in signals:  # a second one must not interrupt the clean-up
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + signum)

    try:
        for signum in signals:
            signal.signal(signum, stop)
        yield
    finally:
        for signum in signals:
            signal.signal(signum, signal.SIG_DFL)

"""Locks on files, which the system drops when the process that holds them ends, however it ends."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    HAVE_LOCKS = False
else:
    HAVE_LOCKS = True


def is_locked_by_another(descriptor: int) -> bool:
    """Lock an open file or folder, and return whether another process already holds the lock.

    False if this file system has no locks.
    """
    if HAVE_LOCKS:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file or folder until its descriptor is closed.

    Parameters
    ----------
    descriptor : int
        The open file or folder.
    wait : bool
        Wait while another process holds the lock.

    Returns
    -------
    bool
        False if another process holds the lock, or if this file system has no locks.
    """
    if not HAVE_LOCKS:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether a path still leads to the file that was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False

"""How many threads to start by default."""

from __future__ import annotations

import os
from pathlib import Path

MAX_THREADS = 256  # of the engine's pool (csrc/engine.h)


def allowed_cpus() -> set[int]:
    """Return the logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(cpus: set[int]) -> int:
    """Count the physical cores of logical CPUs; the CPUs of a core share its arithmetic units."""
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text(encoding="ascii"))
        except (OSError, UnicodeError):
            cores.add(str(cpu))
    return len(cores)


def _cgroup_quota() -> float:
    """Return how many CPUs' time a container may use; infinite if nothing limits it."""
    try:  # cgroup v2: "200000 100000" (microseconds of time per period), or "max 100000"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:  # cgroup v1: -1 for no limit
        folder = Path("/sys/fs/cgroup/cpu")
        micros = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return micros / period_us if micros > 0 else float("inf")
    except (OSError, ValueError, ZeroDivisionError):
        return float("inf")


def default_threads() -> int:
    """Return how many physical cores this process may use, by affinity and container quota.

    Returns
    -------
    int
        1 to `MAX_THREADS`.
    """
    return max(1, int(min(_physical_cores(allowed_cpus()), _cgroup_quota(), MAX_THREADS)))

"""How much memory a model needs and how much is free, checked before loading."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from .._util import amount
from ..checkpoint import Checkpoint
from ..config import Dtype
from ..errors import TooBigError

_log = logging.getLogger(__name__)


def packed_bytes(checkpoint: Checkpoint, dtype: Dtype) -> int:
    """Return the bytes of a checkpoint's weights in the engine, with matrices of a dtype."""
    from . import c_config  # the C extension; the reference runs without it

    return c_config.packed_bytes(checkpoint, dtype)


def memory_by_dtype(checkpoint: Checkpoint) -> dict[Dtype, int]:
    """Return the bytes of a checkpoint's weights in the engine, for each dtype of `load`."""
    return {dtype: packed_bytes(checkpoint, dtype) for dtype in get_args(Dtype)}


def check_memory(checkpoint: Checkpoint, dtype: Dtype, session: int) -> None:
    """Refuse a model whose weights need more memory than is free, before any of them is read.

    Does nothing where the free memory is unknown. The keys and values of a session (``session``
    bytes at full length) take memory only as it grows: if they would not fit, that is logged.

    Raises
    ------
    TooBigError
        The message says how much each dtype needs, and which to use.
    """
    free = free_memory()
    if free is None:
        return
    problem = shortage(checkpoint, dtype, free)
    if problem is not None:
        raise problem
    weights = packed_bytes(checkpoint, dtype)
    if weights + session > free:
        _log.warning(
            "%s: %s of weights and %s of keys and values in a session of %d tokens are more than"
            " the %s that are free",
            *(checkpoint.path, amount(weights), amount(session), checkpoint.config.seq_len),
            amount(free),
        )


def shortage(checkpoint: Checkpoint, dtype: Dtype, free: int) -> TooBigError | None:
    """Return the error if the weights do not fit into ``free`` bytes, or None."""
    sizes = memory_by_dtype(checkpoint)
    needed = sizes[dtype]
    if needed <= free:
        return None
    smaller = {other: size for other, size in sizes.items() if size < needed}
    fits = next((other for other, size in smaller.items() if size <= free), None)
    listed = ", ".join(f"{amount(size)} as {other}" for other, size in smaller.items())
    advice = f": use dtype={fits!r}" if fits else ": use a smaller model or free memory"
    return TooBigError(
        f"{checkpoint.path} needs {amount(needed)} as {dtype}{f' ({listed})' if listed else ''}"
        f" and {amount(free)} are free{advice}",
        fits,
    )


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still allocate without being killed.

    The system's available memory, and the limits of a container (cgroup v1 and v2) minus what is in
    use there. Cached and mapped files count as free, and so does swap: this is rather too much than
    too little.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are.

    Returns
    -------
    int or None
        None where the system does not say, such as outside Linux.
    """
    system = _numbers(root / "proc" / "meminfo", unit=1024)
    if "MemAvailable:" not in system:
        return None
    swap = system.get("SwapFree:", 0)
    of_groups = (_free_in_group(folder, swap) for folder in _cgroups(root))
    limits = [free for free in of_groups if free is not None]
    return max(0, min([system["MemAvailable:"] + swap, *limits]))


def _cgroups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, and of the groups around them."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text("utf-8").splitlines()
    except (OSError, UnicodeError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys" / "fs" / "cgroup" / ("memory" if controllers else "")
        folder = base / path.lstrip(
            "/"
        )  # may be missing: a container sees its own group as the root
        yield folder
        while folder != base and base in folder.parents:
            folder = folder.parent
            yield folder


def _free_in_group(folder: Path, swap: int) -> int | None:
    """Return the bytes left below a group's limit; None if it has no limit."""
    stat = _numbers(folder / "memory.stat")
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is not None and used is not None:
        cached = sum(stat.get(name, 0) for name in ("inactive_file", "active_file"))
        swap_limit = _number(folder / "memory.swap.max")
        if swap_limit is not None:
            swap = min(swap, max(0, swap_limit - (_number(folder / "memory.swap.current") or 0)))
        return limit - used + cached + stat.get("slab_reclaimable", 0) + swap
    limit = _number(folder / "memory.limit_in_bytes")  # of cgroup v1
    used = _number(folder / "memory.usage_in_bytes")
    if limit is not None and used is not None:
        cached = sum(stat.get(name, 0) for name in ("total_inactive_file", "total_active_file"))
        return limit - used + cached + swap
    return None


def _number(file: Path) -> int | None:
    """Return the whole number that a file holds; None if it holds ``max`` or no number."""
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):  # a UnicodeError is a ValueError
        return None


def _numbers(file: Path, unit: int = 1) -> dict[str, int]:
    """Return the numbers of lines like ``name: 5 kB``, times ``unit``; {} if unreadable."""
    try:
        lines = [line.split() for line in file.read_text("ascii").splitlines()]
        return {name: int(value) * unit for name, value, *_ in lines}
    except (OSError, ValueError):
        return {}

"""Instruction sets: those that this CPU has, the one to use, and how fast it multiplies."""

from __future__ import annotations

import os

from ..config import Dtype
from ..errors import EngineError
from .extension import ffi, lib


def isa_names() -> list[str]:
    """Return the instruction sets of this build that this CPU has, best first."""
    return [name for index, name in enumerate(_all_isas()) if _is_here(index)]


def _all_isas() -> list[str]:
    names: list[str] = []
    while (name := lib.l2p_isa_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode("ascii"))
    return names


def _is_here(index: int) -> bool:
    """Return whether this CPU has it. For AMX, this asks the system to enable it for good."""
    return bool(lib.l2p_isa_supported(index))


def choose_isa() -> int:
    """Return the index of the best instruction set, or of the one that ``LLAMA2PY_ISA`` forces.

    Raises
    ------
    EngineError
        If the forced one is unknown, not in this build, or not in this CPU.
    """
    isas = _all_isas()
    wanted = os.environ.get("LLAMA2PY_ISA")
    if not wanted:
        return next(index for index in range(len(isas)) if _is_here(index))
    if wanted not in isas:
        raise EngineError(
            f"LLAMA2PY_ISA={wanted}: no such instruction set in this build,"
            f" expected one of {', '.join(isa_names())}"
        )
    index = isas.index(wanted)
    if not _is_here(index):
        raise EngineError(
            f"LLAMA2PY_ISA={wanted}: this CPU lacks it, expected one of {', '.join(isa_names())}"
        )
    return index


def products_per_second(threads: int, dtype: Dtype = "float32") -> float:
    """Measure multiply-adds a second when nothing else is done; for `bench`.

    Parameters
    ----------
    threads : int
        Threads that compute at the same time.
    dtype : {'float32', 'bfloat16', 'int8', 'int4'}
        The matrices' type: its products are those of float32, or integer dot products.

    Returns
    -------
    float
        Products a second of all threads together.
    """
    kind = {"int8": lib.L2P_INT8, "int4": lib.L2P_INT4}.get(dtype, lib.L2P_FLOAT32)
    isa = choose_isa()
    rounds, seconds = 1000, 0.0
    while seconds < 0.01:  # seconds, so that waking the threads does not count
        rounds *= 4
        seconds = lib.l2p_time_products(isa, kind, rounds, threads)
    return float(rounds * lib.l2p_products_a_round(kind) * threads / seconds)

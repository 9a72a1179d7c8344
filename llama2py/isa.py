"""Instruction sets: those this CPU has, the one to use, and how fast it multiplies."""

from __future__ import annotations

import os

from ._engine import ffi, lib
from .errors import EngineError


def isa_names() -> list[str]:
    """The instruction sets of this build that this CPU has, best first."""
    return [name for name, supported in _all_isas() if supported]


def _all_isas() -> list[tuple[str, bool]]:
    isas: list[tuple[str, bool]] = []
    while (name := lib.l2p_isa_name(len(isas))) != ffi.NULL:
        supported = bool(lib.l2p_isa_supported(len(isas)))
        isas.append((ffi.string(name).decode("ascii"), supported))
    return isas


def choose_isa() -> int:
    """The index of the best instruction set, or of the one that ``LLAMA2PY_ISA`` forces.

    Raises
    ------
    EngineError
        If the one asked for is unknown, not in this build, or not in this CPU.
    """
    isas = _all_isas()
    here = [name for name, supported in isas if supported]
    wanted = os.environ.get("LLAMA2PY_ISA") or here[0]
    for index, (name, supported) in enumerate(isas):
        if name == wanted:
            if supported:
                return index
            raise EngineError(
                f"LLAMA2PY_ISA={wanted}: this CPU lacks it, expected one of {', '.join(here)}"
            )
    raise EngineError(
        f"LLAMA2PY_ISA={wanted}: no such instruction set in this build,"
        f" expected one of {', '.join(here)}"
    )


def products_per_second(threads: int, int8: bool = False) -> float:
    """Multiply-adds a second when nothing else is done, float32 or int8; for `bench`.

    Parameters
    ----------
    threads : int
        So many do it at once.
    int8 : bool
        Integer dot products as int8 matrices have them.

    Returns
    -------
    float
        Products a second, all threads together.
    """
    kind, isa = (lib.L2P_INT8 if int8 else lib.L2P_FLOAT32), choose_isa()
    rounds, seconds = 1000, 0.0
    while seconds < 0.01:  # seconds; the wake-up of the threads must not count
        rounds *= 4
        seconds = lib.l2p_time_products(isa, kind, rounds, threads)
    return float(rounds * lib.l2p_products_a_round(kind) * threads / seconds)

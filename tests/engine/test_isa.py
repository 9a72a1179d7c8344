"""Instruction sets: none overlooked, the best by default, one forced."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from llama2py import EngineError
from llama2py.engine.isa import choose_isa, isa_names
from llama2py.engine.native import Engine
from tests.conftest import TINY, random_checkpoint

CPUINFO = Path("/proc/cpuinfo")


def amx_is_granted() -> bool:
    """Whether the system lets this process have AMX's registers, which it may refuse."""
    arch_prctl, request_permission, tile_state = 158, 0x1023, 18  # of Linux on x86-64
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_state) == 0)


def compiler_lacks(header: str) -> bool:
    """Whether what is here to compile, if anything is, has no such header."""
    program = f"#if !__has_include(<{header}>)\n#error\n#endif\n"
    command = [os.environ.get("CC", "cc"), "-fsyntax-only", "-x", "c", "-"]
    try:
        done = subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode != 0


@pytest.mark.parametrize("isa", isa_names())
def test_an_instruction_set_can_be_forced(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2PY_ISA", isa)
    assert Engine(random_checkpoint(TINY)).isa == isa


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.exists(), reason="reads cpuinfo")
def test_every_instruction_set_of_the_cpu_is_listed() -> None:
    """Or every test that goes through `isa_names` would leave its kernels out, silently."""
    flags = set(re.findall(r"\S+", CPUINFO.read_text("ascii").split("flags", 1)[1].split("\n")[0]))
    vnni = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
    needs = {
        "amx": {*vnni, "amx_tile", "amx_int8"},
        "avx512vnni": vnni,
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
        "avx2": {"avx2", "fma", "f16c"},
        "portable": set[str](),
    }
    if "amx_int8" in flags and not amx_is_granted():
        del needs["amx"]
    if compiler_lacks("avxvnniintrin.h"):
        needs = {isa: wanted for isa, wanted in needs.items() if isa not in ("amx", "avxvnni")}
    assert isa_names() == [isa for isa, wanted in needs.items() if wanted <= flags]


@pytest.mark.parametrize("unset", [True, False])
def test_the_best_instruction_set_is_the_default(
    unset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if unset:
        monkeypatch.delenv("LLAMA2PY_ISA", raising=False)
    else:
        monkeypatch.setenv("LLAMA2PY_ISA", "")
    assert Engine(random_checkpoint(TINY)).isa == isa_names()[0]
    assert isa_names()[-1] == "portable"


def test_an_unknown_instruction_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2PY_ISA", "sse9")
    with pytest.raises(EngineError) as raised:
        Engine(random_checkpoint(TINY))
    assert str(raised.value) == (
        "LLAMA2PY_ISA=sse9: no such instruction set in this build,"
        f" expected one of {', '.join(isa_names())}"
    )


def test_an_instruction_set_that_the_cpu_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this CPU has: pretend that it lacks the best."""
    monkeypatch.setattr("llama2py.engine.isa._all_isas", lambda: ["best", "portable"])
    monkeypatch.setattr("llama2py.engine.isa._is_here", bool)  # but the first
    monkeypatch.setenv("LLAMA2PY_ISA", "best")
    with pytest.raises(EngineError, match=r"^LLAMA2PY_ISA=best: this CPU lacks it, .* portable$"):
        Engine(random_checkpoint(TINY))
    monkeypatch.delenv("LLAMA2PY_ISA")
    assert isa_names() == ["portable"]


def test_only_the_forced_instruction_set_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system gives AMX for good, and other libraries may suffer from it: there is a way out."""
    asked: list[int] = []

    def is_here(index: int) -> bool:
        asked.append(index)
        return True

    monkeypatch.setattr("llama2py.engine.isa._all_isas", lambda: ["amx", "avx2", "portable"])
    monkeypatch.setattr("llama2py.engine.isa._is_here", is_here)
    monkeypatch.setenv("LLAMA2PY_ISA", "portable")
    assert (choose_isa(), asked) == (2, [2])

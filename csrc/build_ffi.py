"""Compile the C engine as an extension: cffi in API mode, with the stable ABI (abi3)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

CSRC = Path(__file__).resolve().parent
SOURCES = [
    "isa_avx512.c",  # first, as it takes longest to compile
    "model.c",
    "pack.c",
    "number.c",
    "session.c",
    "forward.c",
    "attention.c",
    "threads.c",
    "scheduling.c",
    "sampling.c",
    "probe.c",
    "dispatch.c",
    "isa_portable.c",
    "isa_avx2.c",
    "isa_avxvnni.c",
    "isa_avx512vnni.c",
    "isa_amx.c",
    "isa_neon.c",
    "isa_neondot.c",
]
# The numerics contract: no fused multiply-add except where a kernel has one.
COMPILE_ARGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Python's own flags include debug information, which would double the wheel; CFLAGS=-g keeps it.
if not any(flag.startswith("-g") for flag in os.environ.get("CFLAGS", "").split()):
    COMPILE_ARGS.append("-g0")


def declarations() -> str:
    """Return the public header without preprocessor lines, which cffi does not read."""
    header = (CSRC / "llama2py.h").read_text(encoding="utf-8")
    return re.sub(r"^#.*$", "", header, flags=re.MULTILINE)


def relative(path: Path) -> str:
    """Return a path of csrc/ relative to setup.py, as setuptools wants it."""
    return str(Path("csrc") / path.name)


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "llama2py.engine._engine",
    '#include "llama2py.h"',
    sources=[relative(CSRC / name) for name in SOURCES],
    depends=[relative(path) for path in sorted(CSRC.glob("*.[hi]*"))],
    include_dirs=["csrc"],
    libraries=["m", "pthread"],
    extra_compile_args=COMPILE_ARGS,
    py_limited_api=True,
)

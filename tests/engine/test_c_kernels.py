"""The C engine without Python: the program of tests/c, plain, sanitized and emulated as ARM."""

from __future__ import annotations

import os
import platform
import runpy
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import which

import pytest

pytestmark = pytest.mark.slow  # each builds the engine anew, sanitized or for another machine

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
CHECKS = ROOT / "tests" / "c"
SETTINGS = runpy.run_path(str(CSRC / "build_ffi.py"))  # the one list of sources and flags
SIMD = {"avx2", "avx512", "avx512vnni", "amx", "neon"}
# Instruction set and weight type -> hash of the logits.
Hashes = dict[tuple[str, str], str]


def compiler(name: str) -> str:
    path = which(name)
    if path is None:
        pytest.skip(f"no {name} here")
    return path


def build(folder: Path, cc: str, *flags: str) -> Path:
    """Build the program with the project's flags and `-Werror`; `flags` come last."""

    def compile_one(source: Path) -> Path:
        out = folder / f"{source.stem}.o"
        arguments = [*SETTINGS["COMPILE_ARGS"], "-Werror", *flags, f"-I{CHECKS}", f"-I{CSRC}"]
        run([cc, *arguments, "-c", str(source), "-o", str(out)])
        return out

    sources = [*(CSRC / name for name in SETTINGS["SOURCES"]), *sorted(CHECKS.glob("*.c"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(path) for path in pool.map(compile_one, sources)]
    program = folder / "kernel_check"
    run([cc, *flags, *objects, "-o", str(program), "-lm", "-lpthread"])
    return program


def run(command: Sequence[str]) -> str:
    """Run a command that must succeed, and return what it prints."""
    options = {"UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1"}
    environment = os.environ | options
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        said = done.stderr + done.stdout
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done.stdout


def run_at_once(command: Sequence[str], *parts: Sequence[str]) -> str:
    """Run parts of the program at the same time, and return all that they print."""
    with ThreadPoolExecutor() as pool:
        return "".join(pool.map(lambda some: run([*command, *some]), parts))


def read_hashes(output: str) -> Hashes:
    """Read lines such as ``avx2 float32 0123456789abcdef``."""
    rows = [line.split() for line in output.splitlines()]
    return {(row[0], row[1]): row[2] for row in rows if len(row) == 3}


@pytest.fixture(scope="module")
def hashes(tmp_path_factory: pytest.TempPathFactory) -> Hashes:
    """Run all parts of the program; the hashes of this machine's logits."""
    program = build(tmp_path_factory.mktemp("native"), compiler("cc"))
    return read_hashes(run([str(program)]))


def test_every_part_passes_and_instruction_sets_agree(hashes: Hashes) -> None:
    assert hashes[("portable", "float32")] != hashes[("portable", "int8")]
    simd = {digest for (isa, kind), digest in hashes.items() if isa in SIMD and kind == "float32"}
    assert len(simd) <= 1
    assert len({digest for (_, kind), digest in hashes.items() if kind == "int8"}) == 1
    if platform.machine() in ("aarch64", "arm64"):
        assert ("neon", "float32") in hashes


def test_clang_builds_it_without_a_warning(tmp_path: Path, hashes: Hashes) -> None:
    """clang names other CPU features than gcc, and must compute the same bits."""
    names = ["clang", *(f"clang-{version}" for version in range(30, 11, -1))]
    clang = next(filter(which, names), None)
    if clang is None:
        pytest.skip("no clang here")
    program = build(tmp_path, clang, "-O1")
    computed = read_hashes(run([str(program), "errors", "kernels", "models", "steps"]))
    both = computed.keys() & hashes.keys()  # either may be too old for a set
    assert {("portable", "float32"), ("portable", "int8")} <= both
    assert {key: computed[key] for key in both} == {key: hashes[key] for key in both}


@pytest.mark.parametrize(
    ("sanitizer", "parts"),
    [
        # all of them, in two halves at once
        (
            "address,undefined",
            [
                ["kernels", "draws"],
                ["fork", "errors", "models", "steps", "texts", "threads", "unscheduled", "stories"],
            ],
        ),
        # not minutes for the rest; after fork() TSan knows no threads
        ("thread", [["draws", "texts", "stories"], ["threads"]]),
    ],
)
def test_sanitized(tmp_path: Path, sanitizer: str, parts: list[list[str]]) -> None:
    cc = compiler("cc")
    # Not pointer-overflow and object-size, which double the time of a build: gcc's find next to
    # nothing that ASan or a guard page does not.
    flags = ["-O1", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    flags += ["-fno-sanitize=pointer-overflow,object-size"]
    source, probe = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text("int main(void) { return 0; }\n", encoding="ascii")
    for command in [cc, *flags, str(source), "-o", str(probe)], [str(probe)]:
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"{cc} has no working runtime of -fsanitize={sanitizer}")
    run_at_once([str(build(tmp_path, cc, *flags))], *parts)


def test_emulated_arm_computes_the_same_bits(tmp_path: Path, hashes: Hashes) -> None:
    emulator = which("qemu-aarch64") or which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64 here")
    # -O1 takes less long; what the optimizer may do to the bits, the native program shows.
    program = build(tmp_path, compiler("aarch64-linux-gnu-gcc"), "-static", "-O1")
    # What depends on the instruction set, but for the big model, which takes the emulator half a
    # minute. The emulator itself does not survive `fork`.
    emulated = read_hashes(
        run_at_once([emulator, str(program)], ["kernels", "models", "steps"], ["draws"])
    )
    simd = {digest for (isa, kind), digest in hashes.items() if isa in SIMD and kind == "float32"}
    assert {emulated[("neon", "float32")]} >= simd  # none on a CPU that has only the portable set
    # Numerics that end in libm's bits (portable, and int8) are the same wherever libm is; this
    # compares two builds of it, so it is said and not required.
    for key in [("portable", "float32"), ("portable", "int8")]:
        verdict = "the same" if emulated[key] == hashes[key] else "other bits: another libm"
        print(f"{' '.join(key)}, emulated ARM beside {platform.machine()}: {verdict}")

"""Run the tests on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/sanitize.py [pytest arguments]

Builds in a temporary copy of the tree and runs pytest there, by default on the tests that use the
engine most. ``test_c_kernels.py`` has sanitizers of its own. Exits with pytest's code. ASan puts no
red zones around the engine's large blocks, which come from mmap. So it finds wrong accesses to the
arrays of Python and NumPy and to the stack; the programs of ``c/`` put guard pages around the
buffers of the kernels.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE_TESTS = (
    "engine",
    "generation/test_batch.py",
    "generation/test_overflow.py",
    "generation/test_padding.py",
    "generation/test_job.py",
    "generation/test_prefix_cache.py",
    "generation/test_sampling.py",
    "checkpoint/test_families.py",
    "test_api.py",
)
# These tests build their own engines.
LEFT_OUT = ("engine/test_c_kernels.py", "engine/test_extension.py")
WITHOUT_ENGINE = "[numpy or -numpy"  # ids of tests that only use the NumPy reference
CC = os.environ.get("CC", "cc")
# Without pointer-overflow and object-size, which double the time of a build and find next to
# nothing that ASan, or a guard page of the checks in `c/`, does not find.
FLAGS = (
    "-fsanitize=address,undefined -fno-sanitize=pointer-overflow,object-size "
    "-fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
)


def runtime(name: str) -> str:
    """Return the full path of a library of the compiler."""
    command = [CC, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    if not os.path.isabs(path):  # the compiler returns a name that it cannot find unchanged
        raise SystemExit(f"{CC} has no {name}: install gcc with the runtimes of its sanitizers")
    return os.path.realpath(path)


def copy_tree(to: Path) -> None:
    """Copy the tree without hidden files and build outputs."""
    built = shutil.ignore_patterns(
        ".*", "build", "dist", "__pycache__", "*.egg-info", "*.so", "*.o", "_engine.c"
    )
    shutil.copytree(ROOT, to, ignore=built)


def sanitized_environment(tree: Path) -> dict[str, str]:
    """Return the environment of a process that loads the sanitized extension of a tree."""
    environment = os.environ | {
        # Python itself is not sanitized, so the runtimes must be loaded first. So must libstdc++:
        # without it, ASan cannot follow the exceptions of other extensions.
        "LD_PRELOAD": " ".join(runtime(f"lib{name}.so") for name in ("asan", "ubsan", "stdc++")),
        # Python leaks at exit by design. Some tests request more memory than there is, which must
        # be an error code and not a crash.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1",
        # Python's own allocator divides large blocks, and ASan does not know the ends of the parts.
        "PYTHONMALLOC": "malloc",
        # Comes before an editable install of the original, in child processes too.
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    data = ROOT.parent / "shared"  # conftest.py would not find it beside the copy
    if data.is_dir():
        environment.setdefault("LLAMA2PY_TEST_DATA", str(data))
    return environment


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="llama2py-sanitize-") as scratch:
        tree = Path(scratch) / "llama2py"
        copy_tree(tree)
        settings = tree / "csrc" / "build_ffi.py"  # -O3 takes minutes with these flags
        settings.write_text(settings.read_text(encoding="utf-8").replace("-O3", "-O1"), "utf-8")
        environment = sanitized_environment(tree)
        flags = {"CC": CC, "CFLAGS": FLAGS, "LDFLAGS": FLAGS}
        build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(build, cwd=tree, env=os.environ | flags, check=True)

        where = [sys.executable, "-c", "import llama2py.engine._engine as e; print(e.__file__)"]
        loaded = subprocess.run(
            where, cwd=tree, env=environment, capture_output=True, check=True, text=True
        ).stdout.strip()
        if not Path(loaded).is_relative_to(tree):
            raise SystemExit(f"the tests would load {loaded}, not the one in {tree}")

        engine_tests = [f"tests/{name}" for name in ENGINE_TESTS]
        left_out = [f"--ignore=tests/{name}" for name in LEFT_OUT]
        tests = arguments or ["-k", f"not ({WITHOUT_ENGINE})", *left_out, *engine_tests]
        # Reports go to the real stderr: if pytest captured them, they would be lost when it dies.
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "",
            "-p",
            "no:cacheprovider",
            "--capture=sys",
            *tests,
        ]
        return subprocess.run(pytest, cwd=tree, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Run the tests on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/sanitize.py [pytest arguments]

Builds in a temporary copy of the tree and runs pytest there, by default on the tests that ask most
of the engine; ``test_c_kernels.py`` has sanitizers of its own. Exits with pytest's code. The
engine's big blocks come from mmap, which ASan does not fence: what it sees here is a wrong access
to Python's and NumPy's arrays, or to the stack; ``c/`` puts guard pages around the kernels'.
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
    "test_api.py",
)
# These build engines of their own.
LEFT_OUT = ("engine/test_c_kernels.py", "engine/test_extension.py")
WITHOUT_ENGINE = "[numpy or -numpy"  # ids of tests that only use the NumPy reference
CC = os.environ.get("CC", "cc")
# Not pointer-overflow and object-size, which double the time of a build: gcc's find next to nothing
# that ASan, or a guard page of the checks in `c/`, does not.
FLAGS = (
    "-fsanitize=address,undefined -fno-sanitize=pointer-overflow,object-size "
    "-fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
)


def runtime(name: str) -> str:
    """The full path of a library of the compiler's."""
    command = [CC, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    if not os.path.isabs(path):  # a name that it cannot find comes back as it is
        raise SystemExit(f"{CC} has no {name}, expected a gcc with the sanitizers' runtimes")
    return os.path.realpath(path)


def copy_tree(to: Path) -> None:
    """What git would hold: nothing hidden, nothing built."""
    built = shutil.ignore_patterns(
        ".*", "build", "dist", "__pycache__", "*.egg-info", "*.so", "*.o", "_engine.c"
    )
    shutil.copytree(ROOT, to, ignore=built)


def sanitized_environment(tree: Path) -> dict[str, str]:
    environment = os.environ | {
        # Python itself is not sanitized, so the runtimes must be there before it; libstdc++, too,
        # or ASan cannot follow the exceptions of other extensions.
        "LD_PRELOAD": " ".join(runtime(f"lib{name}.so") for name in ("asan", "ubsan", "stdc++")),
        # Python leaks at exit by design. Tests ask for more memory than there is: that is an
        # error code, not a crash.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1",
        # Python's own allocator hands out parts of big blocks, whose ends ASan does not know.
        "PYTHONMALLOC": "malloc",
        # Before an editable install of the original, for child processes as well.
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    data = ROOT.parent / "shared"  # which conftest.py would not find beside the copy
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
            raise SystemExit(f"the tests would load {loaded}, expected the extension in {tree}")

        engine_tests = [f"tests/{name}" for name in ENGINE_TESTS]
        left_out = [f"--ignore=tests/{name}" for name in LEFT_OUT]
        tests = arguments or ["-k", f"not ({WITHOUT_ENGINE})", *left_out, *engine_tests]
        # Reports go to the bare stderr; caught by pytest, they would be gone when it dies.
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

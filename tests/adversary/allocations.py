"""Make each of the engine's allocations and thread creations fail, one after the other.

Whatever fails, the caller gets a Llama2pyError or a MemoryError, or the right result (a pass runs
on fewer threads where the system gives no more); and a second attempt gives the right result.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.adversary.report import Report

SOURCE = Path(__file__).with_name("fail_nth.c")


def run(report: Report, random: Random) -> None:
    with tempfile.TemporaryDirectory(prefix="llama2py-adversary-") as folder:
        library = Path(folder) / "fail_nth.so"
        command = [
            os.environ.get("CC", "cc"),
            "-shared",
            "-fPIC",
            "-O1",
            "-o",
            str(library),
            str(SOURCE),
        ]
        subprocess.run([*command, "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library)}
        while report.has_time:
            for name in ACTIONS:
                for threads in (1, 2):
                    _attempt(report, environment, name, threads, random.choice(DTYPES))


def _attempt(
    report: Report, environment: dict[str, str], name: str, threads: int, dtype: str
) -> None:
    if not report.has_time:
        return
    what = [name, str(threads), dtype]
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, *what],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    place = " ".join(what)
    if done.returncode:
        last = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        report.found(place, f"status {done.returncode}: {last}")
    else:
        report.tried(f"failures in {name}", int(done.stdout))


# ---- in the process whose allocations fail ----

DTYPES = ("float32", "bfloat16", "int8", "int4")


def _load(threads: int, dtype: str) -> list[int]:
    import llama2py

    with llama2py.load(threads=threads, dtype=dtype) as model:  # type: ignore[arg-type]
        return model.generate("Once", seed=1, max_tokens=4).tokens


def _sessions(threads: int, dtype: str) -> list[int]:
    import llama2py

    with llama2py.load(threads=threads, dtype=dtype) as model:  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder, model.session() as session:
            session.forward([1, 300, 301, 302])
            session.save(Path(folder) / "s")
            with session.fork(2) as branch, model.load_session(Path(folder) / "s") as loaded:
                rows = [branch.forward([303]), loaded.forward([303])]
        return [int(row.view("int32").sum()) for row in rows]


def _batch(threads: int, dtype: str) -> list[int]:
    import llama2py

    with llama2py.load(threads=threads, dtype=dtype) as model:  # type: ignore[arg-type]
        prompts = ["Once", "One day", "The dragon was", "A"] * 2
        texts = model.generate(prompts, seed=list(range(8)), max_tokens=6)
        return [token for text in texts for token in text.tokens]


ACTIONS: dict[str, Callable[[int, str], list[int]]] = {
    "load": _load,
    "sessions": _sessions,
    "batch": _batch,
}


def fail_each(action: Callable[[], list[int]]) -> int:
    """Let each of the engine's allocations within an action fail; return how many there are."""
    from llama2py.engine._engine import lib
    from llama2py.errors import Llama2pyError

    fail_nth = ctypes.CDLL(None).fail_nth
    expected = action()
    n = 0
    while True:
        lib.l2p_release()  # so that the pool and the workspace are made anew
        fail_nth(n)
        try:
            result = action()
        except (Llama2pyError, MemoryError):
            result = expected
        assert result == expected, f"another result with allocation {n} failing"
        seen = fail_nth(-1)
        if seen <= n:  # the action ended before the one that was to fail
            return n
        assert action() == expected, f"another result after allocation {n} failed"
        n += 1


def main() -> None:
    name, threads, dtype = sys.argv[1:]
    print(fail_each(lambda: ACTIONS[name](int(threads), dtype)))


if __name__ == "__main__":
    main()

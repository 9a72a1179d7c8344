"""Coverage-guided fuzzing of every file reader, for as long as requested. Pytest does not run it.

    pip install atheris  # where the tests run
    python -m tests.fuzz gguf --seconds 3600 --corpus gguf-corpus

A finding is any exception but Llama2pyError, more than two seconds, or more memory than twice the
file and 16 MB. Each place in the code is reported once. The input is kept in the corpus folder as
``finding-...``; ``--replay FILE`` reads one again. ``--list`` names the readers. The corpus starts
with small valid files that the readers' module makes, and grows from run to run.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import os
import pkgutil
import sys
import tempfile
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

try:
    _atheris: Any = importlib.import_module("atheris")
except ImportError:  # `--list` and `--replay` do without
    _atheris = None

if _atheris:
    _atheris.enabled_hooks.add("str")
with _atheris.instrument_imports(include=["llama2py"]) if _atheris else nullcontext():
    import llama2py

    for module in pkgutil.walk_packages(llama2py.__path__, "llama2py."):  # some are loaded late
        if not module.name.startswith(("llama2py.__main__", "llama2py.training", "llama2py.cli")):
            importlib.import_module(module.name)
    from tests.fuzz.bounds import check
    from tests.fuzz.readers import READERS

MAX_INPUT = 1 << 16  # bytes


def dictionary() -> set[str]:
    """The words that the package's own code compares with, as libFuzzer escapes them."""
    words = set()
    for source in Path(llama2py.__path__[0]).glob("**/*.py"):
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            word = node.value if isinstance(node, ast.Constant) else None
            word = word.encode() if isinstance(word, str) else word
            if isinstance(word, bytes) and 1 < len(word) <= 40 and not word.count(b" "):
                words.add("".join(f"\\x{byte:02x}" for byte in word))
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("reader", choices=READERS, nargs="?")
    parser.add_argument("--list", action="store_true", help="name the readers")
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--corpus", type=Path, help="a folder; default: one in the temporary one")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read this one input")
    args = parser.parse_args()
    if args.list or args.reader is None:
        print("\n".join(READERS))
        return
    shared_memory = Path("/dev/shm")
    base = shared_memory if os.access(shared_memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name:
        folder = Path(name) / "read"
        folder.mkdir()
        read, seeds = READERS[args.reader](folder)

        if args.replay is not None:
            check(read, args.replay.read_bytes(), folder)
            return
        if _atheris is None:
            sys.exit("tests.fuzz: atheris is missing: pip install atheris")
        corpus: Path = args.corpus or Path(tempfile.gettempdir()) / f"llama2py-fuzz-{args.reader}"
        corpus.mkdir(parents=True, exist_ok=True)
        loaded = set(sys.modules)
        read(seeds[0])  # raises if it is refused: then the fuzzer would reach nothing
        for i, seed in enumerate(seeds):
            check(read, seed, folder)
            assert len(seed) <= MAX_INPUT  # libFuzzer would cut it
            (corpus / f"seed-{i}").write_bytes(seed)
        if late := [name for name in set(sys.modules) - loaded if name.startswith("llama2py")]:
            sys.exit(f"tests.fuzz: {late} came too late to be instrumented: nothing would guide us")
        words = Path(name) / "words"
        words.write_text("".join(f'"{word}"\n' for word in sorted(dictionary())))
        known: set[str] = set()

        def one_input(data: bytes) -> None:
            try:
                check(read, data, folder)
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                at = next((f for f in reversed(frames) if "llama2py" in f.filename), frames[-1])
                place = f"{type(error).__name__} {Path(at.filename).name}:{at.lineno}"
                if place not in known:
                    known.add(place)
                    kept = corpus / f"finding-{hashlib.sha1(data).hexdigest()[:12]}"
                    kept.write_bytes(data)
                    print(f"FOUND {place}: {error!s:.200} ({kept})", file=sys.stderr, flush=True)

        if child := os.fork():  # libFuzzer ends its process without a last word; this one tidies up
            _, status = os.waitpid(child, 0)
            sys.exit(os.waitstatus_to_exitcode(status))
        options = [f"-max_total_time={args.seconds}", f"-max_len={MAX_INPUT}", "-timeout=60"]
        options += ["-rss_limit_mb=4096", f"-dict={words}"]
        _atheris.Setup([sys.argv[0], *options, str(corpus)], one_input)
        _atheris.Fuzz()


if __name__ == "__main__":
    main()

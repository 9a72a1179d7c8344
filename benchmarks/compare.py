"""llama2py beside llama2.c, llama.cpp and transformers: the same weights, tokens per second.

    python benchmarks/compare.py stories15M.bin --llama2c PATH/run --llama-bench PATH/llama-bench
    python benchmarks/compare.py stories15M.bin --dtype int8 --llama-cpp-python --transformers

The programs take turns, round after round, so that a change of the machine's pace meets all of
them; quoted are the medians, and the median of the ratios within a round. Whoever cannot read the
checkpoint gets it converted: llama2.c a ``.bin``, llama.cpp a GGUF file of the dtype (int8 is
Q8_0), transformers a directory of float32. Build or install the peers as their READMEs say; the
libraries may be in another environment (``--python``).

- generate: greedy, one story. llama2.c reports its own ``achieved tok/s``; llama-bench's is ``tg``.
- prompt: so many tokens at once; llama-bench's is ``pp``. (llama2.c reads a prompt token by token.)
- batch: so many stories at once, all their tokens; llama-batched-bench's ``speed_tg``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import llama2py
from llama2py.bench import benchmark
from llama2py.cli.bench import dtypes

Speeds = dict[str, float]  # 'generate', 'prompt', 'batch'
Peer = Callable[[], Speeds]


def llama2py_speeds(args: argparse.Namespace) -> Speeds:
    """One run of our own benchmark."""
    batches = [args.batch] if args.batch > 1 else []
    report = benchmark(
        args.checkpoint, [args.threads], 1, args.prompt_tokens, args.tokens, args.dtype, batches
    )
    (row,) = report.rows
    speeds = {
        "generate": row.greedy_tokens_per_second.median,
        "prompt": row.prompt_tokens_per_second.median,
    }
    if batches:
        speeds["batch"] = row.batches[args.batch].median
    return speeds


def llama2c_speeds(binary: Path, model: Path, args: argparse.Namespace) -> Speeds:
    """What ``run`` says of itself."""
    tokenizer = args.tokenizer or Path(__file__).resolve().parent.parent / "tokenizer.bin"
    # Its clock starts behind the first step.
    flags = ["-t", "0", "-s", "1", "-n", str(args.tokens + 1), "-z", str(tokenizer)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    command = [str(binary.resolve()), str(model), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    match = re.search(rb"achieved tok/s: ([0-9.]+)", done.stderr)
    if match is None:
        raise SystemExit(f"{binary} printed no speed: {done.stderr.decode(errors='replace')}")
    return {"generate": float(match[1])}


def output_of(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def llama_bench_speeds(binary: Path, model: Path, args: argparse.Namespace) -> Speeds:
    """What ``llama-bench`` says."""
    sizes = ["-t", str(args.threads), "-p", str(args.prompt_tokens), "-n", str(args.tokens)]
    command = [str(binary.resolve()), "-m", str(model), *sizes, "-r", "3", "-o", "json"]
    tests = json.loads(output_of(command))
    return {"prompt" if test["n_prompt"] else "generate": test["avg_ts"] for test in tests}


def batched_bench_speeds(binary: Path, model: Path, args: argparse.Namespace) -> Speeds:
    """What ``llama-batched-bench`` says."""
    n = args.batch
    command = [str(binary.resolve()), "-m", str(model), "-t", str(args.threads), "-npp", "1"]
    command += ["-ntg", str(args.tokens), "-npl", str(n), "-c", str(n * (args.tokens + 8))]
    lines = output_of([*command, "--output-format", "jsonl"]).splitlines()
    (test,) = (json.loads(line) for line in lines if line.startswith("{"))
    return {"batch": test["speed_tg"]}


def library_speeds(library: str, model: Path, args: argparse.Namespace) -> Speeds:
    """A measurement of ``peers.py``."""
    script = Path(__file__).resolve().with_name("peers.py")
    numbers = [args.threads, args.prompt_tokens, args.tokens, args.batch]
    command = [str(args.python), str(script), library, str(model), *map(str, numbers)]
    speeds: Speeds = json.loads(output_of(command).splitlines()[-1])
    return speeds


def find_peers(args: argparse.Namespace, folder: Path) -> dict[str, Peer]:
    """Who is to be measured; what they cannot read is converted into the folder."""
    peers: dict[str, Peer] = {"llama2py": partial(llama2py_speeds, args)}
    dtype = args.dtype[0] if args.dtype else None
    if args.llama2c:
        model = args.checkpoint
        if model.suffix != ".bin":
            model = llama2py.convert(model, folder / "model.bin", dtype=dtype)
        for binary in args.llama2c:
            peers[binary.name] = partial(llama2c_speeds, binary, model, args)
    if args.llama_bench or args.llama_batched_bench or args.llama_cpp_python:
        model = args.gguf or args.checkpoint
        if model.suffix != ".gguf":
            model = llama2py.convert(model, folder / "model.gguf", dtype=dtype)
        for binary in args.llama_bench:
            peers[binary.name] = partial(llama_bench_speeds, binary, model, args)
        for binary in args.llama_batched_bench:
            peers[binary.name] = partial(batched_bench_speeds, binary, model, args)
        if args.llama_cpp_python:
            peers["llama-cpp-python"] = partial(library_speeds, "llama-cpp-python", model, args)
    if args.transformers:
        model = llama2py.convert(args.checkpoint, folder / "hf", dtype="float32")
        peers["transformers"] = partial(library_speeds, "transformers", model, args)
    return peers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("--llama2c", type=Path, action="append", default=[], metavar="RUN")
    add("--llama-bench", type=Path, action="append", default=[], metavar="BIN")
    add("--llama-batched-bench", type=Path, action="append", default=[], metavar="BIN")
    add("--llama-cpp-python", action="store_true")
    add("--transformers", action="store_true")
    add("--python", type=Path, default=Path(sys.executable), help="which has the libraries")
    add("--gguf", type=Path, help="the same model for llama.cpp; default: it is converted")
    add("--dtype", type=dtypes, help="what llama2py makes the weights into")
    add("-z", "--tokenizer", type=Path, help="llama2.c's; default: the 32000-token one")
    add("--tokens", type=int, default=128)
    add("--prompt-tokens", type=int, default=128)
    add("--batch", type=int, default=32, help="stories at once; 1: no batches")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=10)
    args = parser.parse_args()
    if args.dtype and len(args.dtype) > 1:
        parser.error("one --dtype at a time")
    if args.dtype == ["int4"] and not args.gguf:
        parser.error("int4 needs --gguf: no file that is written here holds it")
    with tempfile.TemporaryDirectory() as folder:
        peers = find_peers(args, Path(folder))
        runs: dict[str, list[Speeds]] = {name: [] for name in peers}
        for _ in range(args.rounds):
            for name, measure in peers.items():
                runs[name].append(measure())
    report(args, runs)


def report(args: argparse.Namespace, runs: dict[str, list[Speeds]]) -> None:
    print(f"| {args.checkpoint.name}, {args.threads} threads | tok/s | llama2py is faster by |")
    print("| --- | --- | --- |")
    for what in ("generate", "prompt", "batch"):
        for name, speeds in runs.items():
            values = [speed[what] for speed in speeds if what in speed]
            if not values:
                continue
            ours = [speed[what] for speed in runs["llama2py"]]
            ratio = statistics.median(a / b for a, b in zip(ours, values, strict=True))
            spread = f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
            factor = "" if name == "llama2py" else f"{ratio:.2f} times"
            print(f"| {what}: {name} | {spread} | {factor} |")


if __name__ == "__main__":
    main()

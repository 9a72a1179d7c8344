"""Compare llama2py with llama2.c, llama.cpp and transformers: tokens per second, same weights.

    python benchmarks/compare.py stories15M.bin --llama2c PATH/run --llama-bench PATH/llama-bench
    python benchmarks/compare.py stories15M.bin --dtype int8 --llama2c PATH/runq --transformers

The programs take turns, round after round, so that a change of the machine's speed affects all of
them. The report gives the medians, and the median of the ratios within a round. A peer that cannot
read the checkpoint gets a converted copy: llama2.c's run a float32 ``.bin`` and its runq an int8
one, llama.cpp a GGUF file of the dtype (int8 is Q8_0), transformers a float32 directory. Build or
install the peers as their READMEs say. The Python libraries may be in another environment
(``--python``).

- generate: one story, greedy. llama2.c reports it as ``achieved tok/s``, llama-bench as ``tg``.
- prompt: a prefill of ``--prompt-tokens`` tokens. llama-bench reports it as ``pp``. llama2.c reads
  a prompt token by token, so it has no such figure.
- batch: ``--batch`` stories at the same time, all their tokens. llama-batched-bench reports it as
  ``speed_tg``.
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
from llama2py.checkpoint import open_checkpoint, own_dtype
from llama2py.cli.bench import dtypes
from llama2py.cli.measure import Plan, benchmark
from llama2py.conversion import FileFormat
from llama2py.hub import find_model

Speeds = dict[str, float]  # 'generate', 'prompt', 'batch'
Peer = Callable[[], Speeds]
# The formats that llama2.c's programs read, by dtype.
FORMATS = {"float32": "llama2.c v0", "int8": "llama2.c v2 (int8)"}


def llama2py_speeds(args: argparse.Namespace) -> Speeds:
    """Measure llama2py, once."""
    batches = [args.batch] if args.batch > 1 else []
    plan = Plan(
        args.dtype,
        threads=[args.threads],
        batches=batches,
        prompt_tokens=args.prompt_tokens,
        generated_tokens=args.tokens,
        repeats=1,
    )
    report = benchmark(args.checkpoint, plan)
    (row,) = report.rows
    speeds = {
        "generate": row.greedy_tokens_per_second.median,
        "prompt": row.prompt_tokens_per_second.median,
    }
    if batches:
        speeds["batch"] = row.batches[args.batch].median
    return speeds


def llama2c_speeds(binary: Path, model: Path, args: argparse.Namespace) -> Speeds:
    """Run llama2.c and read the speed that it prints."""
    tokenizer = args.tokenizer or Path(__file__).resolve().parent.parent / "tokenizer.bin"
    # Its clock starts after the first step.
    flags = ["-t", "0", "-s", "1", "-n", str(args.tokens + 1), "-z", str(tokenizer)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    command = [str(binary.resolve()), str(model), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    match = re.search(rb"achieved tok/s: ([0-9.]+)", done.stderr)
    if match is None:
        raise SystemExit(f"{binary} printed no speed: {done.stderr.decode(errors='replace')}")
    return {"generate": float(match[1])}


def output_of(command: list[str]) -> str:
    """Run a command and return its standard output."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def llama_bench_speeds(binary: Path, model: Path, args: argparse.Namespace) -> Speeds:
    """Run ``llama-bench``."""
    sizes = ["-t", str(args.threads), "-p", str(args.prompt_tokens), "-n", str(args.tokens)]
    command = [str(binary.resolve()), "-m", str(model), *sizes, "-r", "3", "-o", "json"]
    tests = json.loads(output_of(command))
    return {"prompt" if test["n_prompt"] else "generate": test["avg_ts"] for test in tests}


def batched_bench_speeds(binary: Path, model: Path, args: argparse.Namespace) -> Speeds:
    """Run ``llama-batched-bench``."""
    n = args.batch
    command = [str(binary.resolve()), "-m", str(model), "-t", str(args.threads), "-npp", "1"]
    command += ["-ntg", str(args.tokens), "-npl", str(n), "-c", str(n * (args.tokens + 8))]
    lines = output_of([*command, "--output-format", "jsonl"]).splitlines()
    (test,) = (json.loads(line) for line in lines if line.startswith("{"))
    return {"batch": test["speed_tg"]}


def library_speeds(library: str, model: Path, args: argparse.Namespace) -> Speeds:
    """Run ``peers.py`` with the other environment's Python."""
    script = Path(__file__).resolve().with_name("peers.py")
    numbers = [args.threads, args.prompt_tokens, args.tokens, args.batch]
    command = [str(args.python), str(script), library, str(model), *map(str, numbers)]
    speeds: Speeds = json.loads(output_of(command).splitlines()[-1])
    return speeds


def llama2c_model(binary: Path, args: argparse.Namespace, folder: Path) -> Path:
    """Return a file that a program of llama2.c can read: float32 for run, int8 for runq."""
    path = find_model(args.checkpoint)
    with open_checkpoint(path) as checkpoint:
        dtype = args.dtype[0] if args.dtype else own_dtype(checkpoint)
        is_as_needed = checkpoint.format == FORMATS.get(dtype)
    if dtype not in FORMATS:
        raise SystemExit(f"llama2.c has no {dtype}: pass --dtype float32 (run) or int8 (runq)")
    if binary.name.startswith("run") and binary.name.startswith("runq") != (dtype == "int8"):
        wanted = "float32" if dtype == "int8" else "int8"
        raise SystemExit(f"{binary.name} cannot run {dtype} weights: pass --dtype {wanted}")
    if is_as_needed:
        return path
    copy = folder / f"{dtype}.bin"
    if not copy.exists():
        version: FileFormat = "v2" if dtype == "int8" else "v0"
        llama2py.convert(path, copy, format=version)
    return copy


def find_peers(args: argparse.Namespace, folder: Path) -> dict[str, Peer]:
    """Return the programs to measure. Converted copies of the model go into the folder."""
    peers: dict[str, Peer] = {"llama2py": partial(llama2py_speeds, args)}
    dtype = args.dtype[0] if args.dtype else None
    for binary in args.llama2c:
        model = llama2c_model(binary, args, folder)
        peers[binary.name] = partial(llama2c_speeds, binary, model, args)
    if args.llama_bench or args.llama_batched_bench or args.llama_cpp_python:
        model = args.gguf or find_model(args.checkpoint)
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
    add("checkpoint", type=Path, help="a model that llama2py reads")
    add("--llama2c", type=Path, action="append", default=[], metavar="RUN")
    add("--llama-bench", type=Path, action="append", default=[], metavar="BIN")
    add("--llama-batched-bench", type=Path, action="append", default=[], metavar="BIN")
    add("--llama-cpp-python", action="store_true")
    add("--transformers", action="store_true")
    add(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="the Python that has the libraries",
    )
    add("--gguf", type=Path, help="the same model for llama.cpp (default: a converted copy)")
    add("--dtype", type=dtypes, help="the weight type (default: the checkpoint's own)")
    add("-z", "--tokenizer", type=Path, help="for llama2.c (default: the one of 32000 tokens)")
    add("--tokens", type=int, default=128)
    add("--prompt-tokens", type=int, default=128)
    add("--batch", type=int, default=32, help="stories at the same time; 1 means no batches")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=10)
    args = parser.parse_args()
    if args.dtype and len(args.dtype) > 1:
        parser.error("--dtype takes one dtype here")
    if args.dtype == ["int4"] and not args.gguf:
        parser.error("--dtype int4 needs --gguf: convert does not write int4")
    with tempfile.TemporaryDirectory() as folder:
        peers = find_peers(args, Path(folder))
        runs: dict[str, list[Speeds]] = {name: [] for name in peers}
        for _ in range(args.rounds):
            for name, measure in peers.items():
                runs[name].append(measure())
    report(args, runs)


def report(args: argparse.Namespace, runs: dict[str, list[Speeds]]) -> None:
    """Print the comparison as a Markdown table."""
    print(f"| {args.checkpoint.name}, threads: {args.threads} | tok/s | llama2py is faster by |")
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

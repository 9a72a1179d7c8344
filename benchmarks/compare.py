"""llama2py beside llama2.c and llama.cpp: same machine, same weights, tokens per second.

    python benchmarks/compare.py stories15M.bin --llama2c PATH/TO/run [--llama2c PATH ...]
    python benchmarks/compare.py model.gguf --llama-bench PATH/TO/llama-bench [--dtype int8]

The programs take turns, round after round, so that a change of the machine's pace meets all of
them; quoted are the medians, and the median of the ratios within a round. llama2.c reads its own
``.bin``, llama.cpp a GGUF file, llama2py either; ``--gguf`` names the same model for llama-bench
where the checkpoint is a ``.bin``. Build the peers as their READMEs say.

- generate: greedy, one story. llama2.c reports its own ``achieved tok/s``; llama-bench's is ``tg``.
- prompt: so many tokens at once; llama-bench's is ``pp``. (llama2.c reads a prompt token by token.)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
from pathlib import Path

from llama2py.bench import benchmark
from llama2py.cli.bench import dtypes

Speeds = dict[str, float]  # 'generate', 'prompt'


def llama2py_speeds(args: argparse.Namespace) -> Speeds:
    """One run of our own benchmark."""
    report = benchmark(
        args.checkpoint, [args.threads], 1, args.prompt_tokens, args.tokens, args.dtype, []
    )
    (row,) = report.rows
    return {
        "generate": row.greedy_tokens_per_second.median,
        "prompt": row.prompt_tokens_per_second.median,
    }


def llama2c_speeds(binary: Path, args: argparse.Namespace) -> Speeds:
    """What ``run`` says of itself."""
    tokenizer = args.tokenizer or Path(__file__).resolve().parent.parent / "tokenizer.bin"
    # Its clock starts behind the first step.
    flags = ["-t", "0", "-s", "1", "-n", str(args.tokens + 1), "-z", str(tokenizer)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    command = [str(binary.resolve()), str(args.checkpoint), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    match = re.search(rb"achieved tok/s: ([0-9.]+)", done.stderr)
    if match is None:
        raise SystemExit(f"{binary} printed no speed: {done.stderr.decode(errors='replace')}")
    return {"generate": float(match[1])}


def llama_bench_speeds(binary: Path, args: argparse.Namespace) -> Speeds:
    """What ``llama-bench`` says."""
    model = args.gguf or args.checkpoint
    flags = ["-t", str(args.threads), "-p", str(args.prompt_tokens), "-n", str(args.tokens)]
    command = [str(binary.resolve()), "-m", str(model), *flags, "-r", "3", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        tests = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise SystemExit(f"{binary} ended with {done.returncode}: {done.stderr[-500:]}") from None
    return {"prompt" if test["n_prompt"] else "generate": test["avg_ts"] for test in tests}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("--llama2c", type=Path, action="append", default=[], metavar="RUN")
    add("--llama-bench", type=Path, action="append", default=[], metavar="BIN")
    add("--gguf", type=Path, help="the same model for llama-bench")
    add("--dtype", type=dtypes, help="what llama2py makes the weights into")
    add("-z", "--tokenizer", type=Path, help="llama2.c's; default: the 32000-token one")
    add("--tokens", type=int, default=128)
    add("--prompt-tokens", type=int, default=128)
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=10)
    args = parser.parse_args()
    if args.dtype and len(args.dtype) > 1:
        parser.error("one --dtype at a time")

    runs: dict[str, list[Speeds]] = {"llama2py": []}
    runs |= {str(binary): [] for binary in [*args.llama2c, *args.llama_bench]}
    for _ in range(args.rounds):
        runs["llama2py"].append(llama2py_speeds(args))
        for binary in args.llama2c:
            runs[str(binary)].append(llama2c_speeds(binary, args))
        for binary in args.llama_bench:
            runs[str(binary)].append(llama_bench_speeds(binary, args))

    print(f"| {args.checkpoint.name}, {args.threads} threads | tok/s | llama2py is faster by |")
    print("| --- | --- | --- |")
    for what in ("generate", "prompt"):
        for name, speeds in runs.items():
            values = [speed[what] for speed in speeds if what in speed]
            if not values:
                continue
            ours = [speed[what] for speed in runs["llama2py"]]
            ratio = statistics.median(a / b for a, b in zip(ours, values, strict=True))
            spread = f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
            factor = "" if name == "llama2py" else f"{ratio:.2f} times"
            print(f"| {what}: {Path(name).name} | {spread} | {factor} |")


if __name__ == "__main__":
    main()

"""llama2py beside llama2.c, same machine and checkpoint: tokens per second of whole commands.

    python benchmarks/compare_llama2c.py CHECKPOINT --llama2c PATH/TO/run [--llama2c PATH ...]

The programs take turns, round after round, so that a change of the machine's pace meets all of
them; quoted are the medians, and the median of the ratios within a round. Each reports its own
``achieved tok/s`` of the same greedy story, streamed into a pipe. Build the peers as their README
says; a llama2.c built with OpenMP gets OMP_NUM_THREADS = --threads.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path


def achieved(command: list[str], threads: int) -> float:
    """Tokens per second that a run command prints."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    match = re.search(rb"achieved tok/s: ([0-9.]+)", done.stderr)
    if match is None:
        raise SystemExit(f"{command[0]} printed no speed: {done.stderr.decode(errors='replace')}")
    return float(match.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--llama2c", type=Path, action="append", required=True, metavar="RUN")
    parser.add_argument("-z", "--tokenizer", type=Path, help="default: the 32000-token one")
    parser.add_argument("-n", "--steps", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()

    tokenizer = args.tokenizer or Path(__file__).resolve().parent.parent / "tokenizer.bin"
    flags = ["-t", "0", "-s", "1", "-n", str(args.steps), "-z", str(tokenizer)]
    ours = [sys.executable, "-m", "llama2py", "run", str(args.checkpoint), *flags]
    commands = {"llama2py": [*ours, "--threads", str(args.threads)]}
    for binary in args.llama2c:
        commands[str(binary)] = [str(binary.resolve()), str(args.checkpoint), *flags]

    speeds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            speeds[name].append(achieved(command, args.threads))

    print(f"| {args.checkpoint.name}, {args.threads} threads | tok/s | llama2py is faster by |")
    print("| --- | --- | --- |")
    for name, values in speeds.items():
        ratios = [a / b for a, b in zip(speeds["llama2py"], values, strict=True)]
        factor = "" if name == "llama2py" else f"{statistics.median(ratios):.2f}x"
        print(
            f"| {name} | {statistics.median(values):.0f}"
            f" ({min(values):.0f} to {max(values):.0f}) | {factor} |"
        )


if __name__ == "__main__":
    main()

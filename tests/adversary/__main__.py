"""The adversary: malformed files, failing allocations, signals and callbacks at bad moments.

    python -m tests.adversary --minutes 60         # or: make adversary
    python -m tests.adversary --only files --seed 7

Each part runs for its share of the time, with random choices that the seed decides. A finding is
printed as one line; the exit status is 1 if there is any. Inputs that went wrong are kept in the
folder of ``--keep``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from tests.adversary import allocations, commands, files, sessions
from tests.adversary.report import Part, Report

PARTS: dict[str, tuple[Part, float]] = {  # and its share of the time
    "files": (files.run, 0.4),
    "allocations": (allocations.run, 0.15),
    "sessions": (sessions.run, 0.2),
    "commands": (commands.run, 0.25),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, help="default: one from the clock, which is printed")
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part alone")
    parser.add_argument("--keep", type=Path, help="a folder for inputs that went wrong")
    args = parser.parse_args()
    seed = int(time.time()) if args.seed is None else args.seed
    keep = args.keep or Path(tempfile.gettempdir()) / "llama2py-adversary"
    keep.mkdir(parents=True, exist_ok=True)
    chosen = {name: part for name, part in PARTS.items() if not args.only or name in args.only}
    whole = sum(share for _, share in chosen.values())
    report = Report(keep)
    print(f"seed {seed}, {args.minutes:g} minutes", flush=True)
    for name, (part, share) in chosen.items():
        report.begin(name, args.minutes * 60 * share / whole)
        part(report, Random(f"{seed} {name}"))
        report.end()
    return report.status()


if __name__ == "__main__":
    sys.exit(main())

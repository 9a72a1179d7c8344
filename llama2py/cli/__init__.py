"""The command line: thin over the library. One module a command; errors become exit codes here.

Exit codes: 0 done, 1 an error, 2 wrong usage, 130 Ctrl-C, 141 the reader of our output went away.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..errors import Llama2pyError
from . import bench, export_tokenizer, info, run

USAGE, INTERRUPTED, CLOSED_PIPE = 2, 130, 141


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="llama2py",
        description="llama2.c as a Python package: run, measure and look at small LLaMA models.",
    )
    parser.add_argument("--version", action="version", version=f"llama2py {__version__}")
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    for command in (run, bench, info, export_tokenizer):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; by default the process's own. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character shows "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logging.basicConfig(format="llama2py: warning: %(message)s")
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except Llama2pyError as error:
        message = " ".join(str(error).split())  # one line, whatever a file is called
        print(f"llama2py: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    return code

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
from importlib import import_module
from typing import NoReturn

from .. import __version__
from ..errors import Llama2pyError, TooBigError

# In the order of the help.
COMMANDS = (
    "run",
    "story",
    "bench",
    "score",
    "info",
    "download",
    "quantize",
    "convert",
    "train",
    "train-tokenizer",
    "export-tokenizer",
)
USAGE, INTERRUPTED, CLOSED_PIPE = 2, 130, 141


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of all commands, or of some: each one's module is loaded here."""
    parser = Parser(
        prog="llama2py",
        description="llama2.c as a Python package: run, measure and look at small LLaMA models.",
    )
    parser.add_argument("--version", action="version", version=f"llama2py {__version__}")
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    for command in commands:
        import_module(f".{command.replace('-', '_')}", __name__).add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; by default the process's own. Returns the exit code."""
    _prepare_streams()
    logging.basicConfig(format="llama2py: warning: %(message)s")
    words = sys.argv[1:] if argv is None else argv
    known = words[:1] if words and words[0] in COMMANDS else COMMANDS
    args = build_parser(known).parse_args(words)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except Llama2pyError as error:
        # One line, and nothing that steers a terminal, whatever a file is called.
        message = " ".join(str(error).split())
        message = "".join(char if char.isprintable() else "?" for char in message)
        if isinstance(error, TooBigError) and error.dtype is not None and "dtype" in args:
            message = message.replace(f"use dtype={error.dtype!r}", f"use --dtype {error.dtype}")
        print(f"llama2py: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return CLOSED_PIPE
    except OSError as error:  # a full disk behind standard output, say
        _drop_output()
        print(f"llama2py: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("llama2py: not enough memory", file=sys.stderr)
        return 1
    return code


def _prepare_streams() -> None:
    """Closed standard streams lead nowhere; what cannot be decoded or shown is no crash."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for good)
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character shows "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):  # the tokenizer says which byte is not UTF-8
        sys.stdin.reconfigure(errors="surrogateescape")


def _drop_output() -> None:
    """Let the flush that the interpreter does at exit go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The command line: one module per command. Errors of the library become exit codes here.

Exit codes: 0 success, 1 an error, 2 wrong usage, 130 Ctrl-C, 141 the reader of the output has gone,
143 SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import llama2py

from ..errors import Llama2pyError, TooBigError

# In the order of the help.
COMMANDS = (
    "run",
    "story",
    "bench",
    "score",
    "batch",
    "info",
    "download",
    "quantize",
    "convert",
    "train",
    "train-tokenizer",
    "export-tokenizer",
)
ERROR, USAGE, INTERRUPTED, CLOSED_PIPE, TERMINATED = 1, 2, 130, 141, 143


class HelpFormatter(argparse.HelpFormatter):
    """argparse's, with room for the longest command and for most options in the left column."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **{"max_help_position": 28, **settings})


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line, and an unknown option gets a suggestion."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Print a usage error and exit."""
        self.exit(USAGE, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")

    def parse_known_args(  # type: ignore[override]  # argparse's overloads
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse arguments; refuse unknown ones here, where the command and its options are known.

        Returns
        -------
        tuple
            The namespace, and an empty list.
        """
        words = sys.argv[1:] if args is None else list(args)
        # Now, because argparse would first complain that a required argument is missing.
        for word in words[:1] if self._subparsers else words:
            if word == "--":
                break
            self._check_option(word)
        found, unknown = super().parse_known_args(words, namespace)
        for word in unknown:
            self._check_option(word)
            what = "unknown option" if word.startswith("-") else "unexpected argument"
            self.error(f"{what} {word!r}")
        return found, unknown

    def _check_option(self, word: str) -> None:
        """Refuse an unknown long option. An abbreviation is known; a word with a space is text."""
        names = [name for action in self._actions for name in action.option_strings]
        option = word.split("=")[0]
        if (
            word.startswith("--")
            and " " not in option
            and not any(name.startswith(option) for name in names)
        ):
            self.error(f"unknown option {option}{did_you_mean(option, names)}")


def did_you_mean(word: str, candidates: Sequence[str]) -> str:
    """Return ``", did you mean X?"`` with the most similar candidate, or ``""``."""
    # Whatever the case, and whichever of "--top_p" and "--top-p" is right.
    plain = {name.lower().replace("_", "-"): name for name in candidates}
    found = difflib.get_close_matches(word.lower().replace("_", "-"), plain, n=1)
    return f", did you mean {plain[found[0]]}?" if found else ""


def build_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Build the parser of some commands, by default of all; this imports their modules."""
    parser = Parser(
        prog="llama2py",
        description="Run small LLaMA models: write stories, chat, measure, convert and train.",
    )
    parser.add_argument("--version", action="version", version=f"llama2py {llama2py.__version__}")
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    for command in commands:
        import_module(f".{command.replace('-', '_')}", __name__).add_parser(subparsers)
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. This imports the module of its command, and so most of llama2py.

    Raises
    ------
    SystemExit
        After ``--help`` and ``--version``, and for wrong usage.
    """
    prepare_streams()
    if not argv:
        build_parser().print_help(sys.stderr)
        raise SystemExit(USAGE)
    first = argv[0]
    if first not in COMMANDS and not first.startswith("-"):
        hint = did_you_mean(first, COMMANDS)
        if os.path.exists(first):
            hint = f", did you mean llama2py run {first}?"
        Parser(prog="llama2py").error(f"unknown command {first!r}{hint}")
    return build_parser(argv[:1] if first in COMMANDS else COMMANDS).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own, and return the exit code."""
    return execute(parse_args(sys.argv[1:] if argv is None else argv))


def execute(args: argparse.Namespace) -> int:
    """Run a parsed command line and return the exit code."""
    logging.basicConfig(format="llama2py: warning: %(message)s")
    try:
        with sigterm_raises():
            code: int = args.run(args)
            sys.stdout.flush()
    except Llama2pyError as error:
        message = str(error)
        if isinstance(error, TooBigError) and error.dtype is not None and "dtype" in args:
            message = message.replace(f"use dtype={error.dtype!r}", f"use --dtype {error.dtype}")
        return _fail(message)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return CLOSED_PIPE
    except OSError as error:  # such as a full disk that standard output goes to
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
        return _fail(f"{where}{error.strerror or error}")
    except MemoryError:
        return _fail("not enough memory")
    return code


def _fail(message: str) -> int:
    print(f"llama2py: {one_line(message)}", file=sys.stderr)
    return ERROR


def one_line(message: str) -> str:
    """Return a message as one line without control characters, whatever a file is called."""
    line = " ".join(message.split())
    return "".join(char if char.isprintable() else "?" for char in line)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise SystemExit(143), so that ``finally`` clauses remove temporary files."""

    def on_sigterm(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(TERMINATED)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def prepare_streams() -> None:
    """Make the standard streams safe: closed ones, and text that cannot be encoded or decoded."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: open for the rest of the process
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # "?" for a character that a terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # The tokenizer names the byte that is not UTF-8. Lines may end with \r\n.
        sys.stdin.reconfigure(errors="surrogateescape", newline=None)


def _drop_output() -> None:
    """Discard the output that the interpreter would write at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

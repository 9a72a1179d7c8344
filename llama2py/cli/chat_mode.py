"""``llama2py run -m chat``: a chat at a terminal, or the answers to lines of standard input."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from pathlib import Path
from typing import Any

from .._util import counted
from ..chat.dialogue import Chat
from ..errors import Llama2pyError, PromptError
from ..generation.job import Timings
from ..generation.stream import Stream
from ..model import Model
from . import INTERRUPTED

HELP = """\
/help         show this list
/reset        forget the dialogue, but not the system prompt
/system       show the system prompt
/system TEXT  set the system prompt
/save FILE    write the dialogue to a file
/load FILE    go on with a dialogue from a file
/quit         end the chat; so does Ctrl-D
Ctrl-C        end an answer"""


def chat(model: Model, args: argparse.Namespace, first: str | None, options: dict[str, Any]) -> int:
    """Answer messages until the input ends.

    Parameters
    ----------
    model : Model
        The model.
    args : argparse.Namespace
        The command line.
    first : str or None
        The first message.
    options : dict
        The options of each answer.

    Returns
    -------
    int
        The exit code.
    """
    options["max_tokens"] = args.steps or None
    is_terminal = sys.stdin.isatty()
    with Chat(model, args.system_prompt, template=args.template, **options) as dialogue:
        talk = _Talk(model, dialogue, is_terminal, options)
        try:
            # llama2.c's question, for its models and others without a template of their own
            has_template = model.conventions.chat_template is not None
            if is_terminal and args.system_prompt is None and not has_template:
                dialogue.system = _ask("Enter system prompt (optional): ") or None
            if first is not None:
                talk.answer(first)
            talk.listen()
        except _Quit:
            pass
        except EOFError:
            if is_terminal:
                write("\n")
        except KeyboardInterrupt:
            write("\n")
            return INTERRUPTED
        finally:
            talk.dialogue.close()
        if talk.last is not None:
            report(talk.last.timings, talk.last.seed)
    return 0


class _Quit(Exception):
    """The user ends the chat."""


class _Talk:
    """A dialogue, and where its messages come from.

    Attributes
    ----------
    dialogue : Chat
        The dialogue.
    last : Stream or None
        The last answer.
    """

    def __init__(
        self, model: Model, dialogue: Chat, is_terminal: bool, options: dict[str, Any]
    ) -> None:
        self.dialogue = dialogue
        self.last: Stream | None = None
        self._model = model
        self._is_terminal = is_terminal
        self._options = options
        if is_terminal:
            with contextlib.suppress(ImportError):  # not on Windows
                import readline  # noqa: F401  # gives `input` line editing and a history

    def listen(self) -> None:
        """Answer each line, until EOFError."""
        interrupted = False
        while True:
            try:
                line = _ask("User: ") if self._is_terminal else _read()
                interrupted = False
            except KeyboardInterrupt:
                if interrupted or not self._is_terminal:
                    raise
                interrupted = True
                say("\n(Ctrl-C again, Ctrl-D or /quit ends the chat)")
                continue
            if not line.strip():
                continue
            command = re.fullmatch(r"/([a-z]+)(?:\s+(.*?))?\s*", line)
            try:
                if command and self._is_terminal:
                    self._command(command[1], command[2] or "")
                else:
                    self.answer(line)
            except PromptError as error:  # the user may try another message
                say(f"llama2py: {error}")

    def answer(self, user: str) -> None:
        """Print the answer to a message."""
        self.last = self.dialogue.say(user)
        if self._is_terminal:
            write("Assistant: ")
        lead = " "  # the space before the first word
        try:
            for piece in self.last:
                write(piece.removeprefix(lead))
                lead = ""
        except KeyboardInterrupt:  # ends the answer
            if not self._is_terminal:
                raise
            self.last.cancel()
        write("\n")

    def _command(self, name: str, text: str) -> None:
        try:
            if name == "help":
                say(HELP)
            elif name == "quit":
                raise _Quit
            elif name == "reset":
                self.dialogue.messages = self.dialogue.messages[: self.dialogue.system is not None]
            elif name == "system" and text:
                self.dialogue.system = text
            elif name == "system":
                system = self.dialogue.system
                say("(the template's default)" if system is None else system)
            elif name == "save" and text:
                self.dialogue.save(Path(text).expanduser())
                say(f"saved to {text}")
            elif name == "load" and text:
                self._load(Path(text).expanduser())
            elif name in ("save", "load"):
                say(f"/{name} needs the name of a file")
            else:
                say(f"there is no command /{name}: see /help")
        except Llama2pyError as error:
            say(f"llama2py: {error}")

    def _load(self, path: Path) -> None:
        options = {name: value for name, value in self._options.items() if name != "seed"}
        loaded = Chat.load(path, self._model, **options)
        self.dialogue.close()
        self.dialogue = loaded
        for message in loaded.messages:
            say(f"{message['role'].capitalize()}: {message['content']}")


def _ask(question: str) -> str:
    """Read a line from the terminal; EOFError at its end."""
    return input(question)


def _read() -> str:
    """Read a line from standard input; EOFError at its end."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removeprefix("\ufeff").removesuffix("\n")


def write(text: str) -> None:
    """Print text of the model."""
    sys.stdout.write(text)
    sys.stdout.flush()  # the user reads while the model writes


def say(line: str) -> None:
    """Print a line about the model's text."""
    print(line, file=sys.stderr)


def report(timings: Timings, seed: int) -> None:
    """Print the speed of a text."""
    if timings.tokens_per_second:
        say(f"achieved tok/s: {timings.tokens_per_second:f}")
    if timings.generated_tokens:
        say(
            f"prompt tok/s: {timings.prompt_tokens_per_second:.1f}"
            f" ({counted(timings.prompt_tokens, 'token')}), first token after"
            f" {timings.first_token_seconds * 1000:.1f} ms, seed {seed}"
        )

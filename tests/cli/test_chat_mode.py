"""``llama2py run -m chat``: piped, and at a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama2py import load
from llama2py.chat.dialogue import Chat
from llama2py.cli import main
from tests.cli.conftest import Call
from tests.support.command_line import llama2py

CHAT = ["-m", "chat", "-t", "0", "-n", "12"]


def answers(story: list[str], *users: str, system: str | None = None, **options: Any) -> list[str]:
    """What the library answers."""
    how: Any = {"temperature": 0, "max_tokens": 12} | options
    with load(story[1], story[3]) as model, Chat(model, system, **how) as chat:
        return [chat.say(user).finish().text.removeprefix(" ") for user in users]


# ---- piped ----


def test_a_piped_question_is_answered(call: Call, story: list[str]) -> None:
    """The only output is the answer: no question for a system prompt, no names of roles."""
    done = call(*story, *CHAT, stdin=b"Hello\n")
    assert (done.returncode, done.stdout) == (0, f"{answers(story, 'Hello')[0]}\n")
    assert "achieved tok/s" in done.stderr


def test_each_line_is_a_turn_and_an_empty_line_is_no_turn(call: Call, story: list[str]) -> None:
    done = call(*story, *CHAT, "-y", "Be kind.", "-i", "Hi", stdin=b"\nHow are you?\n  \nBye")
    expected = answers(story, "Hi", "How are you?", "Bye", system="Be kind.")
    assert done.stdout == "".join(f"{answer}\n" for answer in expected)


def test_a_bom_and_the_line_ends_of_windows_are_dropped(story: list[str]) -> None:
    """A whole process, as the standard input of a test's process is another object."""
    plain = llama2py(*story, *CHAT, stdin=b"Hello\nBye\n")
    windows = llama2py(*story, *CHAT, stdin=b"\xef\xbb\xbfHello\r\nBye\r\n")
    assert windows.stdout == plain.stdout
    assert len(plain.stdout.splitlines()) >= 2


def test_chat_without_input_ends_at_once(call: Call, story: list[str]) -> None:
    done = call(*story, "-m", "chat")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_chat_goes_on_after_a_message_it_refuses(call: Call, story: list[str]) -> None:
    """It complains about a message that is too long or not UTF-8, and reads the next."""
    turns = b"\xff\n" + b"and so on " * 400 + b"\n[INST]\nHi\n"
    done = call(*story, *CHAT, stdin=turns)
    assert done.returncode == 0
    assert done.stdout == f"{answers(story, 'Hi')[0]}\n"
    complaints = [line for line in done.stderr.splitlines() if line.startswith("llama2py: ")]
    assert "0xFF" in complaints[0]
    assert "does not fit" in complaints[1]
    assert "a marker of the chat template" in complaints[2]


def test_a_dialogue_may_have_any_number_of_turns(call: Call, story: list[str]) -> None:
    """The context holds 512 tokens; the oldest turns are left out."""
    done = call(*story, *CHAT, stdin=b"Tell me more, please.\n" * 40)
    assert done.returncode == 0
    assert "llama2py:" not in done.stderr


@pytest.mark.parametrize("template", ["llama2", "zephyr", "plain"])
def test_chat_prints_the_answer_of_the_library(template: str, call: Call, story: list[str]) -> None:
    done = call(*story, *CHAT, "--template", template, "-i", "Hello")
    assert done.stdout == f"{answers(story, 'Hello', template=template)[0]}\n"


def test_sampling_and_stop_flags_work_in_chat(call: Call, story: list[str]) -> None:
    chat = [*story, "-m", "chat", "-i", "Hello", "-s", "3", "-n", "40", "--template", "plain"]
    greedy = call(*chat, "--top-k", "1").stdout
    assert call(*chat, "-t", "0").stdout == greedy
    stopped, found, _ = greedy.partition("e")
    assert found
    assert call(*chat, "-t", "0", "--stop", "e").stdout == f"{stopped}\n"


def test_slash_commands_are_for_terminals(call: Call, story: list[str]) -> None:
    done = call(*story, *CHAT, stdin=b"/quit\n")
    assert done.stdout == f"{answers(story, '/quit')[0]}\n"


def test_a_template_without_its_end_token_is_an_error(
    story: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*story, "-m", "chat", "--template", "chatml", "-i", "Hi"]) == 1
    assert "ends an answer with <|im_end|>" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*story, "-m", "chat", "--template", "alpaca"])
    assert "'chatml', 'llama2', 'llama3', 'mistral', 'plain', 'zephyr'" in capsys.readouterr().err


# ---- at a terminal ----


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, words: list[str]) -> None:
        import pty

        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [sys.executable, "-m", "llama2py", *words])
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt_prompt(self) -> None:
        """Press Ctrl-C until the command answers.

        Python's readline does not notice a signal that comes just before it waits for a key.
        """
        for _ in range(30):
            self.type("\x03")
            if select.select([self._master], [], [], 2)[0] and self._read() and self.shown != "^C":
                return

    def wait_for(self, pattern: str) -> str:
        """Wait until the terminal shows a pattern; return what it shows up to its end."""
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            assert self._read(), f"the command has ended: {self.shown}"
        self.shown, before = self.shown[found.end() :], self.shown[: found.end()]
        return before

    def _read(self) -> bool:
        """Wait for output; False: the command has ended."""
        ready, _, _ = select.select([self._master], [], [], 60)
        assert ready, f"nothing more comes: {self.shown}"
        try:
            data = os.read(self._master, 4096)
        except OSError:  # Linux says so at the end
            data = b""
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def end(self) -> int:
        """Wait for the end of the command; return its exit code."""
        while self._read():
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self._master)
        return os.waitstatus_to_exitcode(status)


Start = Callable[..., Terminal]


@pytest.fixture
def start(story: list[str]) -> Iterator[Start]:
    pytest.importorskip("pty")
    started: list[Terminal] = []

    def begin(*words: str) -> Terminal:
        started.append(Terminal([*story, "-m", "chat", *words]))
        return started[-1]

    yield begin
    for terminal in started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(terminal.pid, signal.SIGKILL)
            os.waitpid(terminal.pid, 0)


def test_a_chat_of_llama2c_s_models_asks_llama2c_s_two_questions(
    start: Start, story: list[str]
) -> None:
    terminal = start("-t", "0", "-n", "12")
    terminal.wait_for(r"Enter system prompt \(optional\): $")
    terminal.type("Be kind.\n")
    terminal.wait_for("User: $")
    terminal.type("Hello\n")
    shown = terminal.wait_for("Assistant: .*\nUser: $")
    assert f"Assistant: {answers(story, 'Hello', system='Be kind.')[0]}\nUser: " in shown
    terminal.type("\n")
    assert terminal.wait_for("User: $").strip() == "User:"  # an empty line is no turn
    terminal.type("\x04")  # Ctrl-D
    assert "achieved tok/s" in terminal.wait_for("seed \\d+")
    assert terminal.end() == 0


def test_ctrl_c_ends_the_answer_and_not_the_chat(start: Start) -> None:
    terminal = start("-y", "Be.", "-t", "0", "--backend", "numpy", "-n", "0", "--template", "plain")
    terminal.wait_for("User: $")
    terminal.type("Hello\n")
    terminal.wait_for("Assistant: ...")
    terminal.type("\x03")
    terminal.wait_for("User: $")
    terminal.type("Bye\n")
    terminal.wait_for("Assistant: ...")
    terminal.type("\x03")
    terminal.wait_for("User: $")
    terminal.interrupt_prompt()
    terminal.wait_for("Ctrl-C again, Ctrl-D or /quit ends the chat.*User: $")
    terminal.interrupt_prompt()
    assert terminal.end() == 130


def test_slash_commands(start: Start, story: list[str], tmp_path: Path) -> None:
    terminal = start("-y", "Be.", "-t", "0", "-n", "12")

    def say(line: str, pattern: str) -> str:
        terminal.wait_for("User: $")
        terminal.type(line + "\n")
        return terminal.wait_for(pattern)

    say("/help", "/reset .*/quit")
    say("/system", "Be\\.\n")
    say("/system Do.", "\n")
    say("/system", "Do\\.\n")
    first, second = answers(story, "Hello", "Bye", system="Do.")
    assert first in say("Hello", "Assistant: [^\n]*\n(?=.*User)")
    path = tmp_path / "chat.json"
    say(f"/save {path}", "saved to")
    saved = json.loads(path.read_text("utf-8"))
    assert [message["content"] for message in saved["messages"]][:2] == ["Do.", "Hello"]
    say("/reset", "\n")
    assert answers(story, "Bye", system="Do.")[0] in say("Bye", "Assistant: .*?\n(?=User)")
    say(f"/load {path}", "System: Do.\nUser: Hello\nAssistant: ")
    assert second in say("Bye", "Assistant: .*?\n(?=User)")
    say("/nothing", "there is no command /nothing: see /help")
    say("/save", "/save needs the name of a file")
    say(f"/load {tmp_path / 'missing'}", "llama2py: .*missing")
    terminal.wait_for("User: $")
    terminal.type("/quit\n")
    assert terminal.end() == 0


def test_the_arrow_keys_bring_back_a_line(start: Start) -> None:
    pytest.importorskip("readline")
    terminal = start("-y", "Be.", "-t", "0", "-n", "3")
    terminal.wait_for("User: $")
    terminal.type("Hello there\n")
    terminal.wait_for("Assistant: .*User: $")
    terminal.type("\x1b[A")  # up
    terminal.wait_for("Hello there$")
    terminal.type("\x7f\x7f!\n")
    terminal.wait_for("Assistant: ")
    terminal.wait_for("User: $")
    terminal.type("\x04")
    assert terminal.end() == 0

"""``llama2py story``: the model, wrapping, JSON, seeds."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llama2py import StoryTeller
from llama2py._data import builtin_model
from llama2py._util import counted
from llama2py.cli import main
from tests.cli.conftest import Call
from tests.support.command_line import llama2py


@pytest.fixture(scope="module")
def tell() -> StoryTeller:
    """A teller with the built-in model."""
    return StoryTeller()


def test_story_prints_the_story_of_the_library(call: Call, tell: StoryTeller) -> None:
    """On one line, as standard output is not a terminal here."""
    done = call("story", "a small bear", "-s", "4")
    story = tell("a small bear", seed=4)
    assert done.returncode == 0
    assert done.stdout == f"{story.text}\n"
    assert max(map(len, done.stdout.splitlines())) > 80
    assert done.stderr == f"{story.words} words, seed 4\n"


def test_several_stories_have_consecutive_seeds(
    tell: StoryTeller, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["story", "-s", "4", "-n", "3", "--max-words", "30"]) == 0
    out, err = capsys.readouterr()
    stories = list(tell.many(3, seed=4, max_words=30))
    assert out == "\n".join(f"{story.text}\n" for story in stories)
    assert [line.split(", ")[1] for line in err.splitlines()] == ["seed 4", "seed 5", "seed 6"]


def test_a_random_seed_is_printed_and_repeats_the_story(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["story", "--max-words", "20"]) == 0
    out, err = capsys.readouterr()
    assert main(["story", "--max-words", "20", "-s", err.split()[-1]]) == 0
    assert capsys.readouterr().out == out


def test_a_count_of_one_is_singular() -> None:
    assert (counted(1, "word"), counted(2, "word"), counted(0, "word")) == (
        "1 word",
        "2 words",
        "0 words",
    )
    assert counted(1234, "story", "stories") == "1,234 stories"


@pytest.mark.parametrize("width", [20, 60])
def test_width_wraps_lines(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["story", "a small bear", "-s", "4"]
    assert main([*words, "--width", "0"]) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--width", str(width)]) == 0
    wrapped = capsys.readouterr().out
    assert max(map(len, wrapped.splitlines())) <= width
    assert wrapped.split() == plain.split()


@pytest.mark.parametrize("columns", [40, 100])
def test_a_story_is_wrapped_at_the_width_of_the_terminal(columns: int) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llama2py", "story", "a small bear", "-s", "4"],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": str(columns)},
    )
    os.close(theirs)
    chunks = []
    with suppress(OSError):  # Linux's way to say that the other end is closed
        while chunk := os.read(ours, 4096):
            chunks.append(chunk)
    os.close(ours)
    assert process.wait(timeout=60) == 0
    lines = b"".join(chunks).decode().splitlines()
    assert columns - 15 < max(map(len, lines)) <= columns


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        (["--candidates", "1"], {"candidates": 1}),
        (
            ["--candidates", "3", "-t", "0.9", "-p", "0.8"],
            {"candidates": 3, "temperature": 0.9, "top_p": 0.8},
        ),
    ],
)
def test_flags_equal_the_parameters_of_the_library(
    flags: list[str], how: dict[str, Any], tell: StoryTeller, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["story", "-s", "4", "--max-words", "40", *flags]) == 0
    story = StoryTeller(tell.model, **how)(seed=4, max_words=40)
    assert capsys.readouterr().out == f"{story.text}\n"
    assert story != tell(seed=4, max_words=40)


# ---- JSON ----


def test_jsonl_is_one_line_per_story(call: Call, tell: StoryTeller) -> None:
    done = call("story", "-s", "4", "-n", "3", "--jsonl", "--max-words", "40")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    stories = tell.many(3, seed=4, max_words=40)
    expected = [(story.text, story.title, story.seed, story.ended) for story in stories]
    assert [tuple(line.values()) for line in lines] == expected
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_jsonl_loses_no_character_whatever_the_console_encodes(encoding: str) -> None:
    command = ["story", "-i", "Zoë met a 🐶.", "-s", "4", "--max-words", "12", "--jsonl"]
    done = llama2py(*command, PYTHONIOENCODING=encoding)
    assert json.loads(done.stdout)["text"].startswith("Zoë met a 🐶.")
    assert ("🐶" in done.stdout) == (encoding == "utf-8")


# ---- the model ----


@pytest.mark.parametrize("position", ["first", "-m"])
def test_a_model_may_be_the_first_argument_or_a_flag(
    position: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["a small bear", "-s", "4", "--max-words", "20"]
    assert main(["story", *rest]) == 0
    expected = capsys.readouterr().out
    model = str(builtin_model())
    words = [model, *rest] if position == "first" else [*rest, "-m", model]
    assert main(["story", *words]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("name", ["./missing", "missing.gguf", "a/b", "stories42M"])
def test_a_single_argument_that_looks_like_a_model_is_one(
    name: str, hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["story", name]) == 1
    assert f"{name.removeprefix('./')}: " in capsys.readouterr().err


@pytest.mark.parametrize("about", ["dragon", "Mr. Fox", "a cat and/or a dog", "bear.with"])
def test_any_other_single_argument_is_the_subject(
    about: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if there is a folder of that name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dragon").mkdir()
    assert main(["story", about, "-s", "1", "--max-words", "20", "--jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["title"].lower() == about.lower()


def test_the_model_takes_a_tokenizer_and_a_dtype(
    test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = test_data / "data"
    words = [str(data / "stories260K.bin"), "a small bear", "-z", str(data / "tok512.bin")]
    assert main(["story", *words, "-s", "1", "--dtype", "int8", "--max-words", "15"]) == 0
    assert capsys.readouterr().out.startswith("Once upon a time, there was a small bear.")


def test_two_models_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["story", "a.bin", "bear", "-m", "b.bin"]) == 1
    assert "there are two models, a.bin and -m b.bin" in capsys.readouterr().err

"""``llama2py score``: its texts and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llama2py
from tests.cli.conftest import Call

STORIES = "One day, a cat ran.\r\n<|endoftext|>\n\nA dog slept.\n<|endoftext|>\n"


def test_a_file_and_standard_input_have_the_same_score(call: Call, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf" + STORIES.encode())
    shown = [
        call("score", "builtin", tmp_path / "text", "--json"),
        call("score", "builtin", "-", "--json", stdin=(tmp_path / "text").read_bytes()),
    ]
    assert shown[0].stdout == shown[1].stdout
    facts = json.loads(shown[0].stdout)
    assert facts["stories"] == 2
    assert facts["bytes"] == len("One day, a cat ran.") + len("A dog slept.")
    with llama2py.load() as model:
        score = llama2py.score_texts(model, ["One day, a cat ran.", "A dog slept."])
    assert facts["bits_per_byte"] == pytest.approx(score.bits_per_byte, rel=1e-9)


def test_one_story_is_singular(call: Call) -> None:
    one, two = (call("score", "builtin", "-", stdin=s) for s in (b"A dog.", STORIES.encode()))
    assert "read            1 story, 6 bytes, " in one.stdout
    assert "read            2 stories, " in two.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\xff", "standard input: byte 1 is not UTF-8"),
        (b" \n", "standard input: the text holds no story"),
    ],
)
def test_unreadable_standard_input_is_an_error(text: bytes, message: str, call: Call) -> None:
    done = call("score", "builtin", "-", stdin=text)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize("kind", ["pipe", "zeros"])
@pytest.mark.parametrize("place", ["text", "model", "tokenizer"])
def test_a_file_that_never_ends_is_refused(place: str, kind: str, tmp_path: Path) -> None:
    """In a process of its own, which would hang."""
    endless = Path("/dev/zero")
    if kind == "pipe":
        endless = tmp_path / "pipe"
        os.mkfifo(endless)
    (tmp_path / "story.txt").write_text(STORIES)
    line: dict[str, list[str | Path]] = {
        "text": ["builtin", endless],
        "model": [endless, tmp_path / "story.txt"],
        "tokenizer": ["builtin", tmp_path / "story.txt", "-z", endless],
    }
    done = subprocess.run(
        [sys.executable, "-m", "llama2py", "score", *line[place]],
        env=os.environ | {"PYTHONPATH": str(Path(llama2py.__file__).parents[1])},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{endless}: this is a device, pipe or socket" in done.stderr

"""What the command line says of wrong usage and wrong input: one line, and which exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama2py.cli import main
from tests.support.command_line import llama2py


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "arguments are required: COMMAND"),
        (["score", "x.bin"], "arguments are required: FILE"),
        (["train", "x.txt"], "arguments are required: -o/--output"),
        (["train", "x.txt", "-o", "x.bin", "--dim", "wide"], "invalid int value: 'wide'"),
        (["dance"], "invalid choice: 'dance'"),
        (["run", "x.bin", "-t", "warm"], "'warm' is not a number"),
        (["run", "x.bin", "-t", "nan"], "temperature is nan"),
        (["run", "x.bin", "-t", "inf"], "temperature is inf"),
        (["run", "x.bin", "-p", "1.5"], "top_p is 1.5"),
        (["run", "x.bin", "-p", "-0.5"], "top_p is -0.5"),
        (["run", "x.bin", "-p", "nan"], "top_p is nan"),
        (["run", "x.bin", "-s", "one"], "'one' is not a whole number"),
        (["run", "x.bin", "-s", str(1 << 64)], "18446744073709551616 is above 2**64 - 1"),
        (["run", "x.bin", "--threads", "257"], "257 is above 256"),
        (["run", "x.bin", "-n", "1.5"], "'1.5' is not a whole number"),
        (["run", "x.bin", "-m", "sing"], "invalid choice: 'sing'"),
        (["run", "x.bin", "--threads", "0"], "0 is not a whole number from 1 up"),
        (["run", "x.bin", "--backend", "cuda"], "invalid choice: 'cuda'"),
        (["bench", "x.bin", "--threads", "1,x"], "'x' is not a whole number"),
        (["export-tokenizer", "x.gguf"], "arguments are required: -o/--output"),
    ],
)
def test_wrong_usage_is_one_line_and_2(
    args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(args)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


def bad_input(test_data: Path, tmp_path: Path) -> dict[str, tuple[list[str | Path], str]]:
    model, vocabulary = test_data / "data" / "stories260K.bin", test_data / "data" / "tok512.bin"
    run: list[str | Path] = ["run", model, "-z", vocabulary]
    (tmp_path / "cut.bin").write_bytes(model.read_bytes()[:-4])
    (tmp_path / "tok.bin").write_bytes(vocabulary.read_bytes()[:-4])
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "alone.bin").write_bytes(model.read_bytes())  # without its tok512.bin
    return {
        "missing file": (["run", tmp_path / "none.bin"], "none.bin: no such file"),
        "directory": (["run", tmp_path], "is a directory"),
        "empty file": (["info", tmp_path / "empty.bin"], "empty.bin: "),
        "cut checkpoint": (["bench", tmp_path / "cut.bin"], "1056536 bytes"),
        "cut tokenizer": (["run", model, "-z", tmp_path / "tok.bin"], "tok.bin: "),
        "other vocabulary": (
            ["run", tmp_path / "alone.bin"],
            "32000 tokens, the model has 512",
        ),
        "long prompt": ([*run, "-i", "and so on " * 300], "longer than the model's context of 512"),
        "no gguf": (["export-tokenizer", model, "-o", tmp_path / "out.bin"], "stories260K.bin: "),
    }


@pytest.mark.parametrize(
    "what",
    [
        "missing file",
        "directory",
        "empty file",
        "cut checkpoint",
        "cut tokenizer",
        "other vocabulary",
        "long prompt",
        "no gguf",
    ],
)
def test_bad_input_is_one_line_and_1(
    what: str, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args, complaint = bad_input(test_data, tmp_path)[what]
    assert main([os.fspath(arg) for arg in args]) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.startswith("llama2py: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_prompts_that_are_not_text(story: list[str]) -> None:
    piped = llama2py(*story, "-i", "-", stdin=b"ok \xff")
    assert (piped.returncode, piped.stdout) == (1, "")
    assert piped.stderr == (
        "llama2py: the prompt on standard input is not UTF-8 (byte 3), expected UTF-8 text\n"
    )
    typed = llama2py(*story, "-i", b"ok \xff".decode("utf-8", "surrogateescape"))
    assert (typed.returncode, typed.stdout) == (1, "")
    assert typed.stderr == (
        "llama2py: the text holds the byte 0xFF, which is not UTF-8, at position 3,"
        " expected whole characters\n"
    )


def test_chat_survives_a_turn_it_cannot_take(story: list[str]) -> None:
    """Too long, or not text: said on standard error, and the next turn is asked for."""
    turns = b"\xff\n" + b"and so on " * 400 + b"\nHi\n"
    done = llama2py(*story, "-m", "chat", "-y", "", "-n", "80", stdin=turns)
    assert done.returncode == 0
    assert done.stdout.startswith("User: User: User: Assistant: ")
    complaints = [line for line in done.stderr.splitlines() if line.startswith("llama2py: ")]
    assert "0xFF" in complaints[0]
    assert "do not fit" in complaints[1]
    assert "used up its tokens" in complaints[2]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("flags", [["-n", "9"], ["-i", "-", "-n", "9"], ["-m", "chat"]])
def test_closed_standard_streams_are_no_crash(
    story: list[str], closed: str, flags: list[str]
) -> None:
    command = f'exec "$@" {closed}'
    arguments = [sys.executable, "-m", "llama2py", *story, *flags]
    done = subprocess.run(
        ["sh", "-c", command, "sh", *arguments], capture_output=True, input=b"", check=False
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stdout + done.stderr
    if closed == "2>&-":
        assert b"tok/s" not in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line(story: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "llama2py", *story, "-n", "9"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


def test_without_the_extension_the_error_says_what_to_do(
    story: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("native", "isa", "c_config", "extension"):
        monkeypatch.delitem(sys.modules, f"llama2py.engine.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "llama2py.engine._engine", None)
    assert main([*story, "-n", "3"]) == 1
    assert "the C engine is not built" in capsys.readouterr().err
    assert main([*story, "-n", "3", "--backend", "numpy"]) == 0


def test_an_instruction_set_this_cpu_lacks(story: list[str]) -> None:
    done = llama2py(*story, LLAMA2PY_ISA="sse9")
    assert done.returncode == 1
    assert done.stderr.startswith("llama2py: LLAMA2PY_ISA=sse9: no such instruction set")
    assert done.stderr.count("\n") == 1

"""The command line as a whole: help, wrong usage, wrong input, streams, signals, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import pytest

from llama2py import ConfigError, __version__
from llama2py.cli import COMMANDS, execute, main
from tests.cli.conftest import Call
from tests.support.command_line import llama2py


def test_version_and_help_are_printed(call: Call) -> None:
    assert call("--version").stdout == f"llama2py {__version__}\n"
    help_text = call("--help").stdout
    for command in COMMANDS:
        assert command in help_text
        assert call(command, "--help").returncode == 0


def test_the_bare_command_prints_its_help_and_exits_with_2(call: Call) -> None:
    done = call()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == call("--help").stdout


def test_a_value_may_begin_with_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    """A word with a space is a text, and so is a value after an equals sign."""
    assert main(["run", "-i", "--- a", "-n", "4", "-s", "1"]) == 0
    assert capsys.readouterr().out.startswith("--- a")
    assert main(["run", "--prompt=--a", "-n", "4", "-s", "1"]) == 0
    assert capsys.readouterr().out.startswith("--a")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["score", "x.bin"], "arguments are required: FILE"),
        (["train", "x.txt"], "arguments are required: -o/--output"),
        (["train", "x.txt", "-o", "x.bin", "--dim", "wide"], "invalid int value: 'wide'"),
        (["dance"], "unknown command 'dance' (see"),
        (["rum"], "unknown command 'rum', did you mean run?"),
        (["export_tokenizer"], "did you mean export-tokenizer?"),
        ([__file__], f"did you mean llama2py run {__file__}?"),
        (["--verison"], "unknown option --verison, did you mean --version?"),
        (["run", "--temprature", "1"], "unknown option --temprature, did you mean --temperature?"),
        (["run", "--top_p=1"], "unknown option --top_p, did you mean --top-p?"),
        (["run", "--max-tokens", "9"], "unknown option --max-tokens"),
        (["train", "--max-iterations", "9"], "unknown option --max-iterations, did you mean"),
        (["score", "--jsn"], "unknown option --jsn, did you mean --json?"),
        (["run", "-q"], "unknown option '-q'"),
        (["run", "a.bin", "b.bin"], "unexpected argument 'b.bin'"),
        (["run", "-t", "-1"], "temperature is -1.0, expected"),
        (["run", "-s", "-3"], "-3 is negative, expected 0 or more"),
        (["run", "-n", "-1"], "-1 is negative"),
        (["run", "--top-k", "-1"], "-1 is negative"),
        (["run", "--min-p", "2"], "min_p is 2.0"),
        (["run", "--repetition-penalty", "0"], "repetition_penalty is 0.0"),
        (["run", "--presence-penalty", "inf"], "presence_penalty is inf"),
        (["story", "-s", "-3"], "-3 is negative"),
        (["story", "-t", "-0.1"], "temperature is -0.1"),
        (["story", "--width", "-1"], "-1 is negative"),
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
        (["run", "x.bin", "--threads", "0"], "0 is less than 1"),
        (["run", "x.bin", "--backend", "cuda"], "invalid choice: 'cuda'"),
        (["bench", "x.bin", "--threads", "1,x"], "'x' is not a whole number"),
        (["export-tokenizer", "x.gguf"], "arguments are required: -o/--output"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
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
def test_bad_input_is_one_line_and_exit_code_1(
    what: str, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args, complaint = bad_input(test_data, tmp_path)[what]
    assert main([os.fspath(arg) for arg in args]) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.startswith("llama2py: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("flags", [["-n", "9"], ["-i", "-", "-n", "9"], ["-m", "chat"]])
def test_closed_standard_streams_do_not_crash(
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


def test_an_unknown_instruction_set_is_one_line(story: list[str]) -> None:
    done = llama2py(*story, LLAMA2PY_ISA="sse9")
    assert done.returncode == 1
    assert done.stderr.startswith("llama2py: LLAMA2PY_ISA=sse9: no such instruction set")
    assert done.stderr.count("\n") == 1


LONG = "a" * 300


@pytest.mark.parametrize(
    "args",
    [
        ["run", f"./{LONG}"],
        ["run", f"./{LONG}/{LONG}.bin"],
        ["run", "-z", LONG],
        ["info", f"{LONG}.gguf"],
        ["story", f"{LONG}.bin", "a dog"],
        ["score", "builtin", LONG],
        ["convert", "builtin", "-o", f"{LONG}.bin"],
        ["export-tokenizer", LONG, "-o", "out.bin"],
        ["train-tokenizer", LONG, "-o", "out.bin"],
        ["download", f"owner/{LONG}:{LONG}"],
        ["run", "/dev/zero"],
        ["run", "-z", "/dev/zero"],
        ["info", "/dev/zero"],
        ["score", "builtin", "/dev/zero"],
        ["convert", "/dev/zero", "-o", "out.bin"],
        ["export-tokenizer", "/dev/zero", "-o", "out.bin"],
        ["train-tokenizer", "/dev/zero", "-o", "out.bin"],
        ["info", "nested"],
        ["convert", "nested", "-o", "out.bin"],
        ["run", "-i", "a\0b\ud800"],
    ],
    ids=lambda args: " ".join(args).replace(LONG, "LONG").replace("\0", "0")[:60],
)
def test_a_hostile_name_or_file_is_one_line_and_exit_code_1(
    args: list[str], hub_cache: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """Never a traceback of an OSError, a RecursionError or an OverflowError, and never a hang."""
    if find_spec("huggingface_hub"):
        # Not by the environment, which it reads only once, when it is imported.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("nested").mkdir()
    Path("nested/config.json").write_text('{"a":' * 50_000)
    done = call(*args)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, "")
    assert done.stderr.startswith("llama2py: ")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(36, "File name too long", "a\x1b[31m.bin"), "a?[31m.bin: File name too long"),
        (MemoryError(), "not enough memory"),
        (ConfigError("dim is 0\nand more"), "dim is 0 and more"),
    ],
)
def test_an_error_of_a_command_is_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        print("some output")
        raise error

    assert execute(Namespace(run=run)) == 1
    assert capsys.readouterr() == ("some output\n", f"llama2py: {line}\n")


def test_an_unexpected_error_keeps_its_traceback() -> None:
    """It is a fault of llama2py, which a report should show."""

    def run(args: object) -> int:
        raise ZeroDivisionError("oh")

    with pytest.raises(ZeroDivisionError, match="oh"):
        execute(Namespace(run=run))


def test_a_name_in_an_error_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """It may come from the hub or from a file."""
    assert main(["info", "\x1b[2Jno\nsuch.bin"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("llama2py: ?[2Jno such.bin: no such file")
    assert error.count("\n") == 1

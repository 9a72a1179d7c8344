"""The command line as a user meets it: whole processes, their output, their exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama2py import __version__
from llama2py.cli import main

Result = subprocess.CompletedProcess[str]


def llama2py(*args: str | Path, stdin: bytes = b"", **environment: str) -> Result:
    """Run a command to its end; output as text, undecodable bytes as surrogates."""
    done = subprocess.run(
        [sys.executable, "-m", "llama2py", *[os.fspath(arg) for arg in args]],
        input=stdin,
        capture_output=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )
    out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


@pytest.fixture(scope="module")
def story(test_data: Path) -> list[str]:
    """The arguments that run the real 260K model."""
    data = test_data / "data"
    return ["run", str(data / "stories260K.bin"), "-z", str(data / "tok512.bin")]


def recorded(test_data: Path, **wanted: object) -> dict[str, Any]:
    cases: list[dict[str, Any]] = json.loads((test_data / "golden" / "llama2c.json").read_text())
    return next(c for c in cases if all(c[name] == value for name, value in wanted.items()))


def test_run_prints_the_recorded_story_and_its_speed(story: list[str], test_data: Path) -> None:
    case = recorded(
        test_data, checkpoint="stories260K", seed=42, prompt="One day, Lily met a Shoggoth"
    )
    done = llama2py(*story, "-t", "1.0", "-p", "0.9", "-s", "42", "-n", "0", "-i", case["prompt"])
    assert done.returncode == 0
    assert done.stdout == case["stdout"]
    speed, details = done.stderr.splitlines()
    assert float(speed.removeprefix("achieved tok/s: ")) > 0
    assert details.startswith("prompt tok/s: ")
    assert "(15 tokens), first token after" in details
    assert details.endswith("seed 42")


def test_long_flags_mean_the_same(story: list[str]) -> None:
    short = llama2py(*story, "-t", "0.5", "-p", "0.8", "-s", "3", "-n", "40", "-i", "Tom")
    flags = ["--temperature=0.5", "--top-p=0.8", "--seed=3", "--steps=40", "--prompt=Tom"]
    assert llama2py(*story, *flags).stdout == short.stdout
    assert len(short.stdout) > 40


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_steps_count_the_prompt_and_cut_it(story: list[str], test_data: Path, steps: int) -> None:
    case = recorded(test_data, checkpoint="stories260K", steps=steps)
    flags = ["-t", case["temperature"], "-p", case["topp"], "-s", case["seed"], "-n", steps]
    done = llama2py(*story, *map(str, flags), "-i", case["prompt"])
    assert done.stdout == case["stdout"]


def test_a_temperature_below_zero_is_zero_as_in_llama2c(story: list[str]) -> None:
    greedy = llama2py(*story, "-t", "0", "-n", "30")
    assert llama2py(*story, "-t", "-1", "-n", "30").stdout == greedy.stdout


def test_seed_0_is_a_new_story_that_can_be_told_again(story: list[str]) -> None:
    first, second = llama2py(*story, "-s", "0"), llama2py(*story)
    assert first.stdout != second.stdout
    seed = second.stderr.split()[-1]
    assert llama2py(*story, "-s", seed).stdout == second.stdout


def test_threads_and_backend_do_not_change_the_story(story: list[str]) -> None:
    flags = ["-s", "7", "-n", "60"]
    one = llama2py(*story, *flags, "--threads", "1")
    assert llama2py(*story, *flags, "--threads", "3").stdout == one.stdout
    assert llama2py(*story, *flags, "--backend", "numpy").stdout == one.stdout


def test_prompt_from_standard_input(story: list[str]) -> None:
    flags = ["-t", "0", "-n", "30"]
    piped = llama2py(*story, *flags, "-i", "-", stdin="Zoë 🐶\n".encode())
    assert piped.stdout == llama2py(*story, *flags, "-i", "Zoë 🐶").stdout
    assert piped.stdout.startswith("Zoë 🐶")


def test_an_output_that_cannot_show_a_character_gets_a_question_mark(story: list[str]) -> None:
    done = llama2py(*story, "-n", "30", "-i", "Zoë", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.startswith("Zo?")


def test_chat_takes_turns_until_the_input_ends(story: list[str]) -> None:
    flags = ["-m", "chat", "-t", "0", "-n", "120"]
    done = llama2py(*story, *flags, stdin=b"Be kind.\nHello\n")
    assert done.returncode == 0
    assert done.stdout.startswith("Enter system prompt (optional): User: Assistant: ")
    told = llama2py(*story, *flags, "-y", "Be kind.", "-i", "Hello")
    assert told.stdout.removeprefix("Assistant: ") == done.stdout.partition("Assistant: ")[2]


def test_chat_without_input_ends_at_once(story: list[str]) -> None:
    done = llama2py(*story, "-m", "chat")
    assert (done.returncode, done.stderr) == (0, "")


def hear_ctrl_c() -> None:
    """Also where whoever started the tests ignores it, as a shell does for what runs behind."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("wait_for", [b"", b"Once"])
def test_ctrl_c_ends_the_story_with_its_statistics(story: list[str], wait_for: bytes) -> None:
    """Pressed while the story runs; -n 0 and the NumPy backend make sure that it still does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llama2py", *story, "-n", "0", "-t", "0", "--backend", "numpy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_ctrl_c,
    )
    assert process.stdout is not None
    process.stdout.read(len(wait_for) or 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"achieved tok/s" in err or b"prompt tok/s" in err
    assert b"Traceback" not in err


def test_a_closed_pipe_ends_the_story_silently(story: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "llama2py", *story, "-n", "0", "--backend", "numpy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_info_shows_the_shape(test_data: Path) -> None:
    done = llama2py("info", test_data / "data" / "stories260K_q80.bin")
    assert done.returncode == 0
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert facts["format"] == "llama2.c v2 (int8)"
    assert facts["weights"] == "int8, a scale for every 4 values"
    assert facts["parameters"] == "260,032"
    assert facts["n_kv_heads"] == "4"
    assert facts["problems"] == "none found"


def test_info_as_json(test_data: Path) -> None:
    done = llama2py("info", "--json", test_data / "data" / "stories260K.bin")
    facts = json.loads(done.stdout)
    assert facts["dtype"] == "float32"
    assert facts["file_size"] == 1056540
    assert facts["config"]["hidden_dim"] == 172
    # 5 layers, keys and values, 4 heads of 8, 512 positions, 4 bytes
    assert facts["cache_bytes"] == 5 * 2 * 4 * 8 * 512 * 4


def test_info_on_another_programs_model(test_data: Path) -> None:
    modern = test_data / "data" / "formats" / "modern-hf"
    facts = dict(line.split(maxsplit=1) for line in llama2py("info", modern).stdout.splitlines())
    assert facts["format"] == "Hugging Face (safetensors, 7 files)"
    assert facts["weights"] == "bfloat16"
    assert facts["n_heads"] == "6 of size 32"
    assert facts["rope_scaling"] == "llama3, by 8 beyond 64 tokens"
    assert facts["tokenizer"] == "none of its own"
    assert facts["memory"].startswith("2.3 MB as float32, 1.2 MB as bfloat16, ")  # of 586,624
    assert re.fullmatch(r"fits into the .* free: 1.2 MB as bfloat16 and .* session", facts["load"])
    assert "the model has 512" in facts["problems"]
    meta = test_data / "data" / "formats" / "stories260K-meta-2shards"
    told = json.loads(llama2py("info", "--json", meta).stdout)
    assert told["format"] == "Meta, 2 shards"
    assert told["tokenizer"] == str(meta / "tokenizer.model")
    assert told["problems"] == []
    gguf = test_data / "data" / "formats" / "stories260K-f16.gguf"
    told = json.loads(llama2py("info", "--json", gguf).stdout)
    assert (told["format"], told["dtype"]) == ("GGUF (F16)", "float16")
    assert told["tokenizer"] == str(gguf)


def test_nan_and_infinite_weights_load_and_are_told(test_data: Path, tmp_path: Path) -> None:
    data = bytearray((test_data / "data" / "stories260K.bin").read_bytes())
    data[28 : 28 + 8] = struct.pack("<2f", float("nan"), float("inf"))  # embedding of token 0
    path = tmp_path / "ill.bin"
    path.write_bytes(data)
    told = llama2py("info", path).stdout
    assert "token_embedding_table: 2 values are NaN or infinite" in told
    for backend in ("c", "numpy"):
        vocabulary = test_data / "data" / "tok512.bin"
        done = llama2py("run", path, "-z", vocabulary, "-n", "5", "--backend", backend)
        assert done.returncode == 0
        warning = f"llama2py: warning: {path}: 2 weights are NaN or infinite\n"
        assert done.stderr.startswith(warning)
        assert done.stderr.count("NaN") == 1
        assert "RuntimeWarning" not in done.stderr


def test_bench_prints_a_table_and_json(test_data: Path) -> None:
    path = test_data / "data" / "stories260K.bin"
    flags = ["--repeats", "1", "--prompt-tokens", "8", "--tokens", "8", "--threads", "1,2"]
    flags += ["--batch", "1,3"]
    table = llama2py("bench", path, *flags)
    assert table.returncode == 0
    assert "stories260K.bin: 0.3M parameters, float32" in table.stdout
    report = json.loads(llama2py("bench", path, *flags, "--json").stdout)
    assert [row["threads"] for row in report["rows"]] == [1, 2]
    for row in report["rows"]:
        figures = [value for value in row.values() if isinstance(value, dict) and "min" in value]
        assert len(figures) == 9
        for figure in [*figures, *row["batches"].values()]:
            assert 0 < figure["min"] <= figure["median"] <= figure["max"]
        assert set(row["batches"]) == {"1", "3"}
        assert report["peak_memory_bytes"] > row["weight_bytes"] > 1_000_000


def test_bench_measures_every_weight_type(test_data: Path) -> None:
    path = test_data / "data" / "stories260K.bin"
    flags = ["--repeats", "1", "--tokens", "4", "--threads", "1", "--batch", "2", "--dtype"]
    shown = llama2py("bench", path, *flags, "all", "--markdown")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split(" | ")[0] for line in shown.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["| weights", "| ---", "| float32", "| bfloat16", "| int8", "| int4"]
    assert "is none of float32" in llama2py("bench", path, *flags, "float16").stderr


def test_version_and_help() -> None:
    assert llama2py("--version").stdout == f"llama2py {__version__}\n"
    commands = llama2py("--help").stdout
    for command in ("run", "bench", "info", "download", "export-tokenizer"):
        assert command in commands
        assert llama2py(command, "--help").returncode == 0


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
    monkeypatch.delitem(sys.modules, "llama2py.engine", raising=False)
    monkeypatch.setitem(sys.modules, "llama2py._engine", None)
    assert main([*story, "-n", "3"]) == 1
    assert "the C engine is not built" in capsys.readouterr().err
    assert main([*story, "-n", "3", "--backend", "numpy"]) == 0


def test_an_instruction_set_this_cpu_lacks(story: list[str]) -> None:
    done = llama2py(*story, LLAMA2PY_ISA="sse9")
    assert done.returncode == 1
    assert done.stderr.startswith("llama2py: LLAMA2PY_ISA=sse9: no such instruction set")
    assert done.stderr.count("\n") == 1

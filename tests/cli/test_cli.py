"""The command line as a user meets it: whole processes, their output, their exit codes."""

from __future__ import annotations

import json
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama2py import __version__
from tests.support.command_line import llama2py


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
    assert "is not one of float32" in llama2py("bench", path, *flags, "float16").stderr


def test_version_and_help() -> None:
    assert llama2py("--version").stdout == f"llama2py {__version__}\n"
    commands = llama2py("--help").stdout
    for command in ("run", "bench", "info", "download", "export-tokenizer"):
        assert command in commands
        assert llama2py(command, "--help").returncode == 0

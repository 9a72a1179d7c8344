"""``llama2py batch``: its inputs, its flags, and its one line of errors."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with inputs, as the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"id": "a", "prompt": "Once"}\n{"id": "b", "prompt": "One"}\n')
    Path("in.csv").write_text("id,animal\n7,cat\n8,dog\n")


def texts(folder: str) -> list[dict[str, Any]]:
    names = sorted(Path(folder).glob("shard-*"))
    return [json.loads(line) for name in names for line in name.read_text("utf-8").splitlines()]


def test_a_file_becomes_a_folder_of_shards(call: Call) -> None:
    done = call("batch", "in.jsonl", "-o", "out", "-n", "5", "--shard-rows", "1")
    assert (done.returncode, done.stdout) == (0, "")
    summary = r"out: 2 rows in 2 shards, 0 rows with an error, 10 tokens"
    assert done.stderr.startswith(summary)
    assert [text["id"] for text in texts("out")] == ["a", "b"]
    again = call("batch", "in.jsonl", "-o", "out", "-n", "5", "--shard-rows", "1")
    assert "0 rows of them new" in again.stderr
    other = call("batch", "in.jsonl", "-o", "out", "-n", "6", "--shard-rows", "1")
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert "the folder holds another batch (parameters.max_tokens is 6, and was 5)" in other.stderr


def test_a_template_takes_columns_of_a_csv_file(call: Call) -> None:
    done = call("batch", "in.csv", "-o", "out", "--prompt", "One day, a {animal}", "-n", "3")
    assert done.returncode == 0
    assert [(t["id"], t["prompt"]) for t in texts("out")] == [
        ("7", "One day, a cat"),
        ("8", "One day, a dog"),
    ]


def test_stories_come_from_nothing(call: Call) -> None:
    words = ["--count", "3", "--about", "a fox", "--max-words", "30", "-s", "5"]
    assert call("batch", "-o", "out", *words).returncode == 0
    found = texts("out")
    assert [text["id"] for text in found] == ["0", "1", "2"]
    assert len({text["text"] for text in found}) == 3
    assert all("fox" in text["text"] and len(text["text"].split()) <= 30 for text in found)


def test_progress_goes_to_standard_error(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama2py.cli.batch._LINE_EVERY", 0.0)
    lines = call("batch", "in.jsonl", "-o", "out", "-n", "5").stderr.splitlines()
    assert re.match(r"1 of 2 rows, 5 tokens, [\d,]+ tokens/s, 0 min left", lines[0])
    assert lines[-2].startswith("2 of 2 rows, 10 tokens, ")
    monkeypatch.setattr("llama2py.cli.batch._BAR_EVERY", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = call("batch", "in.jsonl", "-o", "bar", "-n", "5").stderr
    assert re.search(r"2/2 .*10 tokens, [\d,]+ tokens/s", bar)


def test_processes_and_batches_change_nothing(call: Call) -> None:
    call("batch", "in.jsonl", "-o", "one", "-n", "9", "--shard-rows", "1")
    flags = ["--processes", "2", "--max-batch", "1", "--threads", "1"]
    assert (
        call("batch", "in.jsonl", "-o", "two", "-n", "9", "--shard-rows", "1", *flags).returncode
        == 0
    )
    one, two = (sorted(Path(name).iterdir()) for name in ("one", "two"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a file of rows, or --count N"),
        (["in.jsonl", "--count", "3"], "expected a file of rows, or --count N"),
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["in.jsonl", "--about", "x"], "for stories from nothing"),
        (["--count", "3", "--prompt", "x"], "--prompt is for a file of rows"),
        (["--count", "3", "-n", "9"], "--max-tokens is for a file of rows"),
        (["in.jsonl", "--prompt", "{"], "the prompt's template is wrong"),
        (["in.jsonl", "--actors", "2"], "--actors is for a Ray cluster"),
        (["in.jsonl", "--ray", "x", "--processes", "2"], "--processes is for one machine"),
        (["in.jsonl", "-m", "missing.bin"], "missing.bin"),
    ],
)
def test_wrong_usage_is_one_line(call: Call, words: list[str], message: str) -> None:
    done = call("batch", "-o", "out", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert message in done.stderr
    assert not list(Path().glob("out/shard*"))


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        ("pyarrow", ["in.parquet"], "bulk"),
        ("pyarrow", ["in.jsonl", "--format", "parquet"], "bulk"),
        ("ray", ["in.jsonl", "--ray"], "ray"),
    ],
)
def test_a_missing_extra_is_named(call: Call, package: str, words: list[str], extra: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed here")
    Path("in.parquet").write_bytes(b"PAR1")
    done = call("batch", *words[:1], "-o", "out", *words[1:])
    assert done.returncode == 1
    assert f"pip install 'llama2py[{extra}]'" in done.stderr


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_batch_that_can_go_on(number: int, processes: str) -> None:
    Path("many.jsonl").write_text('{"prompt": "Once upon a time"}\n' * 2000)
    words = ["batch", "many.jsonl", "-o", "out", "--shard-rows", "10", "--processes", processes]
    process = subprocess.Popen(
        [sys.executable, "-m", "llama2py", *words, "--threads", "1"],
        env={"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(Path().glob("out/shard-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors
    assert not list(Path("out").glob(".llama2py-*"))
    assert not Path("out/.lock").exists()
    assert Path("out/journal.jsonl").read_bytes().count(b"\n") >= 2

"""Signals at random moments of every command that writes, and a look at what is left on disk.

After SIGINT and SIGTERM there is no traceback, no temporary file, and the target is absent, as it
was, or whole. After SIGKILL, the same command succeeds when it runs again, with the same output.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random

import llama2py
from llama2py._data import bundled_tokenizer
from llama2py.checkpoint import write_llama2c
from tests.adversary.report import Report
from tests.conftest import random_checkpoint
from tests.support.fake_hub import FakeHub, serve

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
ENDED = {signal.SIGINT: 130, signal.SIGTERM: 143}
STORIES = "Once upon a time, there was a cat. The cat sat on a mat.\n<|endoftext|>\n" * 400


@dataclass(frozen=True)
class Command:
    """A command line in a scratch folder, and what it writes there."""

    arguments: tuple[str, ...]
    target: str | None = None
    is_reproducible: bool = True  # a second run writes the same bytes


COMMANDS = [
    Command(("run", "-s", "1", "-n", "200")),
    Command(("story", "a small bear", "-s", "1", "--count", "3")),
    Command(("score", "builtin", "stories.txt")),
    Command(("convert", "big.bin", "-o", "out.gguf"), "out.gguf"),
    Command(("convert", "big.bin", "-o", "out-hf"), "out-hf"),
    Command(("quantize", "big.bin", "-o", "out.bin"), "out.bin"),
    Command(("export-tokenizer", "tokenizer.bin", "-o", "out.json"), "out.json"),
    Command(("download", "owner/repo:big.bin")),
    Command(("info", "big.bin")),
    Command(
        ("bench", "builtin", "--dtype", "int8", "--threads", "1", "--batch", "1", "--repeats", "1",
         "--prompt-tokens", "8", "--tokens", "8"),
    ),
]  # fmt: skip
TRAINING = [
    Command(("train-tokenizer", "stories.txt", "-o", "out.tok.bin", "--vocab-size", "300"),
            "out.tok.bin"),
    Command(
        ("train", "stories.txt", "-o", "out.bin", "--dim", "16", "--n_layers", "1",
         "--n_heads", "2", "--n_kv_heads", "2", "--max_iters", "40", "--vocab_size", "320",
         "--no-compile"),
        "out.bin",
        is_reproducible=False,
    ),
]  # fmt: skip


def run(report: Report, random: Random) -> None:
    commands = COMMANDS + (TRAINING if find_spec("torch") else [])
    with tempfile.TemporaryDirectory(prefix="llama2py-adversary-") as name:
        prepared = Path(name) / "prepared"
        prepared.mkdir()
        (prepared / "stories.txt").write_text(STORIES, "utf-8")
        (prepared / "tokenizer.bin").write_bytes(bundled_tokenizer().read_bytes())
        _write_big_model(prepared / "big.bin")
        files = {"big.bin": (prepared / "big.bin").read_bytes(), "README.md": b"# A model"}
        with serve(FakeHub(repos={"owner/repo": files})) as endpoint:
            os.environ["HF_ENDPOINT"] = endpoint
            _each(report, random, commands, prepared)


def _each(report: Report, random: Random, commands: list[Command], prepared: Path) -> None:
    usual: dict[Command, tuple[float, str]] = {}
    while report.has_time:
        for command in commands:
            if not report.has_time:
                return
            folder = prepared.with_name("scratch")
            shutil.copytree(prepared, folder)
            if command not in usual:
                started = time.monotonic()
                done = _finish(_start(command, folder))
                if done[0] != 0:
                    report.found(f"{command.arguments[0]} fails", f"{done}")
                usual[command] = time.monotonic() - started, _digest(folder, command.target)
            else:
                _interrupt(report, random, command, folder, *usual[command])
            shutil.rmtree(folder)


def _write_big_model(path: Path) -> None:
    """So big that writing it takes a while: random weights in the shape of stories15M."""
    config = llama2py.ModelConfig(288, 768, 6, 6, 6, 32000, 256)
    write_llama2c(path, random_checkpoint(config), version=0)


def _start(command: Command, folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(Path(llama2py.__file__).parents[1]),
        "HF_HOME": str(folder / "hub"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "llama2py", *command.arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, stderr = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        return -1, "it did not end within two minutes"
    return process.returncode, stderr


def _digest(folder: Path, target: str | None) -> str:
    """Of the target's content, a file's or a folder's."""
    digest = hashlib.sha256()
    if target is not None:
        path = folder / target
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _interrupt(
    report: Report, random: Random, command: Command, folder: Path, seconds: float, whole: str
) -> None:
    name = command.arguments[0]
    number = random.choice(SIGNALS)
    process = _start(command, folder)
    time.sleep(random.random() * seconds * 1.1)
    process.send_signal(number)
    status, stderr = _finish(process)
    report.tried(f"{number.name} to {name}")
    place = f"{name} {number.name}"
    left = [path.name for path in folder.rglob(".*") if path.name.startswith(".llama2py")]
    if number is not signal.SIGKILL:
        ours = "llama2py/" in stderr  # a traceback without is of Python's own start
        if status not in (0, ENDED[number], -number) and (ours or "Traceback" not in stderr):
            report.found(f"{place} status", f"status {status}: {stderr}")
        if "Traceback" in stderr and ours:
            report.found(f"{place} traceback", stderr)
        if left:
            report.found(f"{place} leftovers", f"{left}")
    elif status == -number:  # it had not ended
        # A folder that is complete is not written again: convert refuses one that holds files.
        is_folder = command.target is not None and (folder / command.target).is_dir()
        if not is_folder or _digest(folder, command.target) != whole:
            status, stderr = _finish(_start(command, folder))
            if status != 0:
                report.found(f"{place} again", f"status {status}: {stderr}")
        left = [path.name for path in folder.rglob(".*") if path.name.startswith(".llama2py")]
        if left:
            report.found(f"{place} leftovers", f"{left}")
    is_there = command.target is not None and (folder / command.target).exists()
    if is_there and command.is_reproducible and _digest(folder, command.target) != whole:
        report.found(f"{place} target", "the target is there and not whole")

"""The command ``train``: what it prints, and how it stops."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import llama2py
from llama2py.checkpoint import open_checkpoint
from llama2py.cli import build_parser
from llama2py.cli.train import StopOnSignal
from llama2py.training import TrainConfig
from tests.conftest import ROOT, run_python
from tests.support.tiny_training import train_command, write_corpus

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt")


def start(*args: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *args], stderr=subprocess.PIPE, text=True, env=environment
    )


def needs_train_extra() -> None:
    for name in ("torch", "sentencepiece", "matplotlib"):
        pytest.importorskip(name, reason="needs the extra [train]")


def test_help_says_what_each_hyperparameter_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser(["train"]).parse_args(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, meaning in TrainConfig.meanings().items():
        assert f"--{name}" in text
        assert f"{meaning} (default " in text.replace("- ", "-")


def test_the_first_line_comes_before_anything_slow(tmp_path: Path, corpus: Path) -> None:
    """It is written before PyTorch is imported, and before a large corpus is read."""
    code = (
        "import sys, llama2py.cli.train as cli\n"
        "def slow(*args, **kwargs):\n"
        "    print('torch' in sys.modules, 'matplotlib' in sys.modules, file=sys.stderr)\n"
        "    raise cli.TrainingError('slow')\n"
        "cli.train = slow\n"
        "from llama2py.cli import main\n"
        "sys.exit(main())"
    )
    done = run_python("-c", code, *train_command(corpus, tmp_path / "s.bin")[2:])
    assert done.stderr.splitlines() == [f"reading {corpus}", "False False", "llama2py: slow"]


@pytest.mark.parametrize("name", ["torch", "sentencepiece", "matplotlib"])
def test_a_missing_module_is_reported_before_any_work(
    tmp_path: Path, corpus: Path, name: str
) -> None:
    code = (
        "import sys, llama2py.training as training\n"
        f"training.find_spec = lambda name: None if name == {name!r} else 1\n"
        "from llama2py.cli import main\n"
        "sys.exit(main())"
    )
    done = run_python("-c", code, *train_command(corpus, tmp_path / "s.bin")[2:])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "llama2py: training needs PyTorch: pip install 'llama2py[train]'"
        f" (No module named '{name}')"
    )
    assert "vocabulary" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--config", "--tokenizer"])
def test_a_file_that_never_ends_is_refused(tmp_path: Path, corpus: Path, option: str) -> None:
    done = run_python(*train_command(corpus, tmp_path / "s.bin", option, "/dev/zero"))
    assert done.returncode == 1
    assert "/dev/zero: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_corpus_that_never_ends_is_refused(tmp_path: Path) -> None:
    done = run_python(*train_command(Path("/dev/zero"), tmp_path / "s.bin"))
    assert done.returncode == 1
    assert "/dev/zero: this is a device, pipe or socket" in done.stderr


def test_a_signal_before_training_ends_the_program_at_once() -> None:
    with StopOnSignal().installed():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def not_under_nohup() -> Iterator[None]:
    """The tests themselves may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("not_under_nohup")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_training_lets_the_batch_end(
    capfd: pytest.CaptureFixture[str], signum: signal.Signals
) -> None:
    stop = StopOnSignal()
    before = signal.getsignal(signum)
    with stop.installed():
        assert not stop()
        signal.raise_signal(signum)
        assert capfd.readouterr().err == (
            "stopping after this batch; a second signal stops at once\n"
        )
        assert stop()
        assert stop.signum == signum
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            signal.raise_signal(signum)
    assert signal.getsignal(signum) == before


def test_an_ignored_signal_stays_ignored() -> None:
    """A run under nohup survives the end of its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopOnSignal().installed():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", ["reading", "training a vocabulary", "loading PyTorch"])
def test_a_signal_during_the_start_ends_the_program_quietly(
    corpus: Path, tmp_path: Path, after: str, signum: int
) -> None:
    needs_train_extra()
    with start(*train_command(corpus, tmp_path / "s.bin", "--max_iters=100000")) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(after):
                break
        began = time.monotonic()
        process.send_signal(signum)
        rest = process.stderr.read()
        process.wait()
    assert time.monotonic() - began < 20  # on a busy machine; it takes a fraction of a second
    assert process.returncode in (128 + signum, -signum)  # the same to a shell
    assert "Traceback" not in rest


@pytest.mark.slow
def test_a_killed_run_continues(corpus: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as there is a state; the checkpoint is whole, and the run continues."""
    needs_train_extra()
    out = tmp_path / "story.bin"
    call = train_command(corpus, out, "--max_iters=2000", "--sample_interval=0")
    with start(*call) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "story.train" / "state.pt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)
        process.kill()
    with llama2py.load(out) as model:
        assert model.generate(seed=1, max_tokens=5).tokens
    with start(*call) as again:
        assert again.stderr is not None
        lines: list[str] = []
        while not lines or "tok/s" not in lines[-1]:
            lines.append(again.stderr.readline())
        again.send_signal(signal.SIGINT)
        lines += again.stderr.readlines()
    text = "".join(lines)
    assert re.search(r"^continuing at step \d+ of 2000$", text, re.MULTILINE)
    assert "stopping after this batch" in text
    assert "the same command continues from there" in text
    assert again.returncode == 130


@pytest.mark.slow
def test_the_command_trains_a_model_that_runs(corpus: Path, tmp_path: Path) -> None:
    needs_train_extra()
    out = tmp_path / "story.bin"
    config = tmp_path / "c.toml"
    config.write_text("max_iters = 4\nlearning_rate = 1e-3\nhidden_dim = 40\n")
    done = run_python(*train_command(corpus, out, "--config", str(config), "--max_iters=6"))
    assert done.returncode == 0, done.stderr
    assert "step 6:" in done.stderr  # the command line overrides the file
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.config.hidden_dim == 40
    story = run_python("-m", "llama2py", "run", str(out), "-s", "1", "-n", "9")
    assert story.returncode == 0
    assert story.stdout.strip()


@pytest.mark.slow
def test_a_compiler_that_fails_costs_one_line(corpus: Path, tmp_path: Path) -> None:
    needs_train_extra()
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    call = train_command(corpus, tmp_path / "s.bin", "--compile", "--max_iters=2")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CXX": str(compiler)}
    done = subprocess.run(
        [sys.executable, *call], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("torch.compile does not work here") == 1
    assert len(done.stderr.splitlines()) < 12
    assert "Traceback" not in done.stderr

"""Several processes, started by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama2py.checkpoint import DenseTensor, open_checkpoint
from tests.conftest import ROOT
from tests.support.tiny_training import train_command

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("sentencepiece", reason="needs the extra [train]")
pytest.importorskip("matplotlib", reason="needs the extra [train]")

pytestmark = pytest.mark.slow
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_train_the_same_model_as_one(corpus: Path, tmp_path: Path) -> None:
    """They share the batches of a step, so the same sums come in another order."""
    more = ["--max_iters=10", "--optimizer=adamw", "--learning_rate=0.002"]
    done = run(*TORCHRUN, *train_command(corpus, tmp_path / "two.bin", *more))
    assert "cpu x 2" in done.stderr
    assert done.stderr.count("loading PyTorch") == 1  # only the first process reports
    run(*train_command(corpus, tmp_path / "one.bin", *more))
    with open_checkpoint(tmp_path / "two.bin") as two, open_checkpoint(tmp_path / "one.bin") as one:
        for name, tensors in one.tensors.items():
            for ours, theirs in zip(tensors, two.tensors[name], strict=True):
                assert isinstance(ours, DenseTensor)
                np.testing.assert_allclose(ours.data, theirs.dequantize(), atol=2e-3)


def test_processes_end_without_an_abort(tmp_path: Path) -> None:
    """A worker thread that still holds a tensor when the interpreter ends would abort the process.

    An interpreter that does not switch threads makes the rare race common: every second run failed
    when flags shared the group of the gradients.
    """
    script = tmp_path / "part.py"
    script.write_text(
        "import sys, torch\n"
        "from llama2py.training.processes import Processes\n"
        "processes = Processes('cpu')\n"
        "model = processes.wrap(torch.nn.Linear(4, 4))\n"
        "sys.setswitchinterval(1000)\n"
        "for step in range(3):\n"
        "    model(torch.zeros(2, 4)).sum().backward()\n"
        "    assert processes.any(step == processes.rank) == (step < 2)\n"
        "processes.close()\n"
    )
    for _ in range(3):
        run(*TORCHRUN, script)

"""A corpus and a finished run that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.tiny_training import TINY, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "stories.txt")


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 30 steps. Tests must not change it."""
    torch = pytest.importorskip("torch", reason="needs the extra [train]")
    pytest.importorskip("sentencepiece", reason="needs the extra [train]")
    pytest.importorskip("matplotlib", reason="needs the extra [train]")
    from llama2py.training import train

    torch.set_num_threads(1)  # models this small are slower on more threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # also in commands that tests start
    out = tmp_path_factory.mktemp("run") / "story.bin"
    assert train(corpus, out, TINY).finished
    return out

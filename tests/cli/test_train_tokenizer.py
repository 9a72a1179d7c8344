"""The command ``train-tokenizer``."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama2py.tokenizers.load import load_tokenizer
from tests.conftest import run_python
from tests.support.tiny_training import write_corpus

COMMAND = ("-m", "llama2py", "train-tokenizer")


def test_a_vocabulary_is_trained_and_written(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece", reason="needs the extra [train]")
    corpus, out = write_corpus(tmp_path / "stories.txt"), tmp_path / "tok.bin"
    done = run_python(*COMMAND, str(corpus), "-o", str(out), "--vocab-size", "320")
    assert done.returncode == 0, done.stderr
    assert f"{out}: 320 tokens, " in done.stderr
    assert " bytes per token" in done.stderr
    assert len(load_tokenizer(out)) == 320


def test_a_size_that_does_not_suit_the_corpus_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece", reason="needs the extra [train]")
    corpus = write_corpus(tmp_path / "stories.txt")
    done = run_python(*COMMAND, str(corpus), "-o", str(tmp_path / "tok.bin"), "--vocab-size=99999")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "vocab_size 99999 is too large for this text; use at most " in done.stderr
    assert not (tmp_path / "tok.bin").exists()

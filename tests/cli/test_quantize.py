"""The command ``quantize``: an int8 file with its vocabulary, or a clear error."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama2py.checkpoint import open_checkpoint, write_checkpoint
from llama2py.cli import main
from llama2py.config import ModelConfig
from llama2py.engine.backend import Backend, Logits
from llama2py.engine.native import Engine
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from tests.conftest import random_checkpoint, tiny_tokenizer

CONFIG = ModelConfig(64, 172, 2, 8, 4, 33, 90, shared_classifier=False)


def logits(engine: Backend) -> Logits:
    tokens = [i * 7 % engine.config.vocab_size for i in range(40)]
    return engine.run(tokens, [engine.new_cache()] * 40, range(40), range(40))


def test_quantize_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, vocab_size=300)
    source, out = tmp_path / "in.bin", tmp_path / "out.bin"
    checkpoint = random_checkpoint(config)
    write_checkpoint(source, config, checkpoint.tensors)
    vocabulary = tmp_path / "in.tokenizer.bin"
    write_tokenizer_bin(tiny_tokenizer(), vocabulary)
    assert main(["quantize", os.fspath(source), "-o", os.fspath(out)]) == 0
    assert "3.8 times smaller, one scale for 64 weights" in capsys.readouterr().err
    assert (tmp_path / "out.tokenizer.bin").read_bytes() == vocabulary.read_bytes()
    with open_checkpoint(out) as stored:
        assert stored.dtype == "int8"
        assert stored.group_size == 64
        assert np.array_equal(logits(Engine(stored)), logits(Engine(checkpoint, 1, "int8")))


def test_quantize_takes_the_vocabulary_out_of_a_gguf(test_data: Path, tmp_path: Path) -> None:
    source, out = test_data / "data/formats/stories260K-f32.gguf", tmp_path / "out.bin"
    assert main(["quantize", os.fspath(source), "-o", os.fspath(out), "--threads", "3"]) == 0
    vocabulary = (test_data / "data/tok512.bin").read_bytes()
    assert (tmp_path / "out.tokenizer.bin").read_bytes() == vocabulary
    again = ["quantize", os.fspath(source), "-o", os.fspath(tmp_path / "b.bin"), "--threads", "1"]
    assert main([*again, "--no-tokenizer"]) == 0
    assert (tmp_path / "b.bin").read_bytes() == out.read_bytes()
    assert not (tmp_path / "b.tokenizer.bin").exists()


def test_quantize_command_refuses_what_it_cannot_divide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "in.bin", CONFIG, random_checkpoint(CONFIG).tensors)
    command = ["quantize", os.fspath(tmp_path / "in.bin"), "-o", os.fspath(tmp_path / "out.bin")]
    assert main([*command, "--group-size", "7"]) == 1
    assert "expected a positive divisor of dim 64" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in.bin"]

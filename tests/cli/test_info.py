"""``llama2py info``: the facts and problems of a checkpoint."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path

from llama2py.checkpoint import write_llama2c
from llama2py.checkpoint.gguf.writer import write_gguf
from llama2py.errors import CheckpointError
from llama2py.formats.gguf_metadata import GGUFArray, read_gguf_metadata
from llama2py.tokenizers.pretokenize import GPT2
from tests.cli.conftest import Call
from tests.conftest import TINY, random_checkpoint
from tests.support.command_line import llama2py
from tests.support.trained_vocabularies import byte_level
from tests.support.vocabulary_files import gguf_of_json


def test_info_prints_the_shape(call: Call, test_data: Path) -> None:
    done = call("info", test_data / "data" / "stories260K_q80.bin")
    assert done.returncode == 0
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert facts["format"] == "llama2.c v2 (int8)"
    assert facts["weights"] == "int8, one scale per 4 values"
    assert facts["parameters"] == "260,032"
    assert facts["n_kv_heads"] == "4"
    assert facts["problems"] == "none found"


def test_info_prints_json(call: Call, test_data: Path) -> None:
    done = call("info", "--json", test_data / "data" / "stories260K.bin")
    facts = json.loads(done.stdout)
    assert facts["dtype"] == "float32"
    assert facts["file_size"] == 1056540
    assert facts["config"]["hidden_dim"] == 172
    # 5 layers, keys and values, 4 heads of 8, 512 positions, 4 bytes
    assert facts["cache_bytes"] == 5 * 2 * 4 * 8 * 512 * 4


def test_info_reads_models_of_other_programs(call: Call, test_data: Path) -> None:
    modern = test_data / "data" / "formats" / "modern-hf"
    facts = dict(line.split(maxsplit=1) for line in call("info", modern).stdout.splitlines())
    assert facts["format"] == "Hugging Face (safetensors, 7 files)"
    assert facts["weights"] == "bfloat16"
    assert facts["n_heads"] == "6 of size 32"
    assert facts["rope_scaling"] == "llama3, by 8 beyond 64 tokens"
    assert facts["tokenizer"] == "none of its own"
    assert facts["memory"].startswith("2.3 MB as float32, 1.2 MB as bfloat16, ")  # of 586,624
    assert re.fullmatch(
        r"fits into the .* memory: needs 1.2 MB as bfloat16, and .* session", facts["load"]
    )
    assert "the model has 512" in facts["problems"]
    meta = test_data / "data" / "formats" / "stories260K-meta-2shards"
    found = json.loads(call("info", "--json", meta).stdout)
    assert found["format"] == "Meta, 2 shards"
    assert found["tokenizer"] == str(meta / "tokenizer.model")
    assert found["problems"] == []
    gguf = test_data / "data" / "formats" / "stories260K-f16.gguf"
    found = json.loads(call("info", "--json", gguf).stdout)
    assert (found["format"], found["dtype"]) == ("GGUF (F16)", "float16")
    assert found["tokenizer"] == str(gguf)


def test_a_vocabulary_that_is_not_the_models_own_is_noted(call: Call, tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=32000)
    write_llama2c(tmp_path / "large.bin", random_checkpoint(config), 0)
    found = json.loads(call("info", "--json", tmp_path / "large.bin").stdout)
    assert found["tokenizer"] is None
    note = "no tokenizer of its own: Llama 2's is used, which has as many tokens"
    assert found["notes"] == [note]
    assert found["problems"] == []


def test_a_missing_pattern_is_noted_and_warned_about(tmp_path: Path) -> None:
    vocabulary = byte_level((GPT2,))
    path, config = tmp_path / "vocabulary.gguf", replace(TINY, vocab_size=331)
    path.write_bytes(gguf_of_json(vocabulary))
    pairs = read_gguf_metadata(path, CheckpointError).pairs
    written = {
        name: value.tolist() if isinstance(value, GGUFArray) else value
        for name, value in pairs.items()
    }
    write_gguf(tmp_path / "model.gguf", random_checkpoint(config), "float32", written)
    text = "tokenizer.ggml.pre is missing, so texts are cut into words by llama.cpp's default rules"
    assert text in llama2py("info", tmp_path / "model.gguf").stdout
    done = llama2py("run", tmp_path / "model.gguf", "-n", "3")
    assert done.returncode == 0
    assert done.stderr.startswith(f"llama2py: warning: {tmp_path / 'model.gguf'}: {text}")


def test_nan_and_infinite_weights_are_reported(call: Call, test_data: Path, tmp_path: Path) -> None:
    data = bytearray((test_data / "data" / "stories260K.bin").read_bytes())
    data[28 : 28 + 8] = struct.pack("<2f", float("nan"), float("inf"))  # embedding of token 0
    path = tmp_path / "ill.bin"
    path.write_bytes(data)
    shown = call("info", path).stdout
    assert "token_embedding_table: 2 values are NaN or infinite" in shown
    for backend in ("c", "numpy"):
        vocabulary = test_data / "data" / "tok512.bin"
        done = llama2py("run", path, "-z", vocabulary, "-n", "5", "--backend", backend)
        assert done.returncode == 0
        warning = f"llama2py: warning: {path}: 2 weights are NaN or infinite\n"
        assert done.stderr.startswith(warning)
        assert done.stderr.count("NaN") == 1
        assert "RuntimeWarning" not in done.stderr

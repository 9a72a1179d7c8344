"""GGUF's metadata as a config: RoPE and other things a config may or may not say, and refusals."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2py.checkpoint import open_checkpoint
from llama2py.checkpoint.gguf.reader import MAX_FACTORS
from llama2py.config import ModelConfig, RopeScaling
from llama2py.engine.session import Session
from tests.support import gguf_files as made
from tests.support.gguf_files import refusal


def with_factors(factors: list[float], rows: int | None = None, **changes: Any) -> bytes:
    tensors = {n: (0, values.shape, values.tobytes()) for n, values in made.weights().items()}
    shape = (len(factors),) if rows is None else (rows, len(factors) // rows)
    tensors["rope_freqs.weight"] = (0, shape, struct.pack(f"<{len(factors)}f", *factors))
    return made.gguf_file(made.metadata(**changes), *made.lay_out(tensors))


def config_of(path: Path, data: bytes) -> ModelConfig:
    path.write_bytes(data)
    with open_checkpoint(path) as checkpoint:
        return checkpoint.config


LINEAR: dict[str, Any] = {"rope__scaling__type": b"linear", "rope__scaling__factor": 2.0}


def test_frequency_factors_scale_the_rotary_frequencies(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert config_of(path, with_factors([1.0] * 4)).rope_scaling is None
    stretched = config_of(path, with_factors([1.0, 1.0, 2.0, 8.0]))
    assert stretched.rope_scaling == RopeScaling("factors", factors=(1.0, 1.0, 2.0, 8.0))
    # As llama.cpp does it, the frequency is divided by both.
    both = config_of(path, with_factors([1.0, 1.0, 2.0, 8.0], **LINEAR))
    assert both.rope_scaling == RopeScaling("factors", factors=(2.0, 2.0, 4.0, 16.0))


def test_frequency_factors_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(with_factors([2.0] * 3))
    assert "RoPE scaling has 3 factors, expected 4, one for each pair" in refusal(path)
    path.write_bytes(with_factors([2.0] * 4, rows=2))
    assert "tensor 'rope_freqs.weight' is of shape (2, 2), expected a factor" in refusal(path)
    path.write_bytes(with_factors([2.0] * (MAX_FACTORS + 1)))
    assert "tensor 'rope_freqs.weight' is of shape (4097,), expected a factor" in refusal(path)
    for factor in (0.0, -1.0, float("nan"), float("inf")):
        path.write_bytes(with_factors([1.0, 1.0, 1.0, factor]))
        assert f"RoPE scaling's factor 3 is {factor}, expected 1e-30 to 1e30" in refusal(path)


def test_linear_scaling_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for changes in (LINEAR, {"rope__scaling__factor": 2.0}, {"rope__scale_linear": 2.0}):
        found = config_of(path, made.float_file(**changes))
        assert found.rope_scaling == RopeScaling("linear", 2.0)
    none: list[dict[str, Any]] = [
        {"rope__scaling__factor": 0.0},
        {"rope__scaling__type": b"none", "rope__scaling__factor": 2.0},
        {"rope__scaling__type": b"linear"},
    ]
    for changes in none:
        assert config_of(path, made.float_file(**changes)).rope_scaling is None


def test_a_window_is_read(tmp_path: Path) -> None:
    found = config_of(tmp_path / "model.gguf", made.float_file(attention__sliding_window=8))
    assert (found.seq_len, found.windows) == (16, (8, 8))


#: GGUF's name of each of llama2.c's.
NAMES = {
    "token_embedding_table": "token_embd", "wcls": "output", "rms_final_weight": "output_norm",
    "rms_att_weight": "blk.{}.attn_norm", "rms_ffn_weight": "blk.{}.ffn_norm",
    "wq": "blk.{}.attn_q", "wk": "blk.{}.attn_k", "wv": "blk.{}.attn_v",
    "wo": "blk.{}.attn_output", "w1": "blk.{}.ffn_gate", "w2": "blk.{}.ffn_down",
    "w3": "blk.{}.ffn_up",
}  # fmt: skip


def llama3_factors(theta: float, head: int, factor: float, old: float) -> list[float]:
    """What llama.cpp's converter writes for a model whose low and high factor are 1 and 4."""
    factors = []
    for frequency in theta ** -(np.arange(0, head, 2) / head):
        wavelength = 2 * np.pi / frequency
        smooth = (old / wavelength - 1) / 3
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1.0 if wavelength < old / 4 else factor if wavelength > old else between)
    return factors


def test_the_modern_model_as_gguf_gives_the_recorded_ids(test_data: Path, tmp_path: Path) -> None:
    """A head size that is not dim / n_heads, and Llama 3's scaling: transformers' greedy ids."""
    from llama2py.engine.native import Engine

    formats = test_data / "data" / "formats"
    with open_checkpoint(formats / "modern-hf") as checkpoint:
        config = checkpoint.config
        tensors = {
            NAMES[name].format(layer) + ".weight": (0, one.shape, one.dequantize().tobytes())
            for name, row in checkpoint.tensors.items()
            for layer, one in enumerate(row)
        }
    factors = llama3_factors(500000.0, 32, 8.0, 64.0)
    assert 1.0 in factors
    assert 8.0 in factors
    tensors["rope_freqs.weight"] = (0, (16,), struct.pack("<16f", *factors))
    pairs = made.metadata(
        embedding_length=128,
        feed_forward_length=config.hidden_dim,
        block_count=config.n_layers,
        attention__head_count=6,
        attention__head_count_kv=2,
        attention__key_length=32,
        attention__value_length=32,
        context_length=config.seq_len,
        attention__layer_norm_rms_epsilon=1e-6,
        rope__freq_base=500000.0,
        rope__dimension_count=32,
    )
    path = tmp_path / "modern.gguf"
    path.write_bytes(made.gguf_file(pairs, *made.lay_out(tensors)))
    with open_checkpoint(path) as checkpoint:
        assert (checkpoint.config.n_heads, checkpoint.config.head_dim) == (6, 32)
        engine = Engine(checkpoint)
    with np.load(formats / "modern-hf-reference.npz") as file, Session(engine) as session:
        tokens = file["input_ids"][:20].tolist()
        wanted = file["greedy_from_first_20"].tolist()
        logits = session.forward(tokens)
        for token in wanted[20:] if wanted[:20] == tokens else wanted:
            assert int(np.argmax(logits)) == token
            logits = session.forward([token])


ODD_CONFIGS = {
    "another architecture": (
        {**made.metadata(), "general.architecture": b"gemma2"},
        "general.architecture is b'gemma2', expected llama, qwen2, qwen3",
    ),
    "no head count": (
        made.metadata(attention__head_count=None),
        "the metadata lacks llama.attention.head_count",
    ),
    "a width of text": (
        made.metadata(embedding_length=b"32"),
        "llama.embedding_length is b'32', expected a whole number",
    ),
    "an epsilon of truth": (
        made.metadata(attention__layer_norm_rms_epsilon=True),
        "llama.attention.layer_norm_rms_epsilon is True, expected a number",
    ),
    "an infinite epsilon": (
        made.metadata(attention__layer_norm_rms_epsilon=float("inf")),
        "norm_eps is inf, expected",
    ),
    "a base of nan": (made.metadata(rope__freq_base=float("nan")), "rope_theta is nan, expected"),
    "a width per layer": (
        made.metadata(feed_forward_length=[64, 64]),
        "llama.feed_forward_length is <array of 2>, expected a whole number",
    ),
    "wide heads": (
        made.metadata(attention__key_length=16, attention__value_length=16),
        "blk.0.attn_q.weight has shape (32, 32), expected (64, 32)",
    ),
    "values of another width": (
        made.metadata(attention__value_length=16),
        "llama.attention.value_length is 16, expected the head size 8",
    ),
    "heads of no width": (
        made.metadata(attention__key_length=0),
        "head_size is 0, expected 1 to",
    ),
    "half turned": (
        made.metadata(rope__dimension_count=4),
        "llama.rope.dimension_count is 4, expected the head size 8",
    ),
    "experts": (made.metadata(expert_count=8), "llama.expert_count is 8, expected 0"),
    "negative scaling": (
        made.metadata(rope__scaling__factor=-2.0),
        "RoPE scaling's factor is -2.0, expected 1e-30 to 1e30",
    ),
    "another scaling": (
        made.metadata(rope__scaling__type=b"ntk"),
        "llama.rope.scaling.type is b'ntk', expected b'none', b'linear', b'yarn' or b'longrope'",
    ),
    "another shape": (
        made.metadata(feed_forward_length=96),
        "blk.0.ffn_gate.weight has shape (64, 32), expected (96, 32)",
    ),
    "more layers": (
        made.metadata(block_count=3),
        "'blk.2.attn_norm.weight', 'blk.2.attn_q.weight', 'blk.2.attn_k.weight'",
    ),
    "fewer layers": (
        made.metadata(block_count=1),
        "'blk.1.attn_k.weight', 'blk.1.attn_norm.weight', 'blk.1.attn_output.weight' and 6 more",
    ),
}


@pytest.mark.parametrize(("pairs", "message"), ODD_CONFIGS.values(), ids=ODD_CONFIGS)
def test_a_model_that_cannot_run_is_an_error(
    tmp_path: Path, pairs: dict[str, Any], message: str
) -> None:
    tensors = {n: (0, values.shape, values.tobytes()) for n, values in made.weights().items()}
    path = tmp_path / "odd.gguf"
    path.write_bytes(made.gguf_file(pairs, *made.lay_out(tensors)))
    assert refusal(path).startswith(f"{path}: {message}")


def test_the_rows_of_the_embedding_count_and_not_the_stated_number(tmp_path: Path) -> None:
    """llama.cpp does not read the number where there is a vocabulary."""
    path = tmp_path / "model.gguf"
    path.write_bytes(made.float_file(vocab_size=7))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.vocab_size == 6
        assert checkpoint.notes == ("llama.vocab_size is 7, but token_embd has 6 rows",)


def test_metadata_that_changes_nothing_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    harmless: dict[str, Any] = {
        "attention__key_length": 8,
        "attention__value_length": 8,
        "rope__dimension_count": 8,
        "rope__scaling__type": b"linear",
        "rope__scaling__factor": 1.0,
        "vocab_size": made.VOCAB,
        "attention__sliding_window": 16,
        "attention__head_count_kv": 2,
    }
    path.write_bytes(made.float_file(**harmless))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.norm_eps == 1e-5
        assert checkpoint.config.rope_theta == 10000.0

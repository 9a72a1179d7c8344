"""GGUF models: real ones against llama2.c, those that the gguf package writes, splits, refusals."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf_files as made
import numpy as np
import pytest
from numpy.typing import NDArray
from test_golden import Case, run

import llama2py
from llama2py.checkpoint import (
    Checkpoint,
    DenseTensor,
    QuantizedTensor,
    StoredTensor,
    open_checkpoint,
    write_checkpoint,
)
from llama2py.checkpoint.gguf import MAX_FACTORS
from llama2py.checkpoint.gguf_blocks import FORMATS
from llama2py.checkpoint.gguf_tensors import BlockTensor
from llama2py.checkpoint.stored import stored
from llama2py.checkpoint.tensors import Tensor
from llama2py.config import ModelConfig
from llama2py.errors import CheckpointError
from llama2py.rope import RopeScaling
from llama2py.session import Session

TYPES = {format.name: kind for kind, format in FORMATS.items()}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    return message


def weights_of(checkpoint: Checkpoint) -> dict[str, list[NDArray[np.float32]]]:
    return {
        name: [tensor.dequantize() for tensor in row] for name, row in checkpoint.tensors.items()
    }


# ---- the real model ----


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_the_float32_model_gives_llama2cs_tokens(test_data: Path, backend: Any) -> None:
    """Rows of wq and wk in another order would not: see the reader."""
    recorded = json.loads((test_data / "golden" / "llama2c.json").read_text(encoding="utf-8"))
    cases = [Case(**case) for case in recorded if case["checkpoint"] == "stories260K"]
    assert len(cases) > 5
    source = test_data / "data" / "formats" / "stories260K-f32.gguf"
    with llama2py.load(source, backend=backend) as model:  # its vocabulary is inside
        for case in cases if backend == "c" else cases[:2]:
            assert run(model, case)[0] == case.tokens


def test_the_real_weights_are_the_checkpoints(test_data: Path) -> None:
    data = test_data / "data"
    with open_checkpoint(data / "stories260K.bin") as ours:
        wanted = weights_of(ours)
        for name, tolerance in [("f32", 0.0), ("f16", 2.0**-11)]:
            with open_checkpoint(data / "formats" / f"stories260K-{name}.gguf") as theirs:
                assert theirs.config == ours.config
                assert theirs.format == f"GGUF ({name.upper()})"
                assert theirs.tokenizer_path == theirs.path
                found = weights_of(theirs)
                kinds = {type(row[0]) for row in theirs.tensors.values()}
            assert kinds == ({DenseTensor} if name == "f32" else {DenseTensor, StoredTensor})
            assert found.keys() == wanted.keys()
            for tensor, rows in wanted.items():
                for a, b in zip(rows, found[tensor], strict=True):
                    np.testing.assert_allclose(a, b, rtol=tolerance, atol=2.0**-25)


def test_the_half_precision_model_tells_the_same_greedy_story(test_data: Path) -> None:
    recorded = json.loads((test_data / "golden" / "llama2c.json").read_text(encoding="utf-8"))
    cases = [Case(**case) for case in recorded if case["checkpoint"] == "stories260K"]
    greedy = [case for case in cases if case.temperature == 0]
    assert len(greedy) > 1
    with llama2py.load(test_data / "data" / "formats" / "stories260K-f16.gguf") as model:
        for case in greedy:
            assert run(model, case)[0] == case.tokens


# ---- what the gguf package writes ----


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_a_file_of_the_gguf_package(tmp_path: Path, name: str, tied: bool) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(8)
    expected = {}
    for tensor, values in made.weights(tied).items():
        if values.ndim == 1:
            writer.add_tensor(tensor, values)
            expected[tensor] = values
        else:
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(tensor, packed, raw_dtype=kind)
            expected[tensor] = gguf.quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
        assert (config.dim, config.hidden_dim, config.n_layers) == (32, 64, 2)
        assert (config.n_heads, config.n_kv_heads, config.head_dim) == (4, 2, 8)
        assert (config.vocab_size, config.seq_len) == (made.VOCAB, 16)
        assert (config.norm_eps, config.rope_theta) == (1e-6, 500000.0)
        assert config.shared_classifier == tied
        dtypes = {"Q8_0": "int8", "F16": "float16", "BF16": "bfloat16"}
        assert checkpoint.dtype == dtypes.get(name, "float32")
        assert checkpoint.group_size == (32 if name == "Q8_0" else None)
        found = weights_of(checkpoint)
        for row in checkpoint.tensors.values():
            for one in row:
                checkpoint.release(one)  # and it can still be read
                assert one.count_non_finite() == 0
    assert found["w2"][1].tobytes() == expected["blk.1.ffn_down.weight"].tobytes()
    assert found["w3"][0].tobytes() == expected["blk.0.ffn_up.weight"].tobytes()
    assert found["token_embedding_table"][0].tobytes() == expected["token_embd.weight"].tobytes()
    assert found["wk"][1].tobytes() == expected["blk.1.attn_k.weight"].tobytes()
    assert found["rms_ffn_weight"][0].tobytes() == expected["blk.0.ffn_norm.weight"].tobytes()
    # The gguf package rounds as it does; that its weights run is what llama2py adds.
    assert checkpoint.tokenizer_path is None


def test_an_int8_model_runs_as_one(tmp_path: Path) -> None:
    """Its blocks are llama2.c's v2 with groups of 32: written as that, the same logits."""
    from llama2py.engine import Engine

    rng = np.random.default_rng(3)
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
    for name, values in made.weights(tied=False).items():
        if values.ndim == 1:
            tensors[name] = (0, values.shape, values.tobytes())
            continue
        blocks = np.zeros(values.size // 32, FORMATS[8].record)
        blocks["q"] = rng.integers(-127, 128, (blocks.size, 32))
        blocks["d"] = rng.uniform(0.0005, 0.002, blocks.size)
        tensors[name] = (8, values.shape, blocks.tobytes())
    path, v2 = tmp_path / "q8.gguf", tmp_path / "q8.bin"
    path.write_bytes(made.gguf_file(made.metadata(), *made.lay_out(tensors)))
    logits = []
    with open_checkpoint(path) as checkpoint:
        assert isinstance(checkpoint.tensors["wq"][0], QuantizedTensor)
        write_checkpoint(v2, checkpoint.config, dict(checkpoint.tensors), version=2)
    for source in (path, v2):
        with open_checkpoint(source) as checkpoint:
            engine = Engine(checkpoint)
        assert engine.dtype == "int8"
        assert engine.non_finite == 0
        cache = engine.new_cache()
        logits.append(engine.forward([1, 5, 2], [cache] * 3, [0, 1, 2], [0, 1, 2]))
    assert np.ptp(logits[0]) > 0.01
    assert logits[0].tobytes() == logits[1].tobytes()


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_mixed_types_are_widened(tmp_path: Path, backend: str) -> None:
    """As llama.cpp's quantizer mixes them; the logits are those of the same weights in float32."""
    from llama2py.engine import Engine
    from llama2py.reference import Reference

    rng = np.random.default_rng(4)
    mixed: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
    plain: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
    kinds = [kind for kind, format in FORMATS.items() if format.size <= 32]
    for i, (name, values) in enumerate(made.weights().items()):
        format = FORMATS[kinds[i % len(kinds)] if values.ndim == 2 else 1]
        raw = rng.integers(0, 256, values.size // format.size * format.record.itemsize, np.uint8)
        blocks = raw.view(format.record)
        small = rng.uniform(-0.01, 0.01, blocks.size)
        for field in set(format.record.names or ()) & {"d", "m"}:
            blocks[field] = small
        tensor: Tensor = BlockTensor(blocks, format, values.shape)
        if format.decode is None:
            bits = small.astype(np.float32).view(np.uint32) >> 16
            blocks[:] = bits if format.name == "BF16" else small
            tensor = stored(blocks.reshape(values.shape))
        mixed[name] = (
            next(k for k in FORMATS if FORMATS[k] is format),
            values.shape,
            raw.tobytes(),
        )
        plain[name] = (0, values.shape, tensor.dequantize().tobytes())
    logits = []
    for name, tensors in [("mixed", mixed), ("plain", plain)]:
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(made.gguf_file(made.metadata(), *made.lay_out(tensors)))
        with open_checkpoint(path) as checkpoint:
            weights = Engine(checkpoint) if backend == "c" else Reference(checkpoint)
            assert weights.dtype == "float32"
        cache: Any = weights.new_cache()
        logits.append(weights.forward([1, 5], [cache] * 2, [0, 1], [1]))
    assert np.ptp(logits[0]) > 1e-4
    assert logits[0].tobytes() == logits[1].tobytes()


# ---- RoPE, and other things a config may or may not say ----


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


def test_frequency_factors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert config_of(path, with_factors([1.0] * 4)).rope_scaling is None
    stretched = config_of(path, with_factors([1.0, 1.0, 2.0, 8.0]))
    assert stretched.rope_scaling == RopeScaling("factors", factors=(1.0, 1.0, 2.0, 8.0))
    # As llama.cpp does it, the frequency is divided by both.
    both = config_of(path, with_factors([1.0, 1.0, 2.0, 8.0], **LINEAR))
    assert both.rope_scaling == RopeScaling("factors", factors=(2.0, 2.0, 4.0, 16.0))


def test_frequency_factors_that_do_not_fit(tmp_path: Path) -> None:
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


def test_linear_scaling(tmp_path: Path) -> None:
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


def test_a_window_cuts_the_context(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(made.float_file(attention__sliding_window=8))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.seq_len == 8
        assert checkpoint.notes == ("its context of 16 is cut to its sliding window of 8",)


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


def test_the_modern_model_as_gguf(test_data: Path, tmp_path: Path) -> None:
    """A head size of its own and Llama 3's scaling: transformers' recorded greedy ids."""
    from llama2py.engine import Engine

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
        {**made.metadata(), "general.architecture": b"gemma"},
        "general.architecture is b'gemma', expected b'llama'",
    ),
    "no head count": (
        made.metadata(attention__head_count=None),
        "the metadata lacks llama.attention.head_count, expected it",
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
        "the head size is 0, expected 1 to",
    ),
    "half turned": (
        made.metadata(rope__dimension_count=4),
        "llama.rope.dimension_count is 4, expected the head size 8",
    ),
    "experts": (made.metadata(expert_count=8), "llama.expert_count is not 0, expected"),
    "negative scaling": (
        made.metadata(rope__scaling__factor=-2.0),
        "RoPE scaling's factor is -2.0, expected 1e-30 to 1e30",
    ),
    "yarn": (
        made.metadata(rope__scaling__type=b"yarn"),
        "llama.rope.scaling.type is b'yarn', expected b'none' or b'linear'",
    ),
    "another vocabulary": (
        made.metadata(vocab_size=7),
        "llama.vocab_size is 7, expected the 6 rows of token_embd",
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
def test_what_cannot_be_run_is_refused(tmp_path: Path, pairs: dict[str, Any], message: str) -> None:
    tensors = {n: (0, values.shape, values.tobytes()) for n, values in made.weights().items()}
    path = tmp_path / "odd.gguf"
    path.write_bytes(made.gguf_file(pairs, *made.lay_out(tensors)))
    assert refusal(path).startswith(f"{path}: {message}")


def test_what_changes_nothing_is_not_refused(tmp_path: Path) -> None:
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


# ---- split files ----


def split(folder: Path, n_parts: int = 3, **changes: Any) -> list[Path]:
    """The float32 model in parts, as llama.cpp's gguf-split names and marks them."""
    tensors = {n: (0, values.shape, values.tobytes()) for n, values in made.weights().items()}
    names = list(tensors)
    paths = []
    for part in range(n_parts):
        pairs = made.metadata() if part == 0 else {}
        pairs |= {
            "split.no": (2, struct.pack("<H", part)),
            "split.count": (2, struct.pack("<H", n_parts)),
            "split.tensors.count": (made.I32, struct.pack("<i", len(tensors))),
        } | changes
        mine = {name: tensors[name] for name in names[part::n_parts]}
        paths.append(folder / f"model-{part + 1:05}-of-{n_parts:05}.gguf")
        paths[-1].write_bytes(made.gguf_file(pairs, *made.lay_out(mine)))
    return paths


def test_any_part_opens_the_whole(tmp_path: Path) -> None:
    (tmp_path / "whole.gguf").write_bytes(made.float_file())
    with open_checkpoint(tmp_path / "whole.gguf") as checkpoint:
        wanted = weights_of(checkpoint)
    paths = split(tmp_path)
    for path in paths:
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.path == paths[0]
            assert checkpoint.file_size == sum(part.stat().st_size for part in paths)
            found = weights_of(checkpoint)
        for name, row in wanted.items():
            assert [a.tobytes() for a in row] == [a.tobytes() for a in found[name]]


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    first, second, third = split(tmp_path)
    good = {path: path.read_bytes() for path in (first, second, third)}
    third.unlink()
    assert refusal(first) == (
        f"{third}: no such file, expected a checkpoint ({first.name} is a part of the same model)"
    )
    third.write_bytes(good[second])
    assert refusal(first).startswith(f"{third}: split.no and split.count are (1, 3), expected (2,")
    third.write_bytes(good[third][:-1])
    assert refusal(second).startswith(f"{third}: tensor 'blk.1.ffn_up.weight' needs")
    third.write_bytes(made.float_file())
    assert refusal(first).startswith(f"{third}: split.no and split.count are (None, None)")
    renamed = tmp_path / "model.gguf"
    renamed.write_bytes(good[first])
    assert "this is part 0, counted from 0, of a model in 3 files" in refusal(renamed)
    renamed = tmp_path / "model-00002-of-00007.gguf"
    renamed.write_bytes(good[second])
    assert "expected a name that ends in -00001-of-00003.gguf" in refusal(renamed)
    for count in (b"three", 1 << 20):
        changes: dict[str, Any] = {"split.count": count}
        (first, *_) = split(tmp_path, **changes)
        assert "split.count is" in refusal(first)
    (first, *_) = split(tmp_path, **{"split.tensors.count": 99})
    assert "its 3 parts have 20 tensors together, expected 99 by split" in refusal(first)


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    first, second = split(tmp_path, n_parts=2)
    pairs = {"split.no": 1, "split.count": 2}
    embedding = made.weights()["token_embd.weight"]
    tensors = {"token_embd.weight": (0, embedding.shape, embedding.tobytes())}
    second.write_bytes(made.gguf_file(pairs, *made.lay_out(tensors)))
    assert refusal(first).startswith(
        f"{second}: tensor 'token_embd.weight' is in {first.name}, too, expected it in one part"
    )

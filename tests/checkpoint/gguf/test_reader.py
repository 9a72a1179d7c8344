"""GGUF models: real ones against llama2.c, and those that the gguf package writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2py
from llama2py.checkpoint import (
    DenseTensor,
    QuantizedTensor,
    StoredTensor,
    open_checkpoint,
    write_llama2c,
)
from llama2py.checkpoint.gguf.blocks import FORMATS
from llama2py.checkpoint.gguf.tensors import BlockTensor
from llama2py.checkpoint.state_dict import to_tensor
from llama2py.checkpoint.tensors import Tensor
from llama2py.cli import main
from tests.support import gguf_files as made
from tests.support.gguf_files import weights_of
from tests.support.golden import Case, run

TYPES = {format.name: kind for kind, format in FORMATS.items()}


# ---- the real model ----


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_the_float32_model_generates_llama2cs_tokens(test_data: Path, backend: Any) -> None:
    """Rows of wq and wk in another order would not: see the reader."""
    recorded = json.loads((test_data / "golden" / "llama2c.json").read_text(encoding="utf-8"))
    cases = [Case(**case) for case in recorded if case["checkpoint"] == "stories260K"]
    assert len(cases) > 5
    source = test_data / "data" / "formats" / "stories260K-f32.gguf"
    with llama2py.load(source, backend=backend) as model:  # its vocabulary is inside
        for case in cases if backend == "c" else cases[:2]:
            assert run(model, case)[0] == case.tokens


def test_the_real_weights_equal_the_checkpoints(test_data: Path) -> None:
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


def test_the_half_precision_model_generates_the_same_greedy_story(test_data: Path) -> None:
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
def test_a_file_of_the_gguf_package_reads_as_written(tmp_path: Path, name: str, tied: bool) -> None:
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
        dtypes = {"Q8_0": "int8", "Q4_0": "int4", "F16": "float16", "BF16": "bfloat16"}
        assert checkpoint.dtype == dtypes.get(name, "float32")
        assert checkpoint.group_size == (32 if name in ("Q8_0", "Q4_0") else None)
        found = weights_of(checkpoint)
        for row in checkpoint.tensors.values():
            for one in row:
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
    from llama2py.engine.native import Engine

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
        write_llama2c(v2, checkpoint, version=2, group_size=32)
    for source in (path, v2):
        with open_checkpoint(source) as checkpoint:
            engine = Engine(checkpoint)
        assert engine.dtype == "int8"
        assert engine.non_finite == 0
        cache = engine.new_cache()
        logits.append(engine.run([1, 5, 2], [cache] * 3, [0, 1, 2], [0, 1, 2]))
    assert np.ptp(logits[0]) > 0.01
    assert logits[0].tobytes() == logits[1].tobytes()


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_mixed_types_are_widened(tmp_path: Path, backend: str) -> None:
    """As llama.cpp's quantizer mixes them; the logits are those of the same weights in float32."""
    from llama2py.engine.native import Engine
    from llama2py.engine.reference import Reference

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
            tensor = to_tensor(blocks.reshape(values.shape))
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
        logits.append(weights.run([1, 5], [cache] * 2, [0, 1], [1]))
    assert np.ptp(logits[0]) > 1e-4
    assert logits[0].tobytes() == logits[1].tobytes()


@pytest.mark.parametrize("kind", [2, 3, 6, 7, 8])
def test_info_describes_blocks(
    kind: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It looks for tensors of nothing but zeros, in the bytes of blocks too."""
    rng = np.random.default_rng(kind)
    record = FORMATS[kind].record
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
    for name, values in made.weights().items():
        if values.ndim == 1:
            tensors[name] = (0, values.shape, values.tobytes())
            continue
        blocks = rng.integers(0, 60, (values.size // 32, record.itemsize), np.uint8)
        tensors[name] = (kind, values.shape, blocks.tobytes())
    zeros = "blk.1.ffn_up.weight"
    tensors[zeros] = (*tensors[zeros][:2], bytes(len(tensors[zeros][2])))
    path = tmp_path / "blocks.gguf"
    path.write_bytes(made.gguf_file(made.metadata(), *made.lay_out(tensors)))
    assert main(["info", "--json", str(path)]) == 0
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert problems[0] == "w3: 1 of 2 tensors contain only zeros"

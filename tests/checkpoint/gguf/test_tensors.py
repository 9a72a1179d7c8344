"""GGUF's Q4_0 and Q8_0 are kept as they are, in files of nothing else and in mixed ones.

The oracle is an int8 model of the same whole numbers and scales, made here without a file: it is
packed and multiplied by other code, which computes the same bits on the portable instruction set.
"""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama2py
from llama2py.checkpoint import (
    Checkpoint,
    DenseTensor,
    QuantizedTensor,
    open_checkpoint,
    own_dtype,
    tensor_shapes,
)
from llama2py.checkpoint.gguf.blocks import FORMATS
from llama2py.checkpoint.gguf.tensors import Q4Tensor
from llama2py.cli import main
from llama2py.config import Dtype
from llama2py.conversion import convert
from llama2py.engine.backend import Backend, Logits
from llama2py.engine.isa import isa_names
from llama2py.engine.memory import packed_bytes
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from tests.checkpoint.gguf.test_blocks import random_rows, reference, same_bits
from tests.support.gguf_mixtures import (
    CONFIG,
    F32,
    NARROW,
    Q4_0,
    Q4_1,
    Q8_0,
    Part,
    dense,
    eight_bits,
    four_bits,
    model,
    parts_of,
    write,
)

WIDER: tuple[Dtype, ...] = ("float32", "bfloat16", "int8")
BEST = isa_names()[0]


def logits(backend: Backend, n: int = 30) -> Logits:
    tokens = [i * 7 % backend.config.vocab_size for i in range(n)]
    return backend.run(tokens, [backend.new_cache()] * n, range(n), range(n))


def engine(checkpoint: Checkpoint, dtype: Dtype | None = None, isa: str = BEST) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA2PY_ISA", isa)
        return Engine(checkpoint, 2, dtype)


# ---- a tensor ----


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([None, 0x0000, 0x8000, 0x7C00, 0xFC00, 0x7E01, 0xFE00, 0x0001, 0x7BFF]),
)
def test_any_blocks_run_as_int4(seed: int, n_rows: int, n_blocks: int, scale: int | None) -> None:
    """Against the gguf package; scales of 0, -0, infinity, NaN, and subnormal ones among them."""
    pytest.importorskip("gguf")
    rows = random_rows(Q4_0, np.random.default_rng(seed), n_rows, n_blocks)
    if scale is not None:
        rows[-1, :2] = (scale & 255, scale >> 8)
    blocks = rows.reshape(-1).view(FORMATS[Q4_0].record)
    ours, theirs = Q4Tensor(blocks, (n_rows, 32 * n_blocks)), reference(Q4_0, rows)
    assert same_bits(ours.dequantize(), theirs)
    assert ours.shape == theirs.shape
    assert (ours.nbytes, ours.group_size, ours.bits) == (rows.nbytes, 32, 4)
    assert (ours.values.dtype, ours.values.shape) == (np.dtype(np.int8), theirs.shape)
    assert ours.values.flags.c_contiguous
    assert -8 <= ours.values.min() <= ours.values.max() <= 7
    halves = rows.reshape(-1, 18)[:, :2].copy().view(np.float16)[:, 0]
    assert ours.count_non_finite() == np.count_nonzero(~np.isfinite(halves))
    assert np.array_equal(ours.scales, halves, equal_nan=True)


# ---- a file of nothing but Q4_0 ----


@pytest.mark.parametrize("first", [None, -8])
def test_the_engine_computes_with_the_numbers_of_the_file(
    tmp_path: Path, first: int | None
) -> None:
    """Quantizing their weights gives the same again only where each 32 have a -8."""
    parts = parts_of(CONFIG, {}, first)
    same, wide = model(CONFIG, parts), model(CONFIG, parts, dense)
    with open_checkpoint(write(tmp_path / "m.gguf", CONFIG, parts)) as checkpoint:
        assert (checkpoint.dtype, checkpoint.group_size) == ("int4", 32)
        assert own_dtype(checkpoint) == "int4"
        assert checkpoint.notes == ()
        portable, slow = engine(checkpoint, isa="portable"), Reference(checkpoint)
        others = {isa: engine(checkpoint, isa=isa) for isa in isa_names()}
        digests = {dtype: engine(checkpoint, dtype).digest() for dtype in WIDER}
    assert portable.dtype == slow.dtype == "int4"
    assert portable.non_finite == slow.non_finite == 0
    assert portable.nbytes == packed_bytes(checkpoint, "int4")

    want = logits(engine(same, "int8", "portable"))
    assert np.ptp(want) > 1
    assert np.array_equal(logits(portable), want)
    assert np.array_equal(logits(slow), logits(Reference(same, "int8")))
    simd = [logits(one) for isa, one in others.items() if isa != "portable"]
    assert all(np.array_equal(one, simd[0]) for one in simd)
    assert all(np.abs(one - want).max() <= 3e-2 * np.abs(want).max() for one in simd)
    assert digests == {dtype: engine(same, dtype).digest() for dtype in WIDER}

    for isa, one in others.items():
        requantized = engine(wide, "int4", isa)
        assert (requantized.digest() == one.digest()) == (first == -8)
        assert np.array_equal(logits(requantized), logits(one)) == (first == -8)


@pytest.mark.parametrize(
    ("scale", "bad"), [(np.nan, 1), (np.inf, 1), (-np.inf, 1), (0.0, 0), (-0.0, 0)]
)
def test_a_scale_that_is_not_finite_or_zero_stays_so(
    tmp_path: Path, scale: float, bad: int
) -> None:
    """A scale that is not finite is counted once and spoils its group; 0 and -0 are zeros."""
    parts = parts_of(CONFIG, {})
    part = parts["wcls"][0]
    raw = np.float16(scale).tobytes() + part.raw[2:]  # of row 0
    spoiled = part.tensor.dequantize().copy()
    spoiled[0, :32] = 0
    parts["wcls"] = [Part(Q4_0, raw, DenseTensor(spoiled))]
    with open_checkpoint(write(tmp_path / "m.gguf", CONFIG, parts)) as checkpoint:
        assert sum(t.count_non_finite() for t in checkpoint.tensors["wcls"]) == bad
        backends: list[Backend] = [engine(checkpoint), Reference(checkpoint)]
        widened = engine(checkpoint, "float32")
    assert widened.non_finite == 32 * bad  # each weight of the group
    for backend in backends:
        assert backend.non_finite == bad
        found = logits(backend)
        assert (~np.isfinite(found[:, 0])).all() == bool(bad)
        assert np.isfinite(found[:, 1:]).all()
    if not bad:
        want = logits(engine(model(CONFIG, parts), "float32"))
        assert np.array_equal(logits(widened), want)


def test_loading_int4_makes_no_float32_copy(tmp_path: Path) -> None:
    """At most two bytes a weight of one matrix, of which there may be gigabytes."""
    config = replace(CONFIG, dim=256, vocab_size=8000, hidden_dim=64, n_layers=1, n_heads=8)
    path = write(tmp_path / "m.gguf", config, parts_of(config, {}))
    size = config.dim * config.vocab_size
    asked: tuple[Dtype | None, ...] = (None, "int4", "int8", "float32")
    for dtype in asked:
        with open_checkpoint(path) as checkpoint:
            tracemalloc.start()
            try:
                engine(checkpoint, dtype)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert size < peak < 2.5 * size


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_loaded_model_has_the_dtype_of_its_file(tmp_path: Path, backend: Any) -> None:
    path = write(tmp_path / "m.gguf", CONFIG, parts_of(CONFIG, {}))
    with llama2py.load(path, backend=backend) as loaded:
        assert loaded.backend.dtype == "int4"
        assert len(loaded.generate("Once", temperature=0, max_tokens=8).tokens) > 1


# ---- mixed files ----

TIED = replace(CONFIG, shared_classifier=True)
MIXED = {
    "as llama.cpp's quantizer has it": (CONFIG, {"wcls": Q4_1}),
    "the tied embedding": (TIED, {"token_embedding_table": Q8_0}),
    "all three": (CONFIG, {"wcls": Q8_0, "wk": Q4_1, "token_embedding_table": F32}),
}


@pytest.mark.parametrize("mixture", MIXED)
def test_a_mixed_file_keeps_the_matrices_that_the_dtype_holds(tmp_path: Path, mixture: str) -> None:
    config, kinds = MIXED[mixture]
    parts = parts_of(config, kinds)
    with open_checkpoint(write(tmp_path / "m.gguf", config, parts)) as checkpoint:
        assert checkpoint.group_size == 32
        own = own_dtype(checkpoint)
        mine = engine(checkpoint)
        int4, int8 = engine(checkpoint, "int4", "portable"), engine(checkpoint, "int8")
        slow4, slow8 = Reference(checkpoint, "int4"), Reference(checkpoint, "int8")
        float32 = engine(checkpoint, "float32")
    assert packed_bytes(checkpoint, "int4") == int4.nbytes
    assert packed_bytes(checkpoint, "int8") == int8.nbytes
    # int8 holds Q8_0 and Q4_0; with anything else only float32 holds all.
    assert own == mine.dtype == ("int8" if mixture == "the tied embedding" else "float32")
    assert mine.digest() == (int8 if own == "int8" else float32).digest()

    wide = model(config, parts, dense)
    assert float32.digest() == engine(wide, "float32").digest()

    kept8 = model(config, parts, eight_bits)
    assert int8.digest() == engine(kept8, "int8").digest()
    assert np.array_equal(logits(slow8), logits(Reference(kept8, "int8")))
    kept4 = model(config, parts, four_bits)
    assert np.array_equal(logits(int4), logits(engine(kept4, "int8", "portable")))
    assert np.array_equal(logits(slow4), logits(Reference(kept4, "int8")))

    # Made of the weights alone, both would be others.
    assert int8.digest() != engine(wide, "int8").digest()
    assert int4.digest() != engine(wide, "int4", "portable").digest()


@pytest.mark.parametrize("kind", [Q4_0, Q8_0])
def test_rows_that_groups_do_not_fill_are_quantized_anew(tmp_path: Path, kind: int) -> None:
    """int8's groups are smaller for the sake of the other matrices; int4's may be cut short."""
    names = [name for name, (_, shape) in tensor_shapes(NARROW).items() if len(shape) == 2]
    parts = parts_of(NARROW, dict.fromkeys(names, F32) | {"w2": kind})
    with open_checkpoint(write(tmp_path / "m.gguf", NARROW, parts)) as checkpoint:
        assert checkpoint.group_size is None
        assert own_dtype(checkpoint) == "float32"
        assert checkpoint.notes == ()
        found = {dtype: engine(checkpoint, dtype).digest() for dtype in WIDER}
        slow = logits(Reference(checkpoint, "int8"))
        int4 = logits(Reference(checkpoint, "int4"))
        fast = engine(checkpoint, "int4")
    wide = model(NARROW, parts, dense, None)
    assert found == {dtype: engine(wide, dtype).digest() for dtype in WIDER}
    assert np.array_equal(slow, logits(Reference(wide, "int8")))
    assert np.abs(logits(fast) - int4).max() <= 3e-2 * np.abs(int4).max()
    assert (fast.digest() == engine(wide, "int4").digest()) == (kind == Q8_0)


# ---- notes, and what is written ----


def test_info_says_how_many_matrices_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "pure.gguf", CONFIG, parts_of(CONFIG, {}))
    assert main(["info", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "format       GGUF (Q4_0)" in lines
    assert "weights      int4, one scale per 32 values" in lines
    assert "notes        none" in lines
    told = next(line for line in lines if line.startswith("load "))
    assert " as int4, and " in told

    path = write(tmp_path / "mixed.gguf", CONFIG, parts_of(CONFIG, {"wcls": Q8_0, "wk": Q4_1}))
    assert main(["info", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "format       GGUF (Q4_0/Q4_1/Q8_0)" in lines
    assert "weights      float32" in lines
    assert (
        "notes        13 of 16 matrices are Q4_0, which dtype int4 or int8 keeps as they are;"
        " 1 of 16 matrices are Q8_0, which dtype int8 keeps as they are"
    ) in lines
    assert main(["info", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "float32"


@pytest.mark.parametrize(
    ("name", "dtype"), [("out.gguf", "int8"), ("out.bin", "int8"), ("out", "float32")]
)
def test_conversion_of_int4_loses_nothing(tmp_path: Path, name: str, dtype: str) -> None:
    """int8 in groups of 32 holds Q4_0's numbers as they are; elsewhere they become float32."""
    parts = parts_of(CONFIG, {})
    source, out = write(tmp_path / "m.gguf", CONFIG, parts), tmp_path / name
    convert(source, out, tokenizer=False)
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.dtype == dtype
        assert checkpoint.group_size == (32 if dtype == "int8" else None)
        for kind, layers in parts.items():
            for part, tensor in zip(layers, checkpoint.tensors[kind], strict=True):
                assert tensor.dequantize().tobytes() == part.tensor.dequantize().tobytes()
                if dtype == "int8" and isinstance(part.tensor, QuantizedTensor):
                    assert isinstance(tensor, QuantizedTensor)
                    assert np.array_equal(tensor.values, part.tensor.values)
    if dtype == "int8":
        again = tmp_path / "again.bin"
        assert main(["quantize", str(source), "-o", str(again), "--no-tokenizer"]) == 0
        with open_checkpoint(again) as checkpoint, open_checkpoint(out) as first:
            assert engine(checkpoint).digest() == engine(first).digest()


def test_conversion_of_a_mixed_file_keeps_the_int8_matrices(tmp_path: Path) -> None:
    parts = parts_of(CONFIG, {"wcls": Q8_0, "wk": Q4_1})
    source = write(tmp_path / "m.gguf", CONFIG, parts)
    convert(source, tmp_path / "wide.gguf", tokenizer=False)
    convert(source, tmp_path / "int8.gguf", dtype="int8", tokenizer=False)
    with open_checkpoint(tmp_path / "wide.gguf") as checkpoint:
        assert checkpoint.dtype == "float32"
        want = engine(model(CONFIG, parts, dense), "float32").digest()
        assert engine(checkpoint).digest() == want
    with open_checkpoint(tmp_path / "int8.gguf") as checkpoint:
        for name in ("w1", "wcls"):
            tensor = checkpoint.tensors[name][0]
            assert tensor.dequantize().tobytes() == parts[name][0].tensor.dequantize().tobytes()

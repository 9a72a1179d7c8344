"""Weight types: what is converted and quantized on loading, and that it computes as it should."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py import ParameterError, load
from llama2py.checkpoint import (
    Checkpoint,
    DenseTensor,
    StoredTensor,
    Tensor,
    open_checkpoint,
    write_llama2c,
)
from llama2py.cli import main
from llama2py.config import Dtype, ModelConfig
from llama2py.engine.backend import Backend, Logits
from llama2py.engine.isa import isa_names
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from llama2py.engine.session import Session
from tests.conftest import in_memory, random_checkpoint

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
SHAPES = {  # widths beside the blocks of 16 rows and the groups of 32 columns
    "hd2": ModelConfig(16, 17, 2, 8, 8, 33, 90),
    "hd6-gqa": ModelConfig(24, 44, 2, 4, 2, 15, 90),
    "hd8-gqa": ModelConfig(64, 172, 2, 8, 4, 33, 90, shared_classifier=False),
    "hd100-mqa": ModelConfig(200, 44, 2, 2, 1, 500, 90),
}
# Of the largest logit. Quantized activations are rounded: where NumPy's last bit differs, one in
# thousands falls to the other side, a step of 1/127 of its group.
TOLERANCE: dict[Dtype, float] = {"float32": 2e-5, "bfloat16": 2e-5, "int8": 2e-2, "int4": 3e-2}


def logits(backend: Backend, n: int = 40) -> Logits:
    tokens = [i * 7 % backend.config.vocab_size for i in range(n)]
    return backend.run(tokens, [backend.new_cache()] * n, range(n), range(n))


def engine(checkpoint: Checkpoint, dtype: Dtype, isa: str, threads: int = 1) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA2PY_ISA", isa)
        return Engine(checkpoint, threads, dtype)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", SHAPES)
def test_keys_and_values_in_bfloat16(name: str, dtype: Dtype) -> None:
    """Rounded, and nothing else: where NumPy's last bit differs, one of them falls elsewhere."""
    checkpoint = random_checkpoint(SHAPES[name], seed=len(name))
    want = logits(Reference(checkpoint, dtype, "bfloat16"))
    exact = logits(Reference(checkpoint, dtype))
    assert 0 < np.abs(exact - want).max() <= 3e-2 * np.abs(want).max()
    simd = []
    for isa in isa_names():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLAMA2PY_ISA", isa)
            made = Engine(checkpoint, 2, dtype, "bfloat16")
        assert made.cache_dtype == "bfloat16"
        assert made.cache_bytes * 2 == made.config.cache_bytes
        got = logits(made)
        assert np.abs(got - want).max() <= 2e-2 * np.abs(want).max()
        if isa != "portable" or dtype == "int8":
            simd.append(got)
        with Session(made) as whole, Session(made) as parted:  # blocks, forks: the same bits
            tokens = [i * 7 % made.config.vocab_size for i in range(40)]
            parted.forward(tokens[:3])
            with parted.fork() as fork:
                assert np.array_equal(whole.forward(tokens), fork.forward(tokens[3:]))
    assert all(np.array_equal(got, simd[0]) for got in simd)


def test_cache_dtype_is_an_option_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        load(cache_dtype="bfloat16") as model,
        load(cache_dtype="bfloat16", backend="numpy") as slow,
    ):
        story = model.generate("Once", temperature=0, max_tokens=20)
        assert model.backend.cache_dtype == slow.backend.cache_dtype == "bfloat16"
        assert slow.generate("Once", temperature=0, max_tokens=20).tokens == story.tokens
    with pytest.raises(ParameterError, match="cache_dtype is 'float16', expected 'float32' or"):
        load(cache_dtype="float16")  # type: ignore[arg-type]
    call = ["run", "-i", "Once", "-t", "0", "-n", "22", "--cache-dtype", "bfloat16"]
    assert main(call) == 0
    assert story.text in capsys.readouterr().out


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_every_instruction_set_computes_what_numpy_does(
    name: str, dtype: Dtype, group_size: int | None
) -> None:
    checkpoint = random_checkpoint(SHAPES[name], group_size, seed=len(name))
    want = logits(Reference(checkpoint, dtype))
    simd = []
    for isa in isa_names():
        made = engine(checkpoint, dtype, isa)
        assert made.dtype == dtype
        got = logits(made)
        assert np.abs(got - want).max() <= TOLERANCE[dtype] * np.abs(want).max()
        if isa != "portable" or dtype == "int8":
            simd.append(got)
    assert all(np.array_equal(got, simd[0]) for got in simd)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_computes_other_logits(dtype: Dtype) -> None:
    """Or the test above would compare four times the same."""
    checkpoint = random_checkpoint(SHAPES["hd8-gqa"])
    others = [logits(Engine(checkpoint, 1, other)) for other in DTYPES if other != dtype]
    mine = logits(Engine(checkpoint, 1, dtype))
    assert not any(np.array_equal(mine, other) for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", [isa_names()[0], "portable"])
def test_batches_blocks_and_threads_change_no_bit(dtype: Dtype, isa: str) -> None:
    config = ModelConfig(64, 172, 2, 8, 4, 2**22 // 64 + 5, 90)  # worth a second thread
    checkpoint = random_checkpoint(config)
    alone, together = engine(checkpoint, dtype, isa), engine(checkpoint, dtype, isa, threads=3)
    want, tokens = logits(alone, 20), [i * 7 % config.vocab_size for i in range(20)]
    caches = [together.new_cache(), together.new_cache()]
    for i in range(0, 20, 4):  # two sessions side by side, four tokens of each a call
        got = together.run(
            tokens[i : i + 4] * 2,
            [caches[0]] * 4 + [caches[1]] * 4,
            [*range(i, i + 4)] * 2,
            range(8),
        )
        assert np.array_equal(got[:4], want[i : i + 4])
        assert np.array_equal(got[4:], want[i : i + 4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored_as", [np.float32, np.float16, np.uint16])
def test_half_precision_files_pack_as_what_they_widen_to(dtype: Dtype, stored_as: type) -> None:
    """Matrices go to the engine as they are stored; transposed views are widened before."""
    checkpoint = random_checkpoint(SHAPES["hd8-gqa"])

    def stored(values: NDArray[np.float32]) -> StoredTensor:
        if stored_as is np.uint16:
            return StoredTensor((values.view(np.uint32) >> 16).astype(np.uint16))
        return StoredTensor(values.astype(stored_as))

    halves: dict[str, tuple[StoredTensor, ...]] = {}
    for name, layers in checkpoint.tensors.items():
        halves[name] = tuple(stored(layer.dequantize()) for layer in layers)
    first, *others = halves["w1"]
    turned = np.ascontiguousarray(first.stored.T).T  # the same numbers, column by column
    halves["w1"] = (StoredTensor(turned), *others)
    wide: dict[str, tuple[Tensor, ...]] = {
        name: tuple(DenseTensor(layer.dequantize()) for layer in layers)
        for name, layers in halves.items()
    }
    got = logits(Engine(in_memory(checkpoint.config, {**halves}), 1, dtype))
    want = logits(Engine(in_memory(checkpoint.config, wide), 1, dtype))
    assert np.array_equal(got, want)


def test_int8_made_while_loading_equals_the_v2_file(tmp_path: Path) -> None:
    for config, group_size in ((SHAPES["hd8-gqa"], 64), (SHAPES["hd6-gqa"], 8)):
        checkpoint = random_checkpoint(config)
        write_llama2c(tmp_path / "q80.bin", checkpoint, 2, group_size, threads=2)
        with open_checkpoint(tmp_path / "q80.bin") as stored:
            want = logits(Engine(stored))
        assert np.array_equal(logits(Engine(checkpoint, 1, "int8")), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["w1", "token_embedding_table", "wcls"])
def test_a_nan_is_counted_and_stays(dtype: Dtype, name: str) -> None:
    checkpoint = random_checkpoint(SHAPES["hd8-gqa"])
    tensors = dict(checkpoint.tensors)
    spoiled = np.array(tensors[name][0].dequantize())
    spoiled[0, 3] = np.nan  # token 0 and logit 0 meet it
    tensors[name] = (DenseTensor(spoiled), *tensors[name][1:])
    made = Engine(in_memory(checkpoint.config, tensors), 1, dtype)
    assert made.non_finite == 1
    assert np.isnan(logits(made)[0]).any()


def test_memory_shrinks_with_the_type() -> None:
    config = ModelConfig(512, 1376, 8, 8, 8, 2000, 64)  # 26M: what a huge page rounds up shows less
    checkpoint = random_checkpoint(config)
    bytes_each = {dtype: Engine(checkpoint, 2, dtype).nbytes / config.n_params for dtype in DTYPES}
    assert bytes_each["float32"] == pytest.approx(4, rel=0.05)
    assert bytes_each["bfloat16"] == pytest.approx(2, rel=0.05)
    assert bytes_each["int8"] == pytest.approx(1 + 4 / 64, rel=0.08)
    assert bytes_each["int4"] == pytest.approx(0.5 + 2 / 32, rel=0.1)


def test_load_takes_a_dtype_and_no_other() -> None:
    for dtype in DTYPES:
        with load(dtype=dtype) as model, load(dtype=dtype, backend="numpy") as reference:
            assert model.backend.dtype == reference.backend.dtype == dtype
            text = model.generate(max_tokens=12, temperature=0).text
            assert text == reference.generate(max_tokens=12, temperature=0).text
    with pytest.raises(ParameterError, match="expected one of float32, bfloat16, int8, int4"):
        load(dtype="float16")  # type: ignore[arg-type]

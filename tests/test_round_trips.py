"""Conversion from every format to every other keeps the weights or rounds them as the format does.

The readers of the packages gguf and safetensors see the same numbers.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2py
from llama2py.checkpoint import (
    Checkpoint,
    QuantizedTensor,
    open_checkpoint,
    quantize,
    write_checkpoint,
)
from llama2py.config import ModelConfig
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from tests.checkpoint.test_open import cases
from tests.conftest import TINY, random_checkpoint, tiny_tokenizer
from tests.support.golden import run

Weights = dict[str, list[NDArray[np.float32]]]

# Grouped-query attention, an untied classifier, rows of whole blocks of 32, and rows that are not
# (those of w2).
UNTIED = ModelConfig(
    dim=64,
    hidden_dim=88,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=300,
    seq_len=48,
    shared_classifier=False,
)
TIED = ModelConfig(
    dim=96, hidden_dim=32, n_layers=1, n_heads=3, n_kv_heads=3, vocab_size=300, seq_len=16
)

# Name of the output: its format and dtype.
WAYS: dict[str, tuple[Any, Any]] = {
    "v0.bin": ("v0", "float32"),
    "v1.bin": ("v1", None),
    "v2.bin": ("v2", None),
    "hf-float32": ("hf", "float32"),
    "hf-float16": ("hf", "float16"),
    "hf-bfloat16": ("hf", "bfloat16"),
    "float32.gguf": ("gguf", "float32"),
    "float16.gguf": ("gguf", "float16"),
    "bfloat16.gguf": ("gguf", "bfloat16"),
    "int8.gguf": ("gguf", "int8"),
}


def weights_of(path: Path) -> Weights:
    with open_checkpoint(path) as checkpoint:
        return copied(checkpoint)


def copied(checkpoint: Checkpoint) -> Weights:
    return {
        name: [tensor.dequantize().copy() for tensor in tensors]
        for name, tensors in checkpoint.tensors.items()
    }


def rounded(weights: Weights, way: str) -> Weights:
    """Round weights as a format does, computed here."""
    return {name: [_rounded(w, way) for w in layers] for name, layers in weights.items()}


def _rounded(weights: NDArray[np.float32], way: str) -> NDArray[np.float32]:
    format, dtype = WAYS[way]
    if weights.ndim == 1 and format != "hf":
        return weights
    if format == "v2":
        return quantize(weights, 64 if UNTIED.dim in weights.shape else 32).dequantize()
    if dtype == "float16" or (dtype == "int8" and weights.shape[1] % 32):
        return weights.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        quants, kinds = pytest.importorskip("gguf.quants"), pytest.importorskip("gguf")
        kind = kinds.GGMLQuantizationType.BF16
        bits: NDArray[Any] = quants.quantize(weights, kind).view(np.uint16)
        return (bits.reshape(weights.shape).astype(np.uint32) << 16).view(np.float32)
    if dtype == "int8":
        quants, kinds = pytest.importorskip("gguf.quants"), pytest.importorskip("gguf")
        kind = kinds.GGMLQuantizationType.Q8_0
        found: NDArray[np.float32] = quants.dequantize(quants.quantize(weights, kind), kind)
        return found
    return weights


def in_groups(source: Checkpoint, group_size: int) -> Weights:
    """Return int8 matrices as they are, and the others quantized in groups of that size."""
    return {
        name: [
            tensor.dequantize().copy()
            if isinstance(tensor, QuantizedTensor) or len(tensor.shape) == 1
            else quantize(tensor.dequantize(), group_size).dequantize()
            for tensor in tensors
        ]
        for name, tensors in source.tensors.items()
    }


def check_equal(ours: Weights, wanted: Weights) -> None:
    assert ours.keys() == wanted.keys()
    for name, layers in wanted.items():
        for mine, theirs in zip(ours[name], layers, strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=name)


@pytest.fixture(scope="module", params=[UNTIED, TIED], ids=["untied", "tied"])
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Weights]:
    """Return a folder with one model in every format, and the model's weights."""
    folder = tmp_path_factory.mktemp("written")
    original = random_checkpoint(request.param, seed=3)
    write_checkpoint(folder / "model.bin", request.param, original.tensors)
    write_tokenizer_bin(tiny_tokenizer(), folder / "model.tokenizer.bin")
    for name, (format, dtype) in WAYS.items():
        llama2py.convert(folder / "model.bin", folder / name, format=format, dtype=dtype)
    return folder, copied(original)


@pytest.mark.parametrize("way", WAYS)
def test_each_format_holds_the_weights(way: str, written: tuple[Path, Weights]) -> None:
    folder, original = written
    check_equal(weights_of(folder / way), rounded(original, way))
    with open_checkpoint(folder / way) as ours, open_checkpoint(folder / "model.bin") as source:
        assert ours.config == source.config


@pytest.mark.parametrize(("first", "second"), list(product(WAYS, WAYS)))
def test_each_format_converts_to_each(
    first: str, second: str, written: tuple[Path, Weights], tmp_path: Path
) -> None:
    folder, _ = written
    format, dtype = WAYS[second]
    path = llama2py.convert(folder / first, tmp_path / second, format=format, dtype=dtype)
    there = weights_of(folder / first)
    with open_checkpoint(folder / first) as source, open_checkpoint(path) as ours:
        assert ours.config == source.config
        # Rounded values stay, and so do the groups of int8.
        wanted = there if first == second else rounded(there, second)
        if second == "v2.bin" and source.group_size is not None:
            wanted = in_groups(source, source.group_size)
    check_equal(weights_of(path), wanted)


@pytest.mark.parametrize("way", WAYS)
def test_the_default_dtype_loses_nothing(
    way: str, written: tuple[Path, Weights], tmp_path: Path
) -> None:
    folder, _ = written
    for format, name in (("hf", "hf"), ("gguf", "x.gguf")):
        if way == "v2.bin" and format == "gguf":
            continue  # int8 becomes Q8_0, which has other groups
        path = llama2py.convert(folder / way, tmp_path / name)
        check_equal(weights_of(path), weights_of(folder / way))


@pytest.mark.parametrize("way", [way for way in WAYS if "hf" in way])
def test_safetensors_reads_our_directories(way: str, written: tuple[Path, Weights]) -> None:
    package = pytest.importorskip("safetensors")
    folder, original = written
    exact = rounded(original, way)
    dtypes = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    about = json.loads((folder / way / "config.json").read_text("utf-8"))
    heads, kv_heads = about["num_attention_heads"], about["num_key_value_heads"]
    with package.safe_open(folder / way / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
        assert ("lm_head.weight" in names) != about["tie_word_embeddings"]
        slices = {name: file.get_slice(name) for name in names}
        assert {s.get_dtype() for s in slices.values()} == {dtypes[WAYS[way][1]]}
        if way == "hf-bfloat16":
            return  # NumPy has no bfloat16
        np.testing.assert_array_equal(
            file.get_tensor("model.embed_tokens.weight"), exact["token_embedding_table"][0]
        )
        for layer, name, kind, n in [(0, "q", "wq", heads), (0, "k", "wk", kv_heads)]:
            found = file.get_tensor(f"model.layers.{layer}.self_attn.{name}_proj.weight")
            rows = exact[kind][layer]
            size = len(rows) // n
            for head, row in product(range(n), range(size)):
                # transformers rotates channel i with channel i + size / 2, llama2.c with i + 1.
                theirs = head * size + row // 2 + (row % 2) * size // 2
                np.testing.assert_array_equal(found[theirs], rows[head * size + row])


@pytest.mark.parametrize("way", [way for way in WAYS if "gguf" in way])
def test_gguf_reads_our_files(way: str, written: tuple[Path, Weights]) -> None:
    package, quants = pytest.importorskip("gguf"), pytest.importorskip("gguf.quants")
    folder, original = written
    exact = rounded(original, way)
    reader = package.GGUFReader(folder / way)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = {
        "token_embd.weight": ("token_embedding_table", 0),
        "blk.0.attn_q.weight": ("wq", 0),
        "blk.0.attn_k.weight": ("wk", 0),
        "blk.0.ffn_down.weight": ("w2", 0),
        "blk.0.attn_norm.weight": ("rms_att_weight", 0),
        "output_norm.weight": ("rms_final_weight", 0),
    }
    assert len(tensors) == sum(map(len, original.values()))
    assert ("output.weight" in tensors) == ("wcls" in original)
    for name, (kind, layer) in names.items():
        tensor = tensors[name]
        assert tensor.data_offset % 32 == 0
        found = quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found, exact[kind][layer], err_msg=name)
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert len(tokens.data) == TINY.vocab_size
    assert bytes(tokens.parts[tokens.data[259]]).decode() == "\u2581"
    assert reader.fields["llama.attention.head_count_kv"].parts[-1][0] in (2, 3)


@pytest.mark.parametrize("way", [way for way in WAYS if WAYS[way][1] == "float32" or "v1" in way])
def test_the_real_model_generates_the_recorded_stories(
    way: str, test_data: Path, tmp_path: Path
) -> None:
    format, dtype = WAYS[way]
    source = test_data / "data/formats/stories260K-hf"
    path = llama2py.convert(source, tmp_path / way, format=format, dtype=dtype)
    with llama2py.load(path) as model:
        for case in cases():
            assert run(model, case)[0] == case.tokens, case

"""GGUF files of other architectures than llama, written by the `gguf` package with its names.

The numbers of each architecture are those that llama.cpp's ``conversion/*.py`` writes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py import convert
from llama2py.checkpoint import open_checkpoint
from llama2py.checkpoint.tensors import QuantizedTensor
from llama2py.engine.native import Engine
from llama2py.engine.session import Session
from tests.support.families import FAMILIES, TOKENS, golden, write_directory

gguf = pytest.importorskip("gguf", reason="needs the extra [dev]")

GOLDEN = golden()
Floats = NDArray[np.float32]

# The architecture of each family, and whether llama.cpp's converter puts rotary pairs together.
ARCHITECTURES = {
    "llama": ("llama", True),
    "llama-with-biases": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen2-tied": ("qwen2", False),
    "qwen2-yarn": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "qwen3-yarn": ("qwen3", False),
    "smollm3-every-fourth": ("smollm3", True),
    "olmo2": ("olmo2", False),
    "olmo3": ("olmo2", False),
    "granite": ("granite", True),
    "granite-with-usual-attention": ("minicpm", True),
    "internlm3": ("llama", True),
    "phi3": ("phi3", False),
    "phi3-partial": ("phi3", False),
    "gemma": ("gemma", False),
    "gemma3-usual-attention": ("gemma3", False),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the directory of each family."""
    folder = tmp_path_factory.mktemp("families")
    return {n: write_directory(folder / n, n, GOLDEN[n]["shapes"]) for n in ARCHITECTURES}


def permute(weights: Floats, n_head: int) -> Floats:
    """llama.cpp's LlamaModel.permute."""
    half = weights.shape[0] // n_head // 2
    shape = (n_head, 2, half, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def write(path: Path, folder: Path, name: str, kind: Any = None) -> Path:
    """Write a directory's model as llama.cpp's converter would; matrices of a kind of blocks."""
    from safetensors.numpy import load_file

    about = FAMILIES[name]
    arch, in_pairs = ARCHITECTURES[name]
    writer = gguf.GGUFWriter(path, arch)
    add_numbers(writer, about, arch)
    arch_id = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(arch_id, about["num_hidden_layers"])
    heads = {"q_proj": about["num_attention_heads"], "k_proj": about["num_key_value_heads"]}
    for tensor, weights in load_file(folder / "model.safetensors").items():
        for projection, n in heads.items():
            if in_pairs and projection in tensor:
                weights = permute(weights, n)
        if arch.startswith("gemma") and tensor.endswith("norm.weight"):
            weights = weights + np.float32(1)
        theirs = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if kind is not None and weights.ndim == 2:
            weights = gguf.quants.quantize(weights, kind)
            writer.add_tensor(theirs, weights, raw_dtype=kind)
        else:
            writer.add_tensor(theirs, np.ascontiguousarray(weights))
    if "short_factor" in about.get("rope_scaling", {}):
        for length in ("short", "long"):
            factors = np.array(about["rope_scaling"][f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_numbers(writer: Any, about: dict[str, Any], arch: str) -> None:
    head_dim = about.get("head_dim", about["hidden_size"] // about["num_attention_heads"])
    writer.add_context_length(about["max_position_embeddings"])
    writer.add_embedding_length(about["hidden_size"])
    writer.add_feed_forward_length(about["intermediate_size"])
    writer.add_block_count(about["num_hidden_layers"])
    writer.add_head_count(about["num_attention_heads"])
    writer.add_head_count_kv(about["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(about["rms_norm_eps"])
    theta = 1e6 if arch == "gemma3" else 1e4
    writer.add_rope_freq_base(about.get("rope_theta", theta))
    writer.add_rope_dimension_count(int(head_dim * about.get("partial_rotary_factor", 1)))
    if "head_dim" in about:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch == "granite":
        writer.add_attention_scale(about["attention_multiplier"])
    if arch in ("granite", "minicpm"):
        writer.add_embedding_scale(about["embedding_multiplier"])
        writer.add_residual_scale(about["residual_multiplier"])
        writer.add_logit_scale(about["logits_scaling"])
    if about.get("sliding_window") and arch in ("llama", "phi3", "gemma3", "olmo2"):
        writer.add_sliding_window(about["sliding_window"])
    if arch == "olmo2" and about["model_type"] == "olmo3":
        writer.add_sliding_window_pattern([True, True, True, False])
    scaling = about.get("rope_scaling")
    if scaling is None:
        return
    if scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif scaling["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        if "attention_factor" in scaling:  # llama.cpp multiplies the usual one by this number
            usual = 0.1 * math.log(scaling["factor"]) + 1
            writer.add_rope_scaling_attn_factors(scaling["attention_factor"] / usual)
    else:
        original = about["original_max_position_embeddings"]
        growth = about["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(growth) / math.log(original)))


def logits_of(path: Path, **options: Any) -> Floats:
    with open_checkpoint(path) as checkpoint, Session(Engine(checkpoint, **options)) as session:
        return session.forward(TOKENS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gguf_file_computes_the_recorded_logits(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    path = write(tmp_path / "model.gguf", models[name], name)
    np.testing.assert_allclose(logits_of(path), GOLDEN[name]["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"phi3"}))
def test_conversion_writes_the_tensors_and_numbers_of_the_architecture(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    theirs = gguf.GGUFReader(write(tmp_path / "theirs.gguf", models[name], name))
    convert(models[name], tmp_path / "ours.gguf")
    ours = gguf.GGUFReader(tmp_path / "ours.gguf")
    arch = ARCHITECTURES[name][0]
    written_as = {"minicpm": "granite"}.get(arch, arch)
    assert ours.fields["general.architecture"].contents() == written_as
    found = {tensor.name: tensor.data for tensor in ours.tensors}
    assert found.keys() == {tensor.name for tensor in theirs.tensors}
    # Of LongRoPE, the model has the numbers for its context before it was stretched.
    cut = ("rope_factors_long.weight", f"{arch}.context_length") if name == "phi3-partial" else ()
    for tensor in theirs.tensors:
        if tensor.name in cut:
            continue
        np.testing.assert_array_equal(found[tensor.name], tensor.data, tensor.name)
    for key, field in theirs.fields.items():
        if key.startswith(f"{arch}.") and not key.endswith("pattern") and key not in cut:
            own = ours.fields[written_as + key.removeprefix(arch)].contents()
            wanted = field.contents()
            if not isinstance(wanted, str):
                wanted = pytest.approx(wanted, rel=1e-6)
            assert own == wanted, key
    np.testing.assert_array_equal(logits_of(tmp_path / "ours.gguf"), logits_of(models[name]))


def test_internlm2_is_a_llama_by_another_name(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "llama", ("internlm2", True))
        path = write(tmp_path / "model.gguf", models["llama"], "llama")
    assert gguf.GGUFReader(path).fields["general.architecture"].contents() == "internlm2"
    np.testing.assert_array_equal(logits_of(path), logits_of(models["llama"]))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_quantized_rows_are_put_in_order_unchanged(kind: str, tmp_path: Path) -> None:
    """A qwen3 whose rows are blocks: the same model as the one of the numbers they stand for."""
    shapes = {
        name: [{48: 64, 80: 96}.get(n, n) for n in shape]
        for name, shape in GOLDEN["qwen3"]["shapes"].items()
    }
    about = {**FAMILIES["qwen3"], "hidden_size": 64, "intermediate_size": 96}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "qwen3", about)
        folder = write_directory(tmp_path / "hf", "qwen3", shapes)
        number = gguf.GGMLQuantizationType[kind]
        path = write(tmp_path / "model.gguf", folder, "qwen3", number)
        with open_checkpoint(path) as checkpoint:
            wq, plain = checkpoint.tensors["wq"][1], checkpoint.tensors["wv"][1]
            assert isinstance(wq, QuantizedTensor) == isinstance(plain, QuantizedTensor)
            tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
            stored = gguf.quants.dequantize(tensors["blk.1.attn_q.weight"].data, number)
            np.testing.assert_array_equal(wq.dequantize(), permute(stored, 6))
            if isinstance(wq, QuantizedTensor):
                assert wq.bits == (4 if kind == "Q4_0" else 8)
                scaled = wq.values.reshape(-1, 32) * wq.scales[:, np.newaxis]
                np.testing.assert_array_equal(scaled.reshape(wq.shape), wq.dequantize())
        convert(path, tmp_path / "again.gguf", dtype="float32")
        both = [logits_of(p, dtype="float32") for p in (path, tmp_path / "again.gguf")]
        np.testing.assert_array_equal(both[0], both[1])
        assert np.isfinite(both[0]).all()
        if kind != "Q5_1":  # int8 keeps both
            convert(path, tmp_path / "int8.gguf")
            with open_checkpoint(path) as one, open_checkpoint(tmp_path / "int8.gguf") as other:
                for first, second in zip(one.tensors["wk"], other.tensors["wk"], strict=True):
                    np.testing.assert_array_equal(first.dequantize(), second.dequantize())

"""LoRA adapters: a model with an adapter is the model whose matrices NumPy has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import llama2py
from llama2py import CheckpointError, ParameterError
from llama2py.checkpoint import open_checkpoint
from llama2py.checkpoint.lora import merge_lora
from llama2py.engine.native import Engine
from llama2py.engine.session import Session
from tests.checkpoint.gguf.test_families import ARCHITECTURES, permute
from tests.checkpoint.gguf.test_families import write as write_gguf
from tests.support.families import FAMILIES, TOKENS, golden, write_directory

gguf = pytest.importorskip("gguf", reason="needs the extra [dev]")

Floats = NDArray[np.float32]
RANK, ALPHA = 3, 6.0
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
NAMES = (*MODULES, "qkv_proj", "gate_up_proj")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("lora"), golden()
    names = ("llama", "qwen3", "phi3", "gemma")
    return {n: write_directory(folder / n, n, found[n]["shapes"]) for n in names}


def adapter(folder: Path, model: Path, **changes: Any) -> tuple[Path, dict[str, Floats]]:
    """Write an adapter of every matrix as PEFT does; and what it adds to each tensor."""
    random = np.random.default_rng(1)
    weights: dict[str, Floats] = {}
    added: dict[str, Floats] = {}
    for name, matrix in load_file(model / "model.safetensors").items():
        if not any(part in name for part in NAMES):
            continue
        rows, cols = matrix.shape
        a = (random.normal(size=(RANK, cols)) / 8).astype(np.float32)
        b = (random.normal(size=(rows, RANK)) / 8).astype(np.float32)
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        weights |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
        scale = ALPHA / (RANK**0.5 if changes.get("use_rslora") else RANK)
        added[name] = (scale * (b.astype(np.float64) @ a)).astype(np.float32)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_dora": False, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(about), "utf-8")
    return folder, added


def merged(folder: Path, model: Path, added: dict[str, Floats]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    weights = load_file(model / "model.safetensors")
    save_file({n: w + added.get(n, np.float32(0)) for n, w in weights.items()},
              folder / "model.safetensors")  # fmt: skip
    return folder


def logits_of(path: Path, lora: Path | None = None, dtype: Any = None) -> Floats:
    with open_checkpoint(path) as checkpoint:
        if lora is not None:
            merge_lora(checkpoint, lora)
            assert str(lora) in checkpoint.notes[-1]
        engine = Engine(checkpoint, dtype=dtype)
    with Session(engine) as session:
        return session.forward(TOKENS, all_logits=True)


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}])
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gemma"])
def test_an_adapter_of_peft_is_merged(
    name: str, changes: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    lora, added = adapter(tmp_path / "lora", models[name], **changes)
    whole = merged(tmp_path / "merged", models[name], added)
    wanted = logits_of(whole)
    assert np.abs(wanted - logits_of(models[name])).max() > 0.1
    np.testing.assert_allclose(logits_of(models[name], lora), wanted, rtol=0, atol=1e-4)
    one_file = lora / "adapter_model.safetensors"
    np.testing.assert_array_equal(logits_of(models[name], one_file), logits_of(models[name], lora))


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_an_adapter_in_gguf_is_merged(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Into a GGUF model and into a directory; its rows as llama.cpp's converter orders them."""
    lora, _ = adapter(tmp_path / "lora", models[name])
    path = write_gguf_adapter(tmp_path / "lora.gguf", lora, name)
    wanted = logits_of(models[name], lora)
    np.testing.assert_array_equal(logits_of(models[name], path), wanted)
    model = write_gguf(tmp_path / "model.gguf", models[name], name)
    for adapter_of_either_kind in (path, lora):
        np.testing.assert_array_equal(logits_of(model, adapter_of_either_kind), wanted)


def write_gguf_adapter(path: Path, lora: Path, name: str) -> Path:
    arch, in_pairs = ARCHITECTURES[name]
    about = FAMILIES[name]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    arch_id = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(arch_id, about["num_hidden_layers"])
    heads = {"q_proj": about["num_attention_heads"], "k_proj": about["num_key_value_heads"]}
    for tensor, weights in load_file(lora / "adapter_model.safetensors").items():
        module, _, half = tensor.removeprefix("base_model.model.").rpartition(".lora_")
        for projection, n in heads.items():
            if in_pairs and projection in tensor and half[0] == "B":
                weights = permute(weights, n)
        own = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        writer.add_tensor(f"{own}.lora_{half[0].lower()}", np.ascontiguousarray(weights))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_merged_model_is_quantized_after_the_sum(models: dict[str, Path], tmp_path: Path) -> None:
    lora, added = adapter(tmp_path / "lora", models["llama"])
    whole = merged(tmp_path / "merged", models["llama"], added)
    ours = logits_of(models["llama"], lora, "int8")
    np.testing.assert_allclose(ours, logits_of(whole, dtype="int8"), rtol=0, atol=0.1)


def test_load_merges_an_adapter(tmp_path: Path) -> None:
    llama2py.convert("builtin", tmp_path / "hf", dtype="float32")
    lora, added = adapter(tmp_path / "lora", tmp_path / "hf")
    whole = merged(tmp_path / "merged", tmp_path / "hf", added)
    tokenizer = tmp_path / "hf" / "tokenizer.json"
    tokens = [
        llama2py.load(path, tokenizer, lora=own).generate("Once", 20, temperature=0).tokens
        for path, own in ((tmp_path / "hf", lora), (whole, None), (tmp_path / "hf", None))
    ]
    assert tokens[0] == tokens[1] != tokens[2]
    with pytest.raises(ParameterError, match="lora is 5, expected a str or a path"):
        llama2py.load(tmp_path / "hf", lora=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"peft_type": "IA3"}, 'peft_type is "IA3", expected "LORA"'),
        ({"use_dora": True}, "use_dora is true, expected false"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is an array, expected empty"),
        ({"lora_alpha": "x"}, 'lora_alpha is "x", expected a number'),
    ],
)
def test_an_adapter_with_other_parts_is_refused(
    changes: dict[str, Any], complaint: str, models: dict[str, Path], tmp_path: Path
) -> None:
    lora, _ = adapter(tmp_path / "lora", models["llama"], **changes)
    with pytest.raises(CheckpointError, match=complaint):
        logits_of(models["llama"], lora)


def test_an_adapter_of_another_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    lora, _ = adapter(tmp_path / "lora", models["phi3"])
    with pytest.raises(CheckpointError, match=r"q(kv)?_proj.lora_B.weight has shape"):
        logits_of(models["qwen3"], lora)
    path = write_gguf_adapter(tmp_path / "a.gguf", adapter(tmp_path / "b", models["qwen3"])[0],
                              "qwen3")  # fmt: skip
    with pytest.raises(CheckpointError, match="shape"):
        logits_of(models["llama"], path)
    with pytest.raises(CheckpointError, match=r"lacks general\.type"):
        logits_of(models["llama"], write_gguf(tmp_path / "m.gguf", models["llama"], "llama"))
    with pytest.raises(CheckpointError, match="no LoRA adapter"):
        logits_of(models["llama"], models["llama"] / "model.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        logits_of(models["llama"], tmp_path / "nothing")


def test_an_adapter_with_unknown_tensors_is_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    lora, _ = adapter(tmp_path / "lora", models["llama"])
    weights = load_file(lora / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    save_file({**weights, name: np.zeros((8, 1), np.float32)}, lora / "adapter_model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"lora_magnitude_vector has shape|lora_magnitude_vector' is not LoRA"
    ):
        logits_of(models["llama"], lora)
    half = {n: w for n, w in weights.items() if "layers.1.mlp.up_proj.lora_A" not in n}
    save_file(half, lora / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj' is not LoRA factors"):
        logits_of(models["llama"], lora)

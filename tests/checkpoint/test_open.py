"""Every format that is read gives the model that was stored in it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2py
from llama2py.checkpoint import Checkpoint, open_checkpoint
from llama2py.checkpoint.torch import file as torch_file_reader
from llama2py.checkpoint.torch import unpickler
from llama2py.config import RopeScaling
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from llama2py.engine.session import Session
from llama2py.errors import CheckpointError
from llama2py.formats import gguf_metadata
from llama2py.formats.input_file import InputFile
from llama2py.tokenizers.load import load_tokenizer
from tests.conftest import find_test_data
from tests.support import foreign_files as foreign
from tests.support.foreign_files import (
    CONFIG,
    SHAPES,
    huggingface,
    safetensors,
    safetensors_file,
    torch_file,
    torch_state,
)
from tests.support.golden import Case, run

# Of the real model; a file, or a directory with its tokenizer.
REAL = [
    "stories260K_v1.bin",
    "stories260K-ckpt.pt",
    "stories260K-meta",
    "stories260K-meta-2shards",
    "stories260K-hf",
    "stories260K-hf-bin",
]


@pytest.fixture(scope="module")
def formats(test_data: Path) -> Path:
    return test_data / "data" / "formats"


def cases() -> list[Case]:
    folder = find_test_data()
    if folder is None:
        return []
    recorded = json.loads((folder / "golden" / "llama2c.json").read_text(encoding="utf-8"))
    return [Case(**case) for case in recorded if case["checkpoint"] == "stories260K"]


@pytest.mark.parametrize("name", REAL)
def test_the_real_model_generates_the_recorded_stories(name: str, formats: Path) -> None:
    """With the tokenizer that lies beside it, where one does."""
    path = formats / name
    tokenizer = None if path.is_dir() else formats.parent / "tok512.bin"
    with llama2py.load(path, tokenizer) as model:
        assert cases()
        for case in cases():
            # Meta's files do not tell the context, which is what 0 steps stand for.
            case = dataclasses.replace(case, steps=case.steps or 512)
            assert run(model, case)[0] == case.tokens, case


def test_a_directory_may_have_only_a_tokenizer_json(formats: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copyfile(formats / "stories260K-hf" / name, folder / name)
    (case,) = [c for c in cases() if c.temperature == 0 and not c.prompt][:1]
    exported = load_tokenizer(formats.parent / "tok512.bin")
    with llama2py.load(folder) as model:
        for text in ("Once upon a time, Lily", "  two\nlines", "caf\u00e9 \U0001f600", ""):
            assert model.tokenizer.encode(text) == exported.encode(text)
        assert run(model, case)[0] == case.tokens


def test_the_current_directory_can_be_a_model(
    formats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(formats / "stories260K-meta")
    with llama2py.load(".") as model:
        assert len(model.tokenizer) == 512


@pytest.mark.parametrize(
    ("name", "found"),
    [("stories260K-hf", "json"), ("stories260K-hf-bin", "model"), ("stories260K-meta", "model")],
)
def test_a_directorys_tokenizer_is_found(
    name: str, found: str, formats: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(formats / name, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tokenizer_path == folder / f"tokenizer.{found}"
    (folder / "tokenizer.bin").write_bytes(b"")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tokenizer_path == folder / "tokenizer.bin"


@pytest.mark.parametrize("name", REAL)
def test_every_weight_equals_the_real_models(name: str, formats: Path) -> None:
    with (
        open_checkpoint(formats / name) as ours,
        open_checkpoint(formats.parent / "stories260K.bin") as real,
    ):
        assert ours.dtype == "float32"
        for kind, layers in real.tensors.items():
            for mine, theirs in zip(ours.tensors[kind], layers, strict=True):
                np.testing.assert_array_equal(mine.dequantize(), theirs.dequantize())
                assert mine.count_non_finite() == 0
                assert mine.shape == theirs.shape


@pytest.mark.parametrize(
    ("inside", "format"),
    [
        ("stories260K-hf/model.safetensors", "Hugging Face (safetensors)"),
        ("stories260K-hf/config.json", "Hugging Face (safetensors)"),
        ("stories260K-hf-bin/pytorch_model.bin", "Hugging Face (PyTorch)"),
        ("stories260K-meta/consolidated.00.pth", "Meta"),
        ("stories260K-meta-2shards/consolidated.01.pth", "Meta, 2 shards"),
        ("stories260K-meta/params.json", "Meta"),
        ("modern-hf/model-00003-of-00007.safetensors", "Hugging Face (safetensors, 7 files)"),
        ("modern-hf/model.safetensors.index.json", "Hugging Face (safetensors, 7 files)"),
    ],
)
def test_a_file_inside_stands_for_its_directory(inside: str, format: str, formats: Path) -> None:
    with open_checkpoint(formats / inside) as checkpoint:
        assert checkpoint.format == format
        assert checkpoint.path == (formats / inside).parent


# ---- the modern model: bfloat16, shards, GQA, a head size of its own, llama3 scaling ----


@pytest.fixture(scope="module")
def recorded(formats: Path) -> dict[str, NDArray[Any]]:
    with np.load(formats / "modern-hf-reference.npz") as file:
        return dict(file)


def modern(formats: Path) -> Checkpoint:
    return open_checkpoint(formats / "modern-hf")


def test_the_modern_model_has_its_numbers(formats: Path) -> None:
    with modern(formats) as checkpoint:
        config = checkpoint.config
        assert (config.dim, config.n_heads, config.n_kv_heads, config.head_dim) == (128, 6, 2, 32)
        assert (config.q_dim, config.kv_dim, config.norm_eps) == (192, 64, 1e-6)
        assert config.rope_theta == 500000.0
        assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
        assert checkpoint.dtype == "bfloat16"
        assert not config.shared_classifier
        stored = sum(t.nbytes for layers in checkpoint.tensors.values() for t in layers)
        assert stored == 1173248  # the index's total_size
        assert config.n_params == 586624


@pytest.mark.parametrize("backend", [Engine, Reference])
def test_the_modern_model_computes_the_recorded_logits(
    backend: Any, formats: Path, recorded: dict[str, NDArray[Any]]
) -> None:
    """Positions 63, 64 and 65 straddle the context before it was stretched."""
    with modern(formats) as checkpoint, Session(backend(checkpoint)) as session:
        rows = session.forward(recorded["input_ids"].tolist(), all_logits=True)
    np.testing.assert_allclose(rows[recorded["positions"]], recorded["logits"], rtol=0, atol=2e-5)


def test_the_modern_model_generates_the_recorded_ids(
    formats: Path, recorded: dict[str, NDArray[Any]]
) -> None:
    with modern(formats) as checkpoint:
        engine = Engine(checkpoint)
    tokens = recorded["input_ids"][:20].tolist()
    wanted = recorded["greedy_from_first_20"].tolist()
    wanted = wanted[20:] if wanted[:20] == tokens else wanted
    with Session(engine) as session:
        logits = session.forward(tokens)
        for token in wanted:
            assert int(np.argmax(logits)) == token
            logits = session.forward([token])


# ---- config.json ----


def copy_of(formats: Path, folder: Path, **changes: Any) -> Path:
    """The real model's directory with other numbers in its config.json."""
    copy = folder / "model"
    shutil.copytree(formats / "stories260K-hf", copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config.update(changes)
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    return copy


def test_a_config_is_read_as_python_reads_it(formats: Path, tmp_path: Path) -> None:
    """Names twice, of which the last counts, and Infinity, where the number is not used."""
    folder = copy_of(formats, tmp_path)
    text = (folder / "config.json").read_text("utf-8").rstrip().removesuffix("}")
    text += ', "hidden_size": 3, "hidden_size": 64, "initializer_range": Infinity}'
    (folder / "config.json").write_text(text, "utf-8")
    (folder / "tokenizer_config.json").write_text(
        '{"model_max_length": Infinity, "eos_token": "<s>", "eos_token": "</s>"}', "utf-8"
    )
    with llama2py.load(folder) as model:
        assert (model.config.dim, model.tokenizer.eos_id) == (64, 2)


@pytest.mark.parametrize("differs", [True, False])
def test_an_lm_head_that_is_not_the_embedding_is_kept(differs: bool, tmp_path: Path) -> None:
    """Although tie_word_embeddings is true: transformers keeps it, too."""
    tensors = foreign.tiny_tensors()
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += differs
    (tmp_path / "config.json").write_text(json.dumps(foreign.CONFIG), "utf-8")
    data = foreign.safetensors_file(*foreign.safetensors({**tensors, "lm_head.weight": head}))
    (tmp_path / "model.safetensors").write_bytes(data)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config.shared_classifier == (not differs)
        assert len(checkpoint.notes) == differs
        if differs:
            np.testing.assert_array_equal(checkpoint.tensors["wcls"][0].dequantize(), head)
            assert checkpoint.notes[0].startswith("tie_word_embeddings is true, but lm_head.weight")
        else:
            assert "wcls" not in checkpoint.tensors


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "gpt2"}, 'model_type is "gpt2", expected llama, mistral, qwen2'),
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts .* not supported"),
        ({"model_type": "qwen3", "num_experts": 8}, "num_experts is 8, expected 0: a mixture"),
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, "soft cap of the logits"),
        ({"model_type": "deepseek_v2", "kv_lora_rank": 8}, "latent attention .* not supported"),
        ({"model_type": "olmo2"}, "post_feedforward_layernorm.weight' .* are missing"),
        ({"attention_bias": True}, "q_proj.bias'.* are missing from a model of 5 layers"),
        ({"mlp_bias": True}, "gate_proj.bias'.* are missing"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu", expected silu'),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.1}, "rotary_dim is 0, expected an even"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["chunked"] * 5},
            "layer_types is an array, expected full_attention and sliding_attention only",
        ),
        (
            {"model_type": "smollm3", "no_rope_layers": [1]},
            "no_rope_layers is an array, expected a",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config is an object, expected null"),
        ({"rope_scaling": {"type": "ntk"}}, "expected default, linear, llama3, dynamic, yarn or"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1}, "with YaRN scaling"),
        ({"rope_scaling": {"type": "longrope"}}, "short_factor is missing, expected a list"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing, expected a number"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0.0, expected"),
        ({"rope_scaling": [1]}, "rope_scaling is an array, expected an object"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0, expected a whole number"),
        ({"hidden_size": True}, "hidden_size is true, expected a whole number"),
        ({"hidden_size": None}, "hidden_size is null, expected a whole number"),
        ({"num_hidden_layers": 4}, "model.layers.4.*are not part of a model of 4 layers"),
        ({"num_hidden_layers": 6}, "model.layers.5.*missing from a model of 6 layers"),
        ({"num_key_value_heads": 3}, "n_kv_heads 3 does not divide"),
        ({"head_dim": 16}, "q_proj.weight has shape .64, 64., expected .128, 64."),
        ({"tie_word_embeddings": False}, "'lm_head.weight' is missing"),
        ({"vocab_size": 1 << 60}, "vocab_size is"),
        ({"intermediate_size": 171}, "expected .171, 64."),
    ],
)
def test_a_config_of_another_model_is_an_error(
    change: dict[str, Any], complaint: str, formats: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        open_checkpoint(copy_of(formats, tmp_path, **change))


def test_rope_scaling_is_read_in_all_spellings(formats: Path, tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 4.0}
    changes: list[dict[str, Any]] = [
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 5e5},
        {"rope_scaling": linear, "rope_theta": 5e5},
        {"rope_parameters": {**linear, "rope_theta": 5e5}},
    ]
    for number, change in enumerate(changes):
        (tmp_path / str(number)).mkdir()
        with open_checkpoint(copy_of(formats, tmp_path / str(number), **change)) as checkpoint:
            assert checkpoint.config.rope_theta == 5e5
            assert checkpoint.config.rope_scaling == RopeScaling("linear", 4.0)


@pytest.mark.parametrize(
    ("changes", "window"),
    [({"sliding_window": 100}, 100), ({"sliding_window": None}, 0), ({}, 4096)],
)
def test_mistral_has_a_window_of_4096_unless_the_config_says_otherwise(
    changes: dict[str, Any], window: int, formats: Path, tmp_path: Path
) -> None:
    changes |= {"model_type": "mistral", "max_position_embeddings": 8192}
    with open_checkpoint(copy_of(formats, tmp_path, **changes)) as checkpoint:
        assert checkpoint.config.seq_len == 8192
        assert checkpoint.config.windows == ((window,) * 5 if window else ())


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_loading_holds_one_tensor_at_a_time(kind: str, tmp_path: Path) -> None:
    """And that only of wq and wk, whose rows are permuted: the others are packed as they lie."""
    config = {**CONFIG, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}
    widened = 4 * 256 * 256  # float32, beside the packed model, which is not Python's memory
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in SHAPES.items():
        wide = tuple({8: 256, 12: 512, 4: 128, 5: 5}[n] for n in shape)
        for layer in range(6 if "layers" in name else 1):
            shapes[name.replace("layers.0", f"layers.{layer}")] = wide
    tensors: dict[str, NDArray[Any]] = {n: np.ones(s, np.float16) for n, s in shapes.items()}
    path = huggingface(tmp_path / "model", kind)
    if kind == "torch":
        torch_file(path, *torch_state(tensors))
    else:
        path.write_bytes(safetensors_file(*safetensors(tensors)))
    (path.parent / "config.json").write_text(json.dumps(config), "utf-8")
    del tensors
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.dtype == "float16"
        tracemalloc.start()
        try:
            Engine(checkpoint, 1).close()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert widened <= peak < 2 * widened


# ---- once, not twice ----


@pytest.mark.parametrize(
    ("name", "n_files"),
    [
        ("stories260K-f32.gguf", 1),
        ("stories260K-hf/model.safetensors", 1),
        ("stories260K-hf-bin/pytorch_model.bin", 1),
        ("stories260K-meta-2shards/consolidated.01.pth", 2),
        ("stories260K-ckpt.pt", 1),
    ],
)
def test_weights_are_opened_and_parsed_once(
    name: str, n_files: int, formats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the file that the user names, and a GGUF file whose vocabulary is in its metadata."""
    opened, parsed = [], []
    real_open, real_parse = InputFile.__init__, gguf_metadata._parse_metadata
    real_unpickle = unpickler.unpickle

    def count_open(file: InputFile, path: Path, *rest: Any, **more: Any) -> None:
        opened.append(Path(path).suffix)
        real_open(file, path, *rest, **more)

    def count_parse(*arguments: Any) -> Any:
        parsed.append(1)
        return real_parse(*arguments)

    def count_unpickle(*arguments: Any) -> Any:
        parsed.append(1)
        return real_unpickle(*arguments)

    monkeypatch.setattr(InputFile, "__init__", count_open)
    monkeypatch.setattr(gguf_metadata, "_parse_metadata", count_parse)
    monkeypatch.setattr(torch_file_reader, "unpickle", count_unpickle)
    tokenizer = formats.parent / "tok512.bin" if name.endswith("ckpt.pt") else None
    llama2py.load(formats / name, tokenizer).close()
    assert opened.count(Path(name).suffix) == n_files
    assert len(parsed) == (0 if name.endswith(".safetensors") else n_files)

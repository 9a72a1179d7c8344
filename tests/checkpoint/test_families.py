"""Models of other families than LLaMA: their logits are those of transformers.

Source of the recorded ones: tests/support/families.py.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama2py import CheckpointError, SessionError, convert
from llama2py.checkpoint import open_checkpoint
from llama2py.checkpoint.huggingface.writer import config_json
from llama2py.config import ModelConfig
from llama2py.engine.extension import ffi, lib
from llama2py.engine.isa import isa_names
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from llama2py.engine.session import Session
from tests.support.families import (
    FAMILIES,
    TOKENS,
    golden,
    logits_of_transformers,
    write_directory,
)
from tests.support.foreign_files import safetensors, safetensors_file

GOLDEN = golden()
Floats = NDArray[np.float32]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the directory of each family."""
    folder = tmp_path_factory.mktemp("families")
    return {n: write_directory(folder / n, n, GOLDEN[n]["shapes"]) for n in FAMILIES}


def logits_of(path: Path, backend: Any = Engine, **options: Any) -> Floats:
    with open_checkpoint(path) as checkpoint, Session(backend(checkpoint, **options)) as session:
        return session.forward(TOKENS, all_logits=True)


def config_of(path: Path) -> ModelConfig:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.config


# ---- Hugging Face ----


@pytest.mark.parametrize("backend", [Reference, Engine])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_the_recorded_logits(
    name: str, backend: Any, models: dict[str, Path]
) -> None:
    ours = logits_of(models[name], backend)[-1]
    np.testing.assert_allclose(ours, GOLDEN[name]["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_computes_the_same_logits(name: str, models: dict[str, Path]) -> None:
    pytest.importorskip("torch", reason="needs the extra [train]")
    theirs = logits_of_transformers(models[name])
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(logits_of(models[name]), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_step_of_a_family_changes_its_logits(name: str, models: dict[str, Path]) -> None:
    """Or a model without the step would have passed, too."""
    usual = ModelConfig(48, 80, 4, 6, 2, 97, 128)
    with open_checkpoint(models[name]) as checkpoint:
        config = checkpoint.config
        keeps = {"dim", "n_layers", "n_heads", "n_kv_heads", "head_size", "shared_classifier"}
        # Without some of them, tensors are left; a rotary_dim has as many factors.
        keeps |= {"seq_len", "qk_norm", "pre_norm", "post_norm", "rotary_dim"}
        for field in set(config.__slots__) - keeps:
            if getattr(config, field) == getattr(usual, field) or field.endswith("bias"):
                continue
            checkpoint.config = replace(config, **{field: getattr(usual, field)})
            with Session(Reference(checkpoint)) as session:
                other = session.forward(TOKENS)
            assert np.abs(other - GOLDEN[name]["logits"]).max() > 1e-3, field


# ---- the same bits ----


@pytest.mark.parametrize("name", FAMILIES)
def test_no_chunk_thread_or_instruction_set_changes_a_bit(
    name: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype in ("float32", "int8"):
        wanted: dict[bool, Floats] = {}
        for isa in isa_names():
            monkeypatch.setenv("LLAMA2PY_ISA", isa)
            exact = isa == "portable" or dtype == "int8"
            with open_checkpoint(models[name]) as checkpoint:
                engine = Engine(checkpoint, threads=3, dtype=dtype)
            caches = [engine.new_cache() for _ in range(3)]
            whole = engine.run(TOKENS, [caches[0]] * 50, range(50), range(50))
            np.testing.assert_array_equal(wanted.setdefault(exact, whole), whole, isa)
            # A token at a time, and in pieces of 1, 2, 3, ... tokens; both sessions in each call.
            at = 0
            for piece in [*range(1, 9), 14]:
                tokens = TOKENS[at : at + piece]
                batch = [caches[1]] * piece
                rows = engine.run(tokens, batch, range(at, at + piece), range(piece))
                np.testing.assert_array_equal(rows, whole[at : at + piece])
                for i in range(at, at + piece):
                    both = engine.run(
                        [TOKENS[i], TOKENS[0]], [caches[2], engine.new_cache()], [i, 0], [0]
                    )
                    np.testing.assert_array_equal(both[0], whole[i])
                at += piece
            assert at == len(TOKENS)


def test_a_window_hides_what_is_not_finite(models: dict[str, Path]) -> None:
    """A NaN at position 3 reaches 4 layers of a window of 11 far: to position 43."""
    tokens = [TOKENS[0], 5, 7, 96, *(t % 90 for t in TOKENS[4:])]
    for dtype in ("float32", "int8"):
        with open_checkpoint(models["mistral"]) as checkpoint:
            engine = Engine(checkpoint, dtype=dtype)
            table = checkpoint.tensors["token_embedding_table"][0].dequantize().copy()
        table[96] = np.nan
        lib.l2p_model_set(
            engine.handle, 0, 0, 0, ffi.from_buffer(table), ffi.NULL, 1, ffi.new("int64_t *")
        )
        with Session(engine) as whole, Session(engine) as single:
            together = whole.forward(tokens, all_logits=True)
            apart = np.concatenate([single.forward([t], all_logits=True) for t in tokens])
        finite = np.isfinite(together).all(axis=1)
        assert finite.tolist() == [not 3 <= i <= 43 for i in range(50)]
        np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("name", ["qwen2-windows", "qwen3-yarn", "olmo2", "gemma3"])
def test_a_session_is_saved_and_continued(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    with open_checkpoint(models[name]) as checkpoint:
        engine = Engine(checkpoint)
        checkpoint.config = replace(checkpoint.config, residual_scale=0.5)
        other = Engine(checkpoint)
    with Session(engine) as session:
        session.forward(TOKENS[:20])
        session.save(tmp_path / "session")
        wanted = session.forward(TOKENS[20:], all_logits=True)
    with Session.load(tmp_path / "session", engine) as session:
        np.testing.assert_array_equal(session.forward(TOKENS[20:], all_logits=True), wanted)
    with pytest.raises(SessionError, match="belongs to another model"):
        Session.load(tmp_path / "session", other)


# ---- written back ----

# Models that are written as another family, which has the same steps.
WRITTEN_AS = {
    "llama-dynamic": "llama",
    "mistral-no-window": "llama",
    "internlm3": "llama",
    "phi3": "mistral",
    "gemma3": "gemma3_text",
    "gemma3-usual-attention": "gemma3_text",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_directory_is_written_in_the_family_that_has_the_steps(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    convert(models[name], tmp_path / "copy")
    about = json.loads((tmp_path / "copy" / "config.json").read_text("utf-8"))
    assert about["model_type"] == WRITTEN_AS.get(name, name.split("-")[0])
    np.testing.assert_array_equal(logits_of(tmp_path / "copy"), logits_of(models[name]))
    pytest.importorskip("torch", reason="needs the extra [train]")
    theirs = logits_of_transformers(tmp_path / "copy")[-1]
    np.testing.assert_allclose(theirs, GOLDEN[name]["logits"], rtol=0, atol=1e-4)


def test_a_model_that_a_format_cannot_hold_is_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    mixed = {**FAMILIES["qwen2"], "num_hidden_layers": 4, "hidden_act": "gelu_pytorch_tanh"}
    mixed |= {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 5}
    about = models["qwen2"] / "config.json"
    about.write_text(json.dumps(mixed), "utf-8")
    steps = "qkv_bias, activation, windows"
    with pytest.raises(CheckpointError, match=rf"no architecture .*: {steps}; use the format hf"):
        convert(models["qwen2"], tmp_path / "a.gguf")
    about.write_text(json.dumps(FAMILIES["qwen2"]), "utf-8")
    with open_checkpoint(models["qwen3"]) as checkpoint:
        checkpoint.config = replace(checkpoint.config, embedding_scale=2.0)
        with pytest.raises(CheckpointError, match=r"no family .*: qk_norm, embedding_scale; use"):
            config_json(checkpoint, "float32", (None, []))
    with pytest.raises(CheckpointError, match=r"cannot say that qkv_bias is True"):
        convert(models["llama-with-biases"], tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


# ---- families that transformers does not have ----


def rewritten(path: Path, folder: Path, about: dict[str, Any], tensors: dict[str, Floats]) -> Path:
    """A copy of a directory with another config.json and other tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(about), "utf-8")
    (folder / "model.safetensors").write_bytes(safetensors_file(*safetensors(tensors)))
    return folder


def tensors_of(path: Path) -> dict[str, Floats]:
    from safetensors.numpy import load_file

    return dict(load_file(path / "model.safetensors"))


def test_internlm_is_a_llama_with_biases_of_attention(
    models: dict[str, Path], tmp_path: Path
) -> None:
    tensors = {n: w for n, w in tensors_of(models["llama-with-biases"]).items() if "mlp" not in n}
    tensors |= {n: w for n, w in tensors_of(models["llama"]).items() if "mlp" in n}
    llama = {**FAMILIES["llama"], "attention_bias": True}
    one = rewritten(models["llama"], tmp_path / "llama", llama, tensors)
    internlm = {**FAMILIES["llama"], "model_type": "internlm", "bias": True}
    other = rewritten(models["llama"], tmp_path / "internlm", internlm, tensors)
    np.testing.assert_array_equal(logits_of(one), logits_of(other))


def test_internlm2_has_its_queries_keys_and_values_by_groups(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """6 heads of 8 channels, 2 of keys: each group is 3 heads of queries, a key and a value."""
    tensors = tensors_of(models["llama"])
    renamed = {
        "model.embed_tokens": "model.tok_embeddings", "lm_head": "output", "self_attn.o_proj":
        "attention.wo", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
    }  # fmt: skip
    for name in list(tensors):
        for theirs, ours in renamed.items():
            if theirs in name:
                tensors[name.replace(theirs, ours)] = tensors.pop(name)
    for layer in range(4):
        prefix = f"model.layers.{layer}."
        q, k, v = (tensors.pop(f"{prefix}self_attn.{n}_proj.weight") for n in "qkv")
        groups = [
            np.concatenate([q[24 * i : 24 * i + 24], k[8 * i : 8 * i + 8], v[8 * i : 8 * i + 8]])
            for i in range(2)
        ]
        tensors[f"{prefix}attention.wqkv.weight"] = np.concatenate(groups)
    about = {**FAMILIES["llama"], "model_type": "internlm2", "bias": False}
    path = rewritten(models["llama"], tmp_path / "internlm2", about, tensors)
    np.testing.assert_array_equal(logits_of(path), logits_of(models["llama"]))


def test_minicpm_scales_as_granite_does(models: dict[str, Path], tmp_path: Path) -> None:
    granite = models["granite-with-usual-attention"]
    about = {**FAMILIES["llama"], "model_type": "minicpm", "scale_emb": 12.0, "scale_depth": 1.4}
    about["dim_model_base"] = 16  # 48 / 16 is 3; 1.4 / sqrt(4 layers) is 0.7
    path = rewritten(granite, tmp_path / "minicpm", about, tensors_of(granite))
    ours = logits_of(path)[-1]
    golden = GOLDEN["granite-with-usual-attention"]["logits"]
    np.testing.assert_allclose(ours, golden, rtol=0, atol=1e-4)


# ---- numbers of config.json ----

ODD: list[Any] = [
    None,
    0,
    1,
    -1,
    3,
    1 << 31,
    1 << 70,
    0.5,
    1e-40,
    1e300,
    "",
    "x",
    True,
    [],
    {},
    [1],
    [1, 0, 1, 0],
]
ODD += [["full_attention"] * 4, ["sliding_attention"] * 4, ["sliding_attention", None, 3, {}]]
ODD += [
    {"rope_type": kind} for kind in ("yarn", "longrope", "linear", "llama3", "dynamic", "default")
]
ODD += [
    {"rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 1 << 60},
    {"rope_type": "yarn", "factor": 0.1, "beta_fast": 1e-9, "beta_slow": 1e30},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": []},
    {"rope_type": "longrope", "short_factor": [1e308, 2, 3, 10**400]},
    {"full_attention": {}, "sliding_attention": {"rope_type": "yarn"}},
    {"full_attention": 3},
]
KEYS = sorted({key for about in FAMILIES.values() for key in about})
KEYS += ["rope_parameters", "layer_types", "no_rope_layers", "sliding_window_pattern", "bias"]
KEYS += ["scale_emb", "scale_depth", "dim_model_base", "rope_local_base_freq", "hidden_activation"]


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(FAMILIES)),
    changes=st.lists(
        st.tuples(st.sampled_from(KEYS), st.sampled_from(ODD)), min_size=1, max_size=3
    ),
)
def test_a_config_with_odd_values_opens_or_is_an_error(
    name: str, changes: list[tuple[str, Any]], models: dict[str, Path]
) -> None:
    path = models[name] / "config.json"
    try:
        path.write_text(json.dumps({**FAMILIES[name], **dict(changes)}), "utf-8")
        with suppress(CheckpointError), open_checkpoint(models[name]) as checkpoint:
            Reference(checkpoint)
    finally:
        path.write_text(json.dumps(FAMILIES[name]), "utf-8")


@pytest.mark.parametrize(
    ("name", "changes", "wanted"),
    [
        ("qwen2", {"use_sliding_window": False, "sliding_window": 9}, {"windows": ()}),
        ("qwen2-windows", {}, {"windows": (0, 0, 9, 9)}),
        ("qwen2-windows", {"max_window_layers": None}, {"windows": ()}),  # 28 of 4
        ("smollm3", {}, {"unrotated_layers": (1, 3)}),
        ("smollm3-windows", {}, {"windows": (0, 8, 0, 8)}),
        ("olmo3", {}, {"windows": (8, 8, 8, 0), "window_rope_theta": 5e5}),
        (
            "gemma3",
            {},
            {"windows": (9, 9, 9, 9, 9, 0), "window_rope_theta": 1e4, "rope_theta": 1e6},
        ),
        ("qwen2-yarn", {"max_position_embeddings": 32}, {"seq_len": 128}),
        ("phi3-partial", {}, {"seq_len": 64, "rotary_dim": 6}),
        ("llama-dynamic", {}, {"seq_len": 128, "rope_scaling": None}),
    ],
)
def test_numbers_are_read_as_transformers_reads_them(
    name: str,
    changes: dict[str, Any],
    wanted: dict[str, Any],
    models: dict[str, Path],
    tmp_path: Path,
) -> None:
    about = {**FAMILIES[name], **changes}
    path = rewritten(models[name], tmp_path / "model", about, tensors_of(models[name]))
    config = config_of(path)
    assert {key: getattr(config, key) for key in wanted} == wanted

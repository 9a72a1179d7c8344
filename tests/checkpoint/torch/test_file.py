"""Files that PyTorch itself wrote; skipped if PyTorch is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2py.checkpoint import open_checkpoint
from llama2py.checkpoint.state_dict import Weight, to_tensor
from llama2py.checkpoint.torch.file import read_torch_file
from llama2py.errors import CheckpointError
from llama2py.formats.input_file import InputFile
from tests.support.foreign_files import CONFIG, tiny_tensors

torch = pytest.importorskip("torch")


def saved(value: Any, path: Path) -> Any:
    """Save a value with torch, and read it with our reader."""
    torch.save(value, path)
    return read_torch_file(InputFile(path))  # open for as long as a tensor is in use


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_windows_of_one_storage_read_as_in_torch(tmp_path: Path, dtype: str) -> None:
    """Slices, steps, transposes and a scalar share bytes, and each reads as in torch."""
    base = torch.randn(7, 12, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    tensors = {
        "whole": base,
        "rows": base[2:5],
        "columns": base[:, 3:9:2],
        "turned": base.T,
        "middle": base[1:6:2, 4:].T[::3],
        "vector": base[:, 5],
        "flat": base.reshape(-1),
    }
    found = saved(tensors, tmp_path / "windows.pt")
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(
            to_tensor(found[name].array).dequantize(), tensor.to(torch.float32).numpy(), name
        )
    storages = {weight.window[0] for weight in found.values()}
    assert len(storages) == 1


def test_containers_around_tensors_read_as_in_torch(tmp_path: Path) -> None:
    value = {
        "numbers": [1, -70000, 1 << 40, 1.5, True, None],
        "text": ("a", "\u00e9" * 300),
        "size": torch.ones(2, 3).shape,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "integers": torch.arange(4),
        "none": torch.ones(0, 4),
        7: {"nested": {}},
    }
    found = saved(value, tmp_path / "mixed.pt")
    parameter, integers, none = (found.pop(n) for n in ("parameter", "integers", "none"))
    for name in ("parameter", "integers", "none"):
        value.pop(name)
    assert found == value
    np.testing.assert_array_equal(parameter.array.read(), [1, 1, 1])
    assert integers.dtype == "int64"
    assert none.array.shape == (0, 4)


def test_a_modules_state_dict_is_read(tmp_path: Path) -> None:
    """It is an OrderedDict with attributes."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    found = saved(module.state_dict(), tmp_path / "module.pt")
    for name, tensor in module.state_dict().items():
        assert isinstance(found[name], Weight)
        np.testing.assert_array_equal(found[name].array.read(), tensor.numpy())


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"names 'torch\.nn\.modules\.linear\.Linear'"):
        saved(torch.nn.Linear(3, 2), tmp_path / "module.pt")


def test_an_old_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="this is an old PyTorch file"):
        open_checkpoint(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_sharded_directory_is_read(tmp_path: Path, dtype: str) -> None:
    """Every second tensor in the second file, a rotary table left over, the classifier tied."""
    kind = getattr(torch, dtype)
    tensors = {n: torch.from_numpy(t).to(kind) for n, t in tiny_tensors().items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    mapping = {name: names[i % 2] for i, name in enumerate(tensors)}
    for file in names:
        torch.save({n: t for n, t in tensors.items() if mapping[n] == file}, tmp_path / file)
    index = {"metadata": {}, "weight_map": mapping}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    for path in (tmp_path, tmp_path / names[1]):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.dtype == dtype
            assert checkpoint.format == "Hugging Face (PyTorch, 2 files)"
            (down,) = checkpoint.tensors["w2"]
            expected = tensors["model.layers.0.mlp.down_proj.weight"].to(torch.float32)
            np.testing.assert_array_equal(down.dequantize(), expected.numpy())


def test_a_tied_trainer_state_shares_the_classifier(tmp_path: Path) -> None:
    """llama2.c's own model shares the embedding with the classifier; one storage says so."""
    table = torch.ones(5, 8)
    names = {
        "attention_norm": (8,),
        "attention.wq": (8, 8),
        "attention.wk": (8, 8),
        "attention.wv": (8, 8),
        "attention.wo": (8, 8),
        "ffn_norm": (8,),
        "feed_forward.w1": (12, 8),
        "feed_forward.w2": (8, 12),
        "feed_forward.w3": (12, 8),
    }
    state = {f"_orig_mod.layers.0.{n}.weight": torch.ones(s) for n, s in names.items()}
    state["_orig_mod.tok_embeddings.weight"] = state["_orig_mod.output.weight"] = table
    state["_orig_mod.norm.weight"] = torch.ones(8)
    args: dict[str, Any] = {
        "dim": 8,
        "n_layers": 1,
        "n_heads": 2,
        "n_kv_heads": None,
        "vocab_size": 5,
    }
    args |= {"max_seq_len": 16, "multiple_of": 4, "dropout": 0.0}
    torch.save({"model": state, "model_args": args, "iter_num": 7}, tmp_path / "ckpt.pt")
    with open_checkpoint(tmp_path / "ckpt.pt") as checkpoint:
        assert checkpoint.config.shared_classifier
        assert checkpoint.config.n_kv_heads == 2
        assert checkpoint.config.seq_len == 16
        assert "wcls" not in checkpoint.tensors

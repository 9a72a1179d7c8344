"""Models of other families in Hugging Face directories: transformers computes the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py import convert
from llama2py.checkpoint import open_checkpoint
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from llama2py.engine.session import Session
from tests.support.families import FAMILIES

TOKENS = [(7 * i * i + 3 * i) % 97 for i in range(50)]


def random_model(folder: Path, about: dict[str, Any]) -> NDArray[np.float32]:
    """Write a random model with transformers, and return its logits of TOKENS."""
    transformers = pytest.importorskip("transformers", reason="needs the extra [dev]")
    torch = pytest.importorskip("torch", reason="needs the extra [train]")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(about), "utf-8")
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    less_one = about["model_type"].startswith("gemma")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(std=1.5 / weight.shape[1] ** 0.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.5)
            else:
                weight.normal_(std=0.3).add_(0 if less_one else 1)
        logits = model(torch.tensor([TOKENS])).logits[0].numpy()
    model.save_pretrained(folder)
    return np.asarray(logits, np.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    logits = random_model(tmp_path / name, FAMILIES[name])
    assert np.abs(logits).max() > 0.5
    with open_checkpoint(tmp_path / name) as checkpoint:
        for backend in (Reference, Engine):
            with Session(backend(checkpoint)) as session:
                ours = session.forward(TOKENS, all_logits=True)
            np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4, err_msg=backend.__name__)


def logits_of(path: Path, dtype: Any = None) -> NDArray[np.float32]:
    with open_checkpoint(path) as checkpoint, Session(Engine(checkpoint, dtype=dtype)) as session:
        return session.forward(TOKENS, all_logits=True)


# What is written with another name: its steps are the same.
WRITTEN_AS = {
    "llama-dynamic": "llama",
    "mistral-no-window": "llama",
    "phi3": "mistral",
    "qwen2-tied": "qwen2",
}


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"phi3-partial"}))
def test_a_family_is_written_back_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    logits = random_model(tmp_path / name, FAMILIES[name])
    convert(tmp_path / name, tmp_path / "copy")
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "copy", attn_implementation="eager", dtype=torch.float32
    )
    family = WRITTEN_AS.get(name, name.split("-")[0])
    assert model.config.model_type == family.replace("gemma3", "gemma3_text")
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(theirs, logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(logits_of(tmp_path / "copy"), logits_of(tmp_path / name))

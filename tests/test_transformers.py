"""transformers reads the directories that `convert` writes: same ids, logits and texts."""

from __future__ import annotations

from pathlib import Path

import pytest

import llama2py
from llama2py import Model

transformers = pytest.importorskip("transformers", reason="needs the extra [dev]")
torch = pytest.importorskip("torch", reason="needs the extra [train]")

TEXTS = [
    "Once upon a time",
    "  two  spaces, and a tab\t",
    "Tim's 3 dogs.\nThey ran!",
    "naïve 🦊",
    "",
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the built-in model in float32."""
    from llama2py._data import builtin_model

    folder = tmp_path_factory.mktemp("hf") / "story"
    return llama2py.convert(builtin_model(), folder, dtype="float32")


@pytest.fixture(scope="module")
def model(converted: Path) -> Model:
    return llama2py.load(converted)


@pytest.mark.parametrize("prompt", TEXTS[:3])
def test_transformers_generates_the_same_text(prompt: str, converted: Path, model: Model) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    ours = model.generate(prompt, temperature=0, max_tokens=40, stop_tokens=())
    ids = torch.tensor([ours.prompt_tokens])
    made = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=40,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert made[0, ids.shape[1] :].tolist() == ours.tokens


def test_transformers_computes_the_same_logits(converted: Path, model: Model) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    tokens = model.tokenizer.encode("The dragon was afraid of fire, and so it hid in a lake.")
    with model.session() as session, torch.inference_mode():
        ours = torch.from_numpy(session.forward(tokens, all_logits=True))
        torch.testing.assert_close(
            theirs(torch.tensor([tokens])).logits[0], ours, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("text", TEXTS)
def test_transformers_encodes_to_the_same_ids(text: str, converted: Path, model: Model) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(converted)
    assert theirs(text)["input_ids"] == model.tokenizer.encode(text)

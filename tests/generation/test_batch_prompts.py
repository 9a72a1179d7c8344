"""Batches with a prompt that cannot be run."""

from __future__ import annotations

from typing import Any

import pytest

from llama2py import ContextError, Model, PromptError
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, tiny_model, tiny_tokenizer
from tests.support.scripted import ScriptedBackend


@pytest.mark.parametrize("overflow", ["stop", "error", "shift"])
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ("c" * 300, ContextError, "the prompt is 301 tokens long, longer than the model's context"),
        ([BOS, 300], PromptError, "token 300 is out of the vocabulary, expected 0 to 299"),
        ([BOS, -1], PromptError, "token -1 is out of the vocabulary, expected 0 to 299"),
        ("\ud800", PromptError, "the text holds U+D800"),
        ([], PromptError, "the prompt has no tokens"),
    ],
)
def test_all_prompts_are_checked_before_the_first_is_run(
    bad: Any, error: type[PromptError], message: str, overflow: Any
) -> None:
    backend = ScriptedBackend([], 300)
    with Model(backend, tiny_tokenizer()) as model:
        with pytest.raises(PromptError) as caught:
            model.generate(["a", "b", "c", bad, "d"], max_batch=1, overflow=overflow)
        assert type(caught.value) is error
        assert str(caught.value).startswith(f"prompt 3: {message}")
        assert backend.runs == []
        with pytest.raises(error) as alone:
            model.stream(bad, overflow=overflow)
        assert f"prompt 3: {alone.value}" == str(caught.value)


def test_a_prompt_that_cannot_be_run_ends_endless_texts() -> None:
    """When it is taken: what was given before stays."""
    with tiny_model() as model:
        texts = model.generate_many(
            iter(["a", "b", "c" * 200, "d"]), 5, seed=1, max_batch=1, overflow="error"
        )
        for prompt in "ab":
            assert next(texts).text == model.generate(prompt, 5, seed=1).text
        with pytest.raises(ContextError) as caught:
            next(texts)
        assert str(caught.value).startswith("prompt 2: the prompt is 201 tokens long")
        assert list(texts) == []


def test_a_text_at_the_end_of_the_context_ends_the_batch() -> None:
    """Which no look at the prompts can tell: the others might have ended, and so might this."""
    prompts = [[BOS], [BOS] * (TINY.seq_len - 2)]
    with tiny_model() as model:
        options: Any = {"max_tokens": 9, "stop_tokens": (), "seed": 1}
        with pytest.raises(ContextError, match="no room"):
            model.generate(prompts, overflow="error", **options)
        assert [len(text.tokens) for text in model.generate(prompts, **options)] == [9, 3]

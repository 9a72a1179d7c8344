"""Log-probabilities of drawn tokens, against the textbook."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py import Model, ParameterError, TokenLogprob
from llama2py.engine.backend import Logits
from llama2py.generation.logprobs import token_logprob
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with tiny_model() as model:
        yield model


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """The textbook's formula, in double precision."""
    wide = logits.astype(np.float64)
    return np.asarray(wide - wide.max() - np.log(np.exp(wide - wide.max()).sum()))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logprobs_are_the_models_own(model: Model, temperature: float) -> None:
    """Whatever temperature and penalties make of them; against a session run by hand."""
    g = model.generate(
        "abc", seed=4, temperature=temperature, logprobs=5, banned_tokens=[270], presence_penalty=1
    )
    assert g.logprobs is not None
    assert len(g.logprobs) == len(g.tokens) > 5
    with model.session() as session:
        rows = session.forward([*g.prompt_tokens, *g.tokens[:-1]], all_logits=True)
    for entry, token, row in zip(
        g.logprobs, g.tokens, rows[len(g.prompt_tokens) - 1 :], strict=True
    ):
        expected = log_softmax(row)
        best = sorted(range(300), key=lambda t: -expected[t])[:5]
        assert entry.token == token
        assert entry.logprob == pytest.approx(expected[token], abs=1e-5)
        assert [t for t, _ in entry.top] == best
        assert [p for _, p in entry.top] == pytest.approx(list(expected[best]), abs=1e-5)


def test_logprobs_are_kept_only_on_request(model: Model) -> None:
    plain, asked = model.generate("a", seed=2), model.generate("a", seed=2, logprobs=0)
    assert plain.logprobs is None
    assert plain.tokens == asked.tokens
    assert asked.logprobs is not None
    assert [entry.top for entry in asked.logprobs] == [()] * len(asked.tokens)
    with pytest.raises(ParameterError, match="logprobs is -1"):
        model.generate("a", logprobs=-1)


def test_the_lower_id_comes_first_among_equal_logprobs() -> None:
    flat = np.log(np.array([0.25] * 4))
    entry = token_logprob(flat, 3, 2)
    assert entry == TokenLogprob(3, math.log(0.25), ((0, math.log(0.25)), (1, math.log(0.25))))
    assert len(token_logprob(flat, 3, 99).top) == 4

"""Scores: log-probabilities against NumPy, windows over long texts, and sums."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py import Model, PromptError, Score, score_texts
from llama2py.engine.backend import Logits
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from llama2py.generation.logprobs import log_probabilities
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, random_checkpoint, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def reference() -> Iterator[Model]:
    with tiny_model("numpy") as model:
        yield model


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


def log_softmax(logits: Logits, token: int) -> float:
    """Compute the textbook's formula in double precision."""
    wide = logits.astype(np.float64)
    return float(wide[token] - wide.max() - np.log(np.exp(wide - wide.max()).sum()))


def following(model: Model, context: Sequence[int], token: int) -> float:
    """Compute ``log p(token | context)`` in a new session."""
    with model.session() as session:
        return log_softmax(session.forward(context), token)


def small(seq_len: int) -> Model:
    return Model(Engine(random_checkpoint(replace(TINY, seq_len=seq_len))), tiny_tokenizer())


def some_tokens(n: int) -> list[int]:
    return [BOS, *(int(t) for t in np.random.default_rng(n).integers(3, 300, n - 1))]


# ---- log_probabilities ----


def test_each_token_is_scored_given_all_before_it(model: Model, reference: Model) -> None:
    tokens = some_tokens(30)
    expected = [following(reference, tokens[:i], tokens[i]) for i in range(1, 30)]
    with model.session() as session:
        scored = log_probabilities(session, tokens)
    assert (scored.shape, scored.dtype) == ((29,), np.float64)  # type: ignore[comparison-overlap,unused-ignore]
    np.testing.assert_allclose(scored, expected, rtol=0, atol=2e-4)


def test_the_probabilities_of_all_next_tokens_add_up_to_one(model: Model) -> None:
    with model.session() as session:
        last = [log_probabilities(session, [BOS, 9, token])[1] for token in range(300)]
    assert math.fsum(math.exp(value) for value in last) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("seq_len", "starts"),
    [
        # Input i (which predicts token i + 1) sees the inputs from starts[i] on. The first window
        # is full. Each later one begins half a window (rounded down) before the first new token.
        (4, [0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 8]),
        (5, [0, 0, 0, 0, 0, 3, 3, 3, 6, 6, 6]),
        (8, [0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4]),
        (10, [0] * 10 + [5]),
        (11, [0] * 11),
        (12, [0] * 11),
        (1, list(range(11))),
        (2, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_windows_overlap_by_half(seq_len: int, starts: list[int]) -> None:
    tokens = some_tokens(12)
    with small(seq_len) as model:
        expected = [following(model, tokens[starts[i] : i + 1], tokens[i + 1]) for i in range(11)]
        with model.session() as session:
            scored = log_probabilities(session, tokens)
    # The engine gives a token the same bits in any block: only log and exp differ.
    np.testing.assert_allclose(scored, expected, rtol=0, atol=2e-6)


def test_earlier_tokens_of_the_session_do_not_matter(model: Model) -> None:
    tokens = some_tokens(20)
    with model.session() as session:
        fresh = log_probabilities(session, tokens)
    with model.session() as session:
        session.forward(some_tokens(50))
        np.testing.assert_allclose(log_probabilities(session, tokens), fresh, rtol=0, atol=1e-4)


def test_a_first_token_alone_is_only_context(model: Model) -> None:
    with model.session() as session:
        assert log_probabilities(session, [BOS]).shape == (0,)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_large_logits_do_not_overflow(shift: float) -> None:
    """Softmax does not change if all logits are shifted."""

    class Shifted(Reference):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            logits: NDArray[np.float32] = super().run(*args, **kwargs)
            return (np.round(logits) + np.float32(shift)).astype(np.float32)

    class Rounded(Reference):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            return np.round(super().run(*args, **kwargs))

    tokens = some_tokens(10)
    scored = []
    for backend in (Rounded, Shifted):
        with (
            Model(backend(random_checkpoint(TINY)), tiny_tokenizer()) as model,
            model.session() as session,
        ):
            scored.append(log_probabilities(session, tokens))
    np.testing.assert_allclose(scored[0], scored[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("token", [-1, 300])
def test_a_last_token_out_of_the_vocabulary_is_an_error(token: int) -> None:
    with tiny_model() as model, model.session() as session, pytest.raises(PromptError):
        log_probabilities(session, [BOS, 5, token])


# ---- score_texts ----


@pytest.mark.parametrize("text", ["a", "ab abc", "Ein Bär 🐻.", "\n"])
def test_a_text_is_scored_up_to_the_bos_that_ends_it(
    model: Model, reference: Model, text: str
) -> None:
    inputs = model.tokenizer.encode(text)
    assert inputs[0] == BOS
    tokens = [*inputs, BOS]
    nats = -math.fsum(following(reference, tokens[:i], tokens[i]) for i in range(1, len(tokens)))
    score = score_texts(model, [text])
    assert (score.texts, score.tokens, score.bytes) == (1, len(inputs), len(text.encode("utf-8")))
    assert score.nats == pytest.approx(nats, abs=1e-3)


def test_texts_are_scored_independently() -> None:
    """Some are long, so that the session is rewound between them."""
    texts = ["abc", "abc" * 50, "b", "abc", "🐶" * 20]
    with tiny_model() as model:
        alone = [score_texts(model, [text]) for text in texts]
        together = score_texts(model, iter(texts))
    assert (together.texts, together.tokens) == (5, sum(score.tokens for score in alone))
    assert together.bytes == 3 + 150 + 1 + 3 + 80
    assert together.nats == pytest.approx(math.fsum(score.nats for score in alone), rel=1e-12)
    assert alone[0] == alone[3]


def test_the_score_of_no_text_is_empty(model: Model) -> None:
    score = score_texts(model, [])
    assert score == Score(0, 0, 0, 0.0)
    assert math.isnan(score.bits_per_byte)
    assert math.isnan(score.nats_per_token)


def test_an_empty_text_is_an_error(model: Model) -> None:
    with pytest.raises(PromptError, match="empty"):
        score_texts(model, ["a", ""])


def test_half_a_surrogate_is_an_error(model: Model) -> None:
    with pytest.raises(PromptError, match="surrogate"):
        score_texts(model, ["\ud800"])


def test_every_session_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_model() as model:
        opened = []
        make = model.session
        monkeypatch.setattr(model, "session", lambda: opened.append(make()) or opened[-1])  # type: ignore[func-returns-value]
        score_texts(model, ["a", "b"])
        with pytest.raises(PromptError):
            score_texts(model, ["a", ""])
        assert len(opened) == 2  # one for all texts of a call
        for session in opened:
            with pytest.raises(Exception, match="session is closed"):
                session.forward([1])


# ---- Score ----


def test_means_are_computed_from_nats() -> None:
    score = Score(texts=2, tokens=8, bytes=16, nats=16 * math.log(2))
    assert score.bits_per_byte == pytest.approx(1)
    assert score.nats_per_token == pytest.approx(2 * math.log(2))


def test_scores_add_up_field_by_field() -> None:
    assert Score(1, 20, 300, 0.5) + Score(2, 3, 4, 0.25) == Score(3, 23, 304, 0.75)


def test_a_uniform_model_pays_log_of_the_vocabulary_per_token() -> None:
    """All logits are equal: log(300) nats per token."""

    class Flat(Reference):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            return np.zeros_like(super().run(*args, **kwargs))

    with Model(Flat(random_checkpoint(TINY)), tiny_tokenizer()) as model:
        score = score_texts(model, ["🐶"])  # a space, four bytes, BOS
    assert score.tokens == 6
    assert score.nats == pytest.approx(6 * math.log(300))
    assert score.bits_per_byte == pytest.approx(6 * math.log2(300) / 4)

"""Sessions: positions, rewinding, and errors that change nothing."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py import ClosedError, Model, ModelConfig, PromptError
from llama2py.engine.native import Engine
from tests.conftest import TINY, random_checkpoint, tiny_model, tiny_tokenizer

TOKENS = [1, 270, 33, 259, 5, 299, 0, 271]


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def alike(model: Model, a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """However tokens were split over calls: of the engine the same bits, of NumPy close ones."""
    if model.backend.isa == "numpy":
        return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-4)
    return same(a, b)


# ---- forward ----


def test_forward_returns_logits_and_moves_the_position(model: Model) -> None:
    with model.session() as session:
        assert (session.position, session.room) == (0, 64)
        last = session.forward(TOKENS[:3])
        assert last.shape == (300,)
        assert last.dtype == np.float32
        assert (session.position, session.room) == (3, 61)
        rows = session.forward(TOKENS[3:], all_logits=True)
        assert rows.shape == (5, 300)
        assert rows.dtype == np.float32
        assert (session.position, session.room) == (8, 56)


def test_all_logits_end_with_the_last(model: Model) -> None:
    with model.session() as one, model.session() as other:
        assert alike(model, one.forward(TOKENS, all_logits=True)[-1], other.forward(TOKENS))


def test_a_long_prompt_gives_the_same_bits_in_blocks_of_any_size() -> None:
    """Longer than the largest block that the session gives the engine."""
    config = ModelConfig(24, 44, 2, 4, 2, 300, 600)
    model = Model(Engine(random_checkpoint(config)), tiny_tokenizer())
    tokens = [(7 * i) % 300 for i in range(600)]
    with model.session() as one, model.session() as other:
        whole = one.forward(tokens, all_logits=True)
        rows = [other.forward([token]) for token in tokens]
    assert same(whole, np.stack(rows))
    with model.session() as session:
        assert same(session.forward(tokens), whole[-1])
        assert session.room == 0


def test_tokens_may_be_numpy_integers(model: Model) -> None:
    with model.session() as session:
        expected = session.forward(TOKENS)
    for tokens in (np.array(TOKENS), [np.int32(token) for token in TOKENS], tuple(TOKENS)):
        with model.session() as session:
            assert same(session.forward(tokens), expected)  # type: ignore[arg-type]


def test_logits_do_not_change_when_the_session_runs_on(model: Model) -> None:
    """They are the caller's own arrays."""
    with model.session() as session:
        first = session.forward(TOKENS)
        copy = first.copy()
        session.forward([5])
        assert same(first, copy)
        first[:] = 0
        session.rewind(7)
        assert alike(model, session.forward(TOKENS[7:]), copy)


# ---- rewind ----


@pytest.mark.parametrize("position", [0, 1, 5, 8])
def test_rewind_forgets_the_tokens_after_a_position(model: Model, position: int) -> None:
    """The same bits as a session that never went astray."""
    other = [9, 200, 44, 268]
    with model.session() as straight:
        expected = straight.forward(TOKENS[:position] + other, all_logits=True)[-4:]
    with model.session() as session:
        session.forward(TOKENS)
        session.rewind(position)
        assert session.position == position
        assert alike(model, session.forward(other, all_logits=True), expected)


@pytest.mark.parametrize("position", [-1, 9])
def test_rewind_outside_the_run_tokens_is_an_error(model: Model, position: int) -> None:
    with model.session() as session:
        session.forward(TOKENS)
        with pytest.raises(
            PromptError, match=f"position is {position}, expected a whole .* 0 to 8"
        ):
            session.rewind(position)
        assert session.position == 8


# ---- errors ----


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "there are no tokens to run"),
        ([1, 300], "token 300 is out of the vocabulary, expected 0 to 299"),
        ([1, -1, 2], "token -1 is out"),
        ([2**40], f"token {2**40} is out"),
        ([1] * 57, "no room for 57 tokens at position 8: the model's context holds 64"),
    ],
)
def test_a_refused_forward_changes_nothing(model: Model, tokens: list[int], message: str) -> None:
    with model.session() as session, model.session() as undisturbed:
        session.forward(TOKENS)
        undisturbed.forward(TOKENS)
        with pytest.raises(PromptError, match=message):
            session.forward(tokens)
        assert session.position == 8
        assert same(session.forward([7] * 56), undisturbed.forward([7] * 56))


@pytest.mark.parametrize("tokens", ["12", [1.0], [None], ["1"]])
def test_tokens_are_whole_numbers(model: Model, tokens: Any) -> None:
    """Digits and fractions are a caller's mistake, not tokens."""
    with model.session() as session:
        with pytest.raises(PromptError, match=r"tokens (is|holds) .*, expected"):
            session.forward(tokens)
        assert session.position == 0


def test_a_full_context_takes_no_more_tokens(model: Model) -> None:
    with model.session() as session:
        session.forward([3] * 64)
        with pytest.raises(PromptError, match="no room for 1 token at position 64"):
            session.forward([3])


def test_a_closed_session_is_an_error(model: Model) -> None:
    session = model.session()
    session.forward(TOKENS)
    session.close()
    session.close()
    with pytest.raises(ClosedError, match="session is closed"):
        session.forward([1])
    with pytest.raises(ClosedError, match="session is closed"):
        session.rewind(0)


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_closed_model_is_an_error(backend: Any) -> None:
    model = tiny_model(backend)
    session = model.session()
    session.forward(TOKENS)
    model.close()
    model.close()
    uses: list[Callable[[], object]] = [
        model.session,
        model.generate,
        model.stream,
        lambda: model.backend,
        lambda: session.forward([1]),
    ]
    for use in uses:
        with pytest.raises(ClosedError, match="model is closed"):
            use()
    session.close()
    assert model.config == TINY  # what needs no weights still works
    assert "closed" in repr(model)


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_session_keeps_its_model_alive(backend: Any) -> None:
    model = tiny_model(backend)
    with model.session() as session:
        expected = session.forward(TOKENS)
    session = model.session()
    del model
    gc.collect()
    assert same(session.forward(TOKENS), expected)

"""Running a batch and drawing in one call: what `forward` and a `Sampler` draw, or nothing runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llama2py import (
    Cancelled,
    ClosedError,
    ContextError,
    EngineError,
    Model,
    PromptError,
    SamplingParams,
)
from llama2py.engine import session as session_module
from llama2py.engine.backend import Draw, pick
from llama2py.engine.session_many import next_tokens_many
from llama2py.generation.sampling import Coin, Sampler
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, tiny_model
from tests.support.drawing import WAYS, apart, keys, next_token, plain_draw


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


@pytest.fixture(scope="module")
def fast() -> Iterator[Model]:
    """Of the engine alone, whose bits are the same however tokens are gathered."""
    with tiny_model(threads=2) as model:
        yield model


Call = tuple[list[int], list[int], list[Draw]]  # tokens, rows, draws


def calls_of(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What reaches the backend's `next_tokens` from now on."""
    calls: list[Call] = []
    run = model.backend.next_tokens

    def next_tokens(
        tokens: list[int], caches: list[Any], positions: list[int], rows: list[int], draws: Any
    ) -> list[int]:
        calls.append((list(tokens), list(rows), list(draws)))
        return run(tokens, caches, positions, rows, draws)

    monkeypatch.setattr(model.backend, "next_tokens", next_tokens)
    return calls


# ---- one session ----


@pytest.mark.parametrize("params", WAYS, ids=lambda way: f"{way.temperature:g}, {way.top_p:g}")
def test_the_next_token_is_what_two_calls_draw(model: Model, params: SamplingParams) -> None:
    """Token by token behind a prompt; afterwards sessions and coins are the same, too."""
    together, by_two = (Sampler(model.backend, params, seed=5) for _ in range(2))
    with model.session() as one, model.session() as other:
        block, drawn = [BOS, 260, 299, 0], []
        for n_tokens in [None, 300, 280, 3, 1, *[None] * 30]:
            token = next_token(one, block, plain_draw(together, n_tokens))
            assert token == apart(other, block, by_two, n_tokens)
            assert isinstance(token, int)
            block = [token]
            drawn.append(token)
        assert one.tokens == other.tokens == [BOS, 260, 299, 0, *drawn[:-1]]  # the last is not run
        assert keys(one) == keys(other)
        assert plain_draw(together) == plain_draw(by_two)
        assert len(set(drawn)) > 5


def test_a_coin_for_each_draw_that_needs_one() -> None:
    """The coins of the seed in their order; the best token costs none."""
    with tiny_model("numpy") as model:
        coin, sampler = Coin(11), Sampler(model.backend, SamplingParams(0.7, 0.4), seed=11)
        assert [plain_draw(sampler) for _ in range(5)] == [
            Draw(0.7, 0.4, coin.flip(), 300) for _ in range(5)
        ]
        sampler.params = SamplingParams(0.0)
        assert [plain_draw(sampler, n)[::3] for n in (None, 9)] == [(0.0, 300), (0.0, 9)]
        sampler.params = SamplingParams(2.0, 1.0)
        assert plain_draw(sampler) == Draw(2.0, 1.0, coin.flip(), 300)
        assert plain_draw(sampler, 1) == Draw(2.0, 1.0, coin.flip(), 1)
        assert sampler.sample(np.zeros(300, np.float32)) == int(coin.flip() * 300)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Sessions run 16 tokens in a call, as those of a big model do."""
    monkeypatch.setattr(session_module, "_BLOCK_WORK", 1)
    return 16


@pytest.mark.parametrize("n", [15, 16, 17, 32, 33, 64])
def test_a_prompt_of_several_blocks_is_drawn_from_once(
    model: Model, short_blocks: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [BOS, *(7 * i % 300 for i in range(1, n))]
    together, by_two = (Sampler(model.backend, WAYS[0], seed=n) for _ in range(2))
    calls = calls_of(model, monkeypatch)
    with model.session() as one, model.session() as other:
        draw = plain_draw(together)
        assert next_token(one, tokens, draw) == apart(other, tokens, by_two)
        assert (one.position, keys(one)) == (n, keys(other))
    assert [token for block, _, _ in calls for token in block] == tokens
    assert all(len(block) == short_blocks for block, _, _ in calls[:-1])
    assert [(rows, draws) for _, rows, draws in calls[:-1]] == [([], [])] * (len(calls) - 1)
    assert calls[-1][1:] == ([len(calls[-1][0]) - 1], [draw])
    assert len(calls) == -(-n // short_blocks)


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_interrupted_between_blocks(model: Model, short_blocks: int, asked: int) -> None:
    """What has run stays, and the rest goes on as if nothing had been."""
    tokens = [BOS, *range(100, 140)]
    answers = iter([False] * asked + [True])
    draw = Draw(1.0, 0.9, 0.3, 300)
    with model.session() as one, model.session() as other:
        with pytest.raises(Cancelled, match="interrupted by its caller"):
            next_token(one, tokens, draw, lambda: next(answers))
        assert next(answers, None) is None  # asked before each block, and not again
        assert one.tokens == tokens[: asked * short_blocks]
        rest = tokens[one.position :]
        assert next_token(one, rest, draw, lambda: False) == next_token(other, tokens, draw)
        assert one.tokens == other.tokens == tokens


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        ([], PromptError),
        ([300], PromptError),
        ([5, -1], PromptError),
        ([1] * 61, ContextError),
        (["a"], TypeError),
        ([1.5], TypeError),
    ],
    ids=str,
)
def test_an_error_runs_nothing(
    model: Model, tokens: list[Any], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Draw(1.0, 0.9, 0.7, 300)
    with model.session() as one, model.session() as other:
        for session in (one, other):
            session.forward([BOS, 4, 5, 6])
        with monkeypatch.context() as patch:
            calls = calls_of(model, patch)
            with pytest.raises(error):
                next_token(one, tokens, draw)
            with pytest.raises(error):
                next_tokens_many([other, one], [[7], tokens], [draw, None])
            assert calls == []
        assert (one.tokens, keys(one)) == (other.tokens, keys(other))
        assert next_token(one, [8] * 60, draw) == next_token(other, [8] * 60, draw)


def test_a_closed_session_draws_nothing(model: Model) -> None:
    draw = Draw(0.0, 1.0, 0.0, 300)
    with model.session() as other:
        session = model.session()
        next_token(session, [BOS], draw)
        session.close()
        with pytest.raises(ClosedError, match="session is closed"):
            next_token(session, [1], draw)
        with pytest.raises(ClosedError, match="session is closed"):
            next_tokens_many([other, session], [[1], [1]], [draw, draw])
        assert other.position == 0


def test_a_closed_model_draws_nothing() -> None:
    for backend in ("c", "numpy"):
        model = tiny_model(backend)
        session = model.session()
        model.backend.close()
        with pytest.raises(ClosedError, match="model is closed"):
            next_token(session, [1], Draw(0.0, 1.0, 0.0, 300))
        assert session.position == 0


def test_a_full_context_is_shifted(model: Model) -> None:
    """Token by token through two contexts."""
    together, by_two = (Sampler(model.backend, WAYS[0], seed=3) for _ in range(2))
    with model.session("shift") as one, model.session("shift") as other:
        block = [BOS, *range(10, 60)]
        for _ in range(2 * TINY.seq_len):
            token = next_token(one, block, plain_draw(together))
            assert token == apart(other, block, by_two)
            block = [token]
        assert one.tokens == other.tokens
        assert one.position <= TINY.seq_len
        assert keys(one) == keys(other)


def test_a_fork_draws_for_itself(fast: Model) -> None:
    """Steps of both in turns: neither's call leaves anything to the other's."""
    with fast.session() as trunk, fast.session() as one, fast.session() as other:
        for session in (trunk, one, other):
            session.forward([BOS, 50, 51])
        with trunk.fork() as branch:
            pairs = [(trunk, one, 7, 1.0), (branch, other, 8, 2.0)]
            samplers = {
                session: Sampler(fast.backend, SamplingParams(heat), seed)
                for a, b, seed, heat in pairs
                for session in (a, b)
            }
            blocks = {session: [9] for session in samplers}
            for _ in range(20):
                for a, b, _, _ in pairs:
                    token = next_token(a, blocks[a], plain_draw(samplers[a]))
                    assert token == apart(b, blocks[b], samplers[b])
                    blocks[a] = blocks[b] = [token]
            assert trunk.tokens != branch.tokens


# ---- the engine ----


@pytest.mark.parametrize(
    ("rows", "draws"),
    [
        ([0], []),
        ([], [300]),
        ([0, 1], [300]),
        ([2], [0]),
        ([2], [-1]),
        ([2], [301]),
        ([0, 2], [300, 301]),
        ([0, 2], [0, 300]),
        ([3], [300]),
        ([-1], [300]),
        ([0, 1, 2, 3], [300] * 4),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine_refuses_what_it_cannot_draw(
    fast: Model, rows: list[int], draws: list[int], temperature: float
) -> None:
    backend = fast.backend
    with fast.session() as session:
        session.forward([BOS, 5, 6])
        before, cache = keys(session), session._open_cache()
        with pytest.raises(EngineError):
            backend.next_tokens(
                [7, 8, 9],
                [cache] * 3,
                range(3),
                rows,
                [Draw(temperature, 0.9, 0.5, n) for n in draws],
            )
        assert keys(session) == before
        assert next_token(session, [7], Draw(0.0, 1.0, 0.0, 300)) in range(300)


@pytest.mark.parametrize("n_tokens", [0, -1, 301])
def test_a_step_that_is_refused_leaves_the_session_of_use(fast: Model, n_tokens: int) -> None:
    with fast.session() as one, fast.session() as other:
        with pytest.raises(EngineError, match="refuses"):
            next_token(one, [BOS], Draw(1.0, 0.9, 0.5, n_tokens))
        assert one.position == 0
        draw = Draw(1.0, 0.9, 0.5, 300)
        assert next_token(one, [BOS], draw) == next_token(other, [BOS], draw)


@pytest.mark.parametrize("heat", [0.0, 1.0, 5.0])
def test_nothing_behind_the_first_so_many_is_drawn(model: Model, heat: float) -> None:
    with model.session() as session:
        logits = session.forward([BOS, 20])
        beyond = 0
        for n in range(1, 301):
            draw = Draw(heat, 1.0, (n * 0.618) % 1, n)
            session.rewind(1)
            token = next_token(session, [20], draw)
            assert token == pick(model.backend, logits.copy(), draw)
            assert 0 <= token < n
            beyond += pick(model.backend, logits.copy(), draw._replace(n_tokens=300)) >= n
        assert beyond > 50  # where all count, other tokens come


def test_rows_of_any_order_and_several_draws_of_one(model: Model) -> None:
    """Each draw is from its own row."""
    tokens, rows = [BOS, 5, 299, 7, 88], [4, 0, 2, 2, 4, 1, 3, 3]
    draws = [Draw(i % 3 / 2, [0.9, 1.0][i % 2], i / 8, 300 - 9 * i) for i in range(8)]
    with model.session() as one, model.session() as other:
        logits = other.forward(tokens, all_logits=True)
        cache = one._open_cache()
        drawn = model.backend.next_tokens(tokens, [cache] * 5, range(5), rows, draws)
    expected = [
        pick(model.backend, logits[row].copy(), draw) for row, draw in zip(rows, draws, strict=True)
    ]
    assert drawn == expected
    assert len(set(drawn)) > 4


def test_zero_draws_only_run(model: Model) -> None:
    with model.session() as one, model.session() as other:
        assert model.backend.next_tokens([BOS, 5], [one._open_cache()] * 2, range(2), [], []) == []
        one._append([BOS, 5])
        other.forward([BOS, 5])
        np.testing.assert_array_equal(one.forward([6]), other.forward([6]))

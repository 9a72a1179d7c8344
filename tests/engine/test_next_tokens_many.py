"""Draws for several sessions, and in several threads: each what it is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama2py.engine.session_many import forward_many, next_tokens_many

from llama2py import Cancelled, ClosedError, ContextError, Model, ModelConfig
from llama2py.engine import native as engine
from llama2py.engine._engine import lib
from llama2py.engine.backend import Draw, pick
from llama2py.engine.native import Engine
from llama2py.generation.sampling import Sampler
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import random_checkpoint, tiny_model, tiny_tokenizer
from tests.support.drawing import WAYS, apart, keys, next_token, plain_draw


@pytest.fixture(scope="module")
def fast() -> Iterator[Model]:
    """Of the engine alone, whose bits are the same however tokens are gathered."""
    with tiny_model(threads=2) as model:
        yield model


@st.composite
def rounds(draw: st.DrawFn) -> list[list[tuple[list[int], Draw | None]]]:
    """A few rounds: for each of some sessions a block and how to draw, or not."""
    n = draw(st.integers(1, 6))
    coin = st.integers(0, (1 << 24) - 1).map(lambda c: c / (1 << 24))
    heat = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0])
    how = st.builds(
        Draw, heat, st.sampled_from([0.0, 0.3, 0.9, 1.0]), coin, st.sampled_from([1, 2, 280, 300])
    )
    block = st.lists(st.integers(0, 299), min_size=1, max_size=draw(st.sampled_from([1, 3, 20])))
    one = st.tuples(block, st.none() | how)
    return draw(st.lists(st.lists(one, min_size=n, max_size=n), min_size=1, max_size=3))


@settings(max_examples=150, deadline=None)
@given(asked=rounds())
def test_many_draw_what_each_draws_alone(
    fast: Model, asked: list[list[tuple[list[int], Draw | None]]]
) -> None:
    n = len(asked[0])
    together, alone = ([fast.session() for _ in range(n)] for _ in range(2))
    for wishes in asked:
        blocks, draws = [block for block, _ in wishes], [how for _, how in wishes]
        drawn = next_tokens_many(together, blocks, draws)
        for session, block, how, token in zip(alone, blocks, draws, drawn, strict=True):
            logits = session.forward(block)
            assert token == (None if how is None else pick(fast.backend, logits, how))
    for one, other in zip(together, alone, strict=True):
        assert (one.tokens, keys(one)) == (other.tokens, keys(other))
        one.close()
        other.close()


def test_many_in_numpy() -> None:
    """Nearly the bits of each alone, and far from another token."""
    with tiny_model("numpy") as model:
        together, alone = ([model.session() for _ in range(4)] for _ in range(2))
        draws = [
            Draw(0.0, 1.0, 0.0, 300),
            None,
            Draw(1.0, 0.9, 0.5, 300),
            Draw(2.0, 1.0, 0.25, 200),
        ]
        for blocks in ([[BOS, 7], [5] * 9, [299], [1, 0, 2, 3]], [[8], [9], [10], [11]]):
            drawn = next_tokens_many(together, blocks, draws)
            for session, block, how, token in zip(alone, blocks, draws, drawn, strict=True):
                if how is None:
                    session.forward(block)
                    assert token is None
                else:
                    assert token == next_token(session, block, how)
            assert [s.tokens for s in together] == [s.tokens for s in alone]


def test_many_shift_where_they_are_to(fast: Model) -> None:
    draw = Draw(1.0, 0.9, 0.6, 300)
    for overflow in ("shift", "error"):
        one, other, short = fast.session("shift"), fast.session("shift"), fast.session()
        for session in (one, other):
            session.overflow = overflow
            session.forward([BOS, *range(63)])
        if overflow == "error":
            with pytest.raises(ContextError):
                next_tokens_many([short, one], [[BOS], [9]], [draw, draw])
            assert (short.position, one.position) == (0, 64)
        else:
            drawn = next_tokens_many([short, one], [[BOS], [9]], [None, draw])
            assert drawn == [None, next_token(other, [9], draw)]
            assert (one.tokens, keys(one)) == (other.tokens, keys(other))
            assert one.position < 64


@pytest.mark.parametrize("draws", [[], [None], [None] * 3])
def test_a_draw_or_none_for_each_session(fast: Model, draws: list[None]) -> None:
    sessions = [fast.session() for _ in range(2)]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        next_tokens_many(sessions, [[1], [1]], draws)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        next_tokens_many(sessions, [[1]], [None, None])
    assert [session.position for session in sessions] == [0, 0]


# ---- threads ----

# A forward pass of 120 tokens takes some tenths of a second with one thread.
SLOW = ModelConfig(384, 1024, 16, 6, 6, 300, 256)


class Watched:
    """The engine's library; something happens as a pass begins, and how it ends is kept."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.ends: list[int] = []
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def l2p_forward(self, *arguments: Any) -> int:
        self._happens()
        self.ends.append(lib.l2p_forward(*arguments))
        return self.ends[-1]


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize(("n", "closed"), [(1, 0), (2, 0), (2, 1)])
def test_closed_by_another_thread(
    when: Literal["before", "while"], n: int, closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of this session alone ends soon; one that others take part in goes on for them."""
    with Model(Engine(random_checkpoint(SLOW), threads=1), tiny_tokenizer()) as model:
        monkeypatch.setattr(engine, "LONG_WORK", 1 << 60)  # no thread of the engine's own
        draw, tokens = Draw(1.0, 0.9, 0.5, 300), [7 * i % 300 for i in range(60)]
        with model.session() as quiet:
            expected = next_token(quiet, tokens, draw)
        sessions = [model.session() for _ in range(n)]
        closer = Thread(target=sessions[closed].close)

        def close() -> None:
            closer.start()
            if when == "before":  # after the arguments have been put together
                closer.join()

        watched = Watched(close)
        monkeypatch.setattr(engine, "lib", watched)
        if n == 1:
            with pytest.raises(Cancelled, match="closed meanwhile"):
                next_token(sessions[0], tokens, draw)
            assert watched.ends == [lib.L2P_CANCELLED]
            assert sessions[0].position == 0
            with pytest.raises(ClosedError):
                next_token(sessions[0], [1], draw)
        else:
            assert next_tokens_many(sessions, [tokens] * 2, [draw] * 2) == [expected] * 2
            assert watched.ends == [lib.L2P_OK]
        closer.join()


@pytest.mark.parametrize("steps", ["alone", "in pairs"])
def test_threads_with_sessions_of_their_own(fast: Model, steps: str) -> None:
    """Calls take turns, and none writes into what another waits with."""

    def tell(seed: int) -> list[list[int]]:
        told: list[list[int]] = [[], []]
        sessions = [fast.session() for _ in told]
        samplers = [Sampler(fast.backend, WAYS[0], seed), Sampler(fast.backend, WAYS[4], seed + 1)]
        blocks = [[BOS, seed], [seed] * 5]
        for _ in range(50):
            draws = [plain_draw(sampler) for sampler in samplers]
            tokens: list[int | None] = (
                [next_token(s, b, d) for s, b, d in zip(sessions, blocks, draws, strict=True)]
                if steps == "alone"
                else next_tokens_many(sessions, blocks, draws)
            )
            blocks = [[token or 0] for token in tokens]
            for text, block in zip(told, blocks, strict=True):
                text += block
        return told

    seeds = list(range(1, 9))
    expected = [tell(seed) for seed in seeds]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(tell, seeds)) == expected
    assert len({str(text) for text in expected}) == len(seeds)


def test_logits_between_draws(fast: Model) -> None:
    """A session may change from one kind of call to the other at any token."""
    by_turns, by_two = (Sampler(fast.backend, WAYS[2], seed=9) for _ in range(2))
    with fast.session() as one, fast.session() as other, fast.session() as third:
        block = [BOS, 30]
        for i in range(40):
            if i % 3 == 0:
                token = next_token(one, block, plain_draw(by_turns))
            elif i % 3 == 1:
                token = by_turns.sample(one.forward(block))
            else:
                third.rewind(0)
                token = by_turns.sample(forward_many([one, third], [block, [BOS]])[0])
            assert token == apart(other, block, by_two)
            block = [token]

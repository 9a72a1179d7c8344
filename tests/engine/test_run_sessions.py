"""The one way forward: what `run_sessions` draws, alone, ahead or in a batch.

Beside each session goes another one that takes one token at a time, by `forward` and a draw in
Python. Nobody can tell the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Thread
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py import Cancelled, ClosedError, ContextError, EngineError, Model, ModelConfig
from llama2py.engine import native
from llama2py.engine import session as session_module
from llama2py.engine._engine import lib
from llama2py.engine.backend import Draw, draw_token
from llama2py.engine.native import Engine
from llama2py.engine.session import Session, run_sessions
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, random_checkpoint, tiny_model, tiny_tokenizer
from tests.support.drawing import HOT, by_hand, draw_tokens, same, session_at
from tests.support.scripted import ScriptedBackend

CONTEXT = TINY.seq_len


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


@pytest.fixture(scope="module")
def fast() -> Iterator[Model]:
    """The C engine alone, whose bits do not depend on the batch."""
    with tiny_model(threads=2) as model:
        yield model


def close_to(model: Model, a: Any, b: Any) -> bool:
    """The same bits with the C engine; nearly so with NumPy, whose bits depend on the batch."""
    if model.backend.isa == "numpy":
        return bool(np.allclose(a, b, rtol=0, atol=1e-4))
    return bool(np.asarray(a).tobytes() == np.asarray(b).tobytes())


# ---- one session, several draws ----


@pytest.mark.parametrize("start", [0, 1, 14, 15, 16, 31, 47, 48, 62, 63])
def test_drawing_ends_with_the_context(model: Model, start: int) -> None:
    """From positions on both sides of each multiple of 16, where the engine's rows grow."""
    with session_at(model, start) as one, session_at(model, start) as other:
        drawn = draw_tokens(one, [9], HOT)
        assert len(drawn) == CONTEXT - start
        assert drawn == by_hand(other, [9], HOT[: CONTEXT - start])
        assert one.room == 0
        assert same(one, other)
        with pytest.raises(ContextError):
            draw_tokens(one, drawn[-1:], HOT)
        assert same(one, other)


@pytest.mark.parametrize("tokens", [[9], [BOS, *range(60, 80)]])
@pytest.mark.parametrize("n", [1, 2, 3, 16, 17])
def test_each_draw_gives_one_token(fast: Model, tokens: list[int], n: int) -> None:
    """After one token and after a prompt."""
    heats = [
        Draw([0.0, 0.5, 1.5][i % 3], [1.0, 0.9, 0.0][i // 3 % 3], i / 17, 300 - i) for i in range(n)
    ]
    with session_at(fast, 13) as one, session_at(fast, 13) as other:
        assert draw_tokens(one, tokens, heats) == by_hand(other, tokens, heats)
        assert same(one, other)  # the last token has not been run


def test_a_token_counts_as_run_when_the_next_one_is_requested(model: Model) -> None:
    with session_at(model, 5) as one, session_at(model, 5) as other:
        (tokens,) = run_sessions([one], [[9]], [HOT[:10]])
        last = [9]
        for draw in HOT[:10]:
            last = [next(tokens), *by_hand(other, last, [draw])][:1]
            assert one.tokens == other.tokens
            assert same(one, other)
        assert next(tokens, None) is None
        assert same(one, other)


def test_no_token_is_drawn_after_a_stop_token(model: Model) -> None:
    with session_at(model, 5) as one, session_at(model, 5) as other:
        whole = by_hand(other, [9], HOT[:16])
        assert len(set(whole)) > 12
        for at in range(16):
            some = [whole[at], 298, 299]
            for stop_tokens in (some, some[::-1], [*range(3), *some]):
                first = min(whole.index(token) for token in stop_tokens if token in whole)
                one.rewind(5)
                assert draw_tokens(one, [9], HOT[:16], stop_tokens) == whole[: first + 1]
                assert one.position == 5 + first + 1
        one.rewind(5)
        others = [token for token in range(300) if token not in whole[:-1]]
        assert draw_tokens(one, [9], HOT[:16], others) == whole  # hundreds, and the token 9 too
        assert same(one, other)


def test_a_full_context_is_shifted_between_two_passes(model: Model) -> None:
    with model.session("shift") as one, model.session("shift") as other:
        tokens, lengths = [BOS], []
        while len(tokens) <= 3 * CONTEXT:
            draws = HOT[len(tokens) % 40 :][:15]
            drawn = draw_tokens(one, tokens[-1:], draws)
            assert drawn == by_hand(other, tokens[-1:], draws[: len(drawn)])
            lengths.append(len(drawn))
            tokens += drawn
            assert same(one, other)
        assert lengths == [15] * 4 + [4] + [15, 15, 2] * 4


# ---- a session that is ahead, used for something else ----


@pytest.mark.parametrize("taken", [1, 2, 15])
@pytest.mark.parametrize("what", ["close", "rewind", "forward", "shift", "batch", "draws"])
def test_drawing_ends_when_the_session_is_used_otherwise(
    model: Model, what: str, taken: int
) -> None:
    with session_at(model, 9) as one, session_at(model, 9) as other:
        (tokens,) = run_sessions([one], [[9]], [HOT[:16]])
        drawn = [next(tokens) for _ in range(taken)]
        assert drawn == by_hand(other, [9], HOT[:taken])
        for session in (one, other):
            if what == "close":
                session.close()
            elif what == "rewind":
                session.rewind(session.position - 1)
            elif what == "forward":
                session.forward([50, 51])
            elif what == "shift":
                session.shift()
            elif what == "batch":
                run_sessions([session], [[50]])
            else:
                (more,) = run_sessions([session], [[50]], [HOT[20:36]])
                drawn.append(next(more))
        assert next(tokens, None) is None
        if what == "close":
            with pytest.raises(ClosedError):
                draw_tokens(one, [9], HOT[:1])
        else:
            assert same(one, other)
        if what == "draws":
            assert drawn[-2] == drawn[-1]


def test_a_fork_of_a_text_is_independent(fast: Model) -> None:
    with session_at(fast, 9) as one, session_at(fast, 9) as other:
        (tokens,) = run_sessions([one], [[9]], [HOT[:16]])
        drawn = [next(tokens) for _ in range(4)]
        with one.fork() as branch:
            assert draw_tokens(branch, [50], HOT[20:36]) != list(tokens)
            with other.fork() as like:
                by_hand(like, [9], HOT[:4])
                by_hand(like, [50], HOT[20:36])
                assert same(branch, like)
        assert drawn == by_hand(other, [9], HOT[:16])[:4]
        assert same(one, other)


@pytest.mark.parametrize("taken", [1, 5, 13])
def test_memory_counts_positions_written_ahead(taken: int) -> None:
    """In whole pages of 128 positions, whether or not their tokens were requested."""
    config = replace(TINY, seq_len=400)
    with Model(Engine(random_checkpoint(config)), tiny_tokenizer()) as model:
        for n, pages in ((13, 1), (14, 2), (50, 2)):
            with session_at(model, 115) as one:
                page = one.nbytes
                (tokens,) = run_sessions([one], [[9]], [HOT[:n]])
                for _ in range(taken):
                    next(tokens)
                assert (one.position, one.nbytes) == (115 + taken, pages * page)


# ---- several sessions ----


@st.composite
def rounds(draw: st.DrawFn) -> list[list[tuple[list[int], list[Draw]]]]:
    """A few passes: for each of some sessions a block, and how to draw after it."""
    n = draw(st.integers(1, 6))
    coin = st.integers(0, (1 << 24) - 1).map(lambda c: c / (1 << 24))
    heat = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0])
    how = st.builds(
        Draw, heat, st.sampled_from([0.0, 0.3, 0.9, 1.0]), coin, st.sampled_from([1, 2, 280, 300])
    )
    block = st.lists(st.integers(0, 299), min_size=1, max_size=draw(st.sampled_from([1, 3, 20])))
    one = st.tuples(block, st.lists(how, max_size=draw(st.sampled_from([1, 5]))))
    return draw(st.lists(st.lists(one, min_size=n, max_size=n), min_size=1, max_size=3))


@settings(max_examples=150, deadline=None)
@given(passes=rounds(), stop_tokens=st.lists(st.integers(0, 299), max_size=16))
def test_each_of_many_sessions_draws_what_it_draws_alone(
    fast: Model, passes: list[list[tuple[list[int], list[Draw]]]], stop_tokens: list[int]
) -> None:
    together, alone = ([fast.session("shift") for _ in passes[0]] for _ in range(2))
    for work in passes:
        blocks, draws = [block for block, _ in work], [some for _, some in work]
        texts = [list(text) for text in run_sessions(together, blocks, draws, stop_tokens)]
        for session, block, some, text in zip(alone, blocks, draws, texts, strict=True):
            if not some:
                session.forward(block)
                assert text == []
                continue
            assert text == by_hand(session, block, some[: len(text)])
            assert len(text) == len(some) or text[-1] in stop_tokens or session.room == 0
            assert not {*text[:-1]} & {*stop_tokens}
    for one, other in zip(together, alone, strict=True):
        assert same(one, other)
        one.close()
        other.close()


BLOCKS = [[BOS, 7, 260], [5], [299] * 20, [1, 0, 2, 3], list(range(40))]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_logits_of_many_sessions_are_those_of_each_alone(model: Model, n: int) -> None:
    """Twice, from different positions; and the tokens drawn from them are the same."""
    together, alone = ([session_at(model, i) for i in range(n)] for _ in range(2))
    for blocks in (BLOCKS[:n], [[i] for i in range(n)]):
        rows = run_sessions(together, blocks)
        expected = np.stack([s.forward(block) for s, block in zip(alone, blocks, strict=True)])
        assert rows.shape == (n, 300)
        assert close_to(model, rows, expected)
        assert [s.position for s in together] == [s.position for s in alone]
    draws = [[HOT[i]] if i != 1 else [] for i in range(n)]
    drawn = [list(text) for text in run_sessions(together, [[8]] * n, draws)]
    assert drawn == [by_hand(s, [8], some) for s, some in zip(alone, draws, strict=True)]


def test_each_of_many_sessions_shifts_by_its_own_rule(fast: Model) -> None:
    for overflow in ("shift", "error"):
        one, other, short = fast.session("shift"), fast.session("shift"), fast.session()
        for session in (one, other):
            session.overflow = overflow
            session.forward([BOS, *range(63)])
        if overflow == "error":
            with pytest.raises(ContextError):
                run_sessions([short, one], [[BOS], [9]], [HOT[:1], HOT[:1]])
            assert (short.position, one.position) == (0, 64)
        else:
            nothing, drawn = run_sessions([short, one], [[BOS], [9]], [[], HOT[:1]])
            assert (list(nothing), list(drawn)) == ([], by_hand(other, [9], HOT[:1]))
            assert same(one, other)
            assert one.position < 64


def test_logits_and_draws_may_take_turns(fast: Model) -> None:
    with fast.session() as one, fast.session() as other, fast.session() as third:
        tokens = [BOS, 30]
        for draw in HOT[:40]:
            if draw.coin < 0.3:
                drawn = draw_tokens(one, tokens, [draw])
            elif draw.coin < 0.6:
                drawn = [draw_token(fast.backend, one.forward(tokens), draw)]
            else:
                third.rewind(0)
                rows = run_sessions([one, third], [tokens, [BOS]])
                drawn = [draw_token(fast.backend, rows[0], draw)]
            assert drawn == by_hand(other, tokens, [draw])
            tokens = drawn


# ---- errors run nothing ----


def test_a_closed_session_among_many_runs_nothing(model: Model) -> None:
    one, other = model.session(), model.session()
    other.close()
    for draws in (None, [HOT[:1]] * 2):
        with pytest.raises(ClosedError, match="session is closed"):
            run_sessions([one, other], [[1], [1]], *([] if draws is None else [draws]))
    assert one.position == 0


def test_a_closed_model_runs_nothing() -> None:
    for backend in ("c", "numpy"):
        model = tiny_model(backend)
        session = model.session()
        model.backend.close()
        with pytest.raises(ClosedError, match="model is closed"):
            draw_tokens(session, [1], HOT[:1])
        assert session.position == 0


@pytest.mark.parametrize(("n_blocks", "n_draws"), [(1, 2), (3, 2), (2, 1), (2, 3)])
def test_sessions_blocks_and_draws_must_match(fast: Model, n_blocks: int, n_draws: int) -> None:
    sessions = [fast.session() for _ in range(2)]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        run_sessions(sessions, [[1]] * n_blocks, [HOT[:1]] * n_draws)
    assert [session.position for session in sessions] == [0, 0]


@pytest.mark.parametrize("at", [0, 3, 15])
@pytest.mark.parametrize("n_tokens", [0, -1, 301])
def test_a_draw_that_the_engine_refuses_runs_nothing(fast: Model, at: int, n_tokens: int) -> None:
    with session_at(fast, 9) as one, session_at(fast, 9) as other:
        draws = [*HOT[:at], HOT[at]._replace(n_tokens=n_tokens), *HOT[at + 1 : 16]]
        with pytest.raises(EngineError, match="refuses"):
            draw_tokens(one, [9], draws)
        assert same(one, other)
        assert draw_tokens(one, [9], HOT[:16]) == by_hand(other, [9], HOT[:16])


@pytest.mark.parametrize(
    ("position", "rows", "draws"),
    [
        (CONTEXT, [0], [1]),  # beyond the context
        (CONTEXT - 1, [0], [2]),
        (-1, [0], [1]),
        (0, [0], [0]),  # no draw
        (0, [0], []),  # fewer draws than rows, and more
        (0, [], [1]),
        (0, [1], [1]),  # no such row
        (0, [-1], [1]),
    ],
)
def test_a_batch_that_the_engine_refuses_changes_nothing(
    fast: Model, position: int, rows: list[int], draws: list[int]
) -> None:
    with session_at(fast, 9) as one, session_at(fast, 9) as other:
        some = [HOT[:n] for n in draws]
        with pytest.raises(EngineError):
            fast.backend.run([9], [one._open_cache()], [position], rows, some)
        assert same(one, other)
        assert by_hand(one, [9], HOT[:3]) == by_hand(other, [9], HOT[:3])


# ---- passes that end early ----


class Patched:
    """The engine's library with another function for a forward pass."""

    def __init__(self, l2p_forward: Callable[..., Any]) -> None:
        self.l2p_forward = l2p_forward

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled("by a test")])
@pytest.mark.parametrize("n_draws", [1, 16])
def test_a_pass_that_is_interrupted_leaves_no_trace(
    fast: Model, error: Any, n_draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        assert lib.l2p_forward(*arguments) == lib.L2P_OK
        raise error

    with session_at(fast, 9) as one, session_at(fast, 9) as other:
        with monkeypatch.context() as patch:
            patch.setattr(native, "lib", Patched(interrupted))
            with pytest.raises(error if isinstance(error, type) else type(error)):
                draw_tokens(one, [9], HOT[:n_draws])
        assert same(one, other)
        assert draw_tokens(one, [9], HOT[:16]) == by_hand(other, [9], HOT[:16])
        assert same(one, other)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make sessions run 16 tokens in a pass, as those of a big model do."""
    monkeypatch.setattr(session_module, "_PASS_WORK", 1)
    return 16


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_forward_can_be_interrupted_between_blocks(
    model: Model, short_blocks: int, asked: int
) -> None:
    """The tokens run before that stay, and the rest can go on."""
    tokens = [BOS, *range(100, 140)]
    answers = iter([False] * asked + [True])
    with model.session() as one, model.session() as other:
        with pytest.raises(Cancelled, match="interrupted by its caller"):
            one.forward(tokens, interrupted=lambda: next(answers))
        assert next(answers, None) is None  # called once before each block
        assert one.tokens == tokens[: asked * short_blocks]
        rest = one.forward(tokens[one.position :], interrupted=lambda: False)
        assert close_to(model, rest, other.forward(tokens))
        assert one.tokens == other.tokens == tokens


# A forward pass of 60 tokens takes some tenths of a second with one thread.
SLOW = ModelConfig(384, 1024, 16, 6, 6, 300, 256)


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize(("n", "closed"), [(1, 0), (2, 0), (2, 1)])
def test_closing_from_another_thread_cancels_only_a_session_alone(
    when: Literal["before", "while"], n: int, closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of several sessions goes on for the others."""
    with Model(Engine(random_checkpoint(SLOW), threads=1), tiny_tokenizer()) as model:
        monkeypatch.setattr(native, "LONG_WORK", 1 << 60)  # no thread of the engine's own
        tokens = [7 * i % 300 for i in range(60)]
        with model.session() as quiet:
            expected = draw_tokens(quiet, tokens, HOT[:1])
        sessions = [model.session() for _ in range(n)]
        closer = Thread(target=sessions[closed].close)
        results: list[int] = []

        def l2p_forward(*arguments: Any) -> int:
            closer.start()
            if when == "before":  # after the arguments have been put together
                closer.join()
            results.append(lib.l2p_forward(*arguments))
            return results[-1]

        monkeypatch.setattr(native, "lib", Patched(l2p_forward))
        if n == 1:
            with pytest.raises(Cancelled, match="closed meanwhile"):
                draw_tokens(sessions[0], tokens, HOT[:1])
            assert results == [lib.L2P_CANCELLED]
            assert sessions[0].position == 0
            with pytest.raises(ClosedError):
                draw_tokens(sessions[0], [1], HOT[:1])
        else:
            texts = run_sessions(sessions, [tokens] * 2, [HOT[:1]] * 2)
            assert [list(text) for text in texts] == [expected] * 2
            assert results == [lib.L2P_OK]
        closer.join()


@pytest.mark.parametrize("together", [False, True])
def test_threads_may_draw_in_sessions_of_their_own(fast: Model, together: bool) -> None:
    """Passes take turns, and none writes into what another waits with."""

    def text(seed: int) -> list[list[int]]:
        texts: list[list[int]] = [[BOS, seed], [seed] * 5]
        sessions = [fast.session() for _ in texts]
        blocks = list(texts)
        for i in range(50):
            draws = [[HOT[(seed + i) % 64]], [HOT[(seed * i) % 64]]]
            if together:
                blocks = [list(some) for some in run_sessions(sessions, blocks, draws)]
            else:
                work = zip(sessions, blocks, draws, strict=True)
                blocks = [draw_tokens(session, block, some) for session, block, some in work]
            texts = [text + block for text, block in zip(texts, blocks, strict=True)]
        return texts

    seeds = list(range(1, 9))
    expected = [text(seed) for seed in seeds]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(text, seeds)) == expected
    assert len({str(some) for some in expected}) == len(seeds)


# ---- backends ----


def test_rows_may_come_in_any_order_and_repeat(model: Model) -> None:
    tokens, rows = [BOS, 5, 299, 7, 88], [4, 0, 2, 2, 4, 1, 3, 3]
    draws = [Draw(i % 3 / 2, [0.9, 1.0][i % 2], i / 8, 300 - 9 * i) for i in range(8)]
    with model.session() as one, model.session() as other:
        logits = other.forward(tokens, all_logits=True)
        cache = one._open_cache()
        drawn = model.backend.run(tokens, [cache] * 5, range(5), rows, [[draw] for draw in draws])
    expected = [
        [draw_token(model.backend, logits[row].copy(), draw)]
        for row, draw in zip(rows, draws, strict=True)
    ]
    assert drawn == expected
    assert len({token for (token,) in drawn}) > 4


def test_a_batch_without_rows_only_runs(model: Model) -> None:
    with model.session() as one, model.session() as other:
        cache = one._open_cache()
        assert model.backend.run([BOS, 5], [cache] * 2, range(2), []).shape == (0, 300)
        assert model.backend.run([BOS, 5], [cache] * 2, range(2), [], []) == []
        one._append([BOS, 5])
        other.forward([BOS, 5])
        np.testing.assert_array_equal(one.forward([6]), other.forward([6]))


@pytest.mark.parametrize("heat", [0.0, 1.0, 5.0])
def test_only_the_first_n_tokens_of_a_draw_are_drawn(model: Model, heat: float) -> None:
    with model.session() as session:
        logits = session.forward([BOS, 20])
        beyond = 0
        for n in range(1, 301):
            draw = Draw(heat, 1.0, (n * 0.618) % 1, n)
            session.rewind(1)
            (token,) = draw_tokens(session, [20], [draw])
            assert token == draw_token(model.backend, logits.copy(), draw)
            assert 0 <= token < n
            whole = draw._replace(n_tokens=300)
            beyond += draw_token(model.backend, logits.copy(), whole) >= n
        assert beyond > 50  # tokens that come where all count


def test_a_backend_may_draw_with_draw_rows() -> None:
    """What it runs: the tokens before each drawn token, and no other."""
    backend = ScriptedBackend(range(20, 60), 300)
    with Model(backend, tiny_tokenizer()).session() as session:
        assert session.ahead == 1
        draws = [Draw(1.0, 0.9, i / 64, 300) for i in range(40)]
        assert draw_tokens(session, [9], draws[:5]) == [20, 21, 22, 23, 24]
        assert backend.runs == list(enumerate([9, 20, 21, 22, 23]))
        assert backend.coins == [i / 64 for i in range(5)]
        assert draw_tokens(session, [24], draws[5:], (7, 27)) == [25, 26, 27]
        assert backend.runs[5:] == [(5, 24), (6, 25), (7, 26)]
        assert session.tokens == [9, *range(20, 27)]


def test_the_engine_draws_ahead_what_it_can_read_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(TINY)
    made = Engine(checkpoint)
    nbytes = made.nbytes + made.cache_bytes
    for most, ahead in ((0, 1), (1, 1), (nbytes, 1), (3 * nbytes + 1, 3), (1 << 50, 32)):
        monkeypatch.setattr(native, "_AHEAD_BYTES", most)
        made = Engine(checkpoint)
        assert made.ahead == ahead
        with Session(made) as session:
            assert session.ahead == ahead

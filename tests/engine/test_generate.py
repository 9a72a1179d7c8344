"""A session's next tokens, several drawn at once: nobody can tell them from tokens one by one.

Beside each session goes another one that runs a token, and draws, in two calls of the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2py import Cancelled, ClosedError, ContextError, EngineError, Model, PromptError
from llama2py.engine import native as engine
from llama2py.engine._engine import lib
from llama2py.engine.backend import Draw, pick
from llama2py.engine.native import Engine
from llama2py.generation.sampling import Coin
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, random_checkpoint, tiny_model, tiny_tokenizer
from tests.support.drawing import HOT, all_by_hand, behind, by_hand, same
from tests.support.scripted import ScriptedBackend

CONTEXT = TINY.seq_len


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


@pytest.fixture(scope="module")
def fast() -> Iterator[Model]:
    with tiny_model(threads=2) as model:
        yield model


# ---- what comes ----


@pytest.mark.parametrize("start", [0, 1, 7, 14, 15, 16, 31, 47, 48, 62, 63])
def test_as_many_as_the_context_holds(model: Model, start: int) -> None:
    """From any position over each multiple of 16, where the engine's rows of scores grow."""
    with behind(model, start) as one, behind(model, start) as other:
        drawn = list(one.generate([9], HOT))
        assert len(drawn) == CONTEXT - start
        assert drawn == all_by_hand(other, 9, HOT[: CONTEXT - start])
        assert one.room == 0
        assert same(one, other)
        with pytest.raises(ContextError):
            next(one.generate(drawn[-1:], HOT))
        assert same(one, other)


@pytest.mark.parametrize("n", range(1, 18))
def test_as_many_as_there_are_draws(fast: Model, n: int) -> None:
    with behind(fast, 13) as one, behind(fast, 13) as other:
        assert list(one.generate([9], HOT[:n])) == all_by_hand(other, 9, HOT[:n])
        assert same(one, other)  # the last one has not been run


def test_each_counts_as_run_when_the_next_one_is_asked_for(model: Model) -> None:
    with behind(model, 5) as one, behind(model, 5) as other:
        before, told = one.tokens, one.generate([9], HOT[:10])
        assert one.tokens == before  # nobody has asked
        drawn = [9]
        for draw in HOT[:10]:
            drawn.append(next(told))
            assert drawn[-1] == by_hand(other, drawn[-2], draw)
            assert one.position == 5 + len(drawn) - 1
            assert one.tokens == [*before, *drawn[:-1]]
            assert same(one, other)
        assert next(told, None) is None
        assert same(one, other)


def test_nothing_comes_behind_an_end(model: Model) -> None:
    with behind(model, 5) as one, behind(model, 5) as other:
        whole = all_by_hand(other, 9, HOT[:16])
        assert len(set(whole)) > 12
        for end in range(16):
            ends = [whole[end], 298, 299]
            for order in (ends, ends[::-1], [*range(3), *ends]):
                first = min(whole.index(token) for token in order if token in whole)
                one.rewind(5)
                assert list(one.generate([9], HOT[:16], order)) == whole[: first + 1]
                assert one.position == 5 + first + 1
        one.rewind(5)
        unlike = [token for token in range(300) if token not in whole[:-1]]
        assert list(one.generate([9], HOT[:16], unlike)) == whole  # hundreds, and the token 9 too
        assert same(one, other)


def test_behind_a_prompt_there_is_one(model: Model) -> None:
    for prompt in ([BOS, 9], [BOS, *range(40)]):
        with model.session() as one, model.session() as other:
            expected = pick(model.backend, other.forward(prompt), HOT[0])
            assert list(one.generate(prompt, HOT[:16])) == [expected]
            assert same(one, other)


def test_a_full_context_is_shifted_between_two_calls(model: Model) -> None:
    """A call ends with the context, and the next one begins with a shift."""
    with model.session("shift") as one, model.session("shift") as other:
        drawn, by_calls = [BOS], []
        while len(drawn) <= 3 * CONTEXT:
            draws = HOT[len(drawn) % 40 :][:15]
            told = list(one.generate(drawn[-1:], draws))
            assert told == all_by_hand(other, drawn[-1], draws[: len(told)])
            by_calls.append(len(told))
            drawn += told
            assert same(one, other)
        assert by_calls == [15] * 4 + [4] + [15, 15, 2] * 4


# ---- what becomes of it when something else is done between two tokens ----


def test_two_texts_of_one_session_in_turns(model: Model) -> None:
    """Each ends the other one."""
    with model.session() as one, model.session() as other:
        a = one.generate([7], HOT[:16])
        first = [next(a), next(a)]
        b = one.generate([8], HOT[16:32])
        second = [next(b), next(b)]
        assert next(a, None) is None
        second.append(next(b))
        assert first == all_by_hand(other, 7, HOT[:2])
        assert second == all_by_hand(other, 8, HOT[16:19])
        assert same(one, other)


def test_a_fork_of_a_text_goes_its_own_way(fast: Model) -> None:
    with behind(fast, 9) as one, behind(fast, 9) as other:
        told = one.generate([9], HOT[:16])
        drawn = [next(told) for _ in range(4)]
        with one.fork() as branch:
            assert list(branch.generate([50], HOT[20:36])) != list(told)
            with other.fork() as like:
                all_by_hand(like, 9, HOT[:4])
                all_by_hand(like, 50, HOT[20:36])
                assert same(branch, like)
        assert drawn == all_by_hand(other, 9, HOT[:16])[:4]
        assert same(one, other)


@pytest.mark.parametrize("taken", [1, 2, 15])
def test_closed_between_two_tokens(model: Model, taken: int) -> None:
    session = model.session()
    told = session.generate([9], HOT[:16])
    for _ in range(taken):
        next(told)
    session.close()
    assert next(told, None) is None
    with pytest.raises(ClosedError):
        next(session.generate([9], HOT[:16]))
    with pytest.raises(ClosedError):
        session.rewind(0)


# ---- what goes wrong while it is ahead ----


def broken_off(error: Exception | type[BaseException]) -> Callable[..., Any]:
    """The engine's call, which runs all and then ends so."""

    def l2p_forward(*arguments: Any) -> None:
        assert lib.l2p_forward(*arguments) == lib.L2P_OK
        raise error

    return l2p_forward


class Replaced:
    """The engine's library but for one function."""

    def __init__(self, l2p_forward: Callable[..., Any]) -> None:
        self.l2p_forward = l2p_forward

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled("by a test")])
def test_a_call_that_is_broken_off_has_not_been(
    fast: Model, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with behind(fast, 9) as one, behind(fast, 9) as other:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "lib", Replaced(broken_off(error)))
            with pytest.raises(error if isinstance(error, type) else type(error)):
                next(one.generate([9], HOT[:16]))
        assert same(one, other)
        assert list(one.generate([9], HOT[:16])) == all_by_hand(other, 9, HOT[:16])
        assert same(one, other)


def test_closed_by_another_thread_during_a_call(
    fast: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fast.session() as session:

        def l2p_forward(*arguments: Any) -> Any:
            session.close()
            return lib.l2p_forward(*arguments)

        monkeypatch.setattr(engine, "lib", Replaced(l2p_forward))
        with pytest.raises(Cancelled, match="closed meanwhile"):
            next(session.generate([9], HOT[:16]))
        assert session.position == 0


@pytest.mark.parametrize("asked", [True, False])
def test_its_caller_is_asked_once_before_each_call(model: Model, asked: bool) -> None:
    answers = iter([asked])
    with behind(model, 9) as one, behind(model, 9) as other:
        told = one.generate([9], HOT[:16], (), lambda: next(answers))
        if asked:
            with pytest.raises(Cancelled, match="interrupted by its caller"):
                next(told)
        else:
            assert list(told) == all_by_hand(other, 9, HOT[:16])
        assert next(answers, None) is None
        assert same(one, other)


@pytest.mark.parametrize("token", [-1, 300, 1 << 40, "a", 1.5])
def test_a_token_that_cannot_be_run(model: Model, token: Any) -> None:
    with behind(model, 9) as one, behind(model, 9) as other:
        with pytest.raises((PromptError, TypeError)):
            next(one.generate([token], HOT[:16]))
        assert same(one, other)


@pytest.mark.parametrize("at", [0, 3, 15])
@pytest.mark.parametrize("n_tokens", [0, -1, 301])
def test_a_draw_that_cannot_be_made_runs_nothing(fast: Model, at: int, n_tokens: int) -> None:
    with behind(fast, 9) as one, behind(fast, 9) as other:
        draws = [*HOT[:at], HOT[at]._replace(n_tokens=n_tokens), *HOT[at + 1 : 16]]
        cache = one._open_cache()
        with pytest.raises(EngineError, match="refuses"):
            next(one.generate([9], draws))
        for position, some in ((CONTEXT, HOT[:1]), (CONTEXT - 1, HOT[:2]), (-1, HOT[:1]), (0, [])):
            with pytest.raises(EngineError, match="refuses"):
                fast.backend.generate(9, cache, position, some, ())
        one.forward([9])
        other.forward([9])
        assert same(one, other)


# ---- the memory of a session that is ahead ----


@pytest.mark.parametrize("taken", [1, 5, 13])
def test_the_memory_of_a_text_is_what_was_written(taken: int) -> None:
    """Whole pages of 128 positions, also of those that nobody has asked for."""
    config = replace(TINY, seq_len=400)
    with Model(Engine(random_checkpoint(config)), tiny_tokenizer()) as model:
        for n, pages in ((13, 1), (14, 2), (50, 2)):
            with behind(model, 115) as one:
                page = one.nbytes
                told = one.generate([9], HOT[:n])
                for _ in range(taken):
                    next(told)
                assert (one.position, one.nbytes) == (115 + taken, pages * page)


# ---- backends ----


def test_a_backend_of_ones_own_needs_no_generate() -> None:
    """What it runs, where: the tokens behind which something is drawn, and no other."""
    backend = ScriptedBackend(range(20, 60), 300)
    with Model(backend, tiny_tokenizer()).session() as session:
        assert session.ahead == 1
        draws = [Draw(1.0, 0.9, i / 64, 300) for i in range(40)]
        assert list(session.generate([9], draws[:5])) == [20, 21, 22, 23, 24]
        assert backend.runs == [(i, t) for i, t in enumerate([9, 20, 21, 22, 23])]
        assert backend.coins == [i / 64 for i in range(5)]
        assert list(session.generate([24], draws[5:], (7, 27))) == [25, 26, 27]
        assert backend.runs[5:] == [(5, 24), (6, 25), (7, 26)]
        assert next(session.generate([27], draws[8:12])) == 28
        assert session.tokens == [9, *range(20, 28)]
        assert len(backend.runs) == 9 + 3  # it may be ahead


def test_how_far_the_engine_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as reading so much goes, and never less than a token."""
    checkpoint = random_checkpoint(TINY)
    made = Engine(checkpoint)
    nbytes = made.nbytes + made.cache_bytes
    for most, ahead in ((0, 1), (1, 1), (nbytes, 1), (3 * nbytes + 1, 3), (1 << 50, 16)):
        monkeypatch.setattr(engine, "_AHEAD_BYTES", most)
        made = Engine(checkpoint)
        assert made.ahead == ahead
        with Model(made, tiny_tokenizer()).session() as session:
            assert session.ahead == ahead


# ---- coins ----


@given(
    seed=st.integers(0, (1 << 64) - 1), steps=st.lists(st.integers(-1, 9), max_size=40)
)  # -1: flip
def test_looking_ahead_flips_no_coin(seed: int, steps: list[int]) -> None:
    flipping, looking = Coin(seed), Coin(seed)
    coins = [flipping.flip() for _ in range(60)]
    flipped = 0
    for n in steps:
        if n >= 0:
            assert looking.look_ahead(n) == coins[flipped : flipped + n]
        else:
            assert looking.flip() == coins[flipped]
            flipped += 1

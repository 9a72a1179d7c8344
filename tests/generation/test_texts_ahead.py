"""Texts whose next tokens are drawn several at once: each is the one that single draws tell.

The other way goes without jobs and streams: `Session.forward`, `pick`, and the coins of the seed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py import Cancelled, ClosedError, Model, SamplingParams, Stream
from llama2py.engine import native as engine
from llama2py.engine._engine import lib
from llama2py.engine.backend import Draw, pick
from llama2py.engine.native import Engine
from llama2py.engine.session import Session
from llama2py.generation import job as job_module
from llama2py.generation.batch import run_jobs
from llama2py.generation.job import Job, Overflow
from llama2py.generation.sampling import Coin, Sampler
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, random_checkpoint, tiny_model, tiny_tokenizer
from tests.support.drawing import WAYS, keys
from tests.support.scripted import ScriptedBackend
from tests.support.wishes import A, AfterTokens


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with tiny_model(threads=2) as model:
        assert model.backend.ahead > 10
        yield model


class ByHand:
    """Texts token by token, in a session of their own."""

    def __init__(self, model: Model, seed: int, n_tokens: int = 300) -> None:
        self.session, self._coin, self._backend = model.session(), Coin(seed), model.backend
        self._n_tokens = n_tokens

    def tell(
        self, prompt: list[int], params: SamplingParams, max_tokens: int, ends: frozenset[int]
    ) -> list[int]:
        """The tokens, with the one of ``ends`` that ended it; the last one has not been run."""
        block, told = prompt, list[int]()
        while len(told) < max_tokens and not (told and told[-1] in ends):
            logits, draws = self.session.forward(block), params.temperature > 1e-30
            coin = self._coin.flip() if draws else 0.0
            temperature = params.temperature if draws else 0.0
            draw = Draw(temperature, params.top_p, coin, self._n_tokens)
            block = [pick(self._backend, logits, draw)]
            told += block
        return told

    def next_coin(self) -> float:
        return self._coin.flip()


# ---- texts of one session and one sampler, broken off anywhere ----


@dataclass(frozen=True)
class Turn:
    """A prompt, and what is heard of the text behind it."""

    prompt: list[int]
    way: SamplingParams
    max_tokens: int
    ends: frozenset[int] | None
    pieces: int  # so many are heard
    then: str
    overflow: Overflow
    forget: float


many_ends = st.frozensets(st.integers(-5, 320) | st.just(1 << 70), max_size=30)
turns = st.builds(
    Turn,
    prompt=st.lists(st.integers(0, 299), min_size=1, max_size=6),
    way=st.sampled_from([SamplingParams(2.0, 0.95), *WAYS]),
    max_tokens=st.integers(1, 45),
    ends=st.none() | many_ends,
    pieces=st.integers(0, 30),
    then=st.sampled_from(["rest", "rest", "drop", "cancel", "over"]),
    overflow=st.sampled_from(["stop", "shift"]),
    forget=st.floats(0, 1),
)


@settings(max_examples=120, deadline=None)
@given(told=st.lists(turns, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_turns_that_are_broken_off(model: Model, told: list[Turn], seed: int) -> None:
    """Whatever was drawn in vain: neither session nor coins know of it."""
    sampler, hand = Sampler(model.backend, WAYS[0], seed), ByHand(model, seed)
    with model.session() as session, hand.session:
        for turn in told:
            at = int(session.position * turn.forget)
            if TINY.seq_len - at < len(turn.prompt):
                at = 0
            for one in (session, hand.session):
                one.rewind(at)
                one.overflow = "shift" if turn.overflow == "shift" else "error"
            sampler.params = turn.way
            cancel = threading.Event() if turn.then == "cancel" else None
            job = Job(
                turn.prompt,
                sampler,
                turn.max_tokens,
                stop_tokens=turn.ends,
                cancel=cancel,
                overflow=turn.overflow,
            )
            most = turn.max_tokens
            if turn.overflow == "stop":
                most = min(most, session.room - len(turn.prompt) + 1)
            stream = Stream(session, model.tokenizer, job, owns_session=False)
            heard = "".join(islice(stream, turn.pieces))
            if turn.then == "rest":
                heard += "".join(stream)
                assert job.finish_reason in ("stop", "length")
            elif cancel:
                cancel.set()
                heard += "".join(stream)
            elif turn.then == "over" and turn.pieces:  # as a chat does with an older answer
                job.finish_reason = job.finish_reason or "cancelled"
                assert list(stream) == []
            assert heard == job.text
            if turn.then == "rest" or job.finish_reason == "length":
                before = "" if turn.prompt[-1] == BOS else "a"  # behind a BOS a space is not shown
                whole = model.tokenizer.decode([A if before else BOS, *job.tokens])
                assert before + heard == whole
            check(job, session, hand, turn, most)
        assert sampler.plain_draws(1)[0].coin in (0.0, hand.next_coin())


def check(job: Job, session: Session, hand: ByHand, turn: Turn, most: int) -> None:
    """The job's tokens are those that come by hand, and so is what the session has run."""
    ends = frozenset([BOS]) if turn.ends is None else turn.ends
    drawn = job.timings.generated_tokens
    expected = hand.tell(turn.prompt, turn.way, min(drawn, most), ends)
    assert len(expected) == drawn
    stopped = bool(expected) and expected[-1] in ends
    assert job.tokens == (expected[:-1] if stopped else expected)
    assert (job.finish_reason == "stop") == stopped
    assert job.stopped_by == (expected[-1] if stopped else None)
    if not stopped and drawn == most:
        assert job.finish_reason == "length"
    if job.finish_reason == "cancelled" and session.position > hand.session.position:
        session.rewind(session.position - 1)  # it was cancelled when its last token had been run
    assert session.tokens == hand.session.tokens
    assert keys(session) == keys(hand.session)


def test_cancelled_anywhere_it_costs_no_coin(model: Model) -> None:
    """By an event that is set between two tokens, by the clock of nobody; alone and in a batch."""
    for in_batch in (False, True):
        for n in range(25):
            sampler, hand = Sampler(model.backend, WAYS[0], 7), ByHand(model, 7)
            cancel = AfterTokens(n)
            job = Job([BOS, A], sampler, 40, stop_tokens=frozenset(), cancel=cancel)
            cancel.job = job
            if in_batch:
                list(run_jobs(model, [job], 1))
            else:
                list(Stream(model.session(), model.tokenizer, job))
            assert job.finish_reason == "cancelled"
            assert job.tokens == hand.tell([BOS, A], WAYS[0], n, frozenset())
            assert sampler.plain_draws(1)[0].coin == hand.next_coin()


# ---- parameters that are set while a text is told ----


def test_parameters_hold_from_the_next_token(model: Model) -> None:
    ways = [WAYS[0], WAYS[1], SamplingParams(2.0, 1.0), SamplingParams(1.0, top_k=1), WAYS[4]]
    for every in (1, 2, 5):
        sampler, hand = Sampler(model.backend, ways[0], 3), ByHand(model, 3)
        job = Job([BOS, A], sampler, 60, stop_tokens=frozenset(), overflow="shift")
        block, changes = [BOS, A], 0
        hand.session.overflow = "shift"
        expected: list[int] = []
        heard = 0
        for n, _ in enumerate(Stream(model.session(), model.tokenizer, job)):
            since = len(job.tokens) - heard  # a piece may be of several tokens
            way = sampler.params
            for _ in range(since):
                if way.top_k:  # of NumPy, which draws the best one, and flips a coin
                    expected += hand.tell(block, SamplingParams(0.0), 1, frozenset())
                    hand.next_coin()
                else:
                    expected += hand.tell(block, way, 1, frozenset())
                block = expected[-1:]
            heard = len(job.tokens)
            assert job.tokens == expected
            if n % every == 0:
                changes += 1
                sampler.params = ways[changes % len(ways)]
        assert changes > 6


# ---- how long it takes ----


@pytest.mark.parametrize("prompt", [[BOS], [BOS, A], [BOS, A, 40, 41]])
def test_the_first_token_is_timed_apart(prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves on by a second with each token that is drawn."""
    with tiny_model() as model:
        drawn = 0

        def counted(run: Callable[..., list[int]]) -> Callable[..., list[int]]:
            def running(*arguments: Any) -> list[int]:
                nonlocal drawn
                tokens = run(*arguments)
                drawn += len(tokens)
                return tokens

            return running

        for name in ("generate", "next_tokens"):
            monkeypatch.setattr(model.backend, name, counted(getattr(model.backend, name)))
        monkeypatch.setattr(job_module, "perf_counter", lambda: float(drawn))
        timings = model.generate(prompt, max_tokens=30, seed=1, stop_tokens=()).timings
        assert (timings.prompt_seconds, timings.first_token_seconds) == (1, 1)
        assert (timings.generated_tokens, timings.generation_seconds) == (30, 29)
        assert timings.tokens_per_second == 1


def test_nothing_is_drawn_that_nobody_can_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither behind the last token, nor behind one of a few that end the text, nor by one of a
    batch."""
    with tiny_model() as model:
        calls: list[int] = []
        generate = model.backend.generate

        def counted(*arguments: Any) -> list[int]:
            tokens = generate(*arguments)
            calls.append(len(tokens))
            return tokens

        monkeypatch.setattr(model.backend, "generate", counted)
        options: dict[str, Any] = {"seed": 1, "temperature": 2.0}
        whole = model.generate([BOS, A], max_tokens=40, stop_tokens=(), **options).tokens
        assert calls == [16, 16, 7]  # the first is drawn behind the prompt
        for last in (1, 2, 16, 17, 30):
            calls.clear()
            first = whole.index(whole[last])
            some = [whole[last], *({290, 291, 292} - set(whole)), -1, 300, 1 << 40]
            told = model.generate([BOS, A], max_tokens=40, stop_tokens=some, **options)
            assert (told.tokens, told.stopped_by) == (whole[:first], whole[last])
            assert sum(calls) == first
        many = [*sorted(set(range(300)) - set(whole)), whole[20]]
        told = model.generate([BOS, A], max_tokens=40, stop_tokens=many, **options)
        assert told.tokens == whole[: whole.index(whole[20])]
        calls.clear()
        model.generate([[BOS, A]], max_tokens=20, **options)
        assert calls == []


# ---- who else is there ----


def facts(model: Model, seed: int) -> tuple[Any, ...]:
    told = model.generate("abc", seed=seed, temperature=1.5, max_tokens=40, stop_tokens=(40, 270))
    return told.text, told.tokens, told.finish_reason, told.stopped_by


def test_threads_tell_texts_of_one_model(model: Model) -> None:
    alone = [facts(model, seed) for seed in range(24)]
    assert len(set(map(str, alone))) == 24
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda seed: facts(model, seed), range(24))) == alone


def test_kept_sessions_hold_only_what_was_told(model: Model) -> None:
    """A prompt goes on where an earlier text ended, was broken off, or was never drawn."""
    prompt = [BOS, *range(40, 65)]
    model.reuse_prefixes(0)
    options: dict[str, Any] = {"seed": 5, "temperature": 1.5, "stop_tokens": ()}
    fresh = model.generate(prompt, max_tokens=30, **options)
    model.reuse_prefixes()
    for n in (1, 2, 9, 30):
        told = model.generate(prompt, max_tokens=n, **options)
        assert told.tokens == fresh.tokens[:n]
        kept = model._prefixes._kept[-1]
        assert kept.tokens == prompt + told.tokens[:-1]
    for end in (fresh.tokens[3], fresh.tokens[17]):
        first = fresh.tokens.index(end)
        told = model.generate(prompt, max_tokens=30, **options | {"stop_tokens": [end]})
        assert told.tokens == fresh.tokens[:first]
        kept = model._prefixes._kept[-1]
        assert kept.tokens == prompt + told.tokens
    longer = prompt + fresh.tokens[:20]
    rest = model.generate(longer, max_tokens=5, **options | {"temperature": 0})
    model.reuse_prefixes(0)
    assert rest.tokens == model.generate(longer, max_tokens=5, temperature=0, seed=1).tokens
    model.reuse_prefixes()


def test_closed_between_two_pieces(model: Model) -> None:
    for n in (1, 2, 9):
        stream = model.stream([BOS, A], seed=1, stop_tokens=())
        assert len(list(islice(stream, n))) == n
        told = list(stream.tokens)
        stream.close()
        with pytest.raises(ClosedError):
            next(stream)
        assert stream.tokens == told
        assert stream.finish_reason is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled("by a test"), MemoryError])
@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_text_that_an_error_ends_has_told_the_truth(
    model: Model, error: Any, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of the call that is broken off are drawn again by who goes on."""

    class Broken:
        left = 1 + calls  # the first call runs the prompt

        def __getattr__(self, name: str) -> Any:
            return getattr(lib, name)

        def l2p_forward(self, *arguments: Any) -> int:
            status: int = lib.l2p_forward(*arguments)
            Broken.left -= 1
            if Broken.left < 0:
                raise error
            return status

    sampler, hand = Sampler(model.backend, WAYS[0], 8), ByHand(model, 8)
    with model.session() as session, hand.session:
        job = Job([BOS, A], sampler, 50, stop_tokens=frozenset())
        stream = Stream(session, model.tokenizer, job, owns_session=False)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "lib", Broken())
            with pytest.raises(error if isinstance(error, type) else type(error)):
                list(stream)
        assert len(job.tokens) == 1 + 16 * calls
        turn = Turn([BOS, A], WAYS[0], 50, frozenset(), 0, "drop", "stop", 0.0)
        check(job, session, hand, turn, 50)
        job = Job(job.tokens[-1:], sampler, 20, stop_tokens=frozenset())
        list(Stream(session, model.tokenizer, job, owns_session=False))
        check(job, session, hand, replace(turn, prompt=job.prompt_tokens), 20)


@pytest.mark.parametrize("way", [SamplingParams(4.0, 1.0), SamplingParams(0.0)])
def test_padding_is_never_drawn(way: SamplingParams) -> None:
    """Behind the tokenizer's tokens, in each of the draws."""
    config = replace(TINY, vocab_size=340)
    tokenizer = tiny_tokenizer().padded(340)
    with Model(Engine(random_checkpoint(config)), tokenizer) as model:
        told = {}
        for n_tokens, ends in ((300, frozenset([250, 299])), (330, frozenset([-1, 329]))):
            job = Job([BOS, 77], Sampler(model.backend, way, 2), 62, stop_tokens=ends)
            list(Stream(model.session(), model.tokenizer, job))
            expected = ByHand(model, 2, n_tokens).tell([BOS, 77], way, 62, ends)
            if stopped := expected[-1] in ends:
                expected.pop()
            assert (job.tokens, job.finish_reason == "stop") == (expected, stopped)
            told[n_tokens] = expected
        assert max(told[300]) < 300 <= max(told[330]) < 330  # an end is a token, and what is before


def test_a_scripted_backend_may_be_ahead() -> None:
    """Of a backend without a `generate` of its own: what it runs, and what a stream shows of it."""
    script = [*range(260, 280), BOS, *[270] * 20]
    backend = ScriptedBackend(script, 300)
    backend.ahead = 5
    model = Model(backend, tiny_tokenizer())
    stream = model.stream([BOS], seed=1)
    assert next(stream) == "a"
    assert backend.runs == [(0, BOS)]
    assert next(stream) == "b"
    assert len(backend.runs) == 6
    assert "".join(stream) == model.tokenizer.decode(range(260, 280))[2:]
    assert stream.stopped_by == BOS
    assert backend.runs == list(enumerate([BOS, *range(260, 280)]))
    coin = Coin(1)
    assert backend.coins == [coin.flip() for _ in range(21)]

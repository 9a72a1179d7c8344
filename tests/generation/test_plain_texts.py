"""Whole texts whose tokens the backend draws by itself, beside the same texts drawn from logits.

A text that asks for log-probabilities needs its logits in Python, and draws from them with the same
sampler of the backend's: nothing else may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py import Cancelled, Model, Stream
from llama2py.engine.backend import Logits
from llama2py.generation import batch
from llama2py.generation import job as job_module
from llama2py.generation.batch import run_jobs
from llama2py.generation.job import Job
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import tiny_model
from tests.support.wishes import A, B, Wish


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


@pytest.fixture(scope="module")
def fast() -> Iterator[Model]:
    """Of the engine alone, whose bits are the same however tokens are gathered."""
    with tiny_model() as model:
        yield model


def result(job: Job) -> tuple[Any, ...]:
    timings = job.timings
    counts = timings.prompt_tokens, timings.generated_tokens
    return job.text, job.tokens, job.finish_reason, job.stopped_by, counts


TEXTS = {
    "default": Wish(stop_tokens=None),
    "greedy": Wish(temperature=0.0),
    "uncut": Wish(top_p=1.0),
    "flat": Wish(temperature=4.0, seed=2),
    "sharp": Wish(temperature=0.3, top_p=0.5),
    "no token": Wish(max_tokens=0),
    "one token": Wish(max_tokens=1),
    "full": Wish((BOS, *[A] * 63)),
    "stop tokens": Wish(temperature=2.0, seed=3, stop_tokens=frozenset(range(3, 20))),
    "stop texts": Wish(temperature=3.0, stop=("a", "mb", "x ", "h"), seed=5),
    "cancelled at once": Wish(cancelled_after=0),
    "cancelled": Wish(cancelled_after=7),
    "no time": Wish(max_time=0.0),
    "much time": Wish(max_time=1e9),
    "shifted": Wish(max_tokens=150, overflow="shift"),
}


@pytest.mark.parametrize("wish", TEXTS.values(), ids=TEXTS)
def test_a_text_is_the_same_with_and_without_its_logits(model: Model, wish: Wish) -> None:
    pieces, job = wish.pieces(model, plain=True)
    expected, from_logits = wish.pieces(model, plain=False)
    assert pieces == expected
    assert result(job) == result(from_logits)
    assert job.text == "".join(pieces)
    assert len(from_logits.logprobs) == len(job.tokens)
    assert job.logprobs == []


def test_how_these_texts_end(model: Model) -> None:
    """They are of every kind, and as long as they were meant to be."""
    told = {name: wish.pieces(model, plain=True)[1] for name, wish in TEXTS.items()}
    assert [len(told[name].tokens) for name in ("no token", "one token", "full")] == [0, 1, 1]
    assert [len(told[name].tokens) for name in ("cancelled at once", "cancelled")] == [0, 7]
    assert len(told["no time"].tokens) == 0
    assert len(told["shifted"].tokens) == 150
    reasons = {name: job.finish_reason for name, job in told.items()}
    assert reasons["no token"] == reasons["one token"] == reasons["full"] == "length"
    assert reasons["cancelled at once"] == reasons["cancelled"] == "cancelled"
    assert reasons["no time"] == "time"
    assert reasons["stop tokens"] == reasons["stop texts"] == "stop"
    assert told["stop tokens"].stopped_by in range(3, 20)
    assert told["stop texts"].stopped_by in TEXTS["stop texts"].stop


@dataclass
class Calls:
    """Of a backend."""

    logits: int = 0
    draws: int = 0
    tokens: int = 0


@pytest.fixture
def calls(fast: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    counted = Calls()
    fast.reuse_prefixes(0)  # or some prompts would be shorter
    backend = fast.backend
    forward, next_tokens, generate = backend.forward, backend.next_tokens, backend.generate

    def counted_forward(*arguments: Any) -> Logits:
        logits = forward(*arguments)
        counted.tokens += len(arguments[0])
        counted.logits += len(logits)
        return logits

    def counted_next_tokens(*arguments: Any) -> list[int]:
        drawn = next_tokens(*arguments)
        counted.tokens += len(arguments[0])
        counted.draws += len(drawn)
        return drawn

    def counted_generate(*arguments: Any) -> list[int]:
        drawn = generate(*arguments)
        counted.tokens += len(drawn)
        counted.draws += len(drawn)
        return drawn

    monkeypatch.setattr(backend, "forward", counted_forward)
    monkeypatch.setattr(backend, "next_tokens", counted_next_tokens)
    monkeypatch.setattr(backend, "generate", counted_generate)
    yield counted
    fast.reuse_prefixes()


def test_which_texts_leave_the_drawing_to_the_backend(fast: Model, calls: Calls) -> None:
    wish = Wish((BOS, *[A] * 9), max_tokens=12)
    wish.pieces(fast, plain=True)
    assert (calls.draws, calls.tokens, calls.logits) == (12, 10 + 11, 0)
    wish.pieces(fast, plain=False)
    assert (calls.draws, calls.logits) == (12, 12)
    for options in ({"top_k": 5}, {"banned_tokens": [7]}, {"logits_processor": lambda _, x: x}):
        fast.generate([BOS, A], max_tokens=10, seed=1, stop_tokens=(), **options)
    assert (calls.draws, calls.logits) == (12, 42)
    fast.generate([BOS, A], max_tokens=10, seed=1, stop_tokens=())
    assert (calls.draws, calls.logits) == (22, 42)


def test_greedy_texts_with_a_processor_that_changes_nothing(model: Model) -> None:
    """Drawn in NumPy altogether."""
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "stop_tokens": ()}
    plain = model.generate([BOS, A], **options)
    slow = model.generate([BOS, A], logits_processor=lambda _, logits: logits, **options)
    assert (plain.text, plain.tokens) == (slow.text, slow.tokens)
    assert len(plain.tokens) == 40


# ---- batches ----

tokens = st.integers(3, 299)
wishes = st.builds(
    Wish,
    prompt=st.lists(tokens, min_size=1, max_size=30).map(tuple),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    max_tokens=st.integers(0, 40),
    stop=st.lists(st.sampled_from(["a", "bc", "d e", " f", "zz"]), max_size=3).map(tuple),
    stop_tokens=st.none() | st.frozensets(tokens, max_size=20),
    cancelled_after=st.none() | st.integers(0, 20),
    max_time=st.sampled_from([None, None, 1e9, 0.0]),
    overflow=st.sampled_from(["stop", "shift"]),
).filter(lambda w: w.max_tokens > 0 or (w.cancelled_after is None and w.max_time is None))
# (a batch looks at the budget first, a stream at the clock)


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(st.tuples(wishes, st.booleans()), min_size=1, max_size=8),
    max_batch=st.integers(1, 5),
)
def test_each_of_a_batch_is_what_it_is_alone(
    fast: Model, asked: list[tuple[Wish, bool]], max_batch: int
) -> None:
    """Plain ones and others together, their prompts run in blocks of 8."""
    jobs = [wish.job(fast, plain) for wish, plain in asked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_PROMPT_BLOCK", 8)
        done = list(run_jobs(fast, jobs, max_batch))
    for (wish, plain), job in zip(asked, done, strict=True):
        for kind in (plain, not plain):
            pieces, alone = wish.pieces(fast, kind)
            assert result(job) == result(alone)
            assert job.text == "".join(pieces)
            if kind == plain:
                assert job.logprobs == alone.logprobs
                assert not job.tokens or job.timings.prompt_seconds > 0


def test_a_batch_of_plain_texts_is_left_to_the_backend(
    fast: Model, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the prompt of one is long; one of another kind takes the logits of all."""
    monkeypatch.setattr(batch, "_PROMPT_BLOCK", 8)
    asked = [Wish(max_tokens=9), Wish((BOS, *[B] * 30), max_tokens=5), Wish(max_tokens=3, seed=4)]
    plain = [result(job) for job in run_jobs(fast, [w.job(fast, True) for w in asked], 3)]
    assert (calls.draws, calls.logits) == (17, 0)
    mixed = list(
        run_jobs(fast, [wish.job(fast, i != 2) for i, wish in enumerate(asked)], 3),
    )
    assert [result(job) for job in mixed] == plain
    assert calls.draws == 17 + 17 - 3 - 3  # its three passes gave one more text a token
    assert calls.logits == 9  # a row of each of three, in these passes


@pytest.mark.parametrize("plain", [True, False])
def test_cancelled_while_the_prompt_is_run(
    fast: Model, plain: bool, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_PROMPT_BLOCK", 8)
    asked = [Wish((BOS, *[A] * 50), cancelled_after=0), Wish(max_tokens=4), Wish(max_time=0.0)]
    jobs = [wish.job(fast, plain) for wish in asked]
    first, second, third = run_jobs(fast, jobs, 3)
    assert calls.tokens == 8 + (2 + 3) + 2  # no second block of the first
    assert (first.finish_reason, first.tokens, first.text) == ("cancelled", [], "")
    assert result(second) == result(asked[1].pieces(fast, plain)[1])
    assert (third.finish_reason, third.tokens) == ("time", [])


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("max_batch", [0, 1, 2])
def test_time_is_up_between_two_tokens(
    fast: Model, plain: bool, max_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that a token moves on by a second; 0: alone."""
    running: list[Job] = []
    monkeypatch.setattr(job_module, "perf_counter", lambda: float(len(running[0].tokens)))
    wish = Wish(max_time=6.0)
    running.append(wish.job(fast, plain))
    if max_batch:
        others = [Wish(max_tokens=20).job(fast, True)]
        list(run_jobs(fast, [*running, *others], max_batch))
    else:
        list(Stream(fast.session(), fast.tokenizer, running[0]))
    assert len(running[0].tokens) == 6
    assert running[0].finish_reason == "time"
    expected = replace(wish, max_time=None, max_tokens=6).pieces(fast, plain)[1]
    assert running[0].tokens == expected.tokens


# ---- what happens from outside ----


@pytest.mark.parametrize("plain", [True, False])
def test_a_stream_that_is_over_runs_no_more_blocks(fast: Model, plain: bool, calls: Calls) -> None:
    """It is asked before each pass, not only behind the prompt."""
    for wish in (Wish(cancelled_after=0), Wish(max_time=0.0)):
        pieces, job = wish.pieces(fast, plain)
        assert (pieces, job.tokens, calls.tokens) == ([], [], 0)
    Wish(cancelled_after=3).pieces(fast, plain)
    # The third token is not run, but by a backend that is ahead.
    assert calls.tokens == 2 + (fast.backend.ahead if plain else 2)


@pytest.mark.parametrize("plain", [True, False])
def test_a_closed_session_ends_a_stream_with_an_error(model: Model, plain: bool) -> None:
    session = model.session()
    stream = Stream(session, model.tokenizer, Wish().job(model, plain), owns_session=False)
    next(stream)
    session.close()
    with pytest.raises(Exception, match="session is closed"):
        next(stream)


@pytest.mark.parametrize("plain", [True, False])
def test_cancelled_meanwhile_by_a_stream_of_the_same_job(
    model: Model, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that ends with Cancelled, of a text that was not: the error is not swallowed."""
    job = Wish().job(model, plain)

    def cancelled(*_: object) -> None:
        raise Cancelled("closed meanwhile")

    with Stream(model.session(), model.tokenizer, job) as stream:
        next(stream)
        monkeypatch.setattr(model.backend, "generate" if plain else "forward", cancelled)
        with pytest.raises(Cancelled, match="closed meanwhile"):
            list(stream)
    assert job.finish_reason is None

"""Jobs, alone and in batches: the text is the same whoever draws its tokens, and how far ahead.

Two other ways to the same text serve as oracles. A text with log-probabilities has its tokens drawn
in Python, one in each pass. `ByHand` does without jobs and streams: `Session.forward`, a draw, and
the coins of the seed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py import Cancelled, ClosedError, Model, SamplingParams, Stream
from llama2py.engine import native
from llama2py.engine._engine import lib
from llama2py.engine.backend import Draw
from llama2py.engine.native import Engine
from llama2py.engine.session import Session
from llama2py.generation import batch
from llama2py.generation import job as job_module
from llama2py.generation.batch import run_jobs
from llama2py.generation.job import Job, Overflow
from llama2py.generation.sampling import Coin, Sampler
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, random_checkpoint, tiny_model, tiny_tokenizer
from tests.support.drawing import WAYS, by_hand, draw_tokens, keys
from tests.support.scripted import ScriptedBackend
from tests.support.wishes import A, AfterTokens, B, Wish

C = 288  # " c" of conftest's tokenizer
DOG = [3 + value for value in "🐶".encode()]


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


@pytest.fixture(scope="module")
def fast() -> Iterator[Model]:
    """The C engine alone, whose bits do not depend on the batch."""
    with tiny_model(threads=2) as model:
        assert model.backend.ahead > 10
        yield model


def scripted(*script: int) -> Model:
    return Model(ScriptedBackend(script, 300, seq_len=64), tiny_tokenizer())


def result(job: Job) -> tuple[Any, ...]:
    timings = job.timings
    counts = timings.prompt_tokens, timings.generated_tokens
    return job.text, job.tokens, job.finish_reason, job.stopped_by, counts


# ---- the text of a job ----


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("in_batch", [True, False])
def test_an_incomplete_character_at_the_end_is_shown_once(logits: bool, in_batch: bool) -> None:
    """Cancelled between the bytes of a character."""
    model = scripted(A, *DOG)
    wish = Wish((BOS, B), temperature=0.0, cancelled_after=3)
    if in_batch:
        (job,) = run_jobs(model, [wish.job(model, logits)], 1)
    else:
        pieces, job = wish.pieces(model, logits)
        assert pieces == ["a", "\ufffd"]
    assert (job.text, job.tokens, job.finish_reason) == ("a\ufffd", [A, *DOG[:2]], "cancelled")


def text_before(whole: str, stops: list[str]) -> tuple[str, str | None]:
    """A text up to the stop string that ends first, the longest of those; and that stop string."""
    for end in range(len(whole) + 1):
        if ended := [stop for stop in stops if whole[:end].endswith(stop)]:
            longest = max(ended, key=len)
            return whole[: end - len(longest)], longest
    return whole, None


letters = st.sampled_from([A, B, 262, C, 286, 287, 259])  # a, b, c, " c", " a", " b" and a space


@settings(max_examples=300, deadline=None)
@given(
    script=st.lists(letters, min_size=1, max_size=12),
    stops=st.lists(st.text("abc ", min_size=1, max_size=4), max_size=3),
)
def test_the_text_of_a_job_never_shows_part_of_a_stop_string(
    script: list[int], stops: list[str]
) -> None:
    model = scripted(*script)
    params = SamplingParams(0.0)
    job = Job([BOS, A], Sampler(model.backend, params, 1), len(script), stop=stops)
    whole, shown, fed = "", "", 0
    with model.session() as session:
        job.start(session, model.tokenizer)
        assert job.text == ""
        while job.finish_reason is None:
            whole += model.tokenizer.piece(script[fed]).decode()
            (token,) = draw_tokens(session, job.next_tokens(64), job.draws(1))
            shown += job.feed_token(token)
            fed += 1
            assert job.text == shown
            expected, found = text_before(whole, stops)
            if found is None and job.finish_reason is None:
                held = whole[len(shown) :]
                assert shown + held == whole
                assert not held or any(stop.startswith(held) for stop in stops)
            else:
                assert (job.text, job.stopped_by) == (expected, found)
                assert job.finish_reason == ("length" if found is None else "stop")
    assert job.tokens == script[:fed]
    assert job.text == shown  # a property: the same when it is read again


# ---- drawn by the backend, or in Python from logits ----

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
    "stop strings": Wish(temperature=3.0, stop=("a", "mb", "x ", "h"), seed=5),
    "cancelled at once": Wish(cancelled_after=0),
    "cancelled": Wish(cancelled_after=7),
    "no time": Wish(max_time=0.0),
    "much time": Wish(max_time=1e9),
    "shifted": Wish(max_tokens=150, overflow="shift"),
}


@pytest.mark.parametrize("wish", TEXTS.values(), ids=TEXTS)
def test_a_text_is_the_same_with_and_without_its_logits(model: Model, wish: Wish) -> None:
    pieces, job = wish.pieces(model)
    expected, from_logits = wish.pieces(model, logits=True)
    assert pieces == expected
    assert result(job) == result(from_logits)
    assert job.text == "".join(pieces)
    assert len(from_logits.logprobs) == len(job.tokens)
    assert job.logprobs == []


def test_the_texts_above_end_in_every_way(model: Model) -> None:
    jobs = {name: wish.pieces(model)[1] for name, wish in TEXTS.items()}
    lengths = {name: len(job.tokens) for name, job in jobs.items()}
    reasons = {name: job.finish_reason for name, job in jobs.items()}
    for name, n, reason in (
        ("no token", 0, "length"),
        ("one token", 1, "length"),
        ("full", 1, "length"),
        ("cancelled at once", 0, "cancelled"),
        ("cancelled", 7, "cancelled"),
        ("no time", 0, "time"),
        ("shifted", 150, "length"),
    ):
        assert (lengths[name], reasons[name]) == (n, reason), name
    assert reasons["stop tokens"] == reasons["stop strings"] == "stop"
    assert jobs["stop tokens"].stopped_by in range(3, 20)
    assert jobs["stop strings"].stopped_by in TEXTS["stop strings"].stop


@dataclass
class Calls:
    """What a backend does: tokens run, rows of logits returned, tokens drawn in each pass."""

    logits: int
    tokens: int
    drawn: list[int]

    @property
    def draws(self) -> int:
        return sum(self.drawn)


@pytest.fixture
def calls(fast: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    counted = Calls(0, 0, [])
    fast.reuse_prefixes(0)  # every prompt is run from its first token
    run = fast.backend.run

    def counting(tokens: list[int], caches: Any, positions: Any, *rest: Any) -> Any:
        out = run(tokens, caches, positions, *rest)
        counted.tokens += len(tokens)
        if len(rest) == 1:
            counted.logits += len(out)
        else:
            counted.drawn.append(sum(map(len, out)))
            counted.tokens += sum(len(text) - 1 for text in out)
        return out

    monkeypatch.setattr(fast.backend, "run", counting)
    yield counted
    fast.reuse_prefixes()


def test_only_texts_that_need_their_logits_get_them(fast: Model, calls: Calls) -> None:
    wish = Wish((BOS, *[A] * 9), max_tokens=12)
    wish.pieces(fast)
    assert (calls.draws, calls.tokens, calls.logits) == (12, 10 + 11, 0)
    wish.pieces(fast, logits=True)
    assert (calls.draws, calls.logits) == (12, 12)
    for options in ({"top_k": 5}, {"banned_tokens": [7]}, {"logits_processor": lambda _, x: x}):
        fast.generate([BOS, A], max_tokens=10, seed=1, stop_tokens=(), **options)
    assert (calls.draws, calls.logits) == (12, 42)
    fast.generate([BOS, A], max_tokens=10, seed=1, stop_tokens=())
    assert (calls.draws, calls.logits) == (22, 42)


def test_no_token_is_drawn_that_nobody_can_want(
    fast: Model, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last token, after one of the first stop tokens, or ahead for one of a batch."""
    monkeypatch.setattr(fast.backend, "ahead", 16)
    options: dict[str, Any] = {"seed": 1, "temperature": 2.0}
    whole = fast.generate([BOS, A], max_tokens=40, stop_tokens=(), **options).tokens
    assert calls.drawn == [1, 16, 16, 7]  # the first token is timed by itself
    for last in (1, 2, 16, 17, 30):
        calls.drawn.clear()
        first = whole.index(whole[last])
        some = [whole[last], *({290, 291, 292} - set(whole)), -1, 300, 1 << 40]
        text = fast.generate([BOS, A], max_tokens=40, stop_tokens=some, **options)
        assert (text.tokens, text.stopped_by) == (whole[:first], whole[last])
        assert calls.draws == first + 1
    many = [*sorted(set(range(300)) - set(whole)), whole[20]]
    text = fast.generate([BOS, A], max_tokens=40, stop_tokens=many, **options)
    assert text.tokens == whole[: whole.index(whole[20])]
    calls.drawn.clear()
    fast.generate([[BOS, A]] * 2, max_tokens=20, stop_tokens=(), **options)
    assert calls.drawn == [2] * 20


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
# (a batch looks at max_tokens first, a stream at the clock)


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(st.tuples(wishes, st.booleans()), min_size=1, max_size=8),
    max_batch=st.integers(1, 5),
)
def test_each_text_of_a_batch_is_what_it_is_alone(
    fast: Model, asked: list[tuple[Wish, bool]], max_batch: int
) -> None:
    jobs = [wish.job(fast, logits) for wish, logits in asked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_PROMPT_BLOCK", 8)
        done = list(run_jobs(fast, jobs, max_batch))
    for (wish, logits), job in zip(asked, done, strict=True):
        for kind in (logits, not logits):
            pieces, alone = wish.pieces(fast, kind)
            assert result(job) == result(alone)
            assert job.text == "".join(pieces)
            if kind == logits:
                assert job.logprobs == alone.logprobs
                assert not job.tokens or job.timings.prompt_seconds > 0


def test_one_text_that_needs_logits_gets_them_for_its_batch(
    fast: Model, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the prompt of another text is long."""
    monkeypatch.setattr(batch, "_PROMPT_BLOCK", 8)
    asked = [Wish(max_tokens=9), Wish((BOS, *[B] * 30), max_tokens=5), Wish(max_tokens=3, seed=4)]
    plain = [result(job) for job in run_jobs(fast, [w.job(fast) for w in asked], 3)]
    assert (calls.draws, calls.logits) == (17, 0)
    mixed = run_jobs(fast, [wish.job(fast, i == 2) for i, wish in enumerate(asked)], 3)
    assert [result(job) for job in mixed] == plain
    assert calls.draws == 17 + 17 - 3 - 3  # three passes gave that text and another a token
    assert calls.logits == 9  # three rows in each of these passes


@pytest.mark.parametrize("logits", [True, False])
def test_a_text_that_is_over_runs_no_more_tokens(
    fast: Model, logits: bool, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wish in (Wish(cancelled_after=0), Wish(max_time=0.0)):
        pieces, job = wish.pieces(fast, logits)
        assert (pieces, job.tokens, calls.tokens) == ([], [], 0)
    Wish(cancelled_after=3).pieces(fast, logits)
    # The third token is not run, except by a backend that is ahead.
    assert calls.tokens == 2 + (2 if logits else fast.backend.ahead)
    calls.tokens = 0
    monkeypatch.setattr(batch, "_PROMPT_BLOCK", 8)
    asked = [Wish((BOS, *[A] * 50), cancelled_after=0), Wish(max_tokens=4), Wish(max_time=0.0)]
    jobs = [wish.job(fast, logits) for wish in asked]
    first, second, third = run_jobs(fast, jobs, 3)
    assert calls.tokens == 2 + 3
    assert (first.finish_reason, first.tokens, first.text) == ("cancelled", [], "")
    assert result(second) == result(asked[1].pieces(fast, logits)[1])
    assert (third.finish_reason, third.tokens) == ("time", [])


# ---- cancelled, timed, closed ----


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("max_batch", [0, 1, 2])
def test_time_can_be_up_between_two_tokens(
    fast: Model, logits: bool, max_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that moves on by a second with each token. 0: without a batch."""
    running: list[Job] = []
    monkeypatch.setattr(job_module, "perf_counter", lambda: float(len(running[0].tokens)))
    wish = Wish(max_time=6.0)
    running.append(wish.job(fast, logits))
    if max_batch:
        list(run_jobs(fast, [*running, Wish(max_tokens=20).job(fast)], max_batch))
    else:
        list(Stream(fast.session(), fast.tokenizer, running[0]))
    assert running[0].finish_reason == "time"
    expected = replace(wish, max_time=None, max_tokens=6).pieces(fast, logits)[1]
    assert running[0].tokens == expected.tokens


@pytest.mark.parametrize("prompt", [[BOS], [BOS, A], [BOS, A, 40, 41]])
def test_the_first_token_is_timed_by_itself(
    prompt: list[int], fast: Model, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that moves on by a second with each token drawn."""
    monkeypatch.setattr(job_module, "perf_counter", lambda: float(calls.draws))
    timings = fast.generate(prompt, max_tokens=30, seed=1, stop_tokens=()).timings
    assert (timings.prompt_seconds, timings.first_token_seconds) == (1, 1)
    assert (timings.generated_tokens, timings.generation_seconds) == (30, 29)
    assert timings.tokens_per_second == 1


@pytest.mark.parametrize("logits", [True, False])
def test_a_closed_session_ends_a_stream_with_an_error(model: Model, logits: bool) -> None:
    session = model.session()
    stream = Stream(session, model.tokenizer, Wish().job(model, logits), owns_session=False)
    next(stream)
    session.close()
    with pytest.raises(ClosedError, match="session is closed"):
        next(stream)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_stream_can_be_closed_between_two_pieces(fast: Model, n: int) -> None:
    stream = fast.stream([BOS, A], seed=1, stop_tokens=())
    assert len(list(islice(stream, n))) == n
    heard = list(stream.tokens)
    stream.close()
    with pytest.raises(ClosedError):
        next(stream)
    assert stream.tokens == heard
    assert stream.finish_reason is None


@pytest.mark.parametrize("logits", [True, False])
def test_a_pass_cancelled_by_a_close_is_an_error(
    model: Model, logits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text was not cancelled, so the error is not swallowed."""
    job = Wish().job(model, logits)

    def cancelled(*_: object) -> None:
        raise Cancelled("closed meanwhile")

    with Stream(model.session(), model.tokenizer, job) as stream:
        next(stream)
        monkeypatch.setattr(model.backend, "run", cancelled)
        with pytest.raises(Cancelled, match="closed meanwhile"):
            list(stream)
    assert job.finish_reason is None


# ---- coins and positions, whatever was drawn in vain ----


class ByHand:
    """Texts drawn token by token, in a session of their own."""

    def __init__(self, model: Model, seed: int, n_tokens: int = 300) -> None:
        self.session, self._coin, self._n_tokens = model.session(), Coin(seed), n_tokens

    def text(
        self, prompt: list[int], params: SamplingParams, most: int, stop_tokens: frozenset[int]
    ) -> list[int]:
        """The tokens, including the stop token that ended them. The last one has not been run."""
        last, drawn = prompt, list[int]()
        while len(drawn) < most and not (drawn and drawn[-1] in stop_tokens):
            flips = params.temperature > 1e-30
            coin, temperature = (self.next_coin(), params.temperature) if flips else (0.0, 0.0)
            last = by_hand(
                self.session, last, [Draw(temperature, params.top_p, coin, self._n_tokens)]
            )
            drawn += last
        return drawn

    def next_coin(self) -> float:
        return self._coin.flip()


@dataclass(frozen=True)
class Turn:
    """A prompt, how much is read of the text after it, and what happens then."""

    prompt: list[int]
    way: SamplingParams
    max_tokens: int
    stop_tokens: frozenset[int] | None
    n_pieces: int
    then: str
    overflow: Overflow
    forget: float


turns = st.builds(
    Turn,
    prompt=st.lists(st.integers(0, 299), min_size=1, max_size=6),
    way=st.sampled_from([SamplingParams(2.0, 0.95), *WAYS]),
    max_tokens=st.integers(1, 45),
    stop_tokens=st.none() | st.frozensets(st.integers(-5, 320) | st.just(1 << 70), max_size=30),
    n_pieces=st.integers(0, 30),
    then=st.sampled_from(["rest", "rest", "drop", "cancel", "over"]),
    overflow=st.sampled_from(["stop", "shift"]),
    forget=st.floats(0, 1),
)


@settings(max_examples=120, deadline=None)
@given(conversation=st.lists(turns, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_tokens_drawn_in_vain_leave_no_trace(
    fast: Model, conversation: list[Turn], seed: int
) -> None:
    """Texts of one session and one sampler, each broken off anywhere."""
    sampler, hand = Sampler(fast.backend, WAYS[0], seed), ByHand(fast, seed)
    with fast.session() as session, hand.session:
        for turn in conversation:
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
                stop_tokens=turn.stop_tokens,
                cancel=cancel,
                overflow=turn.overflow,
            )
            most = turn.max_tokens
            if turn.overflow == "stop":
                most = min(most, session.room - len(turn.prompt) + 1)
            stream = Stream(session, fast.tokenizer, job, owns_session=False)
            heard = "".join(islice(stream, turn.n_pieces))
            if turn.then == "rest":
                heard += "".join(stream)
                assert job.finish_reason in ("stop", "length")
            elif cancel:
                cancel.set()
                heard += "".join(stream)
            elif turn.then == "over" and turn.n_pieces:  # as a chat does with an older answer
                job.finish_reason = job.finish_reason or "cancelled"
                assert list(stream) == []
            assert heard == job.text == stream.text
            if turn.then == "rest" or job.finish_reason == "length":
                before = "" if turn.prompt[-1] == BOS else "a"  # a space after BOS is not shown
                whole = fast.tokenizer.decode([A if before else BOS, *job.tokens])
                assert before + heard == whole
            check(job, session, hand, turn, most)
        assert sampler.draws(1)[0].coin in (0.0, hand.next_coin())


def check(job: Job, session: Session, hand: ByHand, turn: Turn, most: int) -> None:
    """The job's tokens are those drawn by hand, and the sessions have run the same tokens."""
    stop_tokens = frozenset([BOS]) if turn.stop_tokens is None else turn.stop_tokens
    n_drawn = job.timings.generated_tokens
    expected = hand.text(turn.prompt, turn.way, min(n_drawn, most), stop_tokens)
    assert len(expected) == n_drawn
    stopped = bool(expected) and expected[-1] in stop_tokens
    assert job.tokens == (expected[:-1] if stopped else expected)
    assert (job.finish_reason == "stop") == stopped
    assert job.stopped_by == (expected[-1] if stopped else None)
    if not stopped and n_drawn == most:
        assert job.finish_reason == "length"
    if job.finish_reason == "cancelled" and session.position > hand.session.position:
        session.rewind(session.position - 1)  # cancelled after its last token had been run
    assert session.tokens == hand.session.tokens
    assert keys(session) == keys(hand.session)


@pytest.mark.parametrize("in_batch", [False, True])
def test_cancelling_costs_no_coin(fast: Model, in_batch: bool) -> None:
    for n in range(25):
        sampler, hand = Sampler(fast.backend, WAYS[0], 7), ByHand(fast, 7)
        cancel = AfterTokens(n)
        job = Job([BOS, A], sampler, 40, stop_tokens=frozenset(), cancel=cancel)
        cancel.job = job
        if in_batch:
            list(run_jobs(fast, [job], 1))
        else:
            list(Stream(fast.session(), fast.tokenizer, job))
        assert job.finish_reason == "cancelled"
        assert job.tokens == hand.text([BOS, A], WAYS[0], n, frozenset())
        assert sampler.draws(1)[0].coin == hand.next_coin()


@pytest.mark.parametrize("every", [1, 2, 5])
def test_new_parameters_hold_from_the_next_token(fast: Model, every: int) -> None:
    ways = [WAYS[0], WAYS[1], SamplingParams(2.0, 1.0), SamplingParams(1.0, top_k=1), WAYS[4]]
    sampler, hand = Sampler(fast.backend, ways[0], 3), ByHand(fast, 3)
    job = Job([BOS, A], sampler, 60, stop_tokens=frozenset(), overflow="shift")
    hand.session.overflow = "shift"
    last, expected, changes = [BOS, A], list[int](), 0
    for n, _ in enumerate(Stream(fast.session(), fast.tokenizer, job)):
        way = sampler.params
        while len(expected) < len(job.tokens):  # a piece may be of several tokens
            if way.top_k:  # drawn in NumPy: the best token, and a coin is used
                hand.next_coin()
                last = hand.text(last, SamplingParams(0.0), 1, frozenset())
            else:
                last = hand.text(last, way, 1, frozenset())
            expected += last
        assert job.tokens == expected
        if n % every == 0:
            changes += 1
            sampler.params = ways[changes % len(ways)]
    assert changes > 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled("by a test"), MemoryError])
@pytest.mark.parametrize("n_passes", [0, 1, 2, 3])
def test_tokens_of_a_pass_that_fails_are_drawn_again(
    fast: Model, error: Any, n_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        left = n_passes

        def __getattr__(self, name: str) -> Any:
            return getattr(lib, name)

        def l2p_forward(self, *arguments: Any) -> int:
            code: int = lib.l2p_forward(*arguments)
            Failing.left -= 1
            if Failing.left < 0:
                raise error
            return code

    monkeypatch.setattr(fast.backend, "ahead", 16)
    sampler, hand = Sampler(fast.backend, WAYS[0], 8), ByHand(fast, 8)
    with fast.session() as session, hand.session:
        job = Job([BOS, A], sampler, 50, stop_tokens=frozenset())
        stream = Stream(session, fast.tokenizer, job, owns_session=False)
        with monkeypatch.context() as patch:
            patch.setattr(native, "lib", Failing())
            with pytest.raises(error if isinstance(error, type) else type(error)):
                list(stream)
        assert len(job.tokens) == max(0, 16 * n_passes - 15)
        turn = Turn([BOS, A], WAYS[0], 50, frozenset(), 0, "drop", "stop", 0.0)
        check(job, session, hand, turn, 50)
        rest = Job(job.tokens[-1:] or [BOS, A], sampler, 20, stop_tokens=frozenset())
        list(Stream(session, fast.tokenizer, rest, owns_session=False))
        check(rest, session, hand, replace(turn, prompt=rest.prompt_tokens), 20)


def test_kept_sessions_hold_only_tokens_of_the_text(fast: Model) -> None:
    """A prompt shares a prefix with a text that ended, was left, or was never drawn so far."""
    prompt = [BOS, *range(40, 65)]
    fast.reuse_prefixes(0)
    options: dict[str, Any] = {"seed": 5, "temperature": 1.5, "stop_tokens": ()}
    fresh = fast.generate(prompt, max_tokens=30, **options)
    fast.reuse_prefixes()
    for n in (1, 2, 9, 30):
        text = fast.generate(prompt, max_tokens=n, **options)
        assert text.tokens == fresh.tokens[:n]
        assert fast.prefix_cache._kept[-1].tokens == prompt + text.tokens[:-1]
    for stop_token in (fresh.tokens[3], fresh.tokens[17]):
        text = fast.generate(prompt, max_tokens=30, **options | {"stop_tokens": [stop_token]})
        assert text.tokens == fresh.tokens[: fresh.tokens.index(stop_token)]
        assert fast.prefix_cache._kept[-1].tokens == prompt + text.tokens
    longer = prompt + fresh.tokens[:20]
    rest = fast.generate(longer, max_tokens=5, temperature=0)
    fast.reuse_prefixes(0)
    assert rest.tokens == fast.generate(longer, max_tokens=5, temperature=0).tokens
    fast.reuse_prefixes()


@pytest.mark.parametrize("way", [SamplingParams(4.0, 1.0), SamplingParams(0.0)])
def test_padding_is_never_drawn(way: SamplingParams) -> None:
    """Tokens of the model that the tokenizer lacks, in each of the draws of a pass."""
    config = replace(TINY, vocab_size=340)
    tokenizer = tiny_tokenizer().padded(340)
    with Model(Engine(random_checkpoint(config)), tokenizer) as model:
        texts = {}
        for n_tokens, stop_tokens in ((300, frozenset([250, 299])), (330, frozenset([-1, 329]))):
            job = Job([BOS, 77], Sampler(model.backend, way, 2), 62, stop_tokens=stop_tokens)
            list(Stream(model.session(), model.tokenizer, job))
            expected = ByHand(model, 2, n_tokens).text([BOS, 77], way, 62, stop_tokens)
            if stopped := expected[-1] in stop_tokens:
                expected.pop()
            assert (job.tokens, job.finish_reason == "stop") == (expected, stopped)
            texts[n_tokens] = expected
        # A stop token is no padding, and neither are the tokens before it.
        assert max(texts[300]) < 300 <= max(texts[330]) < 330


def test_a_backend_of_ones_own_may_draw_ahead() -> None:
    """What it runs, and what a stream shows of it."""
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

"""A session in use refuses a second user: another thread, or a callback of the same call.

Without that, both find room for their tokens, and the position grows past the context: a fork then
copied memory beyond the KV cache, and other sessions computed other logits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama2py import Chat, ContextError, Model, SessionError, Stream
from llama2py.engine.backend import Logits
from llama2py.engine.session import Session, run_sessions
from llama2py.generation.batch import run_jobs
from llama2py.generation.job import Job
from llama2py.generation.sampling import Sampler, SamplingParams
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, tiny_model
from tests.support.drawing import HOT, by_hand, draw_tokens, same, session_at

CONTEXT = TINY.seq_len
IN_USE = "session is in use"


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


USES: dict[str, Callable[[Session, Path], object]] = {
    "forward": lambda session, _: session.forward([5] * 40),
    "draws": lambda session, _: run_sessions([session], [[5] * 40], [HOT[:4]]),
    "batch": lambda session, _: run_sessions([session], [[5] * 40]),
    "rewind": lambda session, _: session.rewind(0),
    "shift": lambda session, _: session.shift(),
    "fork": lambda session, _: session.fork(),
    "save": lambda session, path: session.save(path / "a.session"),
    "make_room": lambda session, _: session.make_room(1),
}


class Gate:
    """A backend's `run` that waits in the middle of a pass."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        run = model.backend.run

        def waiting(*arguments: Any) -> Any:
            out = run(*arguments)
            if not self.entered.is_set():  # the first pass
                self.entered.set()
                assert self.go_on.wait(20)
            return out

        monkeypatch.setattr(model.backend, "run", waiting)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_second_thread_is_refused(
    model: Model,
    use: Callable[[Session, Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with session_at(model, 9) as session, session_at(model, 9) as undisturbed:
        expected = undisturbed.forward([7] * 40)
        gate = Gate(model, monkeypatch)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(session.forward, [7] * 40)
            assert gate.entered.wait(20)
            try:
                with pytest.raises(SessionError, match=IN_USE):
                    use(session, tmp_path)
                with session_at(model, 9) as other:
                    use(other, tmp_path)  # other sessions are free meanwhile
            finally:
                gate.go_on.set()
            assert first.result(20).tobytes() == expected.tobytes()
        assert session.position == 49
        assert same(session, undisturbed)
        session.forward([5])  # free again


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("during", ["forward", "shift"])
def test_a_callback_of_the_session_is_refused(
    model: Model, use: Callable[[Session, Path], object], during: str, tmp_path: Path
) -> None:
    errors: list[BaseException] = []
    with session_at(model, 9) as session, session_at(model, 9) as undisturbed:

        def interrupted() -> bool:
            try:
                use(session, tmp_path)
            except SessionError as error:
                errors.append(error)
            with session_at(model, 9) as other:
                use(other, tmp_path)  # another session of the model is fine
            return False

        for one, callback in ((session, interrupted), (undisturbed, None)):
            if during == "forward":
                one.forward([7] * 40, interrupted=callback)
            else:
                one.shift(1, callback)
        assert len(errors) == 1
        assert IN_USE in str(errors[0])
        assert session.position <= CONTEXT
        assert same(session, undisturbed)


def test_a_callback_that_lets_the_error_pass_ends_the_call(model: Model) -> None:
    with session_at(model, 9) as session:

        def interrupted() -> bool:
            session.forward([5] * 40)
            return False

        with pytest.raises(SessionError, match=IN_USE):
            session.forward([7] * 40, interrupted=interrupted)
        assert session.position == 9
        session.forward([7] * 40)  # free again


def test_threads_that_share_a_session_never_overfill_it(model: Model) -> None:
    """Whoever comes first runs; nobody's tokens go past the context."""
    refused = 0
    for _ in range(30):
        with model.session() as session, ThreadPoolExecutor(4) as pool:
            barrier = threading.Barrier(4)

            def work(n: int, session: Session = session, barrier: Any = barrier) -> int:
                barrier.wait()
                try:
                    session.forward([n] * 40)
                except SessionError:
                    return 1
                except ContextError:  # this thread came second, and the first is done
                    return 0
                return 0

            refused += sum(pool.map(work, range(1, 5)))
            assert session.position in (0, 40)
            assert len(set(session.tokens)) <= 1
            with session.fork() as branch:
                assert branch.tokens == session.tokens


def test_a_session_cannot_come_twice_in_a_batch(model: Model) -> None:
    with session_at(model, 9) as session, session_at(model, 9) as other:
        with pytest.raises(SessionError, match=IN_USE):
            run_sessions([session, other, session], [[5]] * 3)
        assert (session.position, other.position) == (9, 9)
        run_sessions([session, other], [[5]] * 2)


def test_drawing_ends_while_another_thread_uses_the_session(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session_at(model, 9) as session, session_at(model, 9) as undisturbed:
        (tokens,) = run_sessions([session], [[9]], [HOT[:16]])
        drawn = [next(tokens), next(tokens)]
        assert drawn == by_hand(undisturbed, [9], HOT[:2])
        gate = Gate(model, monkeypatch)
        with ThreadPoolExecutor(1) as pool:
            forward = pool.submit(session.forward, [7])
            assert gate.entered.wait(20)
            assert next(tokens, None) is None
            gate.go_on.set()
            logits = forward.result(20)
        assert logits.tobytes() == undisturbed.forward([7]).tobytes()
        assert same(session, undisturbed)


def test_another_thread_may_close_a_session_in_use(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(model, monkeypatch)
    session = model.session()
    with ThreadPoolExecutor(1) as pool:
        forward = pool.submit(session.forward, [7] * 5)
        assert gate.entered.wait(20)
        session.close()
        gate.go_on.set()
        assert forward.result(20).shape == (300,)  # the pass was over when the session was closed
    with pytest.raises(Exception, match="session is closed"):
        session.forward([7])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("by a test")])
def test_a_call_that_fails_frees_the_session(
    model: Model, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    with session_at(model, 9) as session, session_at(model, 9) as undisturbed:
        with monkeypatch.context() as patch:
            patch.setattr(model.backend, "run", failing)
            for call in (session.forward, lambda tokens: draw_tokens(session, tokens, HOT[:2])):
                with pytest.raises(error if isinstance(error, type) else type(error)):
                    call([7] * 40)
        assert draw_tokens(session, [9], HOT[:4]) == by_hand(undisturbed, [9], HOT[:4])


# ---- streams, batches, chats ----


class Meddler:
    """A guide that uses a session."""

    adjusts = True

    def __init__(self, session: Session) -> None:
        self.session = session
        self.errors: list[str] = []

    def adjust(self, logits: Logits) -> None:
        self.meddle()

    def accept(self, token: int, piece: str) -> bool:
        self.meddle()
        return True

    def meddle(self) -> None:
        try:
            self.session.forward([5])
        except SessionError as error:
            self.errors.append(str(error))

    def process(self, tokens: Any, logits: Logits) -> Logits:
        self.meddle()
        return logits


@pytest.mark.parametrize("as_guide", [True, False])
def test_a_guide_or_processor_may_not_use_the_session_of_its_text(
    model: Model, as_guide: bool
) -> None:
    plain = model.generate([BOS, 260], 9, seed=1, stop_tokens=(), logprobs=0)
    with model.session() as session:
        meddler = Meddler(session)
        params = SamplingParams(logits_processor=None if as_guide else meddler.process)
        guide = meddler if as_guide else None
        job = Job([BOS, 260], Sampler(model.backend, params, 1), 9, guide, frozenset())
        list(Stream(session, model.tokenizer, job, owns_session=False))
        assert len(meddler.errors) == 9 * (2 if as_guide else 1)
        assert IN_USE in meddler.errors[0]
        assert len(job.tokens) == 9
        assert not as_guide or job.tokens == plain.tokens
        assert session.tokens == [BOS, 260, *job.tokens[:-1]]


def test_a_processor_may_use_another_session(model: Model) -> None:
    with model.session() as other:

        def process(tokens: Any, logits: Logits) -> Logits:
            other.rewind(0)
            assert np.allclose(other.forward(list(tokens)), logits, rtol=0, atol=1e-4)
            model.generate("a", 2, seed=1)
            return logits

        text = model.generate("a", 9, seed=1, stop_tokens=(), logits_processor=process)
        assert len(text.tokens) == 9
        texts = model.generate(["a", "b"], 9, seed=1, stop_tokens=(), logits_processor=process)
        assert texts[0].tokens == text.tokens


def test_a_stream_refuses_a_second_reader(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which does not end the text of the first one."""
    expected = model.generate("a", 9, seed=1, stop_tokens=())
    gate = Gate(model, monkeypatch)
    stream = model.stream("a", 9, seed=1, stop_tokens=())
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, stream)
        assert gate.entered.wait(20)
        with pytest.raises(SessionError, match="stream is in use"):
            next(stream)
        gate.go_on.set()
        assert first.result(20) + "".join(stream) == expected.text == stream.text


def test_a_processor_may_not_read_its_own_stream(model: Model) -> None:
    errors: list[str] = []

    def process(tokens: Any, logits: Logits) -> Logits:
        try:
            next(stream)
        except SessionError as error:
            errors.append(str(error))
        return logits

    stream = model.stream("a", 9, seed=1, stop_tokens=(), logits_processor=process)
    assert "".join(stream) == stream.text != ""
    assert len(errors) == len(stream.tokens) == 9


def test_a_guide_in_a_batch_may_use_a_session_of_its_own(model: Model) -> None:
    """The guide of one text of a batch uses a session outside of it."""
    with model.session() as session:
        meddler = Meddler(session)
        jobs = [
            Job([BOS, 260], Sampler(model.backend, SamplingParams(), seed), 5, guide, frozenset())
            for seed, guide in ((1, meddler), (2, None))
        ]
        assert [len(job.tokens) for job in run_jobs(model, jobs, 2)] == [5, 5]
        assert (meddler.errors, session.position) == ([], 10)


def test_a_chat_refuses_a_turn_while_an_answer_is_computed(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Chat(model, seed=1, template="plain") as chat:
        gate = Gate(model, monkeypatch)
        answer = chat.say("a")
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, answer, None)
            assert gate.entered.wait(20)
            with pytest.raises(SessionError, match=IN_USE):
                chat.say("b")
            gate.go_on.set()
            first.result(20)

"""Ctrl-C during a forward pass: the pass ends within a layer, and the session stays usable."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llama2py import Model, ModelConfig
from llama2py.engine import native as engine
from llama2py.engine._engine import lib
from llama2py.engine.native import Engine
from llama2py.engine.session import run_sessions
from tests.conftest import TINY, random_checkpoint, tiny_tokenizer
from tests.support.drawing import HOT, draw_tokens

# A forward pass of 120 tokens takes some tenths of a second with one thread.
SLOW = ModelConfig(384, 1024, 16, 6, 6, 300, 256)
TOKENS = [(7 * i) % 300 for i in range(120)]
DRAW = HOT[:1]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(Engine(random_checkpoint(SLOW), threads=1), tiny_tokenizer())


class Watched:
    """The engine's library: Ctrl-C comes during a forward pass; ``ends`` lists the results."""

    def __init__(self) -> None:
        self.ends: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def l2p_forward(self, *arguments: Any) -> int:
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        self.ends.append(lib.l2p_forward(*arguments))
        timer.join()
        return self.ends[-1]


@pytest.fixture(autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """Even if the parent process ignores SIGINT, as a shell does for a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("drawing", [False, True])
def test_ctrl_c_ends_a_long_pass(
    model: Model, together: bool, drawing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SLOW.n_params * len(TOKENS) > engine.LONG_WORK
    with model.session() as one, model.session() as other:

        def work() -> Any:
            sessions = [one, other] if together else [one]
            blocks = [TOKENS] * len(sessions)
            if drawing:
                texts = run_sessions(sessions, blocks, [DRAW] * len(sessions))
                return [list(text) for text in texts]
            return run_sessions(sessions, blocks).tobytes()

        expected = work()
        one.rewind(0)
        other.rewind(0)
        watched = Watched()
        with monkeypatch.context() as patch:
            patch.setattr(engine, "lib", watched)
            with pytest.raises(KeyboardInterrupt):
                work()
        assert watched.ends == [lib.L2P_CANCELLED]  # it did not run to its end
        assert (one.position, other.position) == (0, 0)
        assert work() == expected  # as if nothing had been


def test_an_interrupted_pass_leaves_no_trace(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LONG_WORK", 1)
    with model.session() as one, model.session() as other:
        expected = [draw_tokens(other, [token], DRAW) for token in TOKENS[:4]]
        assert draw_tokens(one, TOKENS[:1], DRAW) == expected[0]
        signals: list[int] = []

        class Stuck(Watched):
            def l2p_forward(self, *arguments: Any) -> int:
                time.sleep(0.05)  # until the main thread waits
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                while not arguments[-1][0]:  # until it is cancelled
                    time.sleep(0.001)
                signals.append(lib.l2p_forward(*arguments))
                return signals[-1]

        with monkeypatch.context() as patch:
            patch.setattr(engine, "lib", Stuck())
            with pytest.raises(KeyboardInterrupt):
                draw_tokens(one, TOKENS[1:2], DRAW)
        assert signals == [lib.L2P_CANCELLED]
        assert one.tokens == TOKENS[:1]
        assert [draw_tokens(one, [token], DRAW) for token in TOKENS[1:4]] == expected[1:]


def test_a_thread_of_its_own_changes_no_bit(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with model.session() as one, model.session() as other:
        aside = one.forward(TOKENS, all_logits=True).tobytes()
        drawn = draw_tokens(one, [1], DRAW)
        monkeypatch.setattr(engine, "LONG_WORK", 1 << 60)
        assert other.forward(TOKENS, all_logits=True).tobytes() == aside
        assert draw_tokens(other, [1], DRAW) == drawn


# ---- at every moment ----


class Interrupt(Exception):
    """What a signal handler raises."""


class Patient:
    """The engine's library; a forward pass first waits to be cancelled, for a tenth of a second."""

    def __init__(self) -> None:
        self.begun = self.cancelled = self.waited = 0
        self.waited_before = 0  # passes that had waited for their time when the interrupt came

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def l2p_forward(self, *arguments: Any) -> int:
        self.begun += 1
        end = time.monotonic() + 0.1
        while not arguments[-1][0] and time.monotonic() < end:
            time.sleep(0.001)
        is_cancelled = arguments[-1][0]
        self.cancelled += is_cancelled
        self.waited += not is_cancelled
        return int(lib.l2p_forward(*arguments))


def is_interrupted_at(n: int, call: Callable[[], object], patient: Patient) -> bool:
    """Raise an Interrupt before the n-th instruction of what waits for a pass."""
    count = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal count
        code = frame.f_code
        if code is not engine._run_aside.__code__ and code.co_filename != threading.__file__:
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        if count == n:
            sys.settrace(None)
            patient.waited_before = patient.waited
            raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.slow
def test_an_interrupt_between_any_two_instructions_ends_the_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even around the start of the pass's own thread."""
    monkeypatch.setattr(engine, "LONG_WORK", 1)
    small = Model(Engine(random_checkpoint(TINY), threads=1), tiny_tokenizer())
    tokens = [1, 2, 3]
    with small.session() as session:
        expected = session.forward(tokens).tobytes()
        for n in range(1, 1000):
            session.rewind(0)
            patient = Patient()
            with monkeypatch.context() as patch:
                patch.setattr(engine, "lib", patient)
                interrupted = is_interrupted_at(n, lambda: session.forward(tokens), patient)
            session.rewind(0)
            assert session.forward(tokens).tobytes() == expected, n
            if not interrupted:
                break
            left = patient.begun - patient.waited_before - patient.cancelled
            assert left == 0, f"the pass went on after an interrupt before instruction {n}"
        assert 20 < n < 999


@pytest.mark.slow
def test_a_storm_of_signals_changes_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LONG_WORK", 1)
    config = ModelConfig(128, 344, 4, 4, 4, 300, 64)
    small = Model(Engine(random_checkpoint(config), threads=2), tiny_tokenizer())
    tokens = TOKENS[:40]

    left = 0  # signals that still interrupt

    def interrupt(*_: object) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    rng, interrupts, wrong = random.Random(7), 0, 0
    try:
        with small.session() as session:
            expected = session.forward(tokens, all_logits=True).tobytes()
            for _ in range(1000):
                session.rewind(0)
                left = rng.randint(1, 2)
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3), 1e-4)
                        session.forward(tokens, all_logits=True)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupt:
                    interrupts += 1
                left = 0  # one may come late, by way of another thread
                signal.setitimer(signal.ITIMER_REAL, 0)
                session.rewind(0)
                wrong += session.forward(tokens, all_logits=True).tobytes() != expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 100
    assert wrong == 0

"""Ctrl-C during a forward pass: the pass ends within a layer, and the session stays usable."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llama2py import Model, ModelConfig
from llama2py.engine import native as engine
from llama2py.engine._engine import lib
from llama2py.engine.native import Engine
from llama2py.engine.session import run_sessions
from tests.conftest import random_checkpoint, tiny_tokenizer
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

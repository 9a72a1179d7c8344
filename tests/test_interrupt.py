"""Ctrl-C while the engine is at work: it is heard within a layer, and the session stays of use."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import random_checkpoint, tiny_tokenizer

from llama2py import Model, ModelConfig, engine
from llama2py.engine import Engine
from llama2py.session import forward_many

# A forward pass of 120 tokens takes some tenths of a second with one thread.
SLOW = ModelConfig(384, 1024, 16, 6, 6, 300, 256)
TOKENS = [(7 * i) % 300 for i in range(120)]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(Engine(random_checkpoint(SLOW), threads=1), tiny_tokenizer())


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize("together", [False, True])
def test_a_long_pass_hears_ctrl_c(model: Model, together: bool) -> None:
    assert SLOW.n_params * len(TOKENS) > engine.LONG_WORK
    with model.session() as one, model.session() as other:

        def work() -> Any:
            sessions = [one, other] if together else [one]
            return forward_many(sessions, [TOKENS] * len(sessions))

        def rewind() -> None:
            one.rewind(0)
            other.rewind(0)

        expected = work()[0].tobytes()
        rewind()
        calm = seconds(work)
        rewind()
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(calm / 10, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()

        def interrupted() -> None:
            with pytest.raises(KeyboardInterrupt):
                work()

        assert seconds(interrupted) < 0.7 * calm
        timer.join()
        assert (one.position, other.position) == (0, 0)
        assert work()[0].tobytes() == expected  # as if nothing had been


def test_a_thread_of_its_own_changes_no_bit(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with model.session() as one, model.session() as other:
        aside = one.forward(TOKENS, all_logits=True).tobytes()
        monkeypatch.setattr(engine, "LONG_WORK", 1 << 60)
        assert other.forward(TOKENS, all_logits=True).tobytes() == aside

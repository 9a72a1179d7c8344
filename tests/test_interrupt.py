"""Ctrl-C while the engine is at work: it is heard within a layer, and the session stays of use."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import random_checkpoint, tiny_tokenizer

from llama2py import Model, ModelConfig, engine
from llama2py._engine import lib
from llama2py.engine import Engine
from llama2py.session_many import forward_many

# A forward pass of 120 tokens takes some tenths of a second with one thread.
SLOW = ModelConfig(384, 1024, 16, 6, 6, 300, 256)
TOKENS = [(7 * i) % 300 for i in range(120)]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(Engine(random_checkpoint(SLOW), threads=1), tiny_tokenizer())


class Watched:
    """The engine's library; a forward pass gets a Ctrl-C once it runs, and how it ends is kept."""

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
    """Also where whoever started the tests ignores it, as a shell does for what runs behind."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("together", [False, True])
def test_a_long_pass_hears_ctrl_c(
    model: Model, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SLOW.n_params * len(TOKENS) > engine.LONG_WORK
    with model.session() as one, model.session() as other:

        def work() -> Any:
            sessions = [one, other] if together else [one]
            return forward_many(sessions, [TOKENS] * len(sessions))

        expected = work()[0].tobytes()
        one.rewind(0)
        other.rewind(0)
        watched = Watched()
        with monkeypatch.context() as patch:
            patch.setattr(engine, "lib", watched)
            with pytest.raises(KeyboardInterrupt):
                work()
        assert watched.ends == [lib.L2P_CANCELLED]  # it did not run to its end
        assert (one.position, other.position) == (0, 0)
        assert work()[0].tobytes() == expected  # as if nothing had been


def test_a_thread_of_its_own_changes_no_bit(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with model.session() as one, model.session() as other:
        aside = one.forward(TOKENS, all_logits=True).tobytes()
        monkeypatch.setattr(engine, "LONG_WORK", 1 << 60)
        assert other.forward(TOKENS, all_logits=True).tobytes() == aside

"""Many sessions at once: taking turns, in threads, and after a fork."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np
import pytest

from llama2py import Cancelled, ClosedError, Model, ModelConfig
from llama2py.engine.native import Engine
from tests.conftest import random_checkpoint, run_python, tiny_model, tiny_tokenizer
from tests.engine.test_session import TOKENS, same


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


def test_sessions_that_take_turns_do_not_affect_each_other(model: Model) -> None:
    stories = [[(i + 1) * k % 300 for k in range(20)] for i in range(5)]
    alone = []
    for story in stories:
        with model.session() as session:
            alone.append(np.stack([session.forward([token]) for token in story]))
    sessions = [model.session() for _ in stories]
    turns = [
        np.stack(
            [session.forward([story[k]]) for session, story in zip(sessions, stories, strict=True)]
        )
        for k in range(20)
    ]
    assert same(np.stack(turns, axis=1), np.stack(alone))


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_generate_with_one_model(threads: int) -> None:
    with tiny_model(threads=threads) as model:

        def story(seed: int) -> list[list[int]]:
            prompt = " abc"[: seed % 4]
            return [model.generate(prompt, seed=seed * 100 + k).tokens for k in range(20)]

        alone = [story(seed) for seed in range(8)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(story, range(8)))
    assert together == alone


@pytest.mark.parametrize("what", ["session", "model"])
def test_closing_while_another_thread_runs_is_safe(what: str) -> None:
    """The call ends early or is finished, and the memory under it stays until then."""
    config = ModelConfig(256, 688, 4, 4, 4, 300, 2048)
    checkpoint = random_checkpoint(config)
    for pause in (0.0, 0.002, 0.02):
        model = Model(Engine(checkpoint, threads=2), tiny_tokenizer())
        session = model.session()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(session.forward, [1] * 2048)
            time.sleep(pause)
            (session if what == "session" else model).close()
            error = future.exception(timeout=20)
        assert isinstance(error, Cancelled | ClosedError | None)
        with pytest.raises(ClosedError):
            session.forward([1])


def test_closing_a_session_cuts_its_call_short() -> None:
    config = ModelConfig(512, 1376, 12, 8, 8, 300, 128)
    model = Model(Engine(random_checkpoint(config), threads=1), tiny_tokenizer())
    errors = []
    for _ in range(20):  # now and then the call is over, or not begun, when the session closes
        session = model.session()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(session.forward, [1] * 128)
            time.sleep(0.005)
            session.close()
            errors.append(future.exception(timeout=20))
        if any(isinstance(error, Cancelled) for error in errors):
            return
    pytest.fail(f"none was cancelled: {errors}")


def forked(work: Callable[[], object], seconds: float) -> object:
    """What work() returns in a forked child; None if the child hangs or dies."""
    context = multiprocessing.get_context("fork")

    def child(end: Connection) -> None:
        end.send(work())

    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(seconds) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


# Python itself warns of forking a process that has threads; that it works is what is tested.
forks = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks a process with threads"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


class TestFork:
    pytestmark = forks

    def test_a_forked_child_and_its_parent_go_on(self) -> None:
        """The child has none of the pool's threads and starts its own."""
        with tiny_model(threads=2) as model, model.session() as session:
            expected = model.generate(" abc", seed=1).tokens
            before = session.forward(TOKENS)
            session.rewind(0)
            assert forked(lambda: model.generate(" abc", seed=1).tokens, 20) == expected
            assert forked(lambda: session.forward(TOKENS).tobytes(), 20) == before.tobytes()
            assert same(session.forward(TOKENS), before)  # the child's positions are not ours
            assert model.generate(" abc", seed=1).tokens == expected

    @pytest.mark.parametrize("threads", [1, 2])
    def test_forking_while_another_thread_is_in_the_engine(self, threads: int) -> None:
        """In a process of its own: the engine must not have had a pool before."""
        script = (
            "import threading, time\n"
            "from llama2py import Model, ModelConfig\n"
            "from llama2py.engine.native import Engine\n"
            "from tests.conftest import random_checkpoint, tiny_tokenizer\n"
            "from tests.engine.test_session_threads import forked\n"
            "checkpoint = random_checkpoint(ModelConfig(256, 688, 4, 4, 4, 300, 256))\n"
            f"model = Model(Engine(checkpoint, {threads}), tiny_tokenizer())\n"
            "tell = lambda: model.generate(max_tokens=2, seed=1).tokens\n"
            "expected, session = tell(), model.session()\n"
            "def work():\n"
            "    while True: session.rewind(0); session.forward([1] * 256)\n"
            "threading.Thread(target=work, daemon=True).start()\n"
            "time.sleep(0.1)\n"
            "for _ in range(5): assert forked(tell, 3) == expected\n"
        )
        done = run_python("-W", "ignore::DeprecationWarning", "-c", script)
        assert done.returncode == 0, done.stderr

"""Sessions: positions, rewinding, errors that change nothing, and many at once."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, random_checkpoint, tiny_model, tiny_tokenizer
from numpy.typing import NDArray

import llama2py
from llama2py import Cancelled, ClosedError, Model, ModelConfig, PromptError
from llama2py.engine import Engine

TOKENS = [1, 270, 33, 259, 5, 299, 0, 271]


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with tiny_model(request.param) as model:
        yield model


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def alike(model: Model, a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """However tokens were split over calls: of the engine the same bits, of NumPy close ones."""
    if model.backend.isa == "numpy":
        return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-4)
    return same(a, b)


# ---- forward ----


def test_shapes_and_positions(model: Model) -> None:
    with model.session() as session:
        assert (session.position, session.room) == (0, 64)
        last = session.forward(TOKENS[:3])
        assert last.shape == (300,)
        assert last.dtype == np.float32
        assert (session.position, session.room) == (3, 61)
        rows = session.forward(TOKENS[3:], all_logits=True)
        assert rows.shape == (5, 300)
        assert rows.dtype == np.float32
        assert (session.position, session.room) == (8, 56)


def test_all_logits_end_with_the_last(model: Model) -> None:
    with model.session() as one, model.session() as other:
        assert alike(model, one.forward(TOKENS, all_logits=True)[-1], other.forward(TOKENS))


def test_a_long_prompt_is_run_in_blocks_of_any_size() -> None:
    """Longer than the largest block that the session gives the engine."""
    config = ModelConfig(24, 44, 2, 4, 2, 300, 600)
    model = Model(Engine(random_checkpoint(config)), tiny_tokenizer())
    tokens = [(7 * i) % 300 for i in range(600)]
    with model.session() as one, model.session() as other:
        whole = one.forward(tokens, all_logits=True)
        rows = [other.forward([token]) for token in tokens]
    assert same(whole, np.stack(rows))
    with model.session() as session:
        assert same(session.forward(tokens), whole[-1])
        assert session.room == 0


def test_tokens_may_be_numpy_integers(model: Model) -> None:
    with model.session() as session:
        expected = session.forward(TOKENS)
    for tokens in (np.array(TOKENS), [np.int32(token) for token in TOKENS], tuple(TOKENS)):
        with model.session() as session:
            assert same(session.forward(tokens), expected)  # type: ignore[arg-type]


def test_results_do_not_change_later(model: Model) -> None:
    """They are the caller's own arrays."""
    with model.session() as session:
        first = session.forward(TOKENS)
        copy = first.copy()
        session.forward([5])
        assert same(first, copy)
        first[:] = 0
        session.rewind(7)
        assert alike(model, session.forward(TOKENS[7:]), copy)


# ---- rewind ----


@pytest.mark.parametrize("position", [0, 1, 5, 8])
def test_rewinding_forgets(model: Model, position: int) -> None:
    """The same bits as a session that never went astray."""
    other = [9, 200, 44, 268]
    with model.session() as straight:
        expected = straight.forward(TOKENS[:position] + other, all_logits=True)[-4:]
    with model.session() as session:
        session.forward(TOKENS)
        session.rewind(position)
        assert session.position == position
        assert alike(model, session.forward(other, all_logits=True), expected)


@pytest.mark.parametrize("position", [-1, 9])
def test_rewinding_elsewhere_is_an_error(model: Model, position: int) -> None:
    with model.session() as session:
        session.forward(TOKENS)
        with pytest.raises(PromptError, match=f"position {position}, expected 0 to 8"):
            session.rewind(position)
        assert session.position == 8


# ---- errors ----


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "no token to run"),
        ([1, 300], "token 300 is out of the vocabulary, expected 0 to 299"),
        ([1, -1, 2], "token -1 is out"),
        ([2**40], f"token {2**40} is out"),
        ([1] * 57, "57 tokens at position 8 do not fit: the model's context holds 64"),
    ],
)
def test_errors_change_nothing(model: Model, tokens: list[int], message: str) -> None:
    with model.session() as session, model.session() as undisturbed:
        session.forward(TOKENS)
        undisturbed.forward(TOKENS)
        with pytest.raises(PromptError, match=message):
            session.forward(tokens)
        assert session.position == 8
        assert same(session.forward([7] * 56), undisturbed.forward([7] * 56))


@pytest.mark.parametrize("tokens", ["12", [1.0], [None], ["1"]])
def test_tokens_are_whole_numbers(model: Model, tokens: Any) -> None:
    """Digits and fractions are a caller's mistake, not tokens."""
    with model.session() as session:
        with pytest.raises(TypeError):
            session.forward(tokens)
        assert session.position == 0


def test_a_full_context_takes_no_more(model: Model) -> None:
    with model.session() as session:
        session.forward([3] * 64)
        with pytest.raises(PromptError, match="do not fit"):
            session.forward([3])


def test_a_closed_session_is_an_error(model: Model) -> None:
    session = model.session()
    session.forward(TOKENS)
    session.close()
    session.close()
    with pytest.raises(ClosedError, match="session is closed"):
        session.forward([1])
    with pytest.raises(ClosedError, match="session is closed"):
        session.rewind(0)


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_closed_model_is_an_error(backend: Any) -> None:
    model = tiny_model(backend)
    session = model.session()
    session.forward(TOKENS)
    model.close()
    model.close()
    uses: list[Callable[[], object]] = [
        model.session,
        model.generate,
        model.stream,
        lambda: model.backend,
        lambda: session.forward([1]),
    ]
    for use in uses:
        with pytest.raises(ClosedError, match="model is closed"):
            use()
    session.close()
    assert model.config == TINY  # what needs no weights still works
    assert "closed" in repr(model)


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_session_keeps_its_model_alive(backend: Any) -> None:
    model = tiny_model(backend)
    with model.session() as session:
        expected = session.forward(TOKENS)
    session = model.session()
    del model
    gc.collect()
    assert same(session.forward(TOKENS), expected)


# ---- many at once ----


def test_sessions_taking_turns_do_not_meet(model: Model) -> None:
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
def test_eight_threads_generate_on_one_model(threads: int) -> None:
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
            "from conftest import *\n"
            "from test_session import forked\n"
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


# ---- memory, and the end ----


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    """Another interpreter, which finds the same llama2py and these tests."""
    places = [str(Path(llama2py.__file__).parents[1]), str(Path(__file__).parent)]
    return subprocess.run(
        [sys.executable, *args],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_exit_with_everything_open_is_silent() -> None:
    """Models, sessions, a half-read stream, pool threads, and a thread that is still generating."""
    done = run_python(
        "-X",
        "dev",
        "-c",
        "import threading\n"
        "from conftest import tiny_model\n"
        "model, other = tiny_model(threads=2), tiny_model('numpy')\n"
        "session = model.session()\n"
        "session.forward([1, 2, 3])\n"
        "stream = model.stream(' ab', seed=1)\n"
        "next(stream)\n"
        "def talk():\n"
        "    while True: model.generate()\n"
        "threading.Thread(target=talk, daemon=True).start()\n"
        "print('done')\n",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_is_given_back() -> None:
    """Closed or just dropped. Fifty leaked models would be 105 MB, their sessions 52."""
    config = ModelConfig(128, 344, 2, 4, 4, 1000, 512)
    checkpoint = random_checkpoint(config)

    def use(close: bool) -> None:
        model = Model(Engine(checkpoint), tiny_tokenizer())
        session = model.session()
        for _ in range(2):
            session.forward([1] * 256)
        if close:
            session.close()
            model.close()

    use(True)
    before = resident_bytes()
    for i in range(50):
        use(close=i % 2 == 0)
    assert resident_bytes() - before < 30e6


def test_threads_do_not_pile_up() -> None:
    """One pool for the process, however many models there are."""
    models = [tiny_model(threads=2) for _ in range(5)]
    for model in models:
        model.generate(" abc", max_tokens=3)
    assert threading.active_count() == 1  # the engine's threads are none of Python's
    if Path("/proc/self/task").is_dir():
        before = len(os.listdir("/proc/self/task"))
        for model in models:
            model.generate(" abc", max_tokens=3)
        assert len(os.listdir("/proc/self/task")) == before

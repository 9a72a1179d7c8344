"""Sessions, streams and models used at bad moments: from callbacks, threads and forked processes.

A worker process mixes operations at random. After each one, a text that was generated at the start
must come out again. At the end, no thread, descriptor or mapping may be left, and no memory.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import llama2py
from llama2py import Llama2pyError, Options
from llama2py._data import builtin_model
from tests.adversary.report import Report

ROUNDS = 40  # operations of one worker
MAX_SECONDS = 120  # of a worker: more is a deadlock
OPTION_NAMES = (*Options.__annotations__, "max_tokens", "temperature", "top_p", "seed", "topk")
JUNK: tuple[Any, ...] = (None, True, -1, 2**70, 10**400, 0.5, math.nan, math.inf, "x", b"x", [],
                         [-1], [2**70], [5], {}, {5: "x"}, {2**70: 1.0}, object())  # fmt: skip
PROMPTS = ("Once upon a time", "One day", "", "The dragon")


class Raised(Exception):
    """What callbacks raise: it must come through unchanged."""


def run(report: Report, random: Random) -> None:
    while report.has_time:
        seed = random.getrandbits(32)
        read, write = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.close(read)
            _work(seed, write)
        os.close(write)
        status = _wait(worker)
        with os.fdopen(read) as pipe:
            output = pipe.read()
        report.tried("operations", ROUNDS)
        if status:
            died = "a deadlock" if status == -signal.SIGKILL else f"signal {-status}"
            what = output.strip() or f"the worker ended by {died}"
            report.found(what.splitlines()[-1][:200], f"status {status}, seed {seed}: {what}")


def _wait(worker: int) -> int:
    deadline = time.monotonic() + MAX_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(worker, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(worker, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])


def _work(seed: int, pipe: int) -> None:
    status = 1
    try:
        with os.fdopen(pipe, "w") as out:
            try:
                mix(Random(seed))
                status = 0
            except BaseException:
                traceback.print_exc(file=out)
    finally:
        os._exit(status)


def mix(random: Random) -> None:
    """Run operations at random on models that share nothing but the process."""
    model = llama2py.load(threads=random.choice((1, 2)), dtype=random.choice((None, "int8")))
    expected = {prompt: _tokens(model, prompt) for prompt in PROMPTS}
    operations = random.choices(OPERATIONS, k=ROUNDS)
    before: dict[str, int] | None = None
    for operation in operations:
        with suppress(Llama2pyError, Raised):
            operation(model, random)
        prompt = random.choice(PROMPTS)
        assert _tokens(model, prompt) == expected[prompt], f"another text after {operation}"
        before = before or _held()  # what is made once has been made by then
    assert before is not None
    gc.collect()
    _compare(before, _held())
    model.close()


def _tokens(model: llama2py.Model, prompt: str) -> list[int]:
    return model.generate(prompt, seed=7, max_tokens=12).tokens


def _held() -> dict[str, int]:
    with open("/proc/self/maps") as maps:
        mappings = sum(1 for _ in maps)
    return {
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mappings": mappings,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,  # MiB
    }


def _compare(before: dict[str, int], after: dict[str, int]) -> None:
    # One task more: the second thread of the pool may be needed late.
    slack = {"threads": 0, "tasks": 1, "descriptors": 0, "mappings": 30, "memory": 150}
    for name, count in after.items():
        assert count <= before[name] + slack[name], f"{name}: {before[name]} before, {count} after"


# ---- operations ----


def two_threads_in_one_session(model: llama2py.Model, random: Random) -> None:
    """One of them may be refused; the position never passes the context."""
    context = model.config.seq_len
    with model.session() as session:
        session.forward([1] * random.choice((1, context - 60)))

        def push() -> None:
            for _ in range(4):
                try:
                    session.forward([5] * 20)
                except Llama2pyError:
                    return

        _in_threads([push] * 3)
        assert session.position <= context, f"position {session.position} of {context}"
        with session.fork() as branch:
            assert branch.position == session.position


def a_callback_uses_its_own_session(model: llama2py.Model, random: Random) -> None:
    with model.session() as session:
        session.forward([1] * (model.config.seq_len - 40))
        calls = 0

        def interrupted() -> bool:
            nonlocal calls
            calls += 1
            if calls == 1:
                session.forward([5] * 30)
            return False

        with suppress(Llama2pyError):
            session.forward([5] * 30, interrupted=interrupted)
        assert session.position <= model.config.seq_len


def a_callback_uses_another_session(model: llama2py.Model, random: Random) -> None:
    """That must work."""
    inner: list[list[int]] = []

    def processor(tokens: Sequence[int], logits: Any) -> Any:
        if not inner:
            inner.append(_tokens(model, "One day"))
        return logits

    model.generate("Once", seed=1, max_tokens=4, logits_processor=processor)
    assert inner == [_tokens(model, "One day")]


def a_callback_raises(model: llama2py.Model, random: Random) -> None:
    countdown = random.randrange(5)

    def processor(tokens: Sequence[int], logits: Any) -> Any:
        nonlocal countdown
        countdown -= 1
        if countdown < 0:
            raise Raised
        return logits

    model.generate([*PROMPTS[:2]], seed=1, max_tokens=8, logits_processor=processor)


def a_callback_closes_its_stream(model: llama2py.Model, random: Random) -> None:
    streams: list[llama2py.Stream] = []

    def processor(tokens: Sequence[int], logits: Any) -> Any:
        if len(tokens) > 6:
            streams[0].close()
        return logits

    streams.append(model.stream("Once", seed=1, max_tokens=20, logits_processor=processor))
    for _ in streams[0]:
        pass


def a_callback_forks(model: llama2py.Model, random: Random) -> None:
    """The child goes on with the parent's model and ends by itself."""

    def processor(tokens: Sequence[int], logits: Any) -> Any:
        if len(tokens) == 6 and (child := _fork(lambda: _tokens(model, "One day"))):
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"
        return logits

    model.generate("Once", seed=1, max_tokens=6, logits_processor=processor)


def a_fork_beside_a_thread(model: llama2py.Model, random: Random) -> None:
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            _tokens(model, "The dragon")

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(random.random() / 50)
    child = _fork(lambda: _tokens(model, "One day"))
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a deadlock ends
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def closed_by_another_thread(model: llama2py.Model, random: Random) -> None:
    session = model.session()
    timer = threading.Timer(random.random() / 100, session.close)
    timer.start()
    with suppress(Llama2pyError):
        while True:
            session.rewind(0)
            session.forward([1] * 200)
    timer.join()


def cancelled_by_another_thread(model: llama2py.Model, random: Random) -> None:
    cancel = threading.Event()
    timer = threading.Timer(random.random() / 100, cancel.set)
    timer.start()
    texts = model.generate(["Once", "One day"] * 4, seed=3, cancel=cancel, overflow="shift",
                           max_tokens=300)  # fmt: skip
    assert all(text.finish_reason in ("cancelled", "stop", "length") for text in texts)
    timer.join()


def streams_in_turns(model: llama2py.Model, random: Random) -> None:
    """Several streams of one model, read in any order, some never to their end."""
    streams = [model.stream(prompt, seed=7, max_tokens=12) for prompt in PROMPTS]
    texts = [""] * len(streams)
    for _ in range(40):
        number = random.randrange(len(streams))
        texts[number] += next(streams[number], "")
    for number, stream in enumerate(streams):
        alone = model.generate(PROMPTS[number], seed=7, max_tokens=12).text
        assert alone.startswith(texts[number]), "a stream's text is not the text alone"
        stream.close()


def shifted_and_forked(model: llama2py.Model, random: Random) -> None:
    with model.session(overflow="shift") as session:
        for _ in range(6):
            session.forward([random.randrange(3, 500) for _ in range(random.randrange(1, 90))])
        with session.fork(random.randrange(session.position + 1)) as branch:
            branch.forward([5])
        session.rewind(random.randrange(session.position + 1))
        session.forward([5])
        with model.session() as fresh:
            again = fresh.forward(session.tokens)
        session.rewind(0)
        assert (session.forward(fresh.tokens if fresh.tokens else [5]) == again).all()


def models_come_and_go(model: llama2py.Model, random: Random) -> None:
    with llama2py.load(threads=random.choice((1, 2))) as other:
        stream = other.stream("Once", seed=1, max_tokens=30)
        next(stream)
    with suppress(Llama2pyError):
        for _ in stream:
            pass
    stream.close()


def a_file_shrinks_while_it_is_loaded(model: llama2py.Model, random: Random) -> None:
    """That is an error, not the end of the process (SIGBUS)."""
    source = builtin_model()
    with tempfile.TemporaryDirectory(prefix="llama2py-adversary-") as folder:
        path = Path(folder) / "story.bin"
        path.write_bytes(source.read_bytes())
        at, size = random.randrange(4), random.randrange(path.stat().st_size)

        def shrink(done: int, total: int) -> None:
            nonlocal at
            at -= 1
            if at < 0:
                os.truncate(path, size)

        tokenizer = source.with_name("story.tokenizer.bin")
        llama2py.load(path, tokenizer, progress=shrink).close()


def wrong_arguments(model: llama2py.Model, random: Random) -> None:
    """Each is a Llama2pyError, if it is wrong at all."""
    options: dict[str, Any] = {"max_tokens": 4, random.choice(OPTION_NAMES): random.choice(JUNK)}
    model.generate(random.choice(["Once", ["Once", "One day"]]), **options)


def _in_threads(work: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


OPERATIONS: list[Callable[[llama2py.Model, Random], None]] = [
    two_threads_in_one_session,
    a_callback_uses_its_own_session,
    a_callback_uses_another_session,
    a_callback_raises,
    a_callback_closes_its_stream,
    a_callback_forks,
    a_fork_beside_a_thread,
    closed_by_another_thread,
    cancelled_by_another_thread,
    streams_in_turns,
    shifted_and_forked,
    models_come_and_go,
    a_file_shrinks_while_it_is_loaded,
    wrong_arguments,
    wrong_arguments,
]

if sys.platform != "linux":
    raise SystemExit("the adversary's sessions need /proc")

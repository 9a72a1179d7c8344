"""Run a batch in this process, or in several processes of this machine.

A worker is a Python process with a model of its own and a socket to this one. It gets shards and
sends them back; it never touches the output. So a worker that is killed at any moment leaves
nothing, and its shards go to another worker.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from .._util import Closing, counted
from ..errors import BatchError, Llama2pyError
from .identity import Identity, ModelSpec, difference
from .shards import ShardResult
from .sources import ShardInput
from .texts import Settings, ShardMaker

_MOST_DEATHS = 5  # of workers in a row, without one finished shard
_PROGRESS = 0.5  # seconds between two messages about progress
_WORKER = "import sys; from llama2py.bulk.processes import serve; serve(int(sys.argv[1]))"

OnRows = Callable[[int, int], object]  # (rows, tokens) more are done


class Runner(Protocol):
    """Makes the shards of a batch somewhere.

    Attributes
    ----------
    identity : dict
        The model that makes the texts: see `load_identified`.
    """

    identity: Identity

    def shards(self, given: Iterable[ShardInput]) -> Iterator[ShardResult]:
        """Yield the shards in any order."""

    def close(self) -> None:
        """Free the model, or end the processes."""


class InProcess(Closing):
    """Run a batch in this process.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    settings : Settings
        What to do.
    on_rows : callable
        Called as ``on_rows(rows, tokens)`` for progress.

    Attributes
    ----------
    identity : dict
        As in `Runner`.
    """

    def __init__(self, spec: ModelSpec, settings: Settings, on_rows: OnRows) -> None:
        self._maker = ShardMaker.load(spec, settings, lambda tokens: on_rows(1, tokens))
        self.identity = self._maker.identity

    def shards(self, given: Iterable[ShardInput]) -> Iterator[ShardResult]:
        """Yield the shards in order."""
        return self._maker.shards(given)

    def close(self) -> None:
        """Free the model."""
        self._maker.close()


class _Worker:
    """A worker process, as this process sees it."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        mine, theirs = socket.socketpair()
        with theirs:
            places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
            self.process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
                pass_fds=[theirs.fileno()],
            )
        self.connection = Connection(mine.detach())
        self.running: dict[int, ShardInput] = {}
        self.send(("settings", spec, settings))

    def send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # it is dead: the next receive says so
            self.connection.send(message)

    def give(self, shard: ShardInput) -> None:
        self.running[shard.number] = shard
        self.send(("shard", shard))

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def how_it_ended(self) -> str:
        code = self.process.wait()
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class Processes(Closing):
    """Run a batch in several processes, each with its own model and threads.

    Parameters
    ----------
    count : int
        How many processes.
    spec : ModelSpec
        The model; ``threads`` are those of each process.
    settings : Settings
        What to do.
    on_rows : callable
        Called as ``on_rows(rows, tokens)`` for progress.

    Attributes
    ----------
    identity : dict
        As in `Runner`.

    Raises
    ------
    BatchError
        If no worker can load the model.
    """

    def __init__(self, count: int, spec: ModelSpec, settings: Settings, on_rows: OnRows) -> None:
        self._spec, self._settings, self._on_rows = spec, settings, on_rows
        self._deaths = 0
        self._retry: deque[ShardInput] = deque()
        self._identity: Identity | None = None
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._workers.append(_Worker(spec, settings))
            while self._identity is None:
                for _ in self._received():
                    pass
        except BaseException:
            self.close()
            raise
        self.identity = self._identity

    @property
    def process_ids(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def shards(self, given: Iterable[ShardInput]) -> Iterator[ShardResult]:
        """Yield the shards in the order in which they are finished."""
        waiting = iter(given)
        while True:
            self._fill(waiting)
            if not any(worker.running for worker in self._workers):
                return
            yield from self._received()

    def _fill(self, waiting: Iterator[ShardInput]) -> None:
        """Give each worker a shard, then each a second one, so that no batch runs empty."""
        while True:
            worker = min(self._workers, key=lambda worker: _rows(worker.running))
            if len(worker.running) >= 2 and _rows(worker.running) >= 2 * self._settings.max_batch:
                return
            shard = self._retry.popleft() if self._retry else next(waiting, None)
            if shard is None:
                return
            worker.give(shard)

    def _received(self) -> Iterator[ShardResult]:
        """Wait for messages and yield the shards among them; replace workers that have died."""
        workers = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(workers)):
            assert isinstance(connection, Connection)
            worker = workers[connection]
            try:
                kind, *content = connection.recv()
            except (EOFError, OSError):
                self._replace(worker)
                continue
            if kind == "error":
                raise BatchError(content[0])
            if kind == "ready":
                self._check(content[0])
            elif kind == "rows":
                self._on_rows(*content)
            else:
                (result,) = content
                del worker.running[result.number]
                self._deaths = 0
                yield result

    def _check(self, identity: Identity) -> None:
        if self._identity is None:
            self._identity = identity
        if found := difference(self._identity, identity):
            raise BatchError(
                f"a worker has loaded another model ({found}); finished shards are kept: restore"
                " the model, and run the same command again"
            )

    def _replace(self, worker: _Worker) -> None:
        worker.process.kill()  # it may have closed only its socket
        end = worker.how_it_ended()
        worker.close()
        self._deaths += 1
        self._retry.extend(shard for _, shard in sorted(worker.running.items()))
        if self._deaths >= max(_MOST_DEATHS, 2 * len(self._workers)):
            in_work = [shard for other in self._workers for shard in other.running.values()]
            rows = [shard.first_row for shard in [*in_work, *self._retry]]
            where = f", in work was row {min(rows)} or a later one" if rows else ""
            raise BatchError(
                f"{counted(self._deaths, 'worker process', 'worker processes')} ended without a"
                f" result{where} ({end}); finished shards are kept"
            )
        self._workers[self._workers.index(worker)] = _Worker(self._spec, self._settings)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()
        self._workers = []


def _rows(shards: dict[int, ShardInput]) -> int:
    return sum(shard.n_rows for shard in shards.values())


# ---- in the worker ----


def serve(descriptor: int) -> None:
    """Be a worker: make the shards that come from a socket until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this
    connection = Connection(descriptor)

    def send(*message: Any) -> None:
        connection.send(message)

    try:
        _, spec, settings = connection.recv()
        with ShardMaker.load(spec, settings, _Progress(send)) as maker:
            send("ready", maker.identity)
            for result in maker.shards(_received(connection)):
                send("shard", result)
    except Llama2pyError as error:
        send("error", str(error))
    except MemoryError:
        send("error", "a worker process has not enough memory")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has ended


class _Progress:
    """Send how many rows and tokens are done, at most twice a second."""

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send
        self._rows = self._tokens = 0
        self._sent_at = monotonic()

    def __call__(self, tokens: int) -> None:
        self._rows += 1
        self._tokens += tokens
        now = monotonic()
        if now - self._sent_at >= _PROGRESS:
            self._send("rows", self._rows, self._tokens)
            self._rows = self._tokens = 0
            self._sent_at = now


def _received(connection: Connection) -> Iterator[ShardInput | None]:
    """Yield the shards that come, and None while there is no other one yet.

    A thread reads the socket, so that this process ends at once when the parent does.
    """
    shards: queue.SimpleQueue[ShardInput] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                shards.put(connection.recv()[1])
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            yield shards.get_nowait()
        except queue.Empty:
            yield None
            yield shards.get()

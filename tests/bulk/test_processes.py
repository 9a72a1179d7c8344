"""Several processes: the same bytes, and a worker that dies loses nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama2py._data import builtin_model
from llama2py.bulk.identity import ModelSpec
from llama2py.bulk.processes import Processes
from llama2py.bulk.run import run_batch
from llama2py.bulk.sources import ShardInput, open_source
from llama2py.bulk.texts import Settings, ShardMaker
from llama2py.errors import BatchError
from llama2py.model import beside
from tests.bulk.conftest import WriteRows, contents, in_process, prompts
from tests.conftest import ROOT

SPEC = ModelSpec(threads=1)
SETTINGS = Settings(4, {"max_tokens": 30}, max_batch=8)


def shards(count: int, rows: int = 5) -> Iterator[ShardInput]:
    for number in range(count):
        lines = [b'{"prompt": "Once %d"}' % n for n in range(number * rows, (number + 1) * rows)]
        yield ShardInput(number, number * rows, rows, lines)


def expected(count: int) -> dict[int, bytes]:
    with ShardMaker.load(SPEC, SETTINGS) as maker:
        return {shard.number: shard.data for shard in maker.shards(shards(count))}


def test_workers_that_are_killed_are_replaced() -> None:
    """One of them is killed after every fourth shard."""
    counted = [0, 0]

    def on_rows(rows: int, tokens: int) -> None:
        counted[0] += rows
        counted[1] += tokens

    found = {}
    with Processes(2, SPEC, SETTINGS, on_rows) as processes:
        for shard in processes.shards(shards(12)):
            assert shard.number not in found
            found[shard.number] = shard.data
            if shard.number % 4 == 3:
                os.kill(processes.process_ids[shard.number // 4 % 2], signal.SIGKILL)
    assert found == expected(12)


def test_a_batch_ends_where_every_worker_dies() -> None:
    """As with a row that makes the engine crash."""
    with Processes(2, SPEC, SETTINGS, lambda rows, tokens: None) as processes:
        stop = threading.Event()

        def kill() -> None:
            while not stop.wait(0.01):
                for process_id in processes.process_ids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process_id, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        message = "5 worker processes ended without a result, in work was row 0 or .*signal 9"
        try:
            with pytest.raises(BatchError, match=message):
                list(processes.shards(shards(1, 2000)))
        finally:
            stop.set()
            killer.join()


def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    spec = ModelSpec(str(tmp_path / "missing.bin"))
    with pytest.raises(BatchError, match=r"missing\.bin"):
        Processes(2, spec, SETTINGS, lambda rows, tokens: None)


def test_a_model_that_is_replaced_during_the_batch_is_noticed(tmp_path: Path) -> None:
    """A worker keeps its model in memory, but a new worker would load the new file."""
    model = tmp_path / "m.bin"
    shutil.copy(builtin_model(), model)
    shutil.copy(beside(builtin_model()), beside(model))
    spec = ModelSpec(str(model), threads=1)
    with Processes(1, spec, SETTINGS, lambda rows, tokens: None) as processes:
        made = processes.shards(shards(6))
        first = next(made)
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "new.bin").write_bytes(data)
        (tmp_path / "new.bin").replace(model)
        os.kill(processes.process_ids[0], signal.SIGKILL)
        with pytest.raises(BatchError, match=r"another model \(model.sha256 is .*, and was"):
            list(made)
    assert first.data == expected(1)[0]


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from tests.bulk.test_processes import *\n"
        "processes = Processes(2, SPEC, SETTINGS, lambda rows, tokens: None)\n"
        "print(*processes.process_ids, flush=True)\n"
        "for shard in processes.shards(shards(100000)): pass\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize(("count", "shard_rows", "max_batch"), [(1, 7, 3), (2, 7, 32), (3, 1, 2)])
def test_the_folder_is_the_same_for_any_number_of_processes(
    write_rows: WriteRows, tmp_path: Path, count: int, shard_rows: int, max_batch: int
) -> None:
    source = open_source(write_rows([*prompts(30), b"bad"]), None, shard_rows)
    settings = Settings(4, {"max_tokens": 15}, max_batch=max_batch)
    run_batch(source, settings, tmp_path / "one", in_process(settings))
    run_batch(
        source,
        settings,
        tmp_path / "many",
        lambda on_rows: Processes(count, SPEC, settings, on_rows),
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "many")

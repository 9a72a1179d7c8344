"""Malformed files: structure-aware mutations of every format, each read under limits.

The seeds and the readers are those of ``tests/fuzz``. A worker process reads a batch of inputs; it
may not die, hang, exceed the documented bounds, or raise anything but a Llama2pyError.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.adversary.report import Report
from tests.fuzz.bounds import check
from tests.fuzz.readers import READERS, Made

BATCH = 100  # inputs of one worker
MAX_INPUT = 1 << 20  # bytes: a larger vocabulary may take more (docs/formats.md)
MAX_ADDRESS_SPACE = 4 << 30
MAX_CPU_SECONDS = 60  # of a worker that is stuck: each input has a bound of its own
MAX_SECONDS = 600  # of a worker that waits for ever; a busy machine is slow

EXTREMES = (0, 1, 2, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
JSON_EXTREMES: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 1 << 70, "", "x" * 300, [], {}, [[]] * 50, {"a": {"b": []}},
)  # fmt: skip


def run(report: Report, random: Random) -> None:
    names = list(READERS)
    while report.has_time:
        random.shuffle(names)
        for name in names:
            if report.has_time:
                _read_batch(report, name, random.getrandbits(64))


def _read_batch(report: Report, name: str, seed: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="llama2py-adversary-"))
    try:
        worker = os.fork()
        if worker == 0:
            _work(name, seed, folder)
        status = _wait(worker)
        read = folder / "last"
        data = read.read_bytes() if read.exists() else b""
        count = int((folder / "count").read_text() or 0) if (folder / "count").exists() else 0
        report.tried(name, count)
        if os.WIFSIGNALED(status):
            number = signal.Signals(os.WTERMSIG(status)).name
            report.found(f"{name} {number}", f"the worker died of {number}", data)
        elif (folder / "finding").exists():
            place, _, what = (folder / "finding").read_text("utf-8").partition("\n")
            report.found(f"{name} {place}", what, data)
        elif os.WEXITSTATUS(status):
            report.found(f"{name} exit", f"the worker ended with status {status}", data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(worker: int) -> int:
    deadline = time.monotonic() + MAX_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(worker, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.02)
    os.kill(worker, signal.SIGKILL)
    return os.waitpid(worker, 0)[1]


def _work(name: str, seed: int, folder: Path) -> None:
    """In the worker: read a batch. The last input and the first finding are left in the folder."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        (folder / "read").mkdir()
        made: Made = READERS[name](folder / "read")
        read, seeds = made
        random = Random(seed)
        for number in range(BATCH):
            data = mutated(random, seeds)
            (folder / "last").write_bytes(data)
            (folder / "count").write_text(str(number + 1))
            try:
                check(read, data, folder / "read")
            except Exception as error:
                at = _place(error)
                (folder / "finding").write_text(f"{at}\n{type(error).__name__}: {error}", "utf-8")
                break
        status = 0
    finally:
        os._exit(status)


def _place(error: BaseException) -> str:
    traceback, place = error.__traceback__, ""
    while traceback is not None:
        path = Path(traceback.tb_frame.f_code.co_filename)
        if "llama2py" in path.parts or not place:
            place = f"{type(error).__name__} {path.name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


# ---- mutations ----


def mutated(random: Random, seeds: list[bytes]) -> bytes:
    """One to four changes to one of the seeds."""
    data = random.choice(seeds)
    for _ in range(random.choice((1, 1, 2, 4))):
        looks_like_json = data.lstrip()[:1] in (b"{", b"[")
        changes = [*CHANGES, *[_change_json] * 6] if looks_like_json else CHANGES
        data = random.choice(changes)(random, data, seeds)
        if len(data) > MAX_INPUT:
            data = data[:MAX_INPUT]
    return data


def _flip(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(random.choice((1, 1, 4, 32))):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def _cut(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _number(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    """Write an extreme number, of a width and at a place as headers have them."""
    width, form = random.choice(((1, "<B"), (2, "<H"), (4, "<I"), (8, "<Q")))
    if len(data) < width:
        return data
    at = random.randrange(len(data) - width + 1)
    if random.random() < 0.7:
        at -= at % width
    value = random.choice(EXTREMES) + random.choice((-1, 0, 0, 1))
    return data[:at] + struct.pack(form, value % (1 << 8 * width)) + data[at + width :]


def _remove(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    begin = random.randrange(len(data) + 1)
    return data[:begin] + data[begin + random.choice((1, 4, 8, 64, 1024)) :]


def _repeat(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    begin = random.randrange(len(data) + 1)
    part = data[begin : begin + random.choice((1, 4, 8, 64, 1024))]
    return data[:begin] + part * random.choice((2, 3, 100, 5000)) + data[begin:]


def _splice(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    other = random.choice(seeds)
    begin, end = random.randrange(len(data) + 1), random.randrange(len(other) + 1)
    return data[:begin] + other[end : end + random.choice((16, 256, 1 << 16))]


def _change_json(random: Random, data: bytes, seeds: list[bytes]) -> bytes:
    """Replace, remove, repeat or nest one value of a JSON document, which stays JSON."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        keys = value if isinstance(value, dict) else range(len(value))
        for key in list(keys):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                collect(value[key])

    if isinstance(document, dict | list):
        collect(document)
    if not places:
        return data
    parent, key = random.choice(places)
    change = random.randrange(5)
    if change == 0:
        del parent[key]
    elif change == 1:
        parent[key] = [parent[key]] * random.choice((2, 1000))
    elif change == 2:
        nested = parent[key]
        for _ in range(random.choice((1, 10, 200))):
            nested = [nested] if random.random() < 0.5 else {"x": nested}
        parent[key] = nested
    elif change == 3:
        _, other = random.choice(places)
        parent[key] = other
    else:
        parent[key] = random.choice(JSON_EXTREMES)
    return json.dumps(document).encode()


Change = Callable[[Random, bytes, list[bytes]], bytes]
CHANGES: list[Change] = [_flip, _cut, _number, _number, _number, _remove, _repeat, _splice]

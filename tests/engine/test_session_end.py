"""Models and sessions leave no thread, no memory and no message."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from llama2py import Model, ModelConfig
from llama2py.engine.native import Engine
from tests.conftest import random_checkpoint, run_python, tiny_model, tiny_tokenizer


def test_exit_with_everything_open_is_silent() -> None:
    """Models, sessions, a half-read stream, pool threads, and a thread that is still generating."""
    done = run_python(
        "-X",
        "dev",
        "-c",
        "import threading\n"
        "from tests.conftest import tiny_model\n"
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
    others = threading.active_count()  # such as tqdm's, of tests before this one
    models = [tiny_model(threads=2) for _ in range(5)]
    for model in models:
        model.generate(" abc", max_tokens=3)
    assert threading.active_count() == others  # the engine's threads are none of Python's
    if Path("/proc/self/task").is_dir():
        before = len(os.listdir("/proc/self/task"))
        for model in models:
            model.generate(" abc", max_tokens=3)
        assert len(os.listdir("/proc/self/task")) == before

"""Several processes: spawned ones load a model of their own, forked ones go on with a parent's."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llama2py

PROMPT = "Once upon a time, there was a little girl named Lily. She had a big red ball"


def run_program(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """In an interpreter of its own; a spawned process must be able to import the program."""
    path.write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-X", "dev", str(path)],
        env=os.environ | {"PYTHONPATH": str(Path(llama2py.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_spawned_processes_generate_the_same_text(tmp_path: Path) -> None:
    """A pool's workers, each with a model, while the parent has used its own; nothing is left."""
    done = run_program(
        tmp_path / "spawning.py",
        f"""\
import multiprocessing, llama2py

model = None

def load():
    global model
    model = llama2py.load()

def tell(seed):
    return model.generate({PROMPT!r}, 20, seed=seed, logprobs=1).tokens

if __name__ == "__main__":
    load()
    expected = [tell(seed) for seed in range(6)]
    with multiprocessing.get_context("spawn").Pool(2, load) as pool:
        assert pool.map(tell, range(6)) == expected
        pool.close()
        pool.join()
    print("the same")
""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the same\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_forked_while_a_thread_searches_a_prefix_does_not_hang(tmp_path: Path) -> None:
    """The thread, and with it the lock's owner, is not there in the child."""
    done = run_program(
        tmp_path / "forking.py",
        f"""\
import os, signal, threading, warnings, llama2py

warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of forking with threads
model = llama2py.load()
tell = lambda: model.generate({PROMPT!r}, 5, seed=1).tokens
expected = tell()
held, forked = threading.Event(), threading.Event()

def hold():
    with model.prefix_cache._lock:
        held.set()
        forked.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(10)  # ends one that waits for ever
    os._exit(0 if tell() == tell() == expected else 1)
print(os.waitpid(child, 0)[1])
forked.set()
thread.join()
assert tell() == expected
""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_models_and_sessions_cannot_be_pickled(how: Any) -> None:
    """As an argument of a pool's job would be; the error says what to do instead."""
    with llama2py.load() as model, model.session() as session, llama2py.Chat(model) as chat:
        with pytest.raises(TypeError, match=r"^a Model cannot .*: call llama2py\.load\(\) in"):
            how(model)
        with pytest.raises(TypeError, match=r"^a Session cannot .*: use fork\(\) .* save\(\)"):
            how(session)
        if how is not copy.copy:  # which takes what it holds as it is
            with pytest.raises(TypeError, match=r"^a (Model|Session) cannot be pickled"):
                how(chat)
        told = model.generate("One day", 3, seed=1)
        assert pickle.loads(pickle.dumps(told)) == told  # results go between processes

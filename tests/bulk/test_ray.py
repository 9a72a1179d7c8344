"""A Ray cluster of two nodes: the same bytes, and a lost node loses nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llama2py
from llama2py.bulk.generator import RowGenerator
from llama2py.bulk.identity import ModelSpec
from llama2py.bulk.ray import Generator, RayRunner, generate
from llama2py.bulk.run import run_batch
from llama2py.bulk.sources import Source, open_source
from llama2py.bulk.texts import Settings
from llama2py.errors import BatchError, ParameterError
from tests.bulk.conftest import WriteRows, contents, in_process, prompts

ray = pytest.importorskip("ray", reason="needs llama2py[ray]")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings

ROOT = Path(__file__).parents[2]
SPEC = ModelSpec(threads=1)
SETTINGS = Settings(4, {"max_tokens": 60}, max_batch=8)
NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine with two CPUs each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # of the workers
        made = Cluster(initialize_head=True, head_node_args=NODE)
        made.add_node(**NODE)
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def source(write_rows: WriteRows) -> Source:
    return open_source(write_rows([*prompts(120), b"bad"]), None, 6)


def runner(actors: int) -> Any:
    return lambda on_rows: RayRunner(None, actors, SPEC, SETTINGS, on_rows)


@pytest.mark.parametrize("actors", [1, 2, 3])
def test_a_cluster_writes_the_same_folder(
    cluster: Any, source: Source, tmp_path: Path, actors: int
) -> None:
    run_batch(source, SETTINGS, tmp_path / "one", in_process(SETTINGS))
    run_batch(source, SETTINGS, tmp_path / "ray", runner(actors))
    assert contents(tmp_path / "one") == contents(tmp_path / "ray")


def test_the_shards_of_lost_actors_and_nodes_are_made_again(
    cluster: Any, source: Source, tmp_path: Path
) -> None:
    """First an actor's process is killed, then the raylet of a node: its CPUs do not come back."""
    run_batch(source, SETTINGS, tmp_path / "one", in_process(SETTINGS))
    lost_node = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    written: list[int] = []

    class Killing(RayRunner):
        def shards(self, given: Any) -> Any:
            for shard in super().shards(given):
                written.append(shard.number)
                yield shard
                if len(written) == 2:
                    os.kill(actor_processes()[0], signal.SIGKILL)
                if len(written) == 5:
                    os.kill(lost_node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    start: Any = lambda on_rows: Killing(None, 6, SPEC, SETTINGS, on_rows)  # noqa: E731
    run_batch(source, SETTINGS, tmp_path / "ray", start)
    assert sorted(written) == list(range(source.n_shards))
    assert contents(tmp_path / "one") == contents(tmp_path / "ray")
    cluster.remove_node(lost_node, allow_graceful=False)


def actor_processes() -> list[int]:
    """Find the processes of actors by the title that Ray gives them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::_Actor"):
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_command_survives_kill_9_of_any_part(
    cluster: Any, write_rows: WriteRows, source: Source, tmp_path: Path, rounds: int
) -> None:
    """At a random moment: of the command, of an actor, or of the second node's raylet."""
    run_batch(source, SETTINGS, tmp_path / "one", in_process(SETTINGS))
    out = tmp_path / "ray"
    words = ["batch", str(tmp_path / "in.jsonl"), "-o", str(out), "-s", "4", "-n", "60"]
    words += ["--shard-rows", "6", "--threads", "1", "--actors", "3", "--ray", cluster.address]
    command = [sys.executable, "-m", "llama2py", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    rng = random.Random(0)
    for round_ in range(rounds):
        kind = ("command", "actor", "raylet")[round_ % 3]
        node = cluster.add_node(**NODE) if kind == "raylet" else None
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        deadline, wanted = time.monotonic() + 60, rng.randrange(1, 12)
        while len(list(out.glob("shard-*"))) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if node is not None:
            os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        elif kind == "actor" and (actors := actor_processes()):
            os.kill(rng.choice(actors), signal.SIGKILL)
        elif kind == "command":
            process.kill()
            process.communicate()
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
        assert contents(tmp_path / "one") == contents(out), (round_, kind)
        shutil.rmtree(out)
        if node is not None:
            cluster.remove_node(node, allow_graceful=False)


def test_a_model_that_an_actor_cannot_load_is_an_error(cluster: Any, tmp_path: Path) -> None:
    spec = ModelSpec(str(tmp_path / "missing.bin"))
    with pytest.raises(BatchError, match=r"an actor cannot load the model: .*missing\.bin"):
        RayRunner(None, 1, spec, SETTINGS, lambda rows, tokens: None)


@pytest.mark.parametrize("batch_size", [7, 100])
def test_a_dataset_gets_the_texts_of_its_rows(cluster: Any, batch_size: int) -> None:
    rows: list[dict[str, Any]] = [*prompts(30), {"id": "bad", "prompt": "One day " * 600}]
    dataset = ray.data.from_items(rows).map_batches(
        Generator,
        fn_constructor_kwargs={"seed": 4, "max_tokens": 10},
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
        batch_size=batch_size,
    )
    with RowGenerator(SPEC, seed=4, max_tokens=10) as alone:
        expected = {row["id"]: row for row in alone(rows)}
    found = {row["id"]: row for row in dataset.take_all()}
    assert found.keys() == expected.keys()
    for name, row in found.items():
        assert {k: v for k, v in row.items() if v is not None} == expected[name]


def test_actors_that_would_take_every_cpu_are_refused(cluster: Any) -> None:
    dataset = ray.data.from_items(prompts(8))
    cpus = int(ray.cluster_resources()["CPU"])
    with pytest.raises(ParameterError, match="leaves no CPU of the cluster's 4 for the tasks"):
        generate(dataset, actors=cpus)
    with pytest.raises(ParameterError, match="an actor with 9 threads each"):
        generate(dataset, threads=9)
    texts = generate(dataset, seed=4, max_tokens=5).take_all()
    assert [row["tokens"] for row in texts] == [5] * 8


def test_the_class_has_its_documented_name() -> None:
    assert llama2py.ray.Generator is Generator


def test_rows_of_a_dataset_need_ids(cluster: Any) -> None:
    with Generator(seed=1)._generate as make, pytest.raises(ParameterError, match="has no id"):
        make([json.loads('{"prompt": "Once"}')])

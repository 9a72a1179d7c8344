"""A batch from input to manifest, and ``kill -9`` at any moment of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from llama2py import load
from llama2py.bulk.identity import ModelSpec, load_identified
from llama2py.bulk.processes import OnRows, Runner
from llama2py.bulk.run import Progress, run_batch
from llama2py.bulk.shards import ShardResult
from llama2py.bulk.sources import ShardInput, open_source, stories
from llama2py.bulk.texts import Settings
from llama2py.errors import BatchError
from tests.bulk.conftest import WriteRows, contents, in_process, prompts

SETTINGS = Settings(2, {"max_tokens": 12})
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


class Counting(Runner):
    """Notes which shards are made."""

    def __init__(self, runner: Runner) -> None:
        self.identity = runner.identity
        self.made: list[int] = []
        self._runner = runner

    def shards(self, given: Iterable[ShardInput]) -> Iterator[ShardResult]:
        for shard in self._runner.shards(given):
            self.made.append(shard.number)
            yield shard

    def close(self) -> None:
        self._runner.close()


def test_a_batch_goes_on_where_it_ended(write_rows: WriteRows, tmp_path: Path) -> None:
    source = open_source(write_rows(prompts(20)), None, 4)
    run_batch(source, SETTINGS, tmp_path / "whole", in_process(SETTINGS))
    runners: list[Counting] = []

    def start(on_rows: OnRows) -> Runner:
        runners.append(Counting(in_process(SETTINGS)(on_rows)))
        return runners[-1]

    class Stop(Exception):
        pass

    def stopping(on_rows: OnRows) -> Runner:
        made = Counting(in_process(SETTINGS)(on_rows))

        def shards(given: Iterable[ShardInput]) -> Iterator[ShardResult]:
            made_shards = Counting.shards(made, given)
            yield next(made_shards)
            yield next(made_shards)
            raise Stop

        made.shards = shards  # type: ignore[method-assign]
        return made

    with pytest.raises(Stop):
        run_batch(source, SETTINGS, tmp_path / "out", stopping)
    summary = run_batch(source, SETTINGS, tmp_path / "out", start)
    assert runners[0].made == [2, 3, 4]
    assert (summary.rows, summary.new_rows, summary.shards) == (20, 12, 5)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    again = run_batch(source, SETTINGS, tmp_path / "out", start)
    assert runners[1].made == []
    assert (again.rows, again.new_rows, again.tokens) == (20, 0, summary.tokens)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_input_model_or_parameter_is_refused(write_rows: WriteRows, tmp_path: Path) -> None:
    source = open_source(write_rows(prompts(4)), None, 4)
    out = tmp_path / "out"
    run_batch(source, SETTINGS, out, in_process(SETTINGS))
    before = contents(out)

    def never(on_rows: OnRows) -> Runner:
        raise AssertionError("the model was loaded first")

    changed = open_source(write_rows(prompts(5), "b.jsonl"), None, 4)
    with pytest.raises(BatchError, match=r"input\.rows is 5, and was 4"):
        run_batch(changed, SETTINGS, out, never)
    with pytest.raises(BatchError, match=r"parameters\.seed is 3, and was 2"):
        run_batch(source, Settings(3, SETTINGS.parameters), out, never)
    with pytest.raises(BatchError, match=r"output.format is openai, and was jsonl"):
        run_batch(source, Settings(2, SETTINGS.parameters, format="openai"), out, never)
    spec = ModelSpec(threads=1, dtype="float32")
    with pytest.raises(BatchError, match=r"model\.sha256 is"):
        run_batch(source, SETTINGS, out, in_process(SETTINGS, spec))
    assert contents(out) == before


def test_a_batch_in_openais_format(write_rows: WriteRows, tmp_path: Path) -> None:
    settings = Settings(2, {"max_tokens": 6}, format="openai")
    rows: list[object] = [
        {
            "custom_id": name,
            "method": "POST",
            "url": f"/v1/{url}",
            "body": {"model": "mine", **body},
        }
        for name, url, body in (
            ("a", "chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
            ("b", "completions", {"prompt": "Once", "max_tokens": 4}),
            ("c", "completions", {"prompt": "Once", "n": 3}),
        )
    ]
    source = open_source(write_rows(rows), None, 10)
    run_batch(source, settings, tmp_path / "out", in_process(settings))
    lines = (tmp_path / "out" / "shard-000000.jsonl").read_text("utf-8").splitlines()
    a, b, c = (json.loads(line) for line in lines)
    assert [line["custom_id"] for line in (a, b, c)] == ["a", "b", "c"]
    assert [line["response"]["status_code"] for line in (a, b, c)] == [200, 200, 400]
    assert [line["error"] for line in (a, b, c)] == [None] * 3
    assert c["response"]["body"]["error"]["message"] == "n is 3, which a batch does not support"
    body = b["response"]["body"]
    assert (body["object"], body["model"]) == ("text_completion", "mine")
    assert body["usage"]["completion_tokens"] == 4
    assert body["usage"]["total_tokens"] == 4 + body["usage"]["prompt_tokens"]
    assert body["choices"][0]["finish_reason"] == "length"
    message = a["response"]["body"]["choices"][0]["message"]
    assert (message["role"], bool(message["content"])) == ("assistant", True)
    assert a["response"]["body"]["object"] == "chat.completion"


def test_progress_counts_the_rows_of_this_run(tmp_path: Path) -> None:
    settings = Settings(stories={"max_words": 20})
    seen: list[Progress] = []
    summary = run_batch(stories(5, 2), settings, tmp_path, in_process(settings), seen.append)
    assert [progress.total for progress in seen] == [5] * len(seen)
    assert {progress.new_rows for progress in seen} == {1, 2, 3, 4, 5}
    assert (seen[-1].new_rows, seen[-1].new_tokens) == (5, summary.tokens)
    (tmp_path / "shard-000001.jsonl").unlink()
    seen.clear()
    run_batch(stories(5, 2), settings, tmp_path, in_process(settings), seen.append)
    assert {(progress.earlier, progress.new_rows) for progress in seen} == {(3, 1), (3, 2)}


def test_the_identity_of_a_model_is_that_of_its_weights_and_numerics(tmp_path: Path) -> None:
    model, identity = load_identified(ModelSpec(threads=1))
    model.close()
    model, other = load_identified(ModelSpec(threads=2, dtype="int4"))
    model.close()
    assert {*identity} == {"model", "versions"}
    assert identity["versions"] == other["versions"]
    for name in ("sha256", "dtype", "numerics"):
        assert identity["model"][name] != other["model"][name]
    model, again = load_identified(ModelSpec(threads=2))
    model.close()
    assert again == identity


# ---- kill -9 ----


def start_command(source: Path, out: Path, *flags: str) -> subprocess.Popen[bytes]:
    words = ["batch", str(source), "-o", str(out), "-n", "40", "--shard-rows", "5", *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "llama2py", *words, "--threads", "1", "--max-batch", "8"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
    )


def children(process_id: int) -> list[int]:
    try:
        text = Path(f"/proc/{process_id}/task/{process_id}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(word) for word in text.split()]


def survive(
    source: Path, out: Path, flags: list[str], kills: int, longest: float, rng: random.Random
) -> None:
    """Kill the command, or one of its workers, at random moments; then let it end."""
    for _ in range(kills):
        process = start_command(source, out, *flags)
        time.sleep(rng.uniform(0, longest))
        if (workers := children(process.pid)) and rng.random() < 0.5:
            os.kill(rng.choice(workers), signal.SIGKILL)
            time.sleep(rng.uniform(0, longest / 2))
        process.kill()
        process.communicate()
    # Its lock is free at once, although a worker may live for a moment longer.
    process = start_command(source, out, *flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


@pytest.mark.parametrize("flags", [[], ["--processes", "2"]], ids=["one", "two"])
def test_a_batch_survives_kill_9(
    write_rows: WriteRows, tmp_path: Path, request: pytest.FixtureRequest, flags: list[str]
) -> None:
    source = write_rows(prompts(150))
    whole = tmp_path / "whole"
    process = start_command(source, whole)
    begun = time.monotonic()
    process.communicate()
    longest = time.monotonic() - begun
    rng = random.Random(request.node.name)
    survive(source, tmp_path / "out", flags, 3, longest, rng)
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.slow
def test_a_batch_survives_20_rounds_of_kill_9(write_rows: WriteRows, tmp_path: Path) -> None:
    source = write_rows(prompts(400))
    whole = tmp_path / "whole"
    process = start_command(source, whole)
    begun = time.monotonic()
    process.communicate()
    longest = time.monotonic() - begun
    for round_ in range(20):
        flags = [[], ["--processes", "2"], ["--processes", "4"]][round_ % 3]
        out = tmp_path / "out"
        survive(source, out, flags, 3, longest, random.Random(round_))
        assert contents(out) == contents(whole), round_
        shutil.rmtree(out)


def test_texts_are_those_of_a_model_alone(write_rows: WriteRows, tmp_path: Path) -> None:
    """The whole way from a file to a file, against `Model.generate`."""
    source = open_source(write_rows(prompts(6)), None, 4)
    run_batch(source, SETTINGS, tmp_path / "out", in_process(SETTINGS))
    data = b"".join(v for k, v in contents(tmp_path / "out").items() if k.startswith("shard"))
    with load() as model:
        for line in data.splitlines():
            row = json.loads(line)
            alone = model.generate(row["prompt"], 12, seed=row["seed"])
            assert row["text"] == alone.text

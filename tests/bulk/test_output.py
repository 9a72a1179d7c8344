"""The folder of a batch: what is kept, what is made again, what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llama2py.bulk import output
from llama2py.bulk.output import JOURNAL, LOCK, MANIFEST, OutputFolder
from llama2py.bulk.shards import ShardResult
from llama2py.errors import BatchError
from tests.bulk.conftest import contents

ABOUT: dict[str, Any] = {"parameters": {"seed": 1}, "model": {"sha256": "m"}}


def result(number: int) -> ShardResult:
    data = f'{{"id":"{number}"}}\n'.encode()
    return ShardResult(number, number, 1, number % 2, 10, hashlib.sha256(data).hexdigest(), data)


def write(path: Path, numbers: list[int], finish: bool = False) -> dict[int, Any]:
    """Run a part of a batch, and return what was there before."""
    with OutputFolder(path, "jsonl") as folder:
        folder.begin(ABOUT)
        before = dict(folder.done)
        for number in numbers:
            folder.write(result(number))
        if finish:
            folder.finish()
    return before


def test_a_manifest_names_every_shard(tmp_path: Path) -> None:
    write(tmp_path / "out", [1, 0], finish=True)
    assert sorted(contents(tmp_path / "out")) == [
        MANIFEST,
        "shard-000000.jsonl",
        "shard-000001.jsonl",
    ]
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert (manifest["rows"], manifest["errors"], manifest["tokens"]) == (2, 1, 20)
    for shard in manifest["shards"]:
        data = (tmp_path / "out" / shard["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
    assert manifest["parameters"] == {"seed": 1}


def test_finished_shards_are_kept(tmp_path: Path) -> None:
    write(tmp_path, [2, 0])
    assert sorted(write(tmp_path, [1], finish=True)) == [0, 2]
    whole = contents(tmp_path)
    write(tmp_path / "once", [0, 1, 2], finish=True)
    assert contents(tmp_path / "once") == {k: v for k, v in whole.items() if k != "once"}


def test_a_finished_batch_is_kept_and_checked(tmp_path: Path) -> None:
    write(tmp_path, [0, 1], finish=True)
    before = contents(tmp_path)
    assert sorted(write(tmp_path, [], finish=True)) == [0, 1]
    assert contents(tmp_path) == before
    (tmp_path / "shard-000001.jsonl").write_bytes(b"damaged")
    assert sorted(write(tmp_path, [1], finish=True)) == [0]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_a_damaged_shard_is_made_again(tmp_path: Path, damage: str) -> None:
    write(tmp_path, [0, 1])
    path = tmp_path / "shard-000000.jsonl"
    if damage == "remove":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] if damage == "truncate" else b"x" + data[1:])
    assert sorted(write(tmp_path, [])) == [1]


@pytest.mark.parametrize("length", range(1, 40, 7))
def test_a_line_that_a_killed_run_did_not_finish_counts_for_nothing(
    tmp_path: Path, length: int
) -> None:
    write(tmp_path, [0, 1])
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-length])
    assert sorted(write(tmp_path, [1])) == [0]
    assert sorted(write(tmp_path, [2], finish=True)) == [0, 1]
    shards = json.loads((tmp_path / MANIFEST).read_text())["shards"]
    assert [shard["shard"] for shard in shards] == [0, 1, 2]


def test_another_batch_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [0])
    before = contents(tmp_path)
    for about in (
        ABOUT | {"parameters": {"seed": 2}},
        ABOUT | {"parameters": {"seed": 1, "top_k": 4}},
        ABOUT | {"model": {"sha256": "other"}},
    ):
        with (
            OutputFolder(tmp_path, "jsonl") as folder,
            pytest.raises(BatchError, match="holds another batch"),
        ):
            folder.begin(about)
    assert contents(tmp_path) == before
    with OutputFolder(tmp_path, "jsonl") as folder:
        folder.check({"parameters": {"seed": 1}})
        with pytest.raises(BatchError, match=r"\(parameters.seed is 2, and was 1\)"):
            folder.check({"parameters": {"seed": 2}})


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BatchError, match=r"not empty \(it holds mine.txt\)"):
        OutputFolder(tmp_path, "jsonl")
    assert contents(tmp_path) == {"mine.txt": b"precious"}
    (tmp_path / "mine.txt").rename(tmp_path / MANIFEST)
    with pytest.raises(BatchError, match="not a file of a batch"):
        OutputFolder(tmp_path, "jsonl")
    (tmp_path / MANIFEST).rename(tmp_path / JOURNAL)
    with pytest.raises(BatchError, match="not a file of a batch"):
        OutputFolder(tmp_path, "jsonl")
    with pytest.raises(BatchError, match="cannot be used"):
        OutputFolder(tmp_path / JOURNAL, "jsonl")


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, "jsonl"):
        for _ in range(2):
            with pytest.raises(BatchError, match="another run writes to this folder"):
                OutputFolder(tmp_path, "jsonl")
    with OutputFolder(tmp_path, "jsonl"):
        pass
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_vanishes_is_an_error(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "out"
    with OutputFolder(path, "jsonl") as folder:
        folder.begin(ABOUT)
        folder.write(result(0))
        shutil.rmtree(path)
        if replaced:
            path.mkdir()
        with pytest.raises(BatchError, match="removed or replaced while the batch ran"):
            folder.write(result(1))
        with pytest.raises(BatchError, match="removed or replaced"):
            folder.finish()
    assert not replaced or contents(path) == {}


def test_a_full_disk_loses_nothing_and_keeps_nothing_false(tmp_path: Path) -> None:
    """The device /dev/full stands for the disk: a file on it cannot be flushed."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    write(tmp_path, [0])
    with OutputFolder(tmp_path, "jsonl") as folder, open(full, "wb", buffering=0) as disk:
        folder.begin(ABOUT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.fsync", lambda descriptor: disk.write(b"x"))
            with pytest.raises(BatchError, match="No space left on device"):
                folder.write(result(1))
        assert sorted(folder.done) == [0]
    assert sorted(contents(tmp_path)) == [JOURNAL, "shard-000000.jsonl"]
    assert sorted(write(tmp_path, [1], finish=True)) == [0]


def test_names_sort_in_the_order_of_the_rows() -> None:
    names = [output.shard_name(n, "parquet") for n in (0, 9, 10, 99999, 100000)]
    assert names == sorted(names)

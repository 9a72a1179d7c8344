"""Parquet in and out; pyarrow is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama2py.bulk.parquet import parquet_bytes, pyarrow_version
from llama2py.bulk.rows import Result, Row
from llama2py.bulk.run import run_batch
from llama2py.bulk.shards import OutputFormat
from llama2py.bulk.sources import open_source
from llama2py.bulk.texts import Settings
from llama2py.errors import BatchError
from tests.bulk.conftest import WriteRows, contents, in_process, prompts

pyarrow: Any = pytest.importorskip("pyarrow", reason="needs llama2py[bulk]")
parquet: Any = pytest.importorskip("pyarrow.parquet", reason="needs llama2py[bulk]")


def test_a_parquet_shard_holds_what_a_jsonl_shard_holds(
    write_rows: WriteRows, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    rows: list[Any] = [*prompts(5), b"bad", {"id": "m", "messages": messages}]
    rows += [{"id": "t", "prompt": [1, 300]}, {"prompt": "\ud800"}]
    source = open_source(write_rows(rows), None, 4)
    formats: tuple[OutputFormat, ...] = ("jsonl", "parquet")
    for format in formats:
        settings = Settings(1, {"max_tokens": 8}, format=format)
        run_batch(source, settings, tmp_path / format, in_process(settings))
    lines = [
        json.loads(line)
        for name, data in contents(tmp_path / "jsonl").items()
        if name.startswith("shard")
        for line in data.splitlines()
    ]
    names = sorted((tmp_path / "parquet").glob("shard-*.parquet"))
    table = pyarrow.concat_tables([parquet.read_table(name) for name in names])
    for number, (line, row) in enumerate(zip(lines, table.to_pylist(), strict=True)):
        assert row.pop("row") == number
        found = {name: value for name, value in row.items() if value is not None}
        if "messages" in found:
            found["messages"] = json.loads(found["messages"])
        if line["id"] == "t":
            found["prompt"] = json.loads(found["prompt"])
        if number == 8:
            line["prompt"] = "?"  # UTF-8 has no lone surrogates
        assert found == line
    manifest = json.loads((tmp_path / "parquet" / "manifest.json").read_text())
    assert manifest["versions"]["pyarrow"] == pyarrow.__version__ == pyarrow_version()


def test_the_bytes_of_a_parquet_file_are_the_same_again() -> None:
    results = [Result(Row(n, str(n), "Once"), "text" * n, "stop", 2, n, n) for n in range(100)]
    data = parquet_bytes(results)
    assert data == parquet_bytes(results)
    file = parquet.ParquetFile(pyarrow.BufferReader(data))
    assert file.metadata.metadata is None
    assert file.metadata.num_row_groups == 1


def test_rows_come_from_a_parquet_file(tmp_path: Path) -> None:
    table = pyarrow.table({"id": [5, 6, 7], "animal": ["cat", None, "dog"], "n": [1.5, 2.0, 3.0]})
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    source = open_source(tmp_path / "in.parquet", None, 2)
    lines = [json.loads(line) for shard in source.shards([0, 1]) for line in shard.lines]
    assert lines == table.to_pylist()
    assert (source.n_rows, source.format) == (3, "parquet")


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(BatchError, match="cannot be read as Parquet"):
        open_source(tmp_path / "in.parquet", None, 2)

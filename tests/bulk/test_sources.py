"""Inputs as streams of shards."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llama2py.bulk.rows import MAX_ROW, parse_row
from llama2py.bulk.sources import Source, open_source, stories
from llama2py.errors import BatchError, PromptError
from tests.bulk.conftest import WriteRows


def all_lines(source: Source) -> list[bytes]:
    return [line for shard in source.shards(range(source.n_shards)) for line in shard.lines]


def test_a_file_is_cut_into_shards(write_rows: WriteRows) -> None:
    rows = [{"prompt": str(n)} for n in range(7)]
    source = open_source(write_rows([*rows[:3], b"", b"  ", *rows[3:]]), None, 3)
    assert (source.n_rows, source.n_shards, source.format) == (7, 3, "jsonl")
    shards = list(source.shards([0, 2]))
    assert [(s.number, s.first_row, s.n_rows) for s in shards] == [(0, 0, 3), (2, 6, 1)]
    assert [json.loads(line) for line in shards[1].lines] == rows[6:]


def test_the_digest_of_an_input_depends_on_its_rows_alone(write_rows: WriteRows) -> None:
    one = open_source(write_rows([{"a": 1}, {"a": 2}]), None, 1)
    other = open_source(write_rows([{"a": 1}, b"", {"a": 2}], "b.jsonl"), None, 7)
    changed = open_source(write_rows([{"a": 1}, {"a": 3}], "c.jsonl"), None, 7)
    assert one.sha256 == other.sha256 != changed.sha256


def test_rows_that_change_during_the_batch_are_noticed(write_rows: WriteRows) -> None:
    path = write_rows([{"a": n} for n in range(4)])
    source = open_source(path, None, 2)
    write_rows([{"a": n} for n in (0, 1, 2, 9)])
    shards = source.shards([0, 1])
    assert next(shards).number == 0
    with pytest.raises(BatchError, match="from number 2 on have changed"):
        next(shards)
    write_rows([{"a": 0}])  # truncated
    with pytest.raises(BatchError, match="have changed"):
        list(source.shards([1]))


def test_a_row_that_is_too_long_is_an_error_of_its_own(write_rows: WriteRows) -> None:
    long = b'{"prompt": "' + b"a" * (2 * MAX_ROW) + b'"}'
    lines = all_lines(open_source(write_rows([{"a": 1}, long, {"a": 2}]), None, 10))
    assert [json.loads(lines[0]), json.loads(lines[2])] == [{"a": 1}, {"a": 2}]
    assert len(lines[1]) < 100
    with pytest.raises(PromptError, match=r"longer than 8\.4 MB"):
        parse_row(lines[1], 1, None)


def test_csv_has_its_names_in_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b'\xef\xbb\xbfid,animal\r\n1,"a\n""cat"""\r\n\r\n2\r\n3,\xff\r\n')
    source = open_source(path, None, 10)
    lines = all_lines(source)
    assert json.loads(lines[0]) == {"id": "1", "animal": 'a\n"cat"'}
    with pytest.raises(PromptError, match="1 columns, expected 2"):
        parse_row(lines[1], 1, None)
    assert json.loads(lines[2]) == {"id": "3", "animal": "\udcff"}  # refused by the tokenizer
    assert (source.n_rows, source.format) == (3, "csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.jsonl", b"", "has no rows"),
        ("in.jsonl", b"\n \n", "has no rows"),
        ("in.csv", b"id,prompt\n", "has no rows"),
        ("in.csv", b"id,id\n1,2\n", "a name twice"),
        ("in.csv", b'id,prompt\n1,"' + b"a" * (MAX_ROW + 1), "line 2 is not CSV"),
        ("in.jsonl", gzip.compress(b"{}\n", mtime=0), "compressed with gzip"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BatchError, match=message):
        open_source(tmp_path / name, None, 10)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path, "a directory"), (tmp_path / "pipe", "a device, pipe")):
        with pytest.raises(BatchError, match=message):
            open_source(path, None, 10)
    with pytest.raises(BatchError, match="no such file"):
        open_source(tmp_path / "missing", None, 10)


def test_stories_from_nothing_are_rows_without_lines() -> None:
    shards = list(stories(25, 10).shards([1, 2]))
    found: list[Any] = [(s.first_row, s.n_rows, s.lines) for s in shards]
    assert found == [(10, 10, []), (20, 5, [])]

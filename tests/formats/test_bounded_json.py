"""JSON within limits: what is counted before it is built, and typed values."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from llama2py.errors import CheckpointError, TokenizerError
from llama2py.formats.bounded_json import (
    MODEL_LIMITS,
    JsonObject,
    Limits,
    parse_object,
    read_object,
)

SMALL = Limits(size=1000, containers=10, items=10, bytes_per_container=20, bytes_per_item=10)


def test_an_object_is_parsed() -> None:
    assert parse_object(b'{"a": [1, 2.5, null, "\xc3\xa9"]}') == {"a": [1, 2.5, None, "\u00e9"]}
    assert parse_object(b'\xef\xbb\xbf{"after": "a byte order mark"}')


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"[]", "is not an object"),
        (b"", "not JSON"),
        (b'{"a": 1, "a": 2}', "has a name twice"),
        (b'{"a": Infinity}', "Infinity is not a JSON number"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a":' * 5000, "nested too deep"),
        (b'{"a": "' + b"x" * 1000 + b'"}', "1009 bytes of JSON, expected at most 1000"),
        (b'{"a": [' + b"[]," * 20 + b"[]]}", "23 lists and objects and 20 commas"),
        (b'{"a": [' + b"1," * 20 + b"1]}", "2 lists and objects and 20 commas"),
    ],
)
def test_other_texts_are_errors(text: bytes, complaint: str) -> None:
    limits = MODEL_LIMITS if b'a":{"a' in text else SMALL
    with pytest.raises(TokenizerError, match=complaint):
        parse_object(text, limits, TokenizerError)


def test_a_config_may_have_what_pythons_json_has(tmp_path: Path) -> None:
    """transformers writes and reads its configs with it."""
    text = '{"a": 1, "a": 2, "b": Infinity, "c": NaN, "d": -Infinity, "e": {"x": 1, "x": 3}}'
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    about = read_object(path)
    assert repr(about.values) == repr(json.loads(text))
    assert about.integer("a") == 2
    for name in "bcd":
        with pytest.raises(CheckpointError, match=f"{name} is .*, expected a number"):
            about.number(name)


def test_a_larger_file_may_have_more_in_proportion() -> None:
    lists = [["ab", "cdefghijkl"] for _ in range(30)]
    assert len(parse_object(json.dumps({"merges": lists}).encode(), SMALL)["merges"]) == 30


@pytest.mark.parametrize("item", [b"[]", b"{}", b'{"a":1}', b'"%d"', b'"%d":1'])
def test_whatever_the_limits_allow_fits_the_bound_of_memory(item: bytes) -> None:
    """Twice the size of the file and 16 MB; see docs/formats.md."""
    count = MODEL_LIMITS.items if b"%" in item else MODEL_LIMITS.containers // 2
    items = b",".join(item % (i + 300) if b"%" in item else item for i in range(count))
    text = b"{" + items + b"}" if b":1" in item[-2:] else b'{"x":[' + items + b"]}"
    tracemalloc.start()
    try:
        parse_object(text)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(text) + (16 << 20)
    finally:
        tracemalloc.stop()


def test_values_have_types() -> None:
    about = JsonObject("config.json", {"n": 3, "x": 1.5, "yes": True, "name": "a", "none": None})
    assert about.integer("n") == 3
    assert about.integer("none", 7) == about.integer("other", 7) == 7
    assert (about.number("n"), about.number("x")) == (3.0, 1.5)
    assert about.flag("yes") is True
    assert about.text("name") == "a"
    assert about.object("none") is None
    for wrong in (
        lambda: about.integer("x"),
        lambda: about.integer("yes"),
        lambda: about.number("name"),
        lambda: about.flag("n"),
        lambda: about.text("n"),
        lambda: about.object("n"),
    ):
        with pytest.raises(CheckpointError, match=r"config\.json: \w+ is .*, expected "):
            wrong()


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"n": "three"}')
    with pytest.raises(CheckpointError, match=r'config\.json: n is "three", expected a whole'):
        read_object(path).integer("n")
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: this is not JSON"):
        read_object(path)

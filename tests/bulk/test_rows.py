"""Rows: parsing, templates, and the documented hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from llama2py.bulk.rows import MAX_ROW, Row, Template, checked_parameters, parse_row, row_seed
from llama2py.errors import BatchError, ParameterError, PromptError


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def request(url: str = "/v1/chat/completions", **body: Any) -> bytes:
    return line(custom_id="r", method="POST", url=url, body=body)


# ---- seeds ----


@pytest.mark.parametrize(
    ("arguments", "canonical"),
    [
        ((7, "a", "Once", {"temperature": 0.5}), b'[7,"a","Once",{"temperature":0.5}]'),
        ((0, "1", [1, 2], {}), b'[0,"1",[1,2],{}]'),
        (
            (0, "\u00e4", "\U0001f600", {"b": 1, "a": 2}),
            rb'[0,"\u00e4","\ud83d\ude00",{"a":2,"b":1}]',
        ),
    ],
)
def test_a_seed_is_the_documented_hash(arguments: Any, canonical: bytes) -> None:
    digest = hashlib.blake2b(canonical, digest_size=8).digest()
    assert row_seed(*arguments) == int.from_bytes(digest, "little")


def test_every_part_of_a_row_changes_its_seed() -> None:
    seeds = {
        row_seed(0, "a", "Once", {}),
        row_seed(1, "a", "Once", {}),
        row_seed(0, "b", "Once", {}),
        row_seed(0, "a", "Onc", {}),
        row_seed(0, "a", "Once", {"top_k": 1}),
    }
    assert len(seeds) == 5


def test_equal_parameters_have_one_form() -> None:
    a = checked_parameters({"temperature": 1, "stop": "x", "logit_bias": {"5": 1}, "top_k": 3})
    b = checked_parameters({"temperature": 1.0, "stop": ["x"], "logit_bias": {5: 1}, "top_p": None})
    assert json.dumps(a, sort_keys=True) == json.dumps(b | {"top_k": 3}, sort_keys=True)


@pytest.mark.parametrize("name", ["max_time", "cancel", "logprobs", "session", "tempo"])
def test_a_parameter_that_is_not_reproducible_or_unknown_is_an_error(name: str) -> None:
    with pytest.raises(ParameterError, match=f"unknown parameter '{name}'"):
        checked_parameters({name: 1})


# ---- rows ----


def test_a_row_has_a_prompt_or_messages() -> None:
    assert parse_row(line(prompt="Hi"), 4, None) == Row(4, "4", "Hi")
    assert parse_row(line(id=7, prompt=[1, 2]), 4, None) == Row(4, "7", [1, 2])
    messages = [{"role": "user", "content": "Hi"}]
    assert parse_row(line(id="x", messages=messages), 0, None).messages == messages
    row = parse_row(line(id="x", prompt="", parameters={"top_k": 2}, label="kept out"), 0, None)
    assert row == Row(0, "x", "", parameters={"top_k": 2})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"not json", "this is not JSON"),
        (b"[1]", "not an object"),
        (b'{"a": 1, "a": 2}', "a name twice"),
        (line(id="x"), "no prompt and no messages"),
        (line(prompt="a", messages=[]), "both prompt and messages"),
        (line(prompt=5), "the prompt is 5, expected a text or a list of token ids"),
        (line(prompt=[1, True]), "the prompt is"),
        (line(messages=[]), "expected a list of messages"),
        (line(messages=["a"]), "a message is 'a'"),
        (line(messages=[{"role": "user"}]), "the content None"),
        (line(id=[1], prompt="a"), r"the row's id is \[1\]"),
        (line(prompt="a", parameters=[1]), "parameters is"),
        (line(prompt="a", parameters={"top_k": 1.5}), "top_k is 1.5"),
        (b"!too long", "too long"),
        (b'{"prompt": "' + b"a" * MAX_ROW + b'"}', "bytes of JSON"),
        (request("/v1/embeddings", input="a"), "the request is for '/v1/embeddings'"),
        (request(messages=[{"role": "user", "content": "a"}], n=2), "n is 2"),
        (request(messages=[{"role": "user", "content": "a"}], stream=True), "stream is True"),
        (
            request(messages=[{"role": "user", "content": "a"}], tools=[1]),
            "unknown parameter 'tools'",
        ),
        (request(), "the body has no messages"),
    ],
)
def test_a_wrong_row_is_one_sentence(given: bytes, message: str) -> None:
    with pytest.raises((PromptError, ParameterError), match=message):
        parse_row(given, 0, None)


def test_a_request_of_openai_is_a_row() -> None:
    row = parse_row(
        request(
            model="any",
            messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}],
            max_completion_tokens=5,
            temperature=1,
            n=1,
            stream=False,
            user="u",
            seed=3,
        ),
        2,
        None,
    )
    messages = [{"role": "user", "content": "ab"}]
    parameters = {"max_tokens": 5, "temperature": 1.0, "seed": 3}
    assert row == Row(2, "r", None, messages, parameters, "any")
    plain = parse_row(request("/v1/completions", prompt="Hi"), 0, None)
    assert (plain.prompt, plain.messages) == ("Hi", None)


# ---- templates ----


def test_a_template_takes_fields_of_the_row() -> None:
    template = Template("A {size} {animal} {{here}}")
    assert template.fill({"animal": "cat", "size": 3}) == "A 3 cat {here}"
    row = parse_row(line(id="x", animal="cat", size="big", prompt=5), 1, template)
    assert row == Row(1, "x", "A big cat {here}")


@pytest.mark.parametrize("fields", [{}, {"animal": None}, {"animal": ["cat"]}])
def test_a_row_without_a_usable_field_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="'animal'"):
        Template("A {animal}").fill(fields)


@pytest.mark.parametrize("text", ["{", "}", "{}", "{0.__class__!r}", "{a:>5}", "{ }"])
def test_a_template_with_wrong_braces_is_an_error(text: str) -> None:
    with pytest.raises(BatchError, match="the prompt's template is wrong"):
        Template(text)


def test_a_template_reaches_no_attributes() -> None:
    with pytest.raises(PromptError, match=r"no field 'a\.__class__'"):
        Template("{a.__class__}").fill({"a": "x"})

"""A row: what a user wants one text for, its seed, and the text or the error that came of it."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engine.parameters import shown, whole_number
from ..errors import BatchError, ParameterError, PromptError
from ..formats.bounded_json import Limits, parse_object

# Bytes of one row of the input.
MAX_ROW = 8 << 20
_LIMITS = Limits(size=MAX_ROW, containers=100_000, items=1_000_000)
# The first byte of a row that could not be read; the rest is the reason. No JSON begins so.
BAD_ROW = b"!"

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))

# What a row or a job may set for its text: nothing that depends on time, or that is not JSON.
PARAMETERS = frozenset(
    [
        *("max_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p"),
        *("repetition_penalty", "frequency_penalty", "presence_penalty"),
        *("logit_bias", "banned_tokens", "stop", "stop_tokens", "overflow", "seed"),
    ]
)
_INTEGERS = {"max_tokens", "top_k", "seed"}

_ENDPOINTS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
# Fields of a request that change nothing about the text.
_IGNORED = {"metadata", "model", "service_tier", "store", "user"}
# Fields of a request that are accepted with a value that means "no".
_OFF: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "n": (1,),
    "response_format": ({"type": "text"},),
    "stream": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the input.

    Attributes
    ----------
    number : int
        Its place in the input, from 0.
    id : str
        Its name, or its number if it has no name.
    prompt : str, list of int or None
        The beginning of the text, or its tokens.
    messages : list of dict or None
        The dialogue to answer, where there is no prompt.
    parameters : mapping of str to value
        What differs from the job's parameters.
    model : str or None
        The model that an OpenAI request names. It chooses nothing.
    """

    number: int
    id: str
    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A row's text, or why there is no text.

    Attributes
    ----------
    row : Row
        The row. Without prompt and messages if it could not be read.
    text : str
        The text, without the prompt.
    finish_reason : {'stop', 'length'} or None
        Why the text ended; None for an error.
    prompt_tokens, tokens : int
        How many tokens the prompt and the text have.
    seed : int or None
        The seed of the text.
    error : str or None
        What was wrong with the row.
    """

    row: Row
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    seed: int | None = None
    error: str | None = None


def row_seed(
    job_seed: int, row_id: str, request: str | Sequence[Any], parameters: Mapping[str, Any]
) -> int:
    """Return the seed of a row's text.

    The seed is the first 8 bytes, little-endian, of BLAKE2b (digest size 8) over the JSON array
    ``[job_seed, row_id, request, parameters]``: UTF-8 with every character above 127 escaped, the
    keys sorted, and no spaces.

    Parameters
    ----------
    job_seed : int
        The job's seed.
    row_id : str
        The row's id.
    request : str, list of int or list of dict
        The prompt, its tokens, or the messages.
    parameters : mapping of str to value
        The parameters of the text that the job or the row sets, without the seed.

    Returns
    -------
    int
        0 to 2**64 - 1.

    Examples
    --------
    >>> row_seed(0, "1", "Once upon a time", {"temperature": 0.5})
    15397415228664868606
    """
    canonical = _CANONICAL.encode([job_seed, row_id, request, parameters])
    return int.from_bytes(hashlib.blake2b(canonical.encode(), digest_size=8).digest(), "little")


def checked_parameters(given: Any) -> dict[str, Any]:
    """Return parameters in the form that `row_seed` hashes: equal numbers look equal.

    Raises
    ------
    ParameterError
        If there is a parameter that a batch does not have. Values are checked with the text.
    """
    if not isinstance(given, Mapping):
        raise ParameterError(f"parameters is {shown(given)}, expected an object")
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if name not in PARAMETERS:
            listed = ", ".join(sorted(PARAMETERS))
            raise ParameterError(f"unknown parameter {shown(name)}, expected one of {listed}")
        if value is None:
            continue
        if name == "logit_bias" and isinstance(value, Mapping):
            value = {_token_id(token): bias for token, bias in value.items()}
        elif name == "stop" and isinstance(value, str):
            value = [value]
        elif isinstance(value, int) and not isinstance(value, bool) and name not in _INTEGERS:
            value = float(value)
        elif name in _INTEGERS:
            value = whole_number(name, value)
        checked[name] = value
    return checked


def _token_id(token: Any) -> int:
    """JSON has only strings as keys."""
    try:
        return int(token)
    except (TypeError, ValueError):
        raise ParameterError(f"logit_bias has {shown(token)}, expected token ids") from None


class Template:
    """A prompt with fields of the row in braces: ``"Tell a story about {animal}"``.

    ``{{`` and ``}}`` stand for braces.

    Raises
    ------
    BatchError
        If the braces do not match, or a field is not a plain name.
    """

    def __init__(self, text: str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        try:
            for literal, name, spec, conversion in string.Formatter().parse(text):
                if name is not None and (spec or conversion or not name.strip()):
                    raise ValueError("a field is not a plain name in braces, such as {animal}")
                self._parts.append((literal, name))
        except ValueError as error:
            raise BatchError(f"the prompt's template is wrong ({error})") from None

    def fill(self, fields: Mapping[str, Any]) -> str:
        """Return the prompt of a row.

        Raises
        ------
        PromptError
            If the row lacks a field, or the field is neither a text nor a number.
        """
        texts = []
        for literal, name in self._parts:
            texts.append(literal)
            if name is None:
                continue
            value = fields.get(name)
            if value is None:
                raise PromptError(
                    f"the row has no field {name!r}, which the prompt's template uses"
                )
            if not isinstance(value, str | int | float):
                raise PromptError(f"the field {name!r} is {shown(value)}, expected a text")
            texts.append(str(value))
        return "".join(texts)


def parse_row(line: bytes, number: int, template: Template | None) -> Row:
    """Parse a row of the input.

    Parameters
    ----------
    line : bytes
        A JSON object: a row (``prompt`` or ``messages``, and perhaps ``id`` and ``parameters``), or
        a request in OpenAI's batch format (``custom_id`` and ``body``). Or `BAD_ROW` and a reason.
    number : int
        The row's place in the input.
    template : Template, optional
        Makes the prompt of the row's fields.

    Raises
    ------
    PromptError, ParameterError
        If the row cannot be used. `named_row` says which row it is.
    """
    if line.startswith(BAD_ROW):
        raise PromptError(line[1:].decode("utf-8", "replace"))
    fields = parse_object(line, _LIMITS, PromptError)
    if template is not None:
        return Row(number, _id(fields, number), template.fill(fields))
    if "body" in fields and "prompt" not in fields and "messages" not in fields:
        return _request(fields, number)
    parameters = checked_parameters(fields.get("parameters") or {})
    row_id, prompt, messages = _id(fields, number), fields.get("prompt"), fields.get("messages")
    if (prompt is None) == (messages is None):
        both = "both prompt and messages" if prompt is not None else "no prompt and no messages"
        raise PromptError(f"the row has {both}, expected one of them")
    if messages is not None:
        return Row(number, row_id, messages=_messages(messages), parameters=parameters)
    return Row(number, row_id, _prompt(prompt), parameters=parameters)


def named_row(line: bytes, number: int) -> Row:
    """Return the row, without its content, that an error belongs to."""
    try:
        fields = parse_object(line, _LIMITS, PromptError)
        model = fields["body"].get("model") if isinstance(fields.get("body"), dict) else None
        return Row(number, _id(fields, number), model=model if isinstance(model, str) else None)
    except (PromptError, ParameterError):
        return Row(number, str(number))


def _id(fields: Mapping[str, Any], number: int) -> str:
    value = fields.get("id", fields.get("custom_id"))
    if value is None or value == "":
        return str(number)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ParameterError(f"the row's id is {shown(value)}, expected a text or a whole number")
    return str(value)


def _prompt(prompt: Any) -> str | list[int]:
    is_tokens = isinstance(prompt, list) and all(type(token) is int for token in prompt)
    if not isinstance(prompt, str) and not is_tokens:
        raise PromptError(f"the prompt is {shown(prompt)}, expected a text or a list of token ids")
    checked: str | list[int] = prompt
    return checked


def _messages(messages: Any) -> list[dict[str, Any]]:
    """Return messages whose contents are texts; OpenAI's lists of text parts are joined."""
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"messages is {shown(messages)}, expected a list of messages")
    checked = []
    for message in messages:
        if not isinstance(message, dict):
            raise PromptError(f"a message is {shown(message)}, expected an object")
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else None for part in content]
            texts = [part for part in parts if isinstance(part, str)]
            content = "".join(texts) if len(texts) == len(parts) else None
        if not isinstance(content, str):
            raise PromptError(f"a message has the content {shown(content)}, expected a text")
        checked.append({"role": message.get("role"), "content": content})
    return checked


def _request(fields: Mapping[str, Any], number: int) -> Row:
    """Return the row of a request in OpenAI's batch format."""
    body, url = fields["body"], fields.get("url", "")
    if not isinstance(body, dict):
        raise PromptError(f"the body is {shown(body)}, expected an object")
    if fields.get("method", "POST") != "POST" or url not in _ENDPOINTS:
        listed = " or ".join(_ENDPOINTS)
        raise ParameterError(f"the request is for {shown(url)}, expected a POST to {listed}")
    kind = _ENDPOINTS[url]
    parameters: dict[str, Any] = {}
    for name, value in body.items():
        if name in _IGNORED or name == kind or value is None:
            continue
        if name in _OFF:
            if value not in _OFF[name]:
                raise ParameterError(f"{name} is {shown(value)}, which a batch does not support")
            continue
        parameters["max_tokens" if name == "max_completion_tokens" else name] = value
    if kind not in body:
        raise PromptError(f"the body has no {kind}")
    model = body.get("model")
    return Row(
        number,
        _id(fields, number),
        _prompt(body["prompt"]) if kind == "prompt" else None,
        _messages(body["messages"]) if kind == "messages" else None,
        checked_parameters(parameters),
        model if isinstance(model, str) else None,
    )

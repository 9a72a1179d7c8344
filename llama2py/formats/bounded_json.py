"""The only JSON reader: containers and items are counted before a parser builds them.

An empty list takes two bytes in a file and sixty in memory, so a limit on the file's size alone
does not bound the memory.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, Llama2pyError
from .input_file import read_whole


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on a JSON text.

    A real file has many bytes for each of its lists and items, and a hostile file has few. So there
    are counts that any file may have, and a larger file may have more, in proportion to its size.

    Attributes
    ----------
    size : int
        Bytes.
    containers : int
        Objects and arrays that a file of any size may have.
    items : int
        Commas that a file of any size may have.
    bytes_per_container, bytes_per_item : int, optional
        A larger file may have one container, or one item, for each of this many bytes. 0: the same
        limits for every size.
    """

    size: int
    containers: int
    items: int
    bytes_per_container: int = 0
    bytes_per_item: int = 0


# A model of 126 layers has a header of 0.2 MB, with 3,400 containers and 8,000 items.
MODEL_LIMITS = Limits(size=2 << 20, containers=40_000, items=60_000)


def parse_object(
    text: bytes,
    limits: Limits = MODEL_LIMITS,
    error: type[Llama2pyError] = CheckpointError,
    as_python: bool = False,
) -> dict[str, Any]:
    """Parse one JSON object.

    Parameters
    ----------
    text : bytes
        UTF-8, with or without a byte order mark.
    limits : Limits
        What it may hold.
    error : type of Llama2pyError
        What to raise.
    as_python : bool
        Whether to read what Python's json module reads, which writes and reads the configs of
        transformers: ``Infinity`` and ``NaN``, and the last value of a name that an object has
        twice.

    Raises
    ------
    Llama2pyError
        If the text is not a JSON object, exceeds a limit, is nested too deep, or an object in it
        has a name twice. The caller adds the file's name to the message.
    """
    if len(text) > limits.size:
        raise error(f"{len(text)} bytes of JSON, expected at most {limits.size}")
    containers, items = text.count(b"{") + text.count(b"["), text.count(b",")
    if _exceeds(containers, limits.containers, limits.bytes_per_container, len(text)) or _exceeds(
        items, limits.items, limits.bytes_per_item, len(text)
    ):
        raise error(
            f"the JSON has {containers} lists and objects and {items} commas,"
            " many more than a real file of its size"
        )
    try:
        decoder = _PYTHON_DECODER if as_python else _DECODER
        value = decoder.decode(text.decode("utf-8-sig"))
    except RecursionError:
        raise error("the JSON is nested too deep") from None
    except ValueError as trouble:  # UnicodeDecodeError and JSONDecodeError are
        raise error(f"this is not JSON ({trouble!s:.200})") from None
    if not isinstance(value, dict):
        raise error("the JSON is not an object")
    return value


def _exceeds(count: int, always: int, bytes_each: int, size: int) -> bool:
    return count > max(always, size // bytes_each if bytes_each else 0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object in it has a name twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


# One of each for all texts: making one takes longer than parsing a short text.
_PYTHON_DECODER = json.JSONDecoder()
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


class JsonObject:
    """A JSON object from a file, with typed getters.

    Attributes
    ----------
    path : str or path-like
        The file, for messages.
    values : dict
        The object.
    error_class : type of Llama2pyError
        What the getters raise.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        values: dict[str, Any],
        error: type[Llama2pyError] = CheckpointError,
    ) -> None:
        self.path, self.values, self.error_class = path, values, error

    def object(self, name: str) -> JsonObject | None:
        """The object under a name; None if it is missing or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return JsonObject(self.path, value, self.error_class)

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number. The default also replaces null."""
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 62:
            raise self.error(name, "a whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number. The default also replaces null."""
        value = self._get(name, default)
        # not in this range: NaN, too
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not abs(value) < 1 << 62
        ):
            raise self.error(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false. The default also replaces null."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string. The default also replaces null."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "a string")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def error(self, name: str, expected: str) -> Llama2pyError:
        """Make the error for a value that has the wrong type or is not supported."""
        value = self.values.get(name)
        if name not in self.values:
            found = "missing"
        elif isinstance(value, dict | list):
            found = "an object" if isinstance(value, dict) else "an array"
        else:
            found = json.dumps(value)[:80]
        return self.error_class(f"{self.path}: {name} is {found}, expected {expected}")


def read_object(
    path: str | os.PathLike[str],
    limits: Limits = MODEL_LIMITS,
    error: type[Llama2pyError] = CheckpointError,
) -> JsonObject:
    """Read a file that holds one JSON object, such as a config: what Python's json module reads.

    Raises
    ------
    Llama2pyError
        Of the class ``error``: the file cannot be read, is not a regular file, or is not a JSON
        object within the limits.
    """
    text = read_whole(path, limits.size, error, "a JSON file")
    try:
        return JsonObject(path, parse_object(text, limits, error, as_python=True), error)
    except Llama2pyError as trouble:
        raise error(f"{path}: {trouble}") from None

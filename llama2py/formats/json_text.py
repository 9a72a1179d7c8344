"""Reads the JSON that stands beside and inside checkpoints, within bounds."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

MAX_SIZE = 2 << 20  # bytes: the header of a model of 126 layers has 0.2 MB
MAX_CONTAINERS = 40_000
MAX_ITEMS = 100_000


def parse_json_object(text: bytes) -> dict[str, Any]:
    """Parse one JSON object.

    Parameters
    ----------
    text : bytes
        UTF-8, at most `MAX_SIZE` bytes.

    Raises
    ------
    CheckpointError
        Without a file's name, for the caller to add: if it is no JSON, no object, too large, nested
        too deep, or has a name twice.
    """
    if len(text) > MAX_SIZE:
        raise CheckpointError(f"{len(text)} bytes of JSON, expected at most {MAX_SIZE}")
    # Counted before they are made: an empty list is two bytes here and sixty in memory.
    if text.count(b"{") + text.count(b"[") > MAX_CONTAINERS or text.count(b",") > MAX_ITEMS:
        raise CheckpointError("the JSON has far more items than a model needs, expected fewer")
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError:
        raise CheckpointError("the JSON is nested too deep, expected a few levels") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
        raise CheckpointError(f"this is no JSON ({error}), expected a JSON object") from None
    if not isinstance(value, dict):
        raise CheckpointError("the JSON is no object, expected one")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands in it twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class JsonFile:
    """A JSON object in a file, with checked ways to its values.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    CheckpointError
        If the file cannot be read or is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            about = os.stat(path)
            if not stat.S_ISREG(about.st_mode):
                raise CheckpointError("this is no regular file, expected JSON")
            if about.st_size > MAX_SIZE:
                raise CheckpointError(f"{about.st_size} bytes, expected JSON of at most {MAX_SIZE}")
            self.values = parse_json_object(path.read_bytes())
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(f"{path}: cannot be read ({reason}), expected JSON") from None
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def of(self, name: str) -> JsonFile | None:
        """The object of a name, with the same ways to its values; None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        inner = object.__new__(JsonFile)
        inner.path, inner.values = self.path, value
        return inner

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number; the default also stands in for null."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 62:
            raise self.error(name, "a whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number; the default also stands in for null."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) >= 1 << 62:
            raise self.error(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false; the default also stands in for null."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A text; the default also stands in for null."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.error(name, "a text")
        return value

    def error(self, name: str, expected: str) -> CheckpointError:
        """That a value is not what was expected."""
        value = self.values.get(name)
        if name not in self.values:
            found = "missing"
        elif isinstance(value, dict | list):
            found = "an object" if isinstance(value, dict) else "an array"
        else:
            found = json.dumps(value)[:80]
        return CheckpointError(f"{self.path}: {name} is {found}, expected {expected}")

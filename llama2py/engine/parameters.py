"""Check what a caller passed. An error names the parameter, its value, and what is expected."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import wraps
from operator import index
from pathlib import Path
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, cast

from ..errors import Llama2pyError, ParameterError, PromptError, UnknownOptionError

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST = 60  # characters of a value in a message
# What other libraries call a parameter, and our names for it.
_OTHER_NAMES = {
    "batch_size": ("max_batch", "max_batch_size"),
    "checkpoint": ("path", "source", "model"),
    "device": ("backend",),
    "eos_token_id": ("stop_tokens",),
    "input": ("source", "text", "prompt"),
    "kv_cache_dtype": ("cache_dtype",),
    "max_gen_len": ("max_tokens",),
    "max_length": ("max_tokens", "max_words", "max_gen_len"),
    "max_new_tokens": ("max_tokens", "max_gen_len"),
    "model": ("path",),
    "model_path": ("path", "model", "source"),
    "n": ("count",),
    "n_predict": ("max_tokens",),
    "n_threads": ("threads",),
    "num_predict": ("max_tokens",),
    "num_threads": ("threads",),
    "quantization": ("dtype",),
    "quantize": ("dtype",),
    "random_seed": ("seed",),
    "repeat_penalty": ("repetition_penalty",),
    "stop_sequences": ("stop",),
    "stop_strings": ("stop",),
    "stop_words": ("stop",),
    "suppress_tokens": ("banned_tokens",),
    "system_prompt": ("system",),
    "target": ("output",),
    "temp": ("temperature",),
    "timeout": ("max_time",),
    "top_logprobs": ("logprobs",),
    "torch_dtype": ("dtype",),
    "typical": ("typical_p",),
}


def shown(value: object) -> str:
    """Return a value as a message shows it: short, and never an error of its own."""
    try:
        text = str(value) if isinstance(value, int | float) else repr(value)
    except Exception:  # such as an int of more digits than Python converts
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def wrong(name: str, value: object, expected: str) -> ParameterError:
    """Return the error for a parameter of a wrong type or out of its range."""
    return ParameterError(f"{name} is {shown(value)}, expected {expected}")


def unknown_option(name: str, names: Collection[str]) -> UnknownOptionError:
    """Return the error for an unknown option; it suggests the closest of the known names."""
    from difflib import get_close_matches  # slow to import, and only an error needs it

    meant = [known for known in _OTHER_NAMES.get(name.lower(), ()) if known in names]
    meant += get_close_matches(name.lower(), names, 1)
    hint = f": did you mean {meant[0]!r}?" if meant else f", expected one of {', '.join(names)}"
    return UnknownOptionError(f"unknown option {name!r}{hint}")


def known_keywords(call: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function: a keyword that it does not have raises UnknownOptionError."""
    code = cast("FunctionType", call).__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    shown_names = [name for name in names if name not in ("self", "cls")]

    @wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in names:
                raise unknown_option(name, shown_names)
        return call(*args, **kwargs)

    return checked


def known_fields(cls: type[T]) -> type[T]:
    """Decorate a class: a keyword that its ``__init__`` lacks raises UnknownOptionError."""
    setattr(cls, "__init__", known_keywords(cls.__init__))  # noqa: B010 (mypy refuses to assign it)
    return cls


def instance(name: str, value: Any, kind: type[T], expected: str) -> T:
    """Return a value if it is an instance of a class.

    Raises
    ------
    ParameterError
        If it is not.
    """
    if not isinstance(value, kind):
        raise wrong(name, value, expected)
    return value


def whole_number(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """Return an integer (of Python, NumPy, ...) as an int.

    Raises
    ------
    ParameterError
        If it is no integer, or out of its range.
    """
    try:
        number = index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        limits = f"from {least} up" if most is None else f"from {least} to {most}"
        raise wrong(name, value, f"a whole number {limits}")
    return number


def real_number(name: str, value: Any, least: float, most: float, expected: str) -> float:
    """Return a number (of Python, NumPy, ...) as a float.

    Raises
    ------
    ParameterError
        If it is no number, NaN, too large for a float, or not from ``least`` to ``most``.
    """
    try:
        if isinstance(value, str | bytes | bytearray):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        raise wrong(name, value, expected)
    return number


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of the choices.

    Raises
    ------
    ParameterError
        The message lists the choices.
    """
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(map(repr, choices))
        if len(choices) > 2:
            listed = f"one of {', '.join(choices)}"
        raise wrong(name, value, listed)


def function(name: str, value: object) -> None:
    """Refuse a value that can be neither called nor left out.

    Raises
    ------
    ParameterError
        If it is neither callable nor None.
    """
    if value is not None and not callable(value):
        raise wrong(name, value, "a function or None")


def as_path(name: str, path: Any) -> Path:
    """Return a str or path-like as a Path; the system may still refuse it.

    Raises
    ------
    ParameterError
        If it is neither.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        text = b""
    if not isinstance(text, str):
        raise wrong(name, path, "a str or a path")
    return Path(path)


def checked_path(name: str, path: Any) -> Path:
    """Return a str or path-like as a Path.

    Raises
    ------
    ParameterError
        If it is neither, or holds a null character.
    """
    found = as_path(name, path)
    if "\0" in str(found):
        raise wrong(name, path, "a path without null characters")
    return found


def token_ids(
    name: str, tokens: Iterable[Any], error: type[Llama2pyError] = ParameterError
) -> list[int]:
    """Return token ids as a list of int; whether the vocabulary has them is not checked.

    Raises
    ------
    ParameterError, or ``error``
        If they are not iterable, or one is no integer.
    """
    try:
        if not isinstance(tokens, list) and isinstance(
            tokens, str | bytes | bytearray | memoryview
        ):
            raise TypeError
        each = iter(tokens)
    except TypeError:
        raise error(f"{name} is {shown(tokens)}, expected a sequence of token ids") from None
    found = list(each)
    ids: list[int] = []
    try:
        ids.extend(map(index, found))
    except TypeError:
        wrong = shown(found[len(ids)])
        raise error(f"{name} holds {wrong}, expected whole numbers") from None
    return ids


def prompt_ids(tokens: Iterable[Any]) -> list[int]:
    """Return the token ids to run, at least one.

    Raises
    ------
    PromptError
        If there are no tokens, or they are no token ids.
    """
    ids = token_ids("tokens", tokens, PromptError)
    if not ids:
        raise PromptError("there are no tokens to run")
    return ids

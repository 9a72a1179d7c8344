"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["asking", "chat", "model", "sampling", "session", "stopping"])
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"llama2py.{name}"))
    assert failed == 0
    assert tried > 0

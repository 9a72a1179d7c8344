"""The progress bar of loading, and arguments that look like a model."""

from __future__ import annotations

import io
import itertools
import sys

import pytest

from llama2py.cli.loading import loading_bar, looks_like_model


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("step", "stream", "shown"),
    [(0.6, Terminal, True), (0.1, Terminal, False), (0.6, io.StringIO, False)],
)
def test_load_shows_a_progress_bar(
    step: float, stream: type[io.StringIO], shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, step)
    monkeypatch.setattr("llama2py.cli.loading.perf_counter", lambda: next(clock))
    monkeypatch.setattr("sys.stderr", stream())
    with loading_bar() as progress:
        for done in (10, 20, 30):
            progress(done, 30)
    assert isinstance(sys.stderr, io.StringIO)
    assert ("loading: " in sys.stderr.getvalue()) == shown


@pytest.mark.parametrize(
    ("argument", "is_model"),
    [
        ("stories15M", True),
        ("builtin", True),
        ("model.gguf", True),
        ("./model", True),
        ("owner/repo:file.gguf", True),
        ("dragon", False),
        ("a dog and/or a cat", False),
        ("my story.bin", False),
        ("", False),
    ],
)
def test_an_argument_is_a_model_by_its_form(argument: str, is_model: bool) -> None:
    assert looks_like_model(argument) == is_model

"""The command ``download``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import llama2py
from llama2py.cli import main
from llama2py.hub import find_model
from tests.support.fake_hub import TINYLLAMAS, FakeHub


def test_a_download_gets_the_model_and_its_vocabulary(
    hub: FakeHub, hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "stories260K"]) == 0
    out = capsys.readouterr().out
    path = Path(out.removesuffix("\n"))
    assert path.is_relative_to(hub_cache)
    assert path.read_bytes() == hub.repos[TINYLLAMAS]["stories260K/stories260K.bin"]
    assert sorted(hub.fetched()) == [
        ("stories260K/stories260K.bin", ""),
        ("stories260K/tok512.bin", ""),
    ]
    assert find_model("stories260K") == path
    with llama2py.load("stories260K") as model:
        assert model.tokenizer.decode([400]) == "#400"  # its own vocabulary


def test_a_warning_of_huggingface_hub_is_shown_once(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By its own handler, and not also by ours."""
    import huggingface_hub

    real = huggingface_hub.hf_hub_download

    def warning(*args: Any, **kwargs: Any) -> str:
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 8s")
        return str(real(*args, **kwargs))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", warning)
    before = logging.getLogger("huggingface_hub").propagate
    assert main(["download", "stories15M"]) == 0
    assert "Retrying" not in caplog.text
    assert logging.getLogger("huggingface_hub").propagate == before

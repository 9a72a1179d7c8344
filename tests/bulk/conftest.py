"""Inputs for batches, and what a folder of shards holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama2py.bulk.identity import ModelSpec
from llama2py.bulk.processes import InProcess, OnRows, Runner
from llama2py.bulk.run import Start
from llama2py.bulk.texts import Settings

WriteRows = Callable[..., Path]


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Write objects, or bytes as they are, as the lines of a JSONL file."""

    def write(rows: list[Any], name: str = "in.jsonl") -> Path:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path = tmp_path / name
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


def in_process(settings: Settings, spec: ModelSpec | None = None) -> Start:
    """Run in this process, with the built-in model by default."""

    def start(on_rows: OnRows) -> Runner:
        return InProcess(spec or ModelSpec(threads=1), settings, on_rows)

    return start


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, hidden ones included."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def prompts(count: int) -> list[dict[str, str]]:
    """Make rows with different prompts."""
    beginnings = ("Once upon a time", "One day", "The cat", "Lily", "A big dog")
    return [
        {"id": f"row {number}", "prompt": beginnings[number % len(beginnings)]}
        for number in range(count)
    ]

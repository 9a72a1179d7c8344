"""Where the recorded outputs and the real model lie, and what to do without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def find_test_data() -> Path | None:
    """The folder with golden/ and data/: ``LLAMA2PY_TEST_DATA``, or ``shared`` beside us."""
    named = os.environ.get("LLAMA2PY_TEST_DATA")
    for folder in [Path(named)] if named else [ROOT.parent / "shared"]:
        if (folder / "golden").is_dir():
            return folder
    return None


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The recorded outputs; tests that need them skip where they are absent."""
    folder = find_test_data()
    if folder is None:
        pytest.skip("no recorded outputs here: set LLAMA2PY_TEST_DATA to their folder")
    return folder

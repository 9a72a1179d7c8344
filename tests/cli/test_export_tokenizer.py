"""The command ``export-tokenizer``."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama2py.cli import export_tokenizer as command


def test_the_command_exports_the_vocabulary_of_a_real_gguf(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "data" / "formats" / "stories260K-f32.gguf"
    args = argparse.ArgumentParser()
    command.add_parser(args.add_subparsers())
    out = tmp_path / "out.bin"
    parsed = args.parse_args(["export-tokenizer", str(source), "-o", str(out)])
    assert parsed.run(parsed) == 0
    assert out.read_bytes() == (test_data / "data" / "tok512.bin").read_bytes()

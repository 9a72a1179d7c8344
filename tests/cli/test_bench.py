"""``llama2py bench`` as a process: its table and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.command_line import llama2py


def test_bench_prints_a_table_and_json(test_data: Path) -> None:
    path = test_data / "data" / "stories260K.bin"
    flags = ["--repeats", "1", "--prompt-tokens", "8", "--tokens", "8", "--threads", "1,2"]
    flags += ["--batch", "1,3"]
    table = llama2py("bench", path, *flags)
    assert table.returncode == 0
    assert "stories260K.bin: 0.3M parameters, float32" in table.stdout
    report = json.loads(llama2py("bench", path, *flags, "--json").stdout)
    assert [row["threads"] for row in report["rows"]] == [1, 2]
    for row in report["rows"]:
        figures = [value for value in row.values() if isinstance(value, dict) and "min" in value]
        assert len(figures) == 9
        for figure in [*figures, *row["batches"].values()]:
            assert 0 < figure["min"] <= figure["median"] <= figure["max"]
        assert set(row["batches"]) == {"1", "3"}
        assert report["peak_memory_bytes"] > row["weight_bytes"] > 1_000_000


def test_bench_measures_every_weight_type(test_data: Path) -> None:
    path = test_data / "data" / "stories260K.bin"
    flags = ["--repeats", "1", "--tokens", "4", "--threads", "1", "--batch", "2", "--dtype"]
    shown = llama2py("bench", path, *flags, "all", "--markdown")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split(" | ")[0] for line in shown.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["| weights", "| ---", "| float32", "| bfloat16", "| int8", "| int4"]
    assert "is not one of float32" in llama2py("bench", path, *flags, "float16").stderr

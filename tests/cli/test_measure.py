"""The benchmark: what it measures, and that its plan is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama2py.checkpoint import write_checkpoint
from llama2py.cli.measure import Figure, Plan, benchmark
from llama2py.errors import CheckpointError, ParameterError
from tests.conftest import TINY, random_checkpoint


def test_a_benchmark_measures_every_combination(tmp_path: Path) -> None:
    model = tmp_path / "m.bin"
    write_checkpoint(model, TINY, random_checkpoint(TINY).tensors)
    plan = Plan(
        ["float32", "bfloat16"], threads=[2, 1], batches=[1, 3], generated_tokens=4, repeats=2
    )
    calls: list[tuple[int, int]] = []
    report = benchmark(model, plan, lambda done, total: calls.append((done, total)))
    assert [(row.dtype, row.threads) for row in report.rows] == [
        ("float32", 2),
        ("float32", 1),
        ("bfloat16", 2),
        ("bfloat16", 1),
    ]
    assert calls == [(n, 12) for n in range(1, 13)]  # a warm-up and two rounds
    assert report.prompt_tokens == TINY.seq_len  # of 128
    assert (report.generated_tokens, report.repeats, report.checkpoint) == (4, 2, "m.bin")
    for row in report.rows:
        assert list(row.batches) == [1, 3]
        figures = [row.load_seconds, row.greedy_tokens_per_second, *row.batches.values()]
        assert all(0 < figure.min <= figure.median <= figure.max for figure in figures)
    assert report.rows[0].weight_bytes > report.rows[2].weight_bytes
    assert json.loads(json.dumps(report.as_dict()))["rows"][0]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"threads": [1, 0]}, "threads is 0, expected a whole number from 1 up"),
        ({"batches": [-1]}, "batches is -1"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"generated_tokens": 0}, "generated_tokens is 0"),
        ({"repeats": 0}, "repeats is 0"),
    ],
)
def test_numbers_below_one_are_errors(plan: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Plan(**plan)  # type: ignore[arg-type]


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        benchmark(tmp_path / "none.bin")


def test_a_figure_has_the_median_and_the_range() -> None:
    assert Figure.of([3.0, 1.0, 2.0, 9.0]) == Figure(2.5, 1.0, 9.0)

"""``llama2py bench``: its table and its picture."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llama2py.cli import main
from llama2py.cli.bench_report import markdown, plot, table
from llama2py.cli.measure import Figure, Report, Row
from llama2py.config import Dtype


def figure(value: float) -> Figure:
    return Figure(value, 0.9 * value, 1.1 * value)


def row(dtype: Dtype, threads: int, greedy: float) -> Row:
    return Row(
        dtype=dtype,
        threads=threads,
        weight_bytes=1 << 20,
        load_seconds=figure(0.01),
        first_token_seconds=figure(0.02),
        read_bytes_per_second=figure(1e10),
        products_per_second=figure(1e11),
        prompt_tokens_per_second=figure(9 * greedy),
        greedy_tokens_per_second=figure(greedy),
        sampled_tokens_per_second=figure(0.9 * greedy),
        read_share=figure(0.5),
        product_share=figure(0.25),
        batches={1: figure(greedy), 4: figure(3 * greedy), 16: figure(6 * greedy)},
    )


def report(*rows: Row) -> Report:
    return Report("a CPU", 1, "avx2", "m.bin", 15_000_000, "float32", 1 << 20, 128, 1, 1, [*rows])


BOTH = report(
    row("float32", 1, 100), row("float32", 2, 150), row("int8", 1, 1250), row("int8", 2, 1800)
)


# ---- text ----


def test_one_of_a_thing_is_singular() -> None:
    text = table(report(row("float32", 1, 100)), 1 << 20)
    for words in ("a CPU, 1 core,", "float32, 1 thread,", "1 token generated;", "of 1 run"):
        assert words in text
    for words in ("1 cores", "1 threads", "1 tokens", "1 runs"):
        assert words not in text.replace("128 tokens", "").replace("t=1.0", "")
    assert "median of 1 run; prompt of 128 tokens, 1 token generated" in markdown(BOTH)
    assert "of 5 runs" in table(replace(BOTH, repeats=5), 0)


def test_a_share_above_one_is_not_printed() -> None:
    """A model of 1 MB is read in less time than the threads take to start."""
    tiny = replace(row("float32", 1, 100), read_share=figure(39.36), product_share=figure(1.04))
    text = table(report(tiny), 0)
    assert "%" not in text.partition("reading")[2].partition("\n")[0]
    assert "the model is too small" in text
    assert "the prompt uses 104%" in text  # noise
    cells = markdown(report(tiny)).splitlines()[-1].split(" | ")
    assert cells[-2:] == ["n/a", "104% |"]


# ---- the picture ----


@pytest.mark.parametrize(
    ("suffix", "magic"),
    [("svg", b"<?xml"), ("PNG", b"\x89PNG\r\n"), ("pdf", b"%PDF-")],
)
def test_the_suffix_says_the_format_of_the_picture(
    suffix: str, magic: bytes, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="needs llama2py[plot]")
    plot(report(replace(BOTH.rows[0], batches={})), tmp_path / f"b.{suffix}")
    assert (tmp_path / f"b.{suffix}").read_bytes().startswith(magic)


@pytest.mark.parametrize("name", ["b.jpg", "b", "b.svg.txt"])
def test_another_suffix_is_wrong_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "--plot", name])
    assert exit_.value.code == 2
    assert f"'{name}' does not end in .svg, .png, .pdf" in capsys.readouterr().err


def panels_of(shown: Report, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Draw a report; return the axes that show something."""
    pictures = pytest.importorskip("matplotlib.figure", reason="needs llama2py[plot]")
    made = []

    class Recorded(pictures.Figure):  # type: ignore[name-defined,misc]
        def savefig(self, *args: Any, **kwargs: Any) -> None:
            self.set_dpi(kwargs["dpi"])  # the size of texts in pixels depends on it
            super().savefig(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(pictures, "Figure", Recorded)
    plot(shown, path)
    return [axes for axes in made[0].axes if axes.axison]


def test_each_metric_has_a_panel_with_the_dtypes_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels = panels_of(BOTH, tmp_path / "b.svg", monkeypatch)
    assert [axes.get_title() for axes in panels] == [
        "Greedy decoding",
        "Sampled decoding (t=1.0, p=0.9)",
        "Prompt of 128 tokens",
        "Batch of 4 texts",
        "Batch of 16 texts",
    ]
    greedy = panels[0]
    assert [bars.get_label() for bars in greedy.containers if hasattr(bars, "patches")] == [
        "float32",
        "int8",
    ]
    bars = {(round(b.get_x() + b.get_width() / 2, 3), b.get_height()) for b in greedy.patches}
    assert bars == {(-0.21, 100), (0.79, 150), (0.21, 1250), (1.21, 1800)}
    assert [label.get_text() for label in greedy.texts] == ["100", "150", "1.2k", "1.8k"]
    assert [tick.get_text() for tick in greedy.get_xticklabels()] == ["1 thread", "2 threads"]
    for axes in panels:
        assert axes.get_yscale() == "linear"
        bottom, top = axes.get_ylim()
        assert bottom == 0
        assert top > max(bar.get_height() for bar in axes.patches)


def test_labels_stay_inside_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if there are many bars: the labels turn, and a row has fewer panels."""
    dtypes: list[Dtype] = ["float32", "bfloat16", "int8", "int4"]
    rows = [row(dtype, n, 100 * n) for dtype in dtypes for n in (1, 2, 4, 8, 16)]
    many = report(*(replace(one, batches={}) for one in rows))
    for axes in panels_of(many, tmp_path / "b.png", monkeypatch):
        boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.x0)
        inside = axes.get_window_extent()
        assert all(box.y1 <= inside.y1 + 1 for box in boxes)
        overlaps = [a for a, b in pairwise(boxes) if a.overlaps(b)]
        assert overlaps == []


def test_what_a_picture_needs_is_checked_before_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llama2py.cli.measure.benchmark", lambda *_: pytest.fail("it was measured"))
    pytest.importorskip("matplotlib", reason="needs llama2py[plot]")
    for path in (tmp_path / "none" / "b.svg", tmp_path / f"{'b' * 260}.svg"):
        assert main(["bench", "--plot", str(path)]) == 1
        assert "cannot be written" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", "--plot", str(tmp_path / "b.svg")]) == 1
    assert "pip install 'llama2py[plot]'" in capsys.readouterr().err

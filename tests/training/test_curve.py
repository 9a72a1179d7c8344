"""The picture of the training curve."""

from __future__ import annotations

import io
import math
import re
from xml.etree import ElementTree

import pytest

from llama2py.training.progress import Record

pytest.importorskip("matplotlib", reason="needs the extra [train]")

from llama2py.training.curve import draw_curve

RECORDS = [
    Record(250, 1.0, 1.0, 6.0, 3.0, 1.5),
    Record(500, 2.0, 2.0, 2.5, 2.25, 1.1),
    Record(750, 3.0, 3.0, 2.0, 2.5, 1.2),
]


def svg_of(records: list[Record]) -> str:
    file = io.BytesIO()
    draw_curve(records, file)
    ElementTree.fromstring(file.getvalue())  # it is well-formed
    return file.getvalue().decode()


def lines_of(svg: str) -> list[list[tuple[float, float]]]:
    """Return the points of each line that is drawn with data, in pixels."""
    paths = re.findall(
        r'<path d="([^"]+)" clip-path="[^"]+" style="fill: none; stroke: #[^"]+', svg
    )
    points = [re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path) for path in paths]
    lines = [[(float(x), float(y)) for x, y in line] for line in points]
    return [line for line in lines if len(line) == len(RECORDS)]


def test_the_curve_shows_every_measurement_from_the_first_on() -> None:
    training, held_out = lines_of(svg_of(RECORDS))
    assert all(0 < y < 288 for _, y in training + held_out)  # the figure is 504 by 288
    # The highest loss is the first training loss; lower losses are further down.
    assert min(y for _, y in training + held_out) == training[0][1]
    assert max(y for _, y in held_out) == held_out[1][1]
    # A training loss is a mean over the steps before, so it stands half a pass earlier.
    for (mean_x, _), (x, _) in zip(training, held_out, strict=True):
        assert x - mean_x == pytest.approx((held_out[1][0] - held_out[0][0]) / 2)


def test_the_best_point_is_marked() -> None:
    svg = svg_of(RECORDS)
    assert "best: 2.2500 nats per token" in svg
    assert "1.1000 bits per byte" in svg
    _, held_out = lines_of(svg)
    markers = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="[^"]*stroke: #000000', svg)
    assert held_out[1] in [(float(x), float(y)) for x, y in markers]


@pytest.mark.parametrize("records", [[], RECORDS[:1]])
def test_few_measurements_can_be_drawn(records: list[Record]) -> None:
    assert "passes over the corpus" in svg_of(records)


def test_nothing_held_out_leaves_one_line() -> None:
    records = [Record(n, 1.0, float(n), 2.0 / n, math.nan, math.nan) for n in (1, 2, 3)]
    svg = svg_of(records)
    assert len(lines_of(svg)) == 1
    assert "best" not in svg

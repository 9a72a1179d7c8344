"""Draw the training curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import BinaryIO

from .progress import Record


def draw_curve(records: Sequence[Record], file: BinaryIO) -> None:
    """Draw the losses over the passes as SVG, with the best held-out loss marked.

    Parameters
    ----------
    records : sequence of Record
        The measurements.
    file : binary file
        The file to write to.
    """
    from matplotlib.figure import Figure  # takes half a second to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    passes = [record.passes for record in records]
    # A training loss is the mean of a stretch of steps: it belongs at the middle of the stretch.
    middles = [(start + end) / 2 for start, end in zip([0.0, *passes], passes, strict=False)]
    style = ".-" if len(records) <= 50 else "-"
    axes.plot(middles, [record.train_loss for record in records], style, label="training")
    measured = [record for record in records if math.isfinite(record.valid_loss)]
    if measured:
        losses = [record.valid_loss for record in measured]
        axes.plot([record.passes for record in measured], losses, style, label="held out")
        best = min(measured, key=lambda record: record.valid_loss)
        label = (
            f"best: {best.valid_loss:.4f} nats per token,\n{best.bits_per_byte:.4f} bits per byte"
        )
        axes.plot(
            [best.passes], [best.valid_loss], "o", ms=9, mfc="none", color="black", label=label
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("passes over the corpus")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, format="svg", metadata={"Date": None})

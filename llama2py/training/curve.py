"""The training curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from .state import Record


def draw_curve(records: Sequence[Record], file: BinaryIO) -> None:
    """Draw the losses over the passes, as SVG.

    Parameters
    ----------
    records : sequence of Record
        The measurements.
    file : binary file
        Written to.
    """
    from matplotlib.figure import Figure  # takes half a second to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    passes = [record.passes for record in records]
    axes.plot(passes, [record.train_loss for record in records], label="training")
    axes.plot(passes, [record.valid_loss for record in records], label="held out")
    axes.set_xlabel("passes over the corpus")
    axes.set_ylabel("loss, nats per token")
    if records:  # the first measurements tower over the rest
        last = min(min(record.train_loss, record.valid_loss) for record in records)
        axes.set_ylim(last - 0.1, last + 1.5)
        best = min(records, key=lambda record: record.valid_loss)
        axes.set_title(f"best on held-out stories: {best.bits_per_byte:.4f} bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, format="svg", metadata={"Date": None})

"""How far a training run is, and what it measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement of a run.

    Attributes
    ----------
    step : int
        Optimizer steps done.
    seconds : float
        Time spent training, measurements included.
    passes : float
        Passes over the training stories.
    train_loss : float
        Mean loss of the steps since the previous measurement, in nats per token.
    valid_loss : float
        Loss on the held-out stories, in nats per token; NaN if no story is held out.
    bits_per_byte : float
        Loss on the held-out stories, in bits per byte of the text that was evaluated.
    """

    step: int
    seconds: float
    passes: float
    train_loss: float
    valid_loss: float
    bits_per_byte: float


@dataclass(slots=True)
class Progress:
    """How far a run is, except for the weights and the optimizers.

    Attributes
    ----------
    step : int
        Optimizer steps done.
    epoch, batch : int
        The place in the data: passes completed, and batches used in the current pass.
    seconds : float
        Time spent training.
    tokens : int
        Tokens trained on.
    best : float
        Held-out loss of the checkpoint that was written last; infinity before the first.
    history : list of Record
        The measurements.
    loss_sum, n_losses : float, int
        Sum and number of the training losses since the last measurement.
    """

    step: int
    epoch: int
    batch: int
    seconds: float
    tokens: int
    best: float
    history: list[Record]
    loss_sum: float = 0.0
    n_losses: int = 0

"""What a training run leaves on disk, so that it can go on where it was stopped."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import TrainingError
from ..formats.atomic_write import replacing
from .config import TrainConfig

# What may differ between two parts of a run: how it is watched and computed, and how long it is.
CHANGEABLE = {
    "max_iters",
    "eval_interval",
    "eval_iters",
    "log_interval",
    "sample_interval",
    "always_save_checkpoint",
    "device",
    "compile",
    "dtype",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement of a run.

    Attributes
    ----------
    step : int
        Steps of the optimizer done.
    seconds : float
        Of training, the measurements included.
    passes : float
        How many times the corpus was seen.
    train_loss, valid_loss : float
        Nats per token: of the steps since the last measurement, and of the held-out stories (NaN
        where none is held out).
    bits_per_byte : float
        Of the held-out stories.
    """

    step: int
    seconds: float
    passes: float
    train_loss: float
    valid_loss: float
    bits_per_byte: float


@dataclass(slots=True)
class Progress:
    """How far a run is, the weights apart.

    Attributes
    ----------
    step : int
        Steps done.
    epoch, batch : int
        Where in the data: passes done, and batches of the current one.
    seconds : float
        Of training.
    tokens : int
        Trained on.
    best : float
        The lowest held-out loss yet.
    history : list of Record
        The measurements.
    """

    step: int
    epoch: int
    batch: int
    seconds: float
    tokens: int
    best: float
    history: list[Record]


def save_state(
    path: Path,
    config: TrainConfig,
    corpus: str,
    progress: Progress,
    parts: Mapping[str, Any],
) -> None:
    """Write everything; the old file stays until the new one is whole.

    Parameters
    ----------
    path : Path
        Where to.
    config : TrainConfig
        Of the run.
    corpus : str
        A hash of the stories and the vocabulary.
    progress : Progress
        How far it is.
    parts : mapping of str to object with ``state_dict()``
        Model and optimizers.
    """
    state = {
        "config": asdict(config),
        "corpus": corpus,
        "progress": asdict(progress),
        "random": torch.get_rng_state(),
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    with replacing(path, TrainingError) as file:
        torch.save(state, file)


def load_state(path: Path, config: TrainConfig, corpus: str, parts: Mapping[str, Any]) -> Progress:
    """Read what `save_state` wrote into model and optimizers.

    Raises
    ------
    TrainingError
        If the file is damaged, or is of another run.
    """
    hint = "; name another output, or start anew with --fresh"
    try:
        with warnings.catch_warnings():  # torch wonders aloud about files that are not its own
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
        saved, progress = state["config"], Progress(**state["progress"])
        progress.history = [Record(**record) for record in state["progress"]["history"]]
        theirs = state["corpus"]
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: not the state of a training run ({reason}){hint}") from None
    for name, value in asdict(config).items():
        if name not in CHANGEABLE and saved.get(name) != value:
            raise TrainingError(
                f"{path}: the run that is to go on has {name} {saved.get(name)!r},"
                f" expected {value!r}{hint}"
            )
    if theirs != corpus:
        raise TrainingError(
            f"{path}: the run that is to go on has another corpus or vocabulary,"
            f" expected the same{hint}"
        )
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["random"])
    return progress

"""Save and restore a training run, so that it continues where it was stopped."""

from __future__ import annotations

import contextlib
import math
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..errors import TrainingError
from ..formats.atomic_write import replacing
from .config import TrainConfig
from .network import Transformer
from .progress import Progress, Record

# Hyperparameters that may change when a run continues: its length, and how it is watched and
# computed. All others must stay as they were.
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
HINT = "choose another output, or start again with --fresh"

# What each optimizer keeps per parameter: tensors of the parameter's shape, and a step counter.
OPTIMIZER_STATE = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}


@dataclass(frozen=True, slots=True)
class Parts:
    """The objects of a run that have a state of their own."""

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler


def save_state(
    path: Path, config: TrainConfig, fingerprint: str, progress: Progress, parts: Parts
) -> None:
    """Write the state of a run. The previous file stays until the new one is complete.

    Parameters
    ----------
    path : Path
        The file to write.
    config : TrainConfig
        The hyperparameters of the run.
    fingerprint : str
        A hash of the stories and the vocabulary.
    progress : Progress
        How far the run is.
    parts : Parts
        Model, optimizers and gradient scaler.
    """
    states = {type(each).__name__: each.state_dict() for each in parts.optimizers}
    state = {
        "config": asdict(config),
        "corpus": fingerprint,
        "progress": asdict(progress),
        "random": torch.get_rng_state(),
        "parts": {
            "model": parts.model.state_dict(),
            "scaler": parts.scaler.state_dict(),
            **states,
        },
    }
    with replacing(path, TrainingError) as file:
        torch.save(state, file)


def load_state(
    path: Path, config: TrainConfig, fingerprint: str, parts: Parts
) -> tuple[Progress, int]:
    """Restore what `save_state` wrote.

    Parameters
    ----------
    path : Path
        The file.
    config : TrainConfig
        The hyperparameters of this run.
    fingerprint : str
        A hash of this run's stories and vocabulary.
    parts : Parts
        Model, optimizers and gradient scaler; they get the saved values.

    Returns
    -------
    progress : Progress
        How far the earlier run came.
    max_iters : int
        How long the earlier run was meant to be.

    Raises
    ------
    TrainingError
        If the file is damaged or belongs to another run. The parts are then not to be used.
    """
    with _damage_as_one_sentence(path):
        state = _read(path)
        # A state of an earlier version lacks the hyperparameters that have been added since.
        earlier = asdict(TrainConfig()) | state["config"]
        saved = {name: _typed(earlier[name], kind) for name, kind in _kinds()}
        progress = _progress_from(state["progress"])
        same_data = _typed(state["corpus"], str) == fingerprint
    for name, value in asdict(config).items():
        if name not in CHANGEABLE and saved[name] != value:
            raise TrainingError(
                f"{path}: the earlier run has {name} {saved[name]!r}, this one {value!r}; {HINT}"
            )
    if not same_data:
        raise TrainingError(f"{path}: the earlier run has another corpus or vocabulary; {HINT}")
    with _damage_as_one_sentence(path):
        parts.model.load_state_dict(state["parts"]["model"])
        for optimizer in parts.optimizers:
            _restore_optimizer(optimizer, state["parts"][type(optimizer).__name__])
        _restore_scaler(parts.scaler, state["parts"]["scaler"])
        torch.set_rng_state(state["random"])
    return progress, saved["max_iters"]


@contextlib.contextmanager
def _damage_as_one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged file makes torch, pickle and zipfile raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TrainingError(f"{path}: not the state of a training run ({reason}); {HINT}") from None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError("not a regular file")
    with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("the archive is compressed")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} does not match")
    with warnings.catch_warnings():  # torch warns about files that it did not write
        warnings.simplefilter("ignore")
        state = torch.load(path, map_location="cpu", weights_only=True)
    return _typed(state, dict)


def _kinds() -> list[tuple[str, type]]:
    return [(each.name, type(each.default)) for each in fields(TrainConfig)]


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _progress_from(saved: dict[str, Any]) -> Progress:
    """Check and return a saved `Progress`. States of earlier versions lack the last two fields."""
    saved = {"loss_sum": 0.0, "n_losses": 0} | saved
    history = [_record_from(record) for record in _typed(saved["history"], list)]
    progress = Progress(**{**saved, "history": history})
    for name in ("step", "epoch", "batch", "tokens", "n_losses"):
        _whole(name, getattr(progress, name))
    # Each step trains on at least one token.
    if progress.step > progress.tokens or any(record.step > progress.step for record in history):
        raise ValueError(f"step {progress.step} is out of range")
    for name in ("seconds", "loss_sum"):
        _finite(name, getattr(progress, name))
    if math.isnan(_typed(progress.best, float)):  # earlier versions wrote it for "nothing held out"
        progress.best = math.inf
    return progress


def _record_from(saved: dict[str, Any]) -> Record:
    record = Record(**saved)
    _whole("step", record.step)
    for name in ("seconds", "passes", "train_loss"):
        _finite(name, getattr(record, name))
    for name in ("valid_loss", "bits_per_byte"):
        _typed(getattr(record, name), float)
    return record


def _whole(name: str, value: Any) -> None:
    if not 0 <= _typed(value, int) < 1 << 62:
        raise ValueError(f"{name} {value} is out of range")


def _finite(name: str, value: Any) -> None:
    if not math.isfinite(_typed(value, float)) or value < 0:
        raise ValueError(f"{name} {value} is out of range")


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore the state of each parameter. The options come from the config, not from the file."""
    options = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = _typed(saved["state"], dict)
    expected = OPTIMIZER_STATE[type(optimizer).__name__]
    if states and set(states) != set(range(len(parameters))):
        raise ValueError(f"{type(optimizer).__name__} has the state of other parameters")
    for index, state in states.items():
        if set(state) != expected:
            raise ValueError(f"{type(optimizer).__name__} lacks the state of parameter {index}")
        for name, tensor in state.items():
            shape = torch.Size() if name == "step" else parameters[index].shape
            _typed(tensor, torch.Tensor)
            if tensor.shape != shape or tensor.dtype != torch.float32:
                raise ValueError(f"{name} of parameter {index} has another shape or type")
    optimizer.load_state_dict({"state": states, "param_groups": options})


def _restore_scaler(scaler: torch.amp.GradScaler, saved: dict[str, Any]) -> None:
    """Restore a float16 run's scaler; one that computed in another dtype until now has none."""
    if not scaler.is_enabled() or not _typed(saved, dict):
        return
    for name in ("scale", "growth_factor", "backoff_factor"):
        _finite(name, saved[name])
    for name in ("growth_interval", "_growth_tracker"):
        _whole(name, saved[name])
    scaler.load_state_dict(saved)

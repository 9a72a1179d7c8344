"""Training: a corpus of stories in, a checkpoint out. Needs the extra ``llama2py[train]``.

The configuration alone needs nothing; PyTorch is imported when training starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import ParameterError
from ..formats.corpus import read_stories
from ..tokenizers.load import load_tokenizer
from ..tokenizers.tokenizer import Tokenizer
from .config import TrainConfig, config_from

if TYPE_CHECKING:
    from .output import Output
    from .state import Record

__all__ = ["TrainConfig", "TrainResult", "config_from", "train"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What became of a run.

    Attributes
    ----------
    finished : bool
        False if it was stopped; the same call goes on.
    step : int
        Steps done.
    history : list of Record
        The measurements.
    output : Output
        The files.
    """

    finished: bool
    step: int
    history: list[Record]
    output: Output


def train(
    corpus: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    version: Literal[0, 2] = 0,
    group_size: int | None = None,
    fresh: bool = False,
    report: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train a model; go on where an earlier call with the same output was stopped.

    Parameters
    ----------
    corpus : str or path-like
        Stories, parted by lines of ``<|endoftext|>``.
    out : str or path-like
        The checkpoint to write, such as ``story.bin``: the best yet. Beside it come its vocabulary
        ``story.tokenizer.bin``, and the folder ``story.train`` with all else.
    config : TrainConfig, optional
        The hyperparameters.
    tokenizer : str, path-like or Tokenizer, optional
        A ``tokenizer.bin``. By default a vocabulary of ``config.vocab_size`` ids is trained first,
        on the stories that are not held out.
    version : {0, 2}
        llama2.c's format: 0 for float32, 2 for int8.
    group_size : int, optional
        Weights that share a scale, for version 2.
    fresh : bool
        Forget an earlier run of this output.
    report : callable
        Gets a line of text whenever there is news.
    stop : callable
        Asked after each step; True ends the run there, to go on another time.

    Returns
    -------
    TrainResult
        What became of it.

    Raises
    ------
    ModuleNotFoundError
        If the extra ``llama2py[train]`` is not installed.
    CorpusError
        If the corpus is missing, or too small.
    TokenizerError
        If the tokenizer is missing or malformed.
    TrainingError
        If the earlier run was another one, the device is not to be had, or the loss is not finite.
    ConfigError, ParameterError
        If numbers contradict each other.
    CheckpointError
        If the model cannot be written.
    """
    from .dataset import held_out
    from .output import Output
    from .trainer import Trainer

    config = config or TrainConfig()
    if version not in (0, 2):
        raise ParameterError(f"version is {version}, expected 0 (float32) or 2 (int8)")
    output = Output(Path(out), version, group_size)
    learned, kept = held_out(read_stories(corpus), config.valid_share, config.seed)
    if isinstance(tokenizer, Tokenizer):
        vocabulary = tokenizer
    elif tokenizer is not None:
        vocabulary = load_tokenizer(Path(tokenizer))
    elif output.state.exists() and not fresh:
        vocabulary = load_tokenizer(output.tokenizer)
    else:
        from .vocabulary import train_vocabulary

        report(f"training a vocabulary of {config.vocab_size} tokens")
        vocabulary = train_vocabulary(learned, config.vocab_size)
    output.begin(vocabulary, kept, fresh)
    trainer = Trainer(config, vocabulary, learned, kept, output, report, stop)
    try:
        finished = trainer.run()
    finally:
        trainer.close()
    progress = trainer.progress
    return TrainResult(finished, progress.step, progress.history, output)

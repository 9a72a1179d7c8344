"""Train a model: a corpus of stories in, a checkpoint out. Needs the extra ``llama2py[train]``.

Importing this package needs no extra: `train` imports PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..formats.corpus import read_stories
from ..tokenizers.load import load_tokenizer
from ..tokenizers.tokenizer import Tokenizer
from .config import TrainConfig, config_from
from .dataset import split_stories
from .output import Output
from .progress import Record

__all__ = ["Output", "Record", "TrainConfig", "TrainResult", "config_from", "train"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The outcome of a call of `train`.

    Attributes
    ----------
    finished : bool
        Whether ``max_iters`` was reached. If not, the same call continues the run.
    step : int
        Optimizer steps done.
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
    output: str | os.PathLike[str] | Output,
    config: TrainConfig | None = None,
    *,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    fresh: bool = False,
    report: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train a model, or continue an earlier call with the same output that was stopped.

    Parameters
    ----------
    corpus : str or path-like
        A text file of stories, separated by lines of ``<|endoftext|>``.
    output : str, path-like or Output
        The checkpoint to write, such as ``story.bin``. See `Output` for the other files, and for
        int8.
    config : TrainConfig, optional
        The hyperparameters.
    tokenizer : str, path-like or Tokenizer, optional
        A vocabulary, such as a ``tokenizer.bin``. Default: that of ``config.init_from`` or
        ``config.teacher``. Without these, one of ``config.vocab_size`` tokens is trained first, on
        the stories that are not held out.
    fresh : bool
        Start again even if the output holds an earlier run. The files of that run, its checkpoint
        included, are deleted; other files in its folder stay.
    report : callable
        Called with one line of text per event.
    stop : callable
        Called between batches. Once it returns True the run saves its state and ends. The first
        call comes after the first batch.

    Returns
    -------
    TrainResult
        The outcome.

    Raises
    ------
    ModuleNotFoundError
        If the extra ``llama2py[train]`` is not installed.
    CorpusError
        If the corpus is missing, malformed or too small.
    TokenizerError
        If the tokenizer is missing or malformed.
    TrainingError
        If the output belongs to another run, is in use by another process, or cannot be written,
        the device is not available, memory runs out, or the loss is not finite.
    ConfigError, ParameterError
        If hyperparameters contradict each other or do not suit the corpus.
    CheckpointError
        If the model cannot be written.
    """
    config = config or TrainConfig()
    output = output if isinstance(output, Output) else Output(output)
    say = report if os.environ.get("RANK", "0") == "0" else lambda line: None  # of torchrun's
    output.check_group_size(config.dim)  # now, not when the first checkpoint is written
    output.check_input(corpus)
    if os.environ.get("RANK", "0") == "0":
        output.claim()  # now, not after minutes of preparation
    continues = output.has_state() and not fresh
    train_stories, held_out_stories = split_stories(
        read_stories(corpus), config.valid_share, config.seed
    )
    say(f"{len(train_stories):,} stories to train on, {len(held_out_stories):,} held out")
    vocabulary: Tokenizer | None = None
    if isinstance(tokenizer, Tokenizer):
        vocabulary = tokenizer
    elif tokenizer is not None:
        output.check_input(tokenizer)
        vocabulary = load_tokenizer(Path(tokenizer))
    elif continues:
        vocabulary = load_tokenizer(output.tokenizer)
    for checkpoint in filter(None, (config.init_from, config.teacher)):
        output.check_input(checkpoint)
    _check_extra()
    if vocabulary is None and (checkpoint := config.init_from or config.teacher):
        from .pretrained import vocabulary_of

        vocabulary = vocabulary_of(checkpoint)
    if vocabulary is None:
        from .vocabulary import train_vocabulary

        say(f"training a vocabulary of {config.vocab_size:,} tokens")
        vocabulary = train_vocabulary(train_stories, config.vocab_size)
    say("loading PyTorch")
    from .trainer import Trainer

    trainer = Trainer(config, vocabulary, train_stories, held_out_stories, output, report, stop)
    try:
        trainer.start(fresh)
        finished = trainer.run()
    finally:
        trainer.close()
        output.release()
    progress = trainer.progress
    return TrainResult(finished, progress.step, progress.history, output)


def _check_extra() -> None:
    """Fail now if a module is missing, not when the first measurement needs it."""
    for name in ("torch", "sentencepiece", "matplotlib"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

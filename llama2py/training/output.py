"""What a training run writes: the model and its vocabulary, and a folder with all the rest."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from ..checkpoint import (
    Tensor,
    default_group_size,
    open_checkpoint,
    write_checkpoint,
    write_llama2c,
)
from ..config import ModelConfig
from ..errors import TrainingError
from ..formats.atomic_write import replacing
from ..formats.corpus import SEPARATOR
from ..model import beside, load
from ..tokenizers.llama2c import write_tokenizer_bin
from ..tokenizers.tokenizer import Tokenizer
from .curve import draw_curve
from .state import Record


class Output:
    """The files of a run.

    Parameters
    ----------
    path : Path
        ``story.bin``: the best checkpoint yet. Its vocabulary is ``story.tokenizer.bin``, and all
        the rest lies in the folder ``story.train``.
    version : {0, 2}
        llama2.c's format: float32, or int8.
    group_size : int, optional
        Of version 2.

    Attributes
    ----------
    state, best, held_out, history, curve : Path
        In the folder: all that going on needs; the best weights as float32; the stories that were
        not trained on; the measurements as CSV, and as a picture.
    """

    def __init__(self, path: Path, version: int = 0, group_size: int | None = None) -> None:
        self.path, self.version, self.group_size = path, version, group_size
        self.tokenizer = beside(path)
        self.folder = path.with_suffix(".train")
        self.state = self.folder / "state.pt"
        self.best = self.folder / "best.bin"
        self.held_out = self.folder / "held-out.txt"
        self.history = self.folder / "history.csv"
        self.curve = self.folder / "curve.svg"

    def begin(self, tokenizer: Tokenizer, held_out: Sequence[str], fresh: bool) -> None:
        """Make the folder; with ``fresh``, forget an earlier run.

        Raises
        ------
        TrainingError
            If the folder cannot be made.
        """
        try:
            if fresh:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: cannot be made ({error.strerror}), expected a writable place"
            ) from None
        write_tokenizer_bin(tokenizer, self.tokenizer)
        if held_out:
            with replacing(self.held_out, TrainingError) as file:
                file.write(f"\n{SEPARATOR}\n".join(held_out).encode() + b"\n")

    def write_best(self, config: ModelConfig, tensors: Mapping[str, tuple[Tensor, ...]]) -> None:
        """Write weights as the best yet, and the model that is made of them."""
        write_checkpoint(self.best, config, tensors)
        if self.version == 0:
            write_checkpoint(self.path, config, tensors)
            return
        with open_checkpoint(self.best) as checkpoint:
            group_size = self.group_size or default_group_size(config)
            write_llama2c(self.path, checkpoint, self.version, group_size)

    def write_history(self, records: Sequence[Record]) -> None:
        """Write the measurements, and draw them."""
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(field.name for field in fields(Record))
        for record in records:
            rows.writerow(f"{x:.6g}" if isinstance(x, float) else x for x in astuple(record))
        with replacing(self.history, TrainingError) as file:
            file.write(text.getvalue().encode())
        with replacing(self.curve, TrainingError) as file:
            draw_curve(records, file)

    def sample(self, seed: int) -> str:
        """What the best model tells, on the engine."""
        with load(self.best, self.tokenizer) as model:
            return model.generate(seed=seed, temperature=0.8).text

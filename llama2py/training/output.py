"""The files that a training run writes: the model, its vocabulary, and a folder with the rest."""

from __future__ import annotations

import contextlib
import csv
import io
import os
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
from ..errors import ParameterError, TrainingError
from ..formats.atomic_write import replacing
from ..formats.corpus import SEPARATOR
from ..formats.descriptor import Descriptor
from ..formats.file_lock import HAVE_LOCKS, is_locked_by_another
from ..model import beside, load
from ..tokenizers.llama2c import write_tokenizer_bin
from ..tokenizers.tokenizer import Tokenizer
from .curve import draw_curve
from .progress import Record


class Output:
    """The files of a run.

    Parameters
    ----------
    path : str or path-like
        The checkpoint to write, such as ``story.bin``: the best one so far. Its vocabulary is
        ``story.tokenizer.bin``; all other files are in the folder ``story.train``.
    int8 : bool
        Write llama2.c's v2 (int8), not v0 (float32).
    group_size : int, optional
        With ``int8``: how many weights share a scale. By default a size that fits the model.

    Attributes
    ----------
    path, tokenizer, folder : Path
        As above.
    state, best, held_out, history, curve : Path
        In the folder: what a run needs to continue; the best weights as float32; the stories that
        are not trained on; the measurements as CSV; the measurements as a picture.

    Raises
    ------
    TrainingError
        If the path has no file name, or ends in ``.train``.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, int8: bool = False, group_size: int | None = None
    ) -> None:
        self.path, self.int8, self.group_size = Path(path), int8, group_size
        if self.path.name in ("", ".."):
            raise TrainingError(
                f"the output {str(path)!r} has no file name; use one like story.bin"
            )
        self.tokenizer = beside(self.path)
        self.folder = self.path.with_suffix(".train")
        if self.folder == self.path:
            raise TrainingError(
                f"{self.path}: names ending in .train are for the run's folder;"
                f" use one like {self.path.stem}.bin"
            )
        self.state = self.folder / "state.pt"
        self.best = self.folder / "best.bin"
        self.held_out = self.folder / "held-out.txt"
        self.history = self.folder / "history.csv"
        self.curve = self.folder / "curve.svg"
        self._claim: Descriptor | None = None  # the folder, locked

    @property
    def _in_folder(self) -> tuple[Path, ...]:
        return self.state, self.best, self.held_out, self.history, self.curve

    def has_state(self) -> bool:
        """Whether an earlier run left a state to continue from.

        Raises
        ------
        TrainingError
            If the system does not take the path, such as one that is too long.
        """
        try:
            os.stat(self.state)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            reason = getattr(error, "strerror", None) or error
            raise TrainingError(f"{self.state}: cannot be read ({reason})") from None
        return True

    def check_group_size(self, dim: int) -> None:
        """Refuse a group size that does not suit the model.

        Raises
        ------
        ParameterError
            If ``group_size`` does not divide ``dim``.
        """
        size = self.group_size
        if self.int8 and size is not None and (size < 1 or dim % size):
            raise ParameterError(f"group_size is {size}, expected a positive divisor of dim {dim}")

    def check_input(self, path: str | os.PathLike[str]) -> None:
        """Refuse to overwrite a file that the run reads.

        Raises
        ------
        TrainingError
            If the run would overwrite ``path``.
        """
        for written in (self.path, *self._in_folder):
            with contextlib.suppress(ValueError):  # a path with a NUL: reading it says so
                if os.path.realpath(written) == os.path.realpath(path):
                    raise TrainingError(
                        f"{path}: training would overwrite this file; choose another output"
                    )

    def claim(self) -> None:
        """Keep other processes from training this output, if its folder exists.

        The claim ends with `release`, with this object, or with the process.

        Raises
        ------
        TrainingError
            If another process trains it.
        """
        if self._claim is not None or not HAVE_LOCKS or not os.path.isdir(self.folder):
            return
        try:
            folder = Descriptor(self.folder, os.O_RDONLY)
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: the folder cannot be opened ({error.strerror})"
            ) from None
        if is_locked_by_another(folder.fileno()):
            folder.close()
            raise TrainingError(
                f"{self.path}: another process is training this output; wait for it or stop it, or"
                " choose another output"
            )
        self._claim = folder

    def release(self) -> None:
        """Let other processes train this output. A second call has no effect."""
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def begin(self, tokenizer: Tokenizer, held_out_stories: Sequence[str], fresh: bool) -> None:
        """Create the folder, and write the vocabulary and the held-out stories.

        Parameters
        ----------
        tokenizer : Tokenizer
            The vocabulary.
        held_out_stories : sequence of str
            The stories that are not trained on; maybe none.
        fresh : bool
            Delete what an earlier run wrote: its checkpoint, its files in the folder, and nothing
            else.

        Raises
        ------
        TrainingError
            If the folder cannot be created, holds other files but no run, or is in use.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claim()
            self._check_folder()
            if fresh:
                # The checkpoint of the earlier run does not fit the vocabulary of this one.
                earlier = [Path(os.path.realpath(self.path))] if self.has_state() else []
                for path in (*self._in_folder, *earlier):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: the folder cannot be created or cleared ({error.strerror})"
            ) from None
        write_tokenizer_bin(tokenizer, self.tokenizer)
        if held_out_stories:
            with replacing(self.held_out, TrainingError) as file:
                file.write(f"\n{SEPARATOR}\n".join(held_out_stories).encode() + b"\n")

    def _check_folder(self) -> None:
        """Refuse a folder that somebody else made: it may hold a file named as one of ours."""
        names = {path.name for path in self._in_folder}
        others = [path.name for path in self.folder.iterdir() if path.name not in names]
        others = sorted(name for name in others if not name.startswith(".llama2py-"))
        if others and not self.has_state():
            raise TrainingError(
                f"{self.folder}: this folder holds {others[0]!r} but no training run;"
                " choose another output"
            )

    def write_best(self, config: ModelConfig, tensors: Mapping[str, tuple[Tensor, ...]]) -> None:
        """Write the best weights so far, and the checkpoint made from them."""
        write_checkpoint(self.best, config, tensors)
        if not self.int8:
            write_checkpoint(self.path, config, tensors)
            return
        with open_checkpoint(self.best) as checkpoint:
            group_size = self.group_size or default_group_size(config)
            write_llama2c(self.path, checkpoint, 2, group_size)

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
        """Return a story that the best model generates, on the engine."""
        with load(self.best, self.tokenizer) as model:
            return model.generate(seed=seed, temperature=0.8).text

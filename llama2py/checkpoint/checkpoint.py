"""Checkpoint: what every format's reader returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .._util import Closing
from ..config import ModelConfig
from ..errors import ClosedError
from ..formats.input_file import InputFile
from .conventions import Conventions
from .tensors import Tensor


@dataclass(frozen=True, slots=True)
class Details:
    """What only some formats say about a model.

    Attributes
    ----------
    dtype : str or None
        What the matrices are stored as: ``'float32'``, ``'float16'``, ``'bfloat16'``, ``'int8'``,
        ``'int4'``. GGUF's other blocks count as float32, which they are widened to. None: int8 if
        there is a group size, else float32.
    tokenizer_path : Path or None
        The tokenizer that belongs to the checkpoint.
    notes : sequence of str
        What a user should know about the files, for ``info``.
    conventions : Conventions
        How texts begin, end and take turns.
    gguf_pairs : mapping of str to value, or None
        The metadata of a GGUF file, so that the vocabulary in it need not parse the file again.
    """

    dtype: str | None = None
    tokenizer_path: Path | None = None
    notes: Sequence[str] = ()
    conventions: Conventions = field(default_factory=Conventions)
    gguf_pairs: Mapping[str, Any] | None = None


class Checkpoint(Closing):
    """An open checkpoint: the model's numbers and its tensors. A context manager.

    Made by `open_checkpoint`.

    Parameters
    ----------
    path : Path
        The file or directory that was opened.
    format : str
        The format, for people: ``'llama2.c v2 (int8)'``, ``'Hugging Face (safetensors)'``.
    config : ModelConfig
        The numbers of the model.
    tensors : mapping of str to tuple of Tensor
        As in the property `tensors`.
    files : sequence of InputFile
        What the tensors are read from. They are closed with the checkpoint.
    group_size : int, optional
        Values per scale where all or some matrices are int8 or int4. Other matrices that become
        int8 get groups of this size, too.
    details : Details
        What else the format says.

    Attributes
    ----------
    path, format, config, group_size
        As above.
    dtype, tokenizer_path, notes, conventions, gguf_pairs
        As in `Details`; ``dtype`` is never None.
    file_size : int
        Bytes of all files together.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        config: ModelConfig,
        tensors: Mapping[str, tuple[Tensor, ...]],
        files: Sequence[InputFile],
        group_size: int | None = None,
        details: Details = Details(),  # immutable
    ) -> None:
        self.path = path
        self.format = format
        self.config = config
        self.group_size = group_size
        self.dtype = details.dtype or ("float32" if group_size is None else "int8")
        self.tokenizer_path = details.tokenizer_path
        self.notes = tuple(details.notes)
        self.conventions = details.conventions
        self.gguf_pairs = details.gguf_pairs
        self.file_size = sum(file.size for file in files)
        self._tensors: Mapping[str, tuple[Tensor, ...]] | None = MappingProxyType(dict(tensors))
        self._files = tuple(files)

    @property
    def chat_template(self) -> str | None:
        """The Jinja program that formats a dialogue for this model, where the metadata has one."""
        return self.conventions.chat_template

    @property
    def tensors(self) -> Mapping[str, tuple[Tensor, ...]]:
        """The tensors by llama2.c's names: one per layer, or a tuple of one.

        Names, counts and shapes are those of `tensor_shapes`. In llama2.c's files the order is the
        file's. The weights are read from the file at each use, not when the checkpoint is opened:
        a tensor cannot be used after the checkpoint is closed.

        Raises
        ------
        ClosedError
            After `close`.
        """
        if self._tensors is None:
            raise ClosedError(f"{self.path}: the checkpoint is closed")
        return self._tensors

    def adapt(self, tensors: Mapping[str, tuple[Tensor, ...]], file: InputFile, note: str) -> None:
        """Replace the tensors by others of the same names, counts and shapes.

        Parameters
        ----------
        tensors : mapping of str to tuple of Tensor
            As in the property `tensors`.
        file : InputFile
            What else the tensors are read from. It is closed with the checkpoint.
        note : str
            What a user should know about the change.
        """
        self._tensors = MappingProxyType(dict(tensors))
        self._files += (file,)
        self.notes += (note,)

    @property
    def file_paths(self) -> tuple[Path, ...]:
        """The files that the tensors are read from."""
        return tuple(file.path for file in self._files)

    def close(self) -> None:
        """Close the files. Closing twice does no harm."""
        self._tensors = None
        for file in self._files:
            file.close()

    def __repr__(self) -> str:
        state = " (closed)" if self._tensors is None else ""
        return f"<Checkpoint {str(self.path)!r}: {self.format}, {self.file_size} bytes{state}>"

"""Model: weights, tokenizer, and what to do with them. Start here."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from operator import index
from pathlib import Path
from typing import Literal

from .backend import Backend
from .builtin import builtin_model
from .checkpoint import Checkpoint, open_checkpoint
from .closing import Closing
from .config import ModelConfig
from .cpu import MAX_THREADS
from .errors import ClosedError, EngineError, ParameterError, PromptError
from .generation import Generation, Stream
from .sampling import Sampler, SamplingParams
from .session import Session
from .tokenizer import Tokenizer
from .tokenizer_files import bundled_tokenizer, load_tokenizer

_log = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]
BackendName = Literal["c", "numpy"]


def load(
    path: StrPath | None = None,
    tokenizer: StrPath | None = None,
    threads: int | None = None,
    backend: BackendName = "c",
) -> Model:
    """Load a model.

    Parameters
    ----------
    path : str or path-like, optional
        A llama2.c checkpoint (v0, v1, v2, ``ckpt.pt``), such as ``stories15M.bin``, a directory of
        Meta's or Hugging Face's, or a GGUF file of a llama. Default: the story model that comes
        with llama2py.
    tokenizer : str or path-like, optional
        The model's ``tokenizer.bin``, ``.model`` or ``.json``. Default: the one beside the model
        (``story.tokenizer.bin`` for ``story.bin``), or the one in its directory or inside the GGUF
        file, or else the 32000-token one of Llama 2, which llama2.c's story models use.
    threads : int, optional
        Threads of the engine, up to 256. Default: the physical cores this process may use.
        Results do not depend on it.
    backend : {'c', 'numpy'}
        The C engine, or the NumPy reference: about ten times slower, and works where the
        extension is not built.

    Returns
    -------
    Model
        A context manager; ``close()`` frees its memory.

    Raises
    ------
    CheckpointError
        If the checkpoint is missing, malformed or cut short.
    TokenizerError
        If the tokenizer is, or is of another vocabulary size than the model.
    EngineError
        If memory is short, or ``LLAMA2PY_ISA`` names an instruction set that is not to be had.
    ParameterError
        If ``threads`` or ``backend`` is not one of the values above.

    Examples
    --------
    >>> model = load()
    >>> story = model.generate("Once upon a time", seed=1)
    >>> story.finish_reason
    'stop'
    """
    if threads is not None and not 1 <= index(threads) <= MAX_THREADS:
        raise ParameterError(f"threads is {threads}, expected a whole number, 1 to {MAX_THREADS}")
    if backend not in ("c", "numpy"):
        raise ParameterError(f"backend is {backend!r}, expected 'c' or 'numpy'")
    path = builtin_model() if path is None else Path(path)
    with open_checkpoint(path) as checkpoint:
        if tokenizer is None:
            tokenizer = own_tokenizer(checkpoint) or bundled_tokenizer()
        vocabulary = load_tokenizer(Path(tokenizer), checkpoint.config.vocab_size)
        weights: Backend
        if backend == "c":
            try:
                from .engine import Engine  # the C extension; the reference runs without it
            except ImportError as error:
                raise EngineError(
                    f"the C engine is not built ({error}): pip install -e ., or use backend 'numpy'"
                ) from error
            weights = Engine(checkpoint, threads)
        else:
            from .reference import Reference

            weights = Reference(checkpoint)
        if weights.non_finite:
            _log.warning("%s: %d weights are NaN or infinite", path, weights.non_finite)
        return Model(weights, vocabulary)


def own_tokenizer(checkpoint: Checkpoint) -> Path | None:
    """The vocabulary of a checkpoint: beside it and named for it, or in its directory or file."""
    path = checkpoint.path
    if path.is_file() and beside(path).is_file():
        return beside(path)
    return checkpoint.tokenizer_path


def beside(path: Path) -> Path:
    """Where a checkpoint's own vocabulary lies: ``story.tokenizer.bin`` for ``story.bin``."""
    return path.with_suffix(".tokenizer.bin")


class Model(Closing):
    """A loaded model; made by `load`. A context manager.

    Immutable: any number of sessions, streams and threads may share it.

    Attributes
    ----------
    tokenizer : Tokenizer
        Text to tokens and back.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._backend: Backend | None = backend
        self._config = backend.config

    @property
    def config(self) -> ModelConfig:
        """The numbers of the model."""
        return self._config

    @property
    def backend(self) -> Backend:
        """What computes: its ``isa``, ``dtype``, ``threads``, ``nbytes``, ``non_finite``."""
        if self._backend is None:
            raise ClosedError("the model is closed, expected an open one")
        return self._backend

    def session(self) -> Session:
        """A new conversation at position 0.

        Raises
        ------
        EngineError
            If there is no memory for its keys and values.
        """
        return Session(self.backend)

    def stream(
        self,
        prompt: str | Sequence[int] = "",
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
    ) -> Stream:
        """Generate text piece by piece.

        Parameters
        ----------
        prompt : str or sequence of int
            The beginning of the text, or the very tokens to begin with (BOS first, as a rule).
        max_tokens : int, optional
            Most tokens to generate. Default: as many as the context holds.
        temperature : float
            0: always the most probable token. Above: the higher, the wilder.
        top_p : float
            Draw from the smallest set of most probable tokens whose sum exceeds this; 1: from all.
        seed : int, optional
            Of the coin, 0 to 2**64 - 1; the same seed gives the same text. Default: a fresh one,
            told in the result.

        Returns
        -------
        Stream
            An iterator of str.

        Raises
        ------
        PromptError
            If the prompt is longer than the context, or not encodable.
        ParameterError
            If a number is out of its range.
        """
        tokens = self.prompt_tokens(prompt)
        limit = self.config.seq_len if max_tokens is None else index(max_tokens)
        if limit < 0:
            raise ParameterError(f"max_tokens is {limit}, expected a whole number from 0 up")
        sampler = Sampler(self.backend, SamplingParams(temperature, top_p), seed)
        return Stream(
            self.session(),
            sampler,
            self.tokenizer,
            tokens,
            max_tokens=limit,
            stop_tokens=frozenset([self.tokenizer.bos_id]),  # llama2.c: BOS parts the stories
        )

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
    ) -> Generation:
        """Generate a text. Parameters and errors are those of `stream`.

        Returns
        -------
        Generation
            The text, its tokens, why it ended, its seed, and how fast it went.
        """
        return self.stream(prompt, max_tokens, temperature, top_p, seed).finish()

    def close(self) -> None:
        """Free the weights. Twice does no harm; its sessions must not be used after."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __repr__(self) -> str:
        if self._backend is None:
            return "<Model (closed)>"
        millions = self._config.n_params / 1e6
        return f"<Model {millions:.1f}M {self._backend.dtype}, {self._backend.isa}>"

    def prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens that a prompt is run as: BOS and the text's, or those given.

        Raises
        ------
        PromptError
            If there are none or too many for the context, or the text is not encodable.
        """
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt, bos=True)
        elif isinstance(prompt, bytes | bytearray | memoryview):  # of int, but not of tokens
            raise PromptError("the prompt is bytes, expected str or a sequence of token ids")
        else:
            tokens = [index(token) for token in prompt]
        if not tokens:
            raise PromptError("the prompt has no tokens, expected at least one (such as BOS)")
        if len(tokens) > self.config.seq_len:
            raise PromptError(
                f"the prompt is {len(tokens)} tokens long, longer than"
                f" the model's context of {self.config.seq_len}"
            )
        return tokens

"""Model: weights, tokenizer, and what to do with them. Start here."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from operator import index
from pathlib import Path
from typing import Literal, NoReturn, get_args

from ._data import builtin_model, bundled_tokenizer
from .checkpoint import Checkpoint, Conventions, open_checkpoint
from .config import CacheDtype, Dtype, ModelConfig
from .engine.backend import Backend
from .engine.cpu import MAX_THREADS
from .engine.session import Session, SessionOverflow
from .errors import ClosedError, EngineError, ParameterError
from .generation.asking import Asking
from .generation.prefix_cache import Prefixes
from .hub import find_model
from .tokenizers.load import load_tokenizer
from .tokenizers.tokenizer import Tokenizer

PREFIX_BYTES = 64 << 20

_log = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]
BackendName = Literal["c", "numpy"]


def load(
    path: StrPath | None = None,
    tokenizer: StrPath | None = None,
    threads: int | None = None,
    backend: BackendName = "c",
    dtype: Dtype | None = None,
    cache_dtype: CacheDtype = "float32",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Model:
    """Load a model.

    Parameters
    ----------
    path : str or path-like, optional
        A llama2.c checkpoint (v0, v1, v2, ``ckpt.pt``), such as ``stories15M.bin``, a directory of
        Meta's or Hugging Face's, or a GGUF file of a llama. Or the name of what has been got by
        ``python -m llama2py download``, such as ``stories15M`` or ``owner/repo``. Default: the
        story model that comes with llama2py.
    tokenizer : str or path-like, optional
        The model's ``tokenizer.bin``, ``.model`` or ``.json``. Default: the one beside the model
        (``story.tokenizer.bin`` for ``story.bin``), or the one in its directory or inside the GGUF
        file, or ``tok512.bin`` beside a model of 512 tokens, or else the 32000-token one of Llama
        2, which llama2.c's story models use.
    threads : int, optional
        Threads of the engine, up to 256. Default: the physical cores this process may use.
        Results do not depend on it.
    backend : {'c', 'numpy'}
        The C engine, or the NumPy reference: about ten times slower, and works where the
        extension is not built.
    dtype : {'float32', 'bfloat16', 'int8', 'int4'}, optional
        What to make the matrices of, converting or quantizing them while they are loaded. Default:
        what the checkpoint has. int8 takes a quarter of float32's memory and int4 a seventh, and
        both are faster, for a little less quality.
    cache_dtype : {'float32', 'bfloat16'}
        What sessions keep keys and values in. bfloat16 takes half the memory, and generating far on
        in a long context is faster; logits change in the third digit.
    progress : callable, optional
        Told now and then how many of how many weights are loaded, by the C engine.

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
    TooBigError
        If the weights are more than the memory that is free, before they are read; the message
        says with which ``dtype`` they would fit. For the C engine, on Linux.
    EngineError
        If memory is short, or ``LLAMA2PY_ISA`` names an instruction set that is not to be had.
    ParameterError
        If ``threads``, ``backend``, ``dtype`` or ``cache_dtype`` is not one of the values above.

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
    if dtype not in (None, *get_args(Dtype)):
        raise ParameterError(f"dtype is {dtype!r}, expected one of {', '.join(get_args(Dtype))}")
    if cache_dtype not in get_args(CacheDtype):
        raise ParameterError(
            f"cache_dtype is {cache_dtype!r}, expected one of {', '.join(get_args(CacheDtype))}"
        )
    path = builtin_model() if path is None else find_model(path)
    with open_checkpoint(path) as checkpoint:
        if tokenizer is None:
            tokenizer = own_tokenizer(checkpoint) or bundled_tokenizer()
        vocabulary = vocabulary_for(checkpoint, Path(tokenizer))
        weights: Backend
        if backend == "c":
            try:
                from .engine.native import Engine  # the C extension; the reference runs without it
            except ImportError as error:
                raise EngineError(
                    f"the C engine is not built ({error}): pip install -e ., or use backend 'numpy'"
                ) from error
            weights = Engine(checkpoint, threads, dtype, cache_dtype, progress)
        else:
            from .engine.reference import Reference

            weights = Reference(checkpoint, dtype, cache_dtype)
        if weights.non_finite:
            _log.warning("%s: %d weights are NaN or infinite", path, weights.non_finite)
        return Model(weights, vocabulary, checkpoint.conventions)


def vocabulary_for(checkpoint: Checkpoint, path: Path) -> Tokenizer:
    """A vocabulary of a checkpoint's size; one that came with it may have a few tokens less.

    Raises
    ------
    TokenizerError
        If it cannot be read, or is of another size.
    """
    is_own = path == checkpoint.tokenizer_path
    return load_tokenizer(path, checkpoint.config.vocab_size, padded=is_own)


def end_tokens(conventions: Conventions, tokenizer: Tokenizer) -> frozenset[int]:
    """What ends a text by the rules of where a checkpoint comes from."""
    if not conventions.eos_ends:
        return conventions.end_tokens
    turn_end = tokenizer.specials.control.get("<|eot_id|>", tokenizer.eos_id)
    return conventions.end_tokens | {tokenizer.eos_id, turn_end}


def own_tokenizer(checkpoint: Checkpoint) -> Path | None:
    """The vocabulary of a checkpoint: beside it and named for it, or in its directory or file.

    Or beside it and named for its size, as llama2.c does: ``tok512.bin``.
    """
    path = checkpoint.path
    if path.is_file() and os.path.isfile(beside(path)):  # it may be too long a name
        return beside(path)
    if checkpoint.tokenizer_path is not None:
        return checkpoint.tokenizer_path
    sized = path.parent / f"tok{checkpoint.config.vocab_size}.bin"
    return sized if path.is_file() and sized.is_file() else None


def beside(path: Path) -> Path:
    """Where a checkpoint's own vocabulary lies: ``story.tokenizer.bin`` for ``story.bin``."""
    return path.with_suffix(".tokenizer.bin")


class Model(Asking):
    """A loaded model; made by `load`. A context manager.

    Immutable: any number of sessions, streams and threads may share it.

    Attributes
    ----------
    tokenizer : Tokenizer
        Text to tokens and back.
    stop_tokens : frozenset of int
        What ends a text by default: BOS, which parts the stories of llama2.c's models, and the
        tokens that the checkpoint's metadata names. llama2.c's checkpoints name none, so that their
        models keep llama2.c's rule; Hugging Face's and GGUF files do (``<|eot_id|>``, ``</s>``).
        Of Meta's, as in Meta's code: EOS, and Llama 3's ``<|eot_id|>``.
    conventions : Conventions
        What else the metadata says about texts: the chat template, whether BOS begins them.
    """

    def __init__(
        self, backend: Backend, tokenizer: Tokenizer, conventions: Conventions | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.conventions = conventions or Conventions()
        self.stop_tokens = end_tokens(self.conventions, tokenizer) | {tokenizer.bos_id}
        self._backend: Backend | None = backend
        self._config = backend.config
        self._prefixes = Prefixes(0)
        self.reuse_prefixes()

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

    def session(self, overflow: SessionOverflow = "error") -> Session:
        """A new conversation at position 0.

        Parameters
        ----------
        overflow : {'error', 'shift'}
            What a full context does to `Session.forward`: raise ContextError, or forget the oldest
            tokens, see `Session.shift`. (Only a text can 'stop': see `Options`.)

        Raises
        ------
        EngineError
            If there is no memory for its keys and values.
        ParameterError
            If ``overflow`` is neither.
        """
        return Session(self.backend, overflow=overflow)

    def load_session(self, path: StrPath) -> Session:
        """A session as `Session.save` has written it; it goes on with the same bits.

        Raises
        ------
        SessionError
            If the file is missing, malformed, cut short, or of a session of another model, or of
            this one in another dtype or backend, whose bits would not go on as they began.
        EngineError
            If there is no memory for its keys and values.

        Examples
        --------
        >>> import tempfile
        >>> model = load()
        >>> path = tempfile.mkdtemp() + "/dragon.session"
        >>> with model.session() as session:
        ...     logits = session.forward(model.tokenizer.encode("Once upon a time"))
        ...     session.save(path)
        >>> with model.load_session(path) as session:
        ...     model.tokenizer.decode(session.tokens)
        'Once upon a time'
        """
        return Session.load(path, self.backend)

    def reuse_prefixes(self, max_bytes: int | None = None) -> None:
        """Set how much memory is kept for prompts that begin as earlier ones did.

        Such a prompt skips what they share, where that is 16 tokens or more, and begins sooner; no
        bit of the text changes. In a batch a prompt may begin as one that has ended before, not as
        its neighbours. With the NumPy backend, whose bits depend on how tokens are split, nothing
        is kept.

        Parameters
        ----------
        max_bytes : int, optional
            Of keys and values, of at most 8 sessions. 0: nothing is kept. Default: 64 MiB, or an
            eighth of the weights where that is more.

        Raises
        ------
        ParameterError
            If ``max_bytes`` is below 0.

        Examples
        --------
        >>> model = load()
        >>> model.reuse_prefixes(0)  # every prompt is run whole
        """
        if max_bytes is None:
            max_bytes = max(PREFIX_BYTES, self.backend.nbytes // 8)
        if max_bytes < 0:
            raise ParameterError(f"max_bytes is {max_bytes}, expected 0 or more")
        self._prefixes.close()
        self._prefixes = Prefixes(0 if self.backend.isa == "numpy" else max_bytes)

    def close(self) -> None:
        """Free the weights. Twice does no harm; its sessions must not be used after."""
        self._prefixes.close()
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Model cannot be pickled or copied, expected llama2py.load() in each process"
            " (threads may share one)"
        )

    def __repr__(self) -> str:
        if self._backend is None:
            return "<Model (closed)>"
        millions = self._config.n_params / 1e6
        return f"<Model {millions:.1f}M {self._backend.dtype}, {self._backend.isa}>"

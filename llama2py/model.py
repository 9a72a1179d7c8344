"""Load a model and use it. Start here."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast, get_args, overload

import numpy as np
from numpy.typing import NDArray

from ._data import builtin_model, bundled_tokenizer
from ._util import Closing
from .checkpoint import Checkpoint, Conventions, open_checkpoint
from .config import CacheDtype, Dtype, ModelConfig
from .engine.backend import Backend
from .engine.cpu import MAX_THREADS
from .engine.parameters import (
    checked_path,
    function,
    instance,
    known_keywords,
    one_of,
    shown,
    whole_number,
    wrong,
)
from .engine.session import Session, SessionOverflow
from .errors import ClosedError, PromptError
from .generation.batch import run_jobs
from .generation.job import Job
from .generation.logprobs import log_probabilities
from .generation.options import (
    GenerateOptions,
    JobMaker,
    Options,
    check_options,
    is_one,
    prompt_tokens,
    seed_each,
    seeds_of,
    text_tokens,
)
from .generation.prefix_cache import PrefixCache
from .generation.sampling import Coin
from .generation.stream import AsyncStream, Generation, Stream
from .hub import find_model
from .tokenizers.load import load_tokenizer
from .tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack  # the type checker's own

MAX_BATCH = 32  # texts at once: their sessions take memory
PREFIX_BYTES = 64 << 20

_log = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]
BackendName = Literal["c", "numpy"]


@known_keywords
def load(
    path: StrPath | None = None,
    tokenizer: StrPath | None = None,
    threads: int | None = None,
    backend: BackendName = "c",
    dtype: Dtype | None = None,
    cache_dtype: CacheDtype = "float32",
    progress: Callable[[int, int], object] | None = None,
    lora: StrPath | None = None,
) -> Model:
    """Load a model.

    Parameters
    ----------
    path : str or path-like, optional
        A llama2.c checkpoint (v0, v1, v2, ``ckpt.pt``), such as ``stories15M.bin``, a directory of
        Meta's or Hugging Face's, or a GGUF file with a llama model. Or the name of a model that
        ``python -m llama2py download`` has downloaded, such as ``stories15M`` or ``owner/repo``.
        Default: the built-in story model.
    tokenizer : str or path-like, optional
        The model's ``tokenizer.bin``, ``.model`` or ``.json``. Default: the one next to the model
        (``story.tokenizer.bin`` for ``story.bin``), or in its directory or inside the GGUF file, or
        ``tok512.bin`` next to a model of 512 tokens, or else the 32000-token vocabulary of Llama 2,
        which llama2.c's story models use.
    threads : int, optional
        Threads of the engine, 1 to 256. Default: the physical cores this process may use. Results
        do not depend on it.
    backend : {'c', 'numpy'}
        The C engine, or the NumPy reference, which is about ten times slower and works where the
        extension is not built.
    dtype : {'float32', 'bfloat16', 'int8', 'int4'}, optional
        Convert or quantize the weight matrices to this type while loading. Default: the type of the
        checkpoint. int8 takes a quarter of float32's memory and int4 a seventh; both are faster, at
        slightly lower quality.
    cache_dtype : {'float32', 'bfloat16'}
        The type of the keys and values in a session. bfloat16 takes half the memory and makes
        generation at the end of a long context faster; logits change in the third digit.
    progress : callable, optional
        Called as ``progress(done, total)``, in weights, during loading. Only by the C engine.
    lora : str or path-like, optional
        A LoRA adapter of the model, which is merged into its matrices: a directory that PEFT has
        saved, or a GGUF adapter.

    Returns
    -------
    Model
        A context manager; ``close()`` frees its memory.

    Raises
    ------
    CheckpointError
        If the checkpoint or the adapter is missing, malformed or cut short.
    TokenizerError
        If the tokenizer is missing or malformed, or its size does not match the model's.
    TooBigError
        If the weights need more memory than is free. Raised before they are read; the message says
        which ``dtype`` would fit. Only by the C engine, on Linux.
    EngineError
        If there is not enough memory, or ``LLAMA2PY_ISA`` names an instruction set that is not
        available.
    ParameterError
        If a parameter has a wrong type or is not one of the values above.

    Examples
    --------
    >>> model = load()
    >>> story = model.generate("Once upon a time", seed=1)
    >>> story.finish_reason
    'stop'
    """
    if threads is not None:
        threads = whole_number("threads", threads, 1, MAX_THREADS)
    one_of("backend", backend, ("c", "numpy"))
    if dtype is not None:
        one_of("dtype", dtype, get_args(Dtype))
    one_of("cache_dtype", cache_dtype, get_args(CacheDtype))
    function("progress", progress)
    if tokenizer is not None:
        tokenizer = checked_path("tokenizer", tokenizer)
    if path is not None:
        checked_path("path", path)
    adapter = None if lora is None else checked_path("lora", lora)
    path = builtin_model() if path is None else find_model(path)
    with open_checkpoint(path) as checkpoint:
        if adapter is not None:
            from .checkpoint.lora import merge_lora  # with the readers of all formats

            merge_lora(checkpoint, adapter)
        vocabulary = tokenizer_for(checkpoint, tokenizer)
        weights: Backend
        if backend == "c":
            from .engine.native import Engine  # the C extension; the reference runs without it

            weights = Engine(checkpoint, threads, dtype, cache_dtype, progress or _no_progress)
        else:
            from .engine.reference import Reference

            weights = Reference(checkpoint, dtype, cache_dtype)
        if weights.non_finite:
            _log.warning("%s: %d weights are NaN or infinite", path, weights.non_finite)
        for warning in vocabulary.warnings:
            _log.warning("%s: %s", path, warning)
        return Model(weights, vocabulary, checkpoint.conventions)


def _no_progress(done: int, total: int) -> None:
    """Show nothing."""


def tokenizer_for(checkpoint: Checkpoint, path: StrPath | None = None) -> Tokenizer:
    """Read the tokenizer at a path; by default the checkpoint's own, or Llama 2's.

    Raises
    ------
    TokenizerError
        As `vocabulary_for` does.
    """
    if path is None:
        path = own_tokenizer(checkpoint) or bundled_tokenizer()
    return vocabulary_for(checkpoint, Path(path))


def vocabulary_for(checkpoint: Checkpoint, path: Path) -> Tokenizer:
    """Read a tokenizer of the checkpoint's vocabulary size; its own may have fewer tokens.

    Raises
    ------
    TokenizerError
        If it cannot be read, or has another size.
    """
    is_own = path == checkpoint.tokenizer_path
    pairs = checkpoint.gguf_pairs if is_own else None
    return load_tokenizer(path, checkpoint.config.vocab_size, padded=is_own, gguf_pairs=pairs)


def end_tokens(conventions: Conventions, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens that end a text by the conventions of the checkpoint's origin."""
    specials = tokenizer.specials
    controls = {**specials.fixed, **specials.control}
    found = {controls[text] for text in conventions.end_texts & controls.keys()}
    return conventions.end_tokens | found | ({tokenizer.eos_id} if conventions.eos_ends else set())


def own_tokenizer(checkpoint: Checkpoint) -> Path | None:
    """Return the path of a checkpoint's own tokenizer, or None.

    It is next to the checkpoint with the checkpoint's name, or in its directory or file, or next to
    it and named for the size of the vocabulary, as in llama2.c: ``tok512.bin``.
    """
    path = checkpoint.path
    if path.is_file() and os.path.isfile(beside(path)):  # the name may be too long for a Path
        return beside(path)
    if checkpoint.tokenizer_path is not None:
        return checkpoint.tokenizer_path
    sized = path.parent / f"tok{checkpoint.config.vocab_size}.bin"
    return sized if path.is_file() and sized.is_file() else None


def beside(path: Path) -> Path:
    """Return the path for a file's tokenizer: ``story.tokenizer.bin`` for ``story.bin``."""
    return path.with_suffix(".tokenizer.bin")


class _Either:
    """An event that is set when one of two is."""

    def __init__(self, *events: threading.Event | None) -> None:
        self._events = [event for event in events if event is not None]

    def is_set(self) -> bool:
        """Whether one of them is set."""
        return any(event.is_set() for event in self._events)


class Model(Closing):
    """A loaded model; made by `load`. A context manager.

    It is immutable: any number of sessions, streams and threads may share it.

    Attributes
    ----------
    tokenizer : Tokenizer
        Text to tokens and back.
    stop_tokens : frozenset of int
        The tokens that end a text by default: BOS, which separates the stories of llama2.c's
        models, and the end tokens of the checkpoint's metadata. llama2.c's checkpoints name none,
        so their models keep llama2.c's rule. Hugging Face directories and GGUF files do
        (``<|eot_id|>``, ``</s>``). Those that a GGUF file does not name are found by their texts,
        as in llama.cpp. For Meta's checkpoints they are EOS and Llama 3's ``<|eot_id|>``, as in
        Meta's code.
    conventions : Conventions
        What else the metadata says about texts: the chat template, whether a text begins with BOS.
    prefix_cache : PrefixCache
        The sessions kept for prompts that share a prefix; see `reuse_prefixes`.
    """

    def __init__(
        self, backend: Backend, tokenizer: Tokenizer, conventions: Conventions | None = None
    ) -> None:
        if not isinstance(getattr(backend, "config", None), ModelConfig):
            raise wrong("backend", backend, "an engine: load() makes a model with one")
        self.tokenizer = instance("tokenizer", tokenizer, Tokenizer, "a Tokenizer")
        if conventions is None:
            conventions = Conventions()
        instance("conventions", conventions, Conventions, "Conventions or None")
        self.conventions = replace(conventions, end_tokens=end_tokens(conventions, tokenizer))
        self.stop_tokens = self.conventions.end_tokens | {tokenizer.bos_id}
        self._backend: Backend | None = backend
        self._config = backend.config
        self.prefix_cache = PrefixCache(backend, 0)
        self.reuse_prefixes()

    @property
    def config(self) -> ModelConfig:
        """The model's hyperparameters."""
        return self._config

    @property
    def backend(self) -> Backend:
        """The engine, with its ``isa``, ``dtype``, ``threads``, ``nbytes`` and ``non_finite``."""
        if self._backend is None:
            raise ClosedError("the model is closed")
        return self._backend

    def stream(
        self,
        prompt: str | Sequence[int] = "",
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """Generate text piece by piece.

        Parameters
        ----------
        prompt : str or sequence of int
            The beginning of the text, or its tokens, which usually begin with BOS.
        max_tokens : int, optional
            Generate at most this many tokens. Default: as many as the context holds.
        temperature : float
            0: always the most probable token. Higher values make the text more varied.
        top_p : float
            Draw from the smallest set of most probable tokens whose probabilities sum to more than
            this; 1: from all.
        seed : int, optional
            0 to 2**64 - 1. The same seed gives the same text. Default: a random one; the result's
            ``seed`` holds it.
        **options
            Further sampling options, what ends the text, and ``logprobs``: see `Options`.

        Returns
        -------
        Stream
            An iterator of str.

        Raises
        ------
        PromptError
            If the prompt cannot be encoded, or has a token outside the vocabulary.
        ContextError
            A PromptError. If the prompt is longer than the context.
        ParameterError
            If a parameter is unknown, has a wrong type, or is out of its range.
        """
        return self._stream(
            check_options(self, max_tokens, temperature, top_p, options), prompt, seed
        )

    def _stream(self, maker: JobMaker, prompt: str | Sequence[int], seed: int | None) -> Stream:
        job = maker.job(prompt, seed)
        if maker.session is not None:
            maker.session.rewind(job.reused)
            return Stream(maker.session, self.tokenizer, job, owns_session=False, runs_all=True)
        session, job.reused = self.prefix_cache.take(job.prompt_tokens)
        return Stream(session, self.tokenizer, job, prefix_cache=self.prefix_cache)

    def astream(
        self,
        prompt: str | Sequence[int] = "",
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """`stream` for ``async for``: each piece is computed in a thread while the event loop runs.

        The parameters are checked now, not at the first piece. If the task is cancelled, generation
        ends and its memory is freed.

        Examples
        --------
        >>> import asyncio
        >>> from llama2py import load
        >>> async def tell():
        ...     return "".join([piece async for piece in load().astream("Once", seed=1)])
        >>> asyncio.run(tell()) == load().generate("Once", seed=1).text
        True
        """
        return AsyncStream(self.stream(prompt, max_tokens, temperature, top_p, seed, **options))

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self,
        prompt: str | Sequence[int] = "",
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        *,
        max_batch: int = MAX_BATCH,
        **options: Unpack[Options],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | Sequence[int] | None = None,
        *,
        max_batch: int = MAX_BATCH,
        **options: Unpack[Options],
    ) -> list[Generation]: ...

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]] = "",
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | Sequence[int] | None = None,
        *,
        max_batch: int = MAX_BATCH,
        **options: Unpack[Options],
    ) -> Generation | list[Generation]:
        """Generate one text, or many at once. Parameters and errors are those of `stream`, and:

        Parameters
        ----------
        prompt : str or sequence of int, or a sequence of these
            One prompt, or many. An empty sequence is one prompt without tokens: an error.
        seed : int or sequence of int, optional
            With many prompts, one for each, or the same for all.
        max_batch : int
            With many prompts, run this many at once. Bounds the memory.

        Returns
        -------
        Generation, or list of Generation
            The text, its tokens, why it ended, its seed, and how fast it went; with many prompts
            one for each, in order. With the C engine, each is bit-identical to the same text
            generated alone.

        Raises
        ------
        PromptError, ParameterError
            As `stream` does, before any text begins. With many prompts, the message says which
            prompt is wrong, counted from 0. With ``overflow='error'``, a text that reaches the end
            of the context raises ContextError, and all texts are lost.

        Examples
        --------
        >>> from llama2py import load
        >>> model = load()
        >>> one, other = model.generate(["Once", "One day"], seed=[1, 2], max_tokens=9)
        >>> other.text == model.generate("One day", seed=2, max_tokens=9).text
        True
        """
        maker = check_options(self, max_tokens, temperature, top_p, options)
        max_batch = whole_number("max_batch", max_batch, 1)
        given: Any = prompt
        if isinstance(given, Iterable) and not hasattr(given, "__len__"):
            given = list(given)  # an iterator, in spite of the types: it can be read only once
        if is_one(given):
            return self._stream(maker, given, cast("int | None", seed)).finish()
        jobs = list(maker.jobs(given, seed_each(seed, len(given))))
        return [Generation.of(job) for job in run_jobs(self, jobs, max_batch)]

    @overload
    async def agenerate(  # type: ignore[overload-overlap]
        self, prompt: str | Sequence[int] = "", **options: Unpack[GenerateOptions]
    ) -> Generation: ...

    @overload
    async def agenerate(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        **options: Unpack[GenerateOptions],
    ) -> list[Generation]: ...

    async def agenerate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]] = "",
        **options: Unpack[GenerateOptions],
    ) -> Generation | list[Generation]:
        """`generate` in a thread, while the event loop runs.

        The parameters, results and errors are those of `generate`; all but the prompt are given by
        name. If the task is cancelled, generation ends and its memory is freed.

        Examples
        --------
        >>> import asyncio
        >>> from llama2py import load
        >>> model = load()
        >>> text = asyncio.run(model.agenerate("Once", max_tokens=9, seed=1)).text
        >>> text == model.generate("Once", max_tokens=9, seed=1).text
        True
        """
        import asyncio

        given: dict[str, Any] = {**options}
        stop = threading.Event()
        cancel = given.get("cancel")
        if cancel is None or callable(getattr(cancel, "is_set", None)):
            given["cancel"] = _Either(cancel, stop)
        work: Any = partial(self.generate, prompt, **given)
        running: asyncio.Future[Any] = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return cast("Generation | list[Generation]", await asyncio.shield(running))
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([running])
            running.exception()  # seen: nobody waits for it
            raise

    def generate_many(
        self,
        prompts: Iterable[str | Sequence[int]],
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | Iterable[int] | None = None,
        *,
        max_batch: int = MAX_BATCH,
        progress: bool = False,
        **options: Unpack[Options],
    ) -> Iterator[Generation]:
        """Generate texts on demand, in order. The prompts may be endless.

        Parameters
        ----------
        prompts : iterable of str or sequence of int
            Each is read when there is room for it.
        seed : int or iterable of int, optional
            One for each prompt, or the same for all. Default: fresh ones.
        max_batch : int
            Run this many texts at once. Bounds the memory.
        progress : bool
            Show a tqdm progress bar on standard error.
        max_tokens, temperature, top_p, **options
            As in `stream`.

        Yields
        ------
        Generation
            One for each prompt.

        Raises
        ------
        PromptError, ParameterError
            As `generate` does; for a prompt, when it is read. This ends the iteration: texts of
            earlier prompts that have not been returned yet are lost.

        Examples
        --------
        >>> from itertools import count
        >>> from llama2py import load
        >>> texts = load().generate_many(map(str, count()), seed=count(), max_tokens=3)
        >>> next(texts).seed, next(texts).seed
        (0, 1)
        """
        maker = check_options(self, max_tokens, temperature, top_p, options)
        max_batch = whole_number("max_batch", max_batch, 1)
        if not isinstance(prompts, Iterable):
            raise PromptError(f"prompts is {shown(prompts)}, expected an iterable of prompts")
        seeds = seeds_of(seed)
        if seed is not None and not isinstance(seed, Iterable):
            Coin.checked(seed)
        texts: Iterable[Job] = run_jobs(self, maker.jobs(prompts, seeds), max_batch)
        if progress:
            from ._util import progress_bar

            total = len(prompts) if isinstance(prompts, Sized) else None
            texts = progress_bar(texts, total=total, unit="text")
        return (Generation.of(job) for job in texts)

    def score(self, text: str | Sequence[int]) -> NDArray[np.float64]:
        """Return the log-probability of each token of a text.

        Parameters
        ----------
        text : str or sequence of int
            A text, to which BOS is prepended, or tokens. The first token is only context. A text
            may be longer than the model's context: see `log_probabilities`.

        Returns
        -------
        ndarray, float64, shape (n - 1,)
            The natural logarithm of the probability of each of the n tokens but the first.

        Raises
        ------
        PromptError
            If there are no tokens, or one is outside the vocabulary.
        """
        tokens = text_tokens(text, self.tokenizer, self.config)
        with self.session() as session:
            return log_probabilities(session, tokens)

    def perplexity(self, text: str | Sequence[int]) -> float:
        """Return ``exp(-mean(score(text)))``, the perplexity of a text.

        Raises
        ------
        PromptError
            As `score` does, and if the text has only one token.
        """
        logprobs = self.score(text)
        if not len(logprobs):
            raise PromptError("perplexity needs at least two tokens")
        try:
            return math.exp(-float(logprobs.mean()))
        except OverflowError:
            return math.inf

    def prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the tokens of a prompt: BOS and the text's tokens, or the given token ids.

        Raises
        ------
        PromptError
            If there are no tokens, one is outside the vocabulary, or the text cannot be encoded.
        ContextError
            A PromptError. If there are more tokens than the context holds.
        """
        return prompt_tokens(prompt, self.tokenizer, self.config)

    def apply_chat_template(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """Return a dialogue as the text that the model reads, by the model's chat template.

        The name and the result are those of transformers' ``apply_chat_template`` with
        ``tokenize=False``. For a dialogue that goes on, `Chat` does this and more.

        Parameters
        ----------
        messages : iterable of mapping
            ``{"role": "user", "content": ".."}``, and whatever else the template reads.
        add_generation_prompt : bool
            End the text where the assistant's answer begins.
        continue_final_message : bool
            End the text with the last message, so that the model continues it.
        chat_template : str, optional
            The name of one of the model's templates or of a form (see `Chat`), or a Jinja program.
            Default: the model's own.
        **variables
            What else the template sees: ``tools``, ``documents``, ``enable_thinking``, ..

        Returns
        -------
        str
            The text, with special tokens spelled out. Encode it with ``bos=False, special=True``.
            A message may spell special tokens, too, and such tokens are then real: for messages
            that you do not trust, use `Chat`.

        Raises
        ------
        PromptError
            If a message is malformed, or the template refuses the dialogue, fails, or takes too
            long.
        ParameterError
            If the template is unknown, or needs jinja2 and it is missing
            (``pip install 'llama2py[chat]'``).

        Examples
        --------
        >>> from llama2py import load
        >>> load().apply_chat_template([{"role": "user", "content": "Hi"}])
        '<s>[INST] Hi [/INST]'
        """
        from .chat.encoder import special_texts
        from .chat.templates import find_template, render_dialogue

        controls = self.tokenizer.specials.control
        has_tools = variables.get("tools") is not None
        return render_dialogue(
            find_template(chat_template, self.conventions, controls, has_tools, "chat_template"),
            messages,
            special_texts(self.tokenizer, self.conventions),
            add_generation_prompt,
            continue_final_message,
            variables,
        )

    def session(self, overflow: SessionOverflow = "error") -> Session:
        """Return a new session, at position 0.

        Parameters
        ----------
        overflow : {'error', 'shift'}
            What `Session.forward` does when the context is full: raise ContextError, or forget the
            oldest tokens (see `Session.shift`). Only `generate` and the like have 'stop'.

        Raises
        ------
        EngineError
            If there is not enough memory for its keys and values.
        ParameterError
            If ``overflow`` is anything else.
        """
        return Session(self.backend, overflow=overflow)

    def load_session(self, path: StrPath) -> Session:
        """Read a session that `Session.save` has written. It continues bit-identically.

        Raises
        ------
        SessionError
            If the file is missing, malformed or truncated, or its session belongs to another model,
            or to this model with another dtype or backend, whose results differ.
        EngineError
            If there is not enough memory for its keys and values.

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
        """Set how much memory is kept for prompts that share a prefix with an earlier prompt.

        Such a prompt only computes the rest, if the prefix is at least 16 tokens long. The output
        is bit-identical. In a batch, a prompt can share a prefix with a text that has ended, but
        not with one that is still running. With the NumPy backend, whose results depend on how
        tokens are split across passes, nothing is kept.

        Parameters
        ----------
        max_bytes : int, optional
            Bytes of keys and values, in at most 8 sessions. 0 keeps nothing. Default: 64 MiB, or an
            eighth of the weights where that is more.

        Raises
        ------
        ParameterError
            If ``max_bytes`` is not a whole number from 0 up.

        Examples
        --------
        >>> model = load()
        >>> model.reuse_prefixes(0)  # every prompt is run from its first token
        """
        if max_bytes is None:
            max_bytes = max(PREFIX_BYTES, self.backend.nbytes // 8)
        max_bytes = whole_number("max_bytes", max_bytes)
        if self.backend.isa == "numpy":
            max_bytes = 0
        self.prefix_cache.close()
        self.prefix_cache = PrefixCache(self.backend, max_bytes)

    def close(self) -> None:
        """Free the weights. Closing twice does no harm. Do not use its sessions afterwards."""
        self.prefix_cache.close()
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Model cannot be pickled or copied: call llama2py.load() in each process"
            " (threads can share one model)"
        )

    def __repr__(self) -> str:
        if self._backend is None:
            return "<Model (closed)>"
        millions = self._config.n_params / 1e6
        return f"<Model {millions:.1f}M {self._backend.dtype}, {self._backend.isa}>"

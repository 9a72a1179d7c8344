"""What a model can be asked: for a text, for many, for a stream, for how probable a text is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence, Sized
from operator import index
from typing import TYPE_CHECKING, cast, overload

import numpy as np
from numpy.typing import NDArray

from .._util import Closing
from ..config import ModelConfig
from ..engine.backend import Backend
from ..engine.session import Session
from ..errors import ContextError, PromptError
from ..tokenizers.tokenizer import Tokenizer
from .batch import run_jobs
from .job import Job
from .logprobs import log_probabilities
from .options import Options, is_one, make_job, seed_each, seeds_of
from .prefix_cache import Prefixes
from .stream import Generation, Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack  # the type checker's own

MAX_BATCH = 32  # texts at once: their sessions bound the memory


class Asking(Closing, ABC):
    """The questions; `Model` adds the weights."""

    tokenizer: Tokenizer
    stop_tokens: frozenset[int]
    _prefixes: Prefixes

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """The numbers of the model."""

    @property
    @abstractmethod
    def backend(self) -> Backend:
        """What computes."""

    @abstractmethod
    def session(self) -> Session:
        """A new conversation at position 0."""

    def take_session(self, job: Job) -> Session:
        """A session for a job, which learns how much of its prompt need not be run any more."""
        taken = self._prefixes.take(job.prompt_tokens)
        session, job.reused = taken if taken else (self.session(), 0)
        return session

    def give_session(self, session: Session) -> None:
        """Take a session back, for prompts that begin as what it has run."""
        self._prefixes.give(session)

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
        **options
            More about sampling, about what ends the text, and ``logprobs``: see `Options`.

        Returns
        -------
        Stream
            An iterator of str.

        Raises
        ------
        PromptError
            If the prompt is not encodable, or has a token that is out of the vocabulary; a
            ContextError, which is one, too, if it is longer than the context.
        ParameterError
            If a number is out of its range.
        """
        job = self._job(prompt, max_tokens, temperature, top_p, seed, options)
        return Stream(self.take_session(job), self.tokenizer, job, keep=self._prefixes)

    async def astream(
        self,
        prompt: str | Sequence[int] = "",
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[str]:
        """`stream` for ``async for``: each piece is computed in a thread, and the loop goes on.

        A task that is cancelled, or breaks off, ends the text and frees its memory.

        Examples
        --------
        >>> import asyncio
        >>> from llama2py import load
        >>> async def tell():
        ...     return "".join([piece async for piece in load().astream("Once", seed=1)])
        >>> asyncio.run(tell()) == load().generate("Once", seed=1).text
        True
        """
        import asyncio  # only here: it takes a tenth of a program's start

        with self.stream(prompt, max_tokens, temperature, top_p, seed, **options) as stream:
            while (piece := await asyncio.to_thread(next, stream, None)) is not None:
                yield piece

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
        """Generate a text, or many at once. Parameters and errors are those of `stream`, and:

        Parameters
        ----------
        prompt : str or sequence of int, or a sequence of these
            One prompt, or many. An empty sequence is one prompt without a token: an error.
        seed : int or sequence of int, optional
            With many prompts, one for each, or the same for all.
        max_batch : int
            With many prompts: so many at once, which bounds the memory.

        Returns
        -------
        Generation, or list of Generation
            The text, its tokens, why it ended, its seed, and how fast it went; with many prompts
            one for each, in order. With the C engine each is, to the bit, what it is alone.

        Raises
        ------
        PromptError, ParameterError
            As `stream` does, before any text is begun; of many prompts the message says which one
            it is, counted from 0. With ``overflow='error'`` a text that comes to the end of the
            context ends all of them.

        Examples
        --------
        >>> from llama2py import load
        >>> model = load()
        >>> one, other = model.generate(["Once", "One day"], seed=[1, 2], max_tokens=9)
        >>> other.text == model.generate("One day", seed=2, max_tokens=9).text
        True
        """
        if not hasattr(prompt, "__len__"):  # an iterator, against the types; it can be read once
            prompt = cast("Sequence[int]", list(prompt))
        if is_one(prompt):
            one: str | Sequence[int] = prompt  # type: ignore[assignment]
            if seed is not None:
                seed = index(seed)  # type: ignore[arg-type]
            return self.stream(one, max_tokens, temperature, top_p, seed, **options).finish()
        many: Sequence[str | Sequence[int]] = prompt  # type: ignore[assignment]
        seeds = seed_each(seed, len(many))
        jobs = list(self._jobs(many, seeds, max_tokens, temperature, top_p, options))
        return [Generation.of(job) for job in run_jobs(self, jobs, max_batch)]

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
        """Generate texts as they are asked for, in order; the prompts may be endless.

        Parameters
        ----------
        prompts : iterable of str or sequence of int
            Taken as there is room for them.
        seed : int or iterable of int, optional
            One for each prompt, or the same for all. Default: fresh ones.
        max_batch : int
            So many at once, which bounds the memory.
        progress : bool
            Show how far it is, with tqdm, on stderr.
        max_tokens, temperature, top_p, **options
            As in `stream`.

        Yields
        ------
        Generation
            One for each prompt.

        Raises
        ------
        PromptError, ParameterError
            As `generate` does, but of a prompt only when it is taken. Then it is over: texts before
            it that have not been given yet, at most ``max_batch`` and those that wait for them, are
            lost.

        Examples
        --------
        >>> from itertools import count
        >>> from llama2py import load
        >>> texts = load().generate_many(map(str, count()), seed=count(), max_tokens=3)
        >>> next(texts).seed, next(texts).seed
        (0, 1)
        """
        jobs = self._jobs(prompts, seeds_of(seed), max_tokens, temperature, top_p, options)
        texts: Iterable[Job] = run_jobs(self, jobs, max_batch)
        if progress:
            from .._util import progress_bar

            total = len(prompts) if isinstance(prompts, Sized) else None
            texts = progress_bar(texts, total=total, unit="text")
        for job in texts:
            yield Generation.of(job)

    def score(self, text: str | Sequence[int]) -> NDArray[np.float64]:
        """How probable each token of a text is.

        Parameters
        ----------
        text : str or sequence of int
            A text, which gets BOS in front, or tokens, the first of which is only context. It may
            be longer than the context: see `log_probabilities`.

        Returns
        -------
        ndarray, float64, shape (n - 1,)
            The natural logarithm of the probability of each of the n tokens but the first.

        Raises
        ------
        PromptError
            If there is no token, or one is out of the vocabulary.
        """
        tokens = self._tokens(text)
        with self.session() as session:
            return log_probabilities(session, tokens)

    def perplexity(self, text: str | Sequence[int]) -> float:
        """``exp(-mean(score(text)))``: among how many tokens the model hesitates, as it were.

        Raises
        ------
        PromptError
            As `score` does, and if there is no token to predict.
        """
        logprobs = self.score(text)
        if not len(logprobs):
            raise PromptError("there is no token to predict, expected one behind the first")
        return math.exp(-float(logprobs.mean()))

    def _job(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None,
        temperature: float,
        top_p: float,
        seed: int | None,
        options: Options,
    ) -> Job:
        tokens = self.prompt_tokens(prompt)
        return make_job(
            self.backend, tokens, max_tokens, temperature, top_p, seed, options, self.stop_tokens
        )

    def _jobs(
        self,
        prompts: Iterable[str | Sequence[int]],
        seeds: Iterable[int | None],
        max_tokens: int | None,
        temperature: float,
        top_p: float,
        options: Options,
    ) -> Iterator[Job]:
        """One for each prompt; an error says which one it is of."""
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=False)):
            try:
                job = self._job(prompt, max_tokens, temperature, top_p, seed, options)
            except PromptError as error:
                raise type(error)(f"prompt {number}: {error}") from None
            yield job

    def prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens that a prompt is run as: BOS and the text's, or those given.

        Raises
        ------
        PromptError
            If there are none, one is out of the vocabulary, or the text is not encodable; a
            ContextError, which is one, too, if there are too many for the context.
        """
        tokens = self._tokens(prompt)
        self.config.check_tokens(tokens)
        if len(tokens) > self.config.seq_len:
            raise ContextError(
                f"the prompt is {len(tokens)} tokens long, longer than"
                f" the model's context of {self.config.seq_len}"
            )
        return tokens

    def _tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt, bos=True)
        elif isinstance(prompt, bytes | bytearray | memoryview):  # of int, but not of tokens
            raise PromptError("the prompt is bytes, expected str or a sequence of token ids")
        else:
            tokens = [index(token) for token in prompt]
        if not tokens:
            raise PromptError("the prompt has no tokens, expected at least one (such as BOS)")
        return tokens

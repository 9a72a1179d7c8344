"""The generation loop: a prompt in, tokens and text out, one at a time or all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from .closing import Closing
from .sampling import Sampler
from .session import Session
from .tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(slots=True)
class Timings:
    """How long it took, in seconds, and how fast that is.

    Attributes
    ----------
    prompt_tokens : int
        Tokens of the prompt, BOS included.
    prompt_seconds : float
        From the start to the logits behind the prompt.
    first_token_seconds : float
        From the start to the first generated token; 0.0 if there is none.
    generated_tokens : int
        Tokens sampled, the one that ended the story included.
    generation_seconds : float
        From the first generated token to the last. Of a stream this includes what its reader did in
        between.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    first_token_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of reading the prompt; 0.0 if nothing was read."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of generating, the first token apart (it waits for the prompt); 0.0 if unknown.

        Like llama2.c, whose clock starts after the first step.
        """
        if self.generated_tokens < 2 or not self.generation_seconds:
            return 0.0
        return (self.generated_tokens - 1) / self.generation_seconds


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text.

    Attributes
    ----------
    text : str
        What was generated, without the prompt.
    tokens : list of int
        Its tokens, without the BOS that ended it.
    prompt_tokens : list of int
        The prompt as it was run, BOS included.
    finish_reason : {'stop', 'length'}
        'stop': the model ended the text. 'length': ``max_tokens`` or the context is used up.
    seed : int
        Gives this text again.
    timings : Timings
        How fast it went.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    finish_reason: FinishReason
    seed: int
    timings: Timings

    def __str__(self) -> str:
        return self.text


class Stream(Closing, Iterator[str]):
    """A text while it is generated: iterate for its pieces.

    Made by `Model.stream`; a context manager. A piece is whole characters, never empty: a character
    that takes several tokens comes with the last of them. While it runs and afterwards, ``tokens``,
    ``finish_reason`` (None before the end), ``seed`` and ``timings`` tell what happened so far.
    Breaking off the iteration is fine; `close` then frees the memory at once.

    Parameters
    ----------
    session : Session
        Where to run. Its earlier tokens stay in the context.
    sampler : Sampler
        Chooses the tokens.
    tokenizer : Tokenizer
        Turns them into text.
    prompt_tokens : list of int
        Run first; at least one token.
    max_tokens : int
        Most tokens to generate; the context may end it sooner.
    stop_tokens : frozenset of int
        Tokens that end the text, and do not belong to it.
    owns_session : bool
        Close the session at the end.
    """

    def __init__(
        self,
        session: Session,
        sampler: Sampler,
        tokenizer: Tokenizer,
        prompt_tokens: list[int],
        max_tokens: int,
        stop_tokens: frozenset[int],
        owns_session: bool = True,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.seed = sampler.seed
        self.timings = Timings(prompt_tokens=len(prompt_tokens))
        self._session = session
        self._sampler = sampler
        self._decoder = tokenizer.decoder(previous=prompt_tokens[-1])
        self._max_tokens = max_tokens
        self._stop_tokens = stop_tokens
        self._owns_session = owns_session
        self._pieces = self._run()

    def _run(self) -> Iterator[str]:
        """The loop. The last token of a text is never run: nothing comes after it."""
        timings = self.timings
        start = perf_counter()
        room = self._session.room - len(self.prompt_tokens) + 1  # the last one needs no place
        budget = min(self._max_tokens, room)
        logits = self._session.forward(self.prompt_tokens)
        timings.prompt_seconds = perf_counter() - start
        first_at = 0.0
        while timings.generated_tokens < budget:
            token = self._sampler.sample(logits)
            timings.generated_tokens += 1
            now = perf_counter()
            if timings.generated_tokens == 1:
                first_at = now
                timings.first_token_seconds = now - start
            timings.generation_seconds = now - first_at
            if token in self._stop_tokens:
                self.finish_reason = "stop"
                break
            self.tokens.append(token)
            if piece := self._decoder.feed(token):
                yield piece
            if timings.generated_tokens < budget:
                logits = self._session.forward([token])
        else:
            self.finish_reason = "length"
        if rest := self._decoder.flush():
            yield rest

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except BaseException:  # the end, or an error: either way nothing more will come
            self.close()
            raise

    def finish(self) -> Generation:
        """Generate what is left.

        Returns
        -------
        Generation
            Its ``text`` holds only what no iteration has taken before.

        Raises
        ------
        ClosedError
            After `close`, if the text had not come to its end.
        """
        text = "".join(self)
        return Generation(
            text=text,
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
            finish_reason=self.finish_reason or "length",
            seed=self.seed,
            timings=self.timings,
        )

    def close(self) -> None:
        """Stop here, from any thread. Twice does no harm."""
        if self._owns_session:
            self._session.close()

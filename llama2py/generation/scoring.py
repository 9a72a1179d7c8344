"""Score texts with a model: bits per byte and nats per token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..engine.parameters import known_keywords, shown, wrong
from ..engine.session import Session
from ..errors import PromptError
from ..tokenizers.tokenizer import Tokenizer
from .logprobs import log_probabilities


@runtime_checkable
class Scorer(Protocol):
    """What a score needs from a model."""

    tokenizer: Tokenizer

    def session(self) -> Session:
        """Return a new session, at position 0."""


@dataclass(frozen=True, slots=True)
class Score:
    """The negative log-likelihood of some texts under a model.

    Attributes
    ----------
    texts, tokens, bytes : int
        The number of texts, of predicted tokens (including the one that ends each text), and of
        bytes of UTF-8.
    nats : float
        The sum of ``-log p`` over the tokens, in nats.
    """

    texts: int
    tokens: int
    bytes: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        """The mean loss per token. Comparable only between models with the same vocabulary.

        NaN if there are no texts.
        """
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """The mean loss per byte, in bits. Comparable between all models. NaN without texts."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def __add__(self, other: Score) -> Score:
        return Score(
            self.texts + other.texts,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.nats + other.nats,
        )


@known_keywords
def score_texts(model: Scorer, texts: Iterable[str]) -> Score:
    """Score texts, each from its BOS token to the BOS token that ends it.

    Parameters
    ----------
    model : Model
        The model.
    texts : iterable of str
        The texts. An empty text is an error.

    Returns
    -------
    Score
        The sum over all texts.

    Raises
    ------
    PromptError
        If a text is empty or cannot be encoded.
    ParameterError
        If ``model`` is not a model.
    """
    if not isinstance(model, Scorer):
        raise wrong("model", model, "a Model: load() returns one")
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise PromptError(f"texts is {shown(texts)}, expected a sequence of str")
    total = Score(0, 0, 0, 0.0)
    bos = model.tokenizer.bos_id
    with model.session() as session:
        for text in texts:
            if not isinstance(text, str):
                raise PromptError(f"texts holds {shown(text)}, expected str")
            if not text:
                raise PromptError("a text to score is empty; leave empty texts out")
            tokens = [*model.tokenizer.encode(text, bos=True), bos]
            nats = -float(log_probabilities(session, tokens).sum())
            total += Score(1, len(tokens) - 1, len(text.encode()), nats)
    return total

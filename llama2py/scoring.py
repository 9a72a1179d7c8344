"""How well a model knows a text: bits per byte and nats per token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import PromptError
from .generation.logprobs import log_probabilities
from .model import Model


@dataclass(frozen=True, slots=True)
class Score:
    """What some texts cost a model.

    Attributes
    ----------
    texts, tokens, bytes : int
        How many texts, predicted tokens (the one that ends each text included), and bytes of UTF-8.
    nats : float
        The sum of ``-log p`` over the tokens.
    """

    texts: int
    tokens: int
    bytes: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        """The mean loss; comparable between models of one vocabulary only. NaN of no text."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """What a byte costs; comparable between all models. NaN of no text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def __add__(self, other: Score) -> Score:
        return Score(
            self.texts + other.texts,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.nats + other.nats,
        )


def score_texts(model: Model, texts: Iterable[str]) -> Score:
    """Score texts, each from its BOS to the BOS that ends it.

    Parameters
    ----------
    model : Model
        Who is asked.
    texts : iterable of str
        None of them empty.

    Returns
    -------
    Score
        Of all of them together.

    Raises
    ------
    PromptError
        If a text is empty or cannot be encoded.
    """
    total = Score(0, 0, 0, 0.0)
    bos = model.tokenizer.bos_id
    with model.session() as session:
        for text in texts:
            if not text:
                raise PromptError("a text to score is empty, expected at least one character")
            tokens = [*model.tokenizer.encode(text, bos=True), bos]
            nats = -float(log_probabilities(session, tokens).sum())
            total += Score(1, len(tokens) - 1, len(text.encode()), nats)
    return total

"""How well a model knows a text: bits per byte and nats per token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import PromptError
from .model import Model
from .session import Session


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


def log_probabilities(session: Session, tokens: Sequence[int]) -> NDArray[np.float64]:
    """The log-probability of each token behind those before it.

    Where the tokens do not fit in the context, the later ones see what comes before them in windows
    that overlap by half.

    Parameters
    ----------
    session : Session
        Used from position 0, whatever it held.
    tokens : sequence of int, length n
        The first is only context: BOS, as a rule.

    Returns
    -------
    ndarray, float64, shape (n - 1,)
        ``log p(tokens[i + 1] | tokens[.. i])``.

    Raises
    ------
    PromptError
        If a token is out of the vocabulary.
    """
    session.rewind(0)
    window = session.room
    inputs, targets = tokens[:-1], np.asarray(tokens[1:])
    scored = np.empty(len(inputs))
    done = 0
    while done < len(inputs):
        start = max(0, done - window // 2) if done else 0
        block = inputs[start : start + window]
        session.rewind(0)
        logits = session.forward(block, all_logits=True)[done - start :]  # (rows, vocab_size)
        if not 0 <= (last := int(targets[-1])) < logits.shape[1]:  # the one that is never run
            raise PromptError(
                f"token {last} is out of the vocabulary, expected 0 to {logits.shape[1] - 1}"
            )
        rows = np.arange(len(logits))
        peaks = logits.max(axis=1, keepdims=True)
        sums = np.log(np.exp(logits - peaks, dtype=np.float64).sum(axis=1))
        chosen = logits[rows, targets[done : done + len(logits)]] - peaks[:, 0]
        scored[done : done + len(logits)] = chosen - sums
        done += len(logits)
    return scored

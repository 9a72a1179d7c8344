"""Log-probabilities: of tokens drawn, and of tokens given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engine.backend import Logits
from ..engine.session import Session

_ROWS = 128  # tokens scored at once: their logits take memory


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable the model found a token, before temperature and all other sampling.

    Of all ids of the model: where it has padding, which is never drawn, that has its part, too.

    Attributes
    ----------
    token : int
        The one drawn.
    logprob : float
        Its natural logarithm of probability.
    top : tuple of (int, float)
        The most probable tokens and their log-probabilities, best first, as many as asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Log-probabilities along the last axis, in double precision."""
    wide = logits - logits.max(axis=-1, keepdims=True)  # float32: exact enough, and half the memory
    sums = np.exp(wide, dtype=np.float64).sum(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(sums))


def token_logprob(logprobs: NDArray[np.float64], token: int, k: int) -> TokenLogprob:
    """One token's entry, of log-probabilities (vocab_size,), with the ``k`` best."""
    k = min(k, len(logprobs))
    best: NDArray[np.int64] = np.zeros(0, np.int64)
    if k:
        floor = np.partition(logprobs, -k)[-k]
        best = np.flatnonzero(logprobs >= floor)  # of equals the lower id first
        best = best[np.argsort(-logprobs[best], kind="stable")][:k]
    top = tuple((int(t), float(logprobs[t])) for t in best)
    return TokenLogprob(token, float(logprobs[token]), top)


def log_probabilities(session: Session, tokens: Sequence[int]) -> NDArray[np.float64]:
    """The log-probability of each token behind those before it.

    Where the tokens do not fit in the context, the later ones see what comes before them in windows
    that overlap by half.

    Parameters
    ----------
    session : Session
        Used from position 0, whatever it held.
    tokens : sequence of int, length n
        At least one. The first is only context: BOS, as a rule.

    Returns
    -------
    ndarray, float64, shape (n - 1,)
        ``log p(tokens[i + 1] | tokens[.. i])``.

    Raises
    ------
    PromptError
        If a token is out of the vocabulary.
    """
    session.config.check_tokens(tokens)  # the last one is never run
    session.rewind(0)
    window = session.room
    inputs, targets = tokens[:-1], np.asarray(tokens[1:])
    scored = np.empty(len(inputs))
    done = 0
    while done < len(inputs):
        start = max(0, done - window // 2) if done else 0
        block = inputs[start : start + window]
        session.rewind(0)
        if start < done:
            session.forward(block[: done - start])
        for at in range(done - start, len(block), _ROWS):
            logits = session.forward(block[at : at + _ROWS], all_logits=True)  # (rows, vocab_size)
            chosen = targets[done : done + len(logits)]
            scored[done : done + len(logits)] = log_softmax(logits)[np.arange(len(logits)), chosen]
            done += len(logits)
    return scored

"""Log-probabilities, of tokens that were drawn and of tokens that were given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engine.backend import Logits
from ..engine.session import Session

_ROWS = 128  # tokens scored in one pass: their logits take memory


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The model's log-probability of a token, before temperature and every other sampling step.

    The probabilities of all ids sum to 1. Padding of the vocabulary, which is never drawn, has its
    share.

    Attributes
    ----------
    token : int
        The token drawn.
    logprob : float
        The natural logarithm of its probability.
    top : tuple of (int, float)
        The most probable tokens and their log-probabilities, best first, as many as requested.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@np.errstate(all="ignore")  # logits may be NaN or infinite
def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Return log-probabilities along the last axis, in double precision."""
    wide = logits - logits.max(axis=-1, keepdims=True)  # float32: exact enough, and half the memory
    sums = np.exp(wide, dtype=np.float64).sum(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(sums))


def token_logprob(logprobs: NDArray[np.float64], token: int, k: int) -> TokenLogprob:
    """Return a token's entry, with the ``k`` best, from log-probabilities (vocab_size,)."""
    k = min(k, len(logprobs))
    best: NDArray[np.int64] = np.zeros(0, np.int64)
    if k:
        floor = np.partition(logprobs, -k)[-k]
        best = np.flatnonzero(logprobs >= floor)  # the lower id first among equals
        best = best[np.argsort(-logprobs[best], kind="stable")][:k]
    top = tuple((int(t), float(logprobs[t])) for t in best)
    return TokenLogprob(token, float(logprobs[token]), top)


def log_probabilities(session: Session, tokens: Sequence[int]) -> NDArray[np.float64]:
    """Return the log-probability of each token, given the tokens before it.

    If the tokens do not fit in the context, they are scored in windows that overlap by half.

    Parameters
    ----------
    session : Session
        Rewound to position 0 first.
    tokens : sequence of int, length n
        At least one. The first one, usually BOS, is only context.

    Returns
    -------
    ndarray, float64, shape (n - 1,)
        ``log p(tokens[i + 1] | tokens[0], ..., tokens[i])``.

    Raises
    ------
    PromptError
        If a token is outside the vocabulary.
    """
    session.config.check_tokens(tokens[-1:])  # never run; `Session.forward` checks the others
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


def continuation_logprobs(
    session: Session, prompt: Sequence[int], tokens: Sequence[int]
) -> NDArray[np.float64]:
    """Return the log-probability of each token after a prompt, computed in single precision.

    It takes two thirds of the time of `log_probabilities`.

    Parameters
    ----------
    session : Session
        Rewound to position 0 first.
    prompt : sequence of int
        At least one token.
    tokens : sequence of int, length n
        The continuation. All but the last must fit in the context.

    Returns
    -------
    ndarray, float64, shape (n,)
        In nats.
    """
    session.rewind(0)
    if len(prompt) > 1 and tokens:
        session.forward(prompt[:-1])
    inputs, targets = [prompt[-1], *tokens[:-1]], np.asarray(tokens)
    scored = np.empty(len(tokens))
    for at in range(0, len(tokens), _ROWS):
        logits = session.forward(inputs[at : at + _ROWS], all_logits=True)  # (rows, vocab_size)
        end = at + len(logits)
        chosen = logits[np.arange(len(logits)), targets[at:end]]
        best = logits.max(axis=1)
        logits -= best[:, None]
        np.exp(logits, out=logits)
        scored[at:end] = chosen - best - np.log(logits.sum(axis=1))
    return scored

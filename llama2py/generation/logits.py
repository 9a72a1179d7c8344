"""What a caller may do to logits before a token is drawn, in NumPy.

The order is fixed: penalties, ``logit_bias``, ``banned_tokens``, ``logits_processor``, temperature,
``top_k``, ``typical_p``, ``top_p``, ``min_p``. What adds to logits comes before what divides them,
as in Hugging Face's ``generate``; the cuts come in llama.cpp's order, each on the probabilities
that the one before has left, scaled to a sum of 1. Temperature comes before the cuts, as in
llama2.c.

References
----------
Keskar et al., "CTRL" (2019): ``repetition_penalty``. OpenAI's API: ``frequency_penalty`` and
``presence_penalty``. Meister et al., "Locally Typical Sampling" (2023): ``typical_p``. Nguyen et
al., "Turning Up the Heat: Min-p Sampling" (2024): ``min_p``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..engine.backend import Logits
from ..errors import ParameterError

# Gets the tokens so far, prompt included, and logits (vocab_size,); gives those to go on with.
LogitsProcessor: TypeAlias = Callable[[Sequence[int], Logits], Logits]
Floats: TypeAlias = NDArray[np.float64]
Tokens: TypeAlias = NDArray[np.int64]


def penalize(
    logits: Logits,
    prompt: Sequence[int],
    generated: Sequence[int],
    repetition: float,
    frequency: float,
    presence: float,
) -> None:
    """Make tokens that have been there less probable, in place.

    Parameters
    ----------
    logits : ndarray, float32, shape (vocab_size,)
        Changed.
    prompt, generated : sequence of int
        ``repetition`` looks at both, the other two at what was generated, as in vLLM.
    repetition : float
        Positive logits are divided by it, negative ones multiplied, once for each kind of token.
    frequency, presence : float
        Taken off: ``frequency`` for each time a token came, ``presence`` once.
    """
    if repetition != 1:
        seen = np.unique(np.array([*prompt, *generated], np.int64))
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / repetition, values * repetition)
    if (frequency or presence) and generated:
        tokens, counts = np.unique(np.array(generated, np.int64), return_counts=True)
        logits[tokens] -= (counts * frequency + presence).astype(np.float32)


def add_bias(logits: Logits, biased: Tokens, values: Logits, banned: Tokens) -> None:
    """Add values (n,) to the logits of tokens ``biased`` (n,), none of them twice, in place, and
    put the ``banned`` ones (m,) out of reach.

    Raises
    ------
    ParameterError
        If a token is not in the vocabulary.
    """
    for tokens in (biased, banned):
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < len(logits):
            wrong = tokens[(tokens < 0) | (tokens >= len(logits))][0]
            raise ParameterError(
                f"token {wrong} of logit_bias or banned_tokens is not in the vocabulary,"
                f" expected 0 to {len(logits) - 1}"
            )
    logits[biased] += values
    logits[banned] = -np.inf


def process(logits: Logits, tokens: Sequence[int], processors: Iterable[LogitsProcessor]) -> Logits:
    """What the caller's own functions make of the logits.

    Raises
    ------
    ParameterError
        If one gives something that is not logits.
    """
    for processor in processors:
        given = np.ascontiguousarray(processor(tokens, logits), np.float32)
        if given.shape != logits.shape:
            raise ParameterError(
                f"a logits_processor gave an array of shape {given.shape},"
                f" expected {logits.shape}: logits for the whole vocabulary"
            )
        logits = given
    return logits


def softmax(logits: Logits, temperature: float) -> Floats:
    """Probabilities (vocab_size,) in double precision; a logit of -inf is 0.

    Where some are infinite, they share all of it.
    """
    wide = logits.astype(np.float64)
    best = wide.max()
    if best == np.inf:
        return np.asarray((wide == np.inf) / np.count_nonzero(wide == np.inf))
    e = np.exp((wide - best) / temperature)
    return np.asarray(e / e.sum())


def cut(p: Floats, top_k: int, typical_p: float, top_p: float, min_p: float) -> NDArray[np.int64]:
    """The tokens that may be drawn.

    Parameters
    ----------
    p : ndarray, float64, shape (n,)
        Probabilities.
    top_k : int
        At most so many of the most probable; 0: all.
    typical_p : float
        Of those whose surprise is nearest to the entropy, the fewest that sum up to this; 1: all.
    top_p : float
        The fewest most probable whose sum exceeds this; 0 and 1: all.
    min_p : float
        Those at least this fraction as probable as the most probable one left; 0: all.

    Returns
    -------
    ndarray, int64, shape (m,)
        At least one. The most probable first, of equals the lower index; in order of index where
        nothing is asked for.
    """
    n = len(p)
    cuts_top_p = 0 < top_p < 1
    if not (0 < top_k < n or typical_p < 1 or cuts_top_p or min_p > 0):
        return np.flatnonzero(p)
    floor = 0.0  # what is below cannot be among them, and need not be sorted
    if 0 < top_k < n:
        floor = float(np.partition(p, n - top_k)[n - top_k])
    elif typical_p >= 1 and cuts_top_p:
        floor = (1 - top_p) / n
    order = np.flatnonzero((p >= floor) & (p > 0))
    order = order[np.argsort(-p[order], kind="stable")]
    if 0 < top_k < n:
        order = order[:top_k]
    if typical_p < 1:
        q = p[order] / p[order].sum()
        surprise = -np.log(q)
        by_typicality = np.argsort(np.abs(surprise - (q * surprise).sum()), kind="stable")
        enough = int(np.searchsorted(np.cumsum(q[by_typicality]), typical_p, side="left")) + 1
        order = order[np.sort(by_typicality[:enough])]
    if cuts_top_p:
        # The sieve has left out some of the sum, so that only a later cut needs scaling.
        whole = p[order].sum() if 0 < top_k < n or typical_p < 1 else 1.0
        sums = np.cumsum(p[order]) / whole
        order = order[: int(np.searchsorted(sums, top_p, side="right")) + 1]
    if min_p > 0:
        order = order[p[order] >= min_p * p[order[0]]]
    return order

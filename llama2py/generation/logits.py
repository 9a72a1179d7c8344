"""The steps between the model's logits and the draw, in NumPy.

The order is fixed: penalties, ``logit_bias``, ``banned_tokens``, ``logits_processor``, temperature,
``top_k``, ``typical_p``, ``top_p``, ``min_p``. Steps that add to logits come before the division by
the temperature, as in Hugging Face's ``generate``. The cuts come in llama.cpp's order, each on the
probabilities that the cut before it has left, scaled to a sum of 1. Temperature comes before the
cuts, as in llama2.c.

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
from ..engine.parameters import shown
from ..errors import ParameterError

# Receives the tokens so far, prompt included, and logits (vocab_size,); returns the logits to use.
LogitsProcessor: TypeAlias = Callable[[Sequence[int], Logits], Logits]
Floats: TypeAlias = NDArray[np.float64]
Tokens: TypeAlias = NDArray[np.int64]


@np.errstate(all="ignore")  # logits may be NaN or infinite
def penalize(
    logits: Logits,
    prompt_tokens: Sequence[int],
    tokens: Sequence[int],
    repetition: float,
    frequency: float,
    presence: float,
) -> None:
    """Make tokens that have occurred less probable, in place.

    Parameters
    ----------
    logits : ndarray, float32, shape (vocab_size,)
        Changed.
    prompt_tokens, tokens : sequence of int
        The prompt and the text so far. ``repetition`` counts both, the other two only the text, as
        in vLLM.
    repetition : float
        Positive logits are divided by it, negative ones multiplied, once for each token that has
        occurred.
    frequency, presence : float
        Subtracted: ``frequency`` once per occurrence, ``presence`` once.
    """
    if repetition != 1:
        seen = np.unique(np.array([*prompt_tokens, *tokens], np.int64))
        values, factor = logits[seen], float(repetition)
        logits[seen] = np.where(values > 0, values / factor, values * factor)
    if (frequency or presence) and tokens:
        occurred, counts = np.unique(np.array(tokens, np.int64), return_counts=True)
        logits[occurred] -= (counts * float(frequency) + presence).astype(np.float32)


@np.errstate(all="ignore")
def add_bias(logits: Logits, biased: Tokens, values: Logits, banned: Tokens) -> None:
    """Change logits (vocab_size,) in place: add a bias, and set banned ones to minus infinity.

    Parameters
    ----------
    biased, values : ndarray, int64 and float32, shape (n,)
        Tokens, none of them twice, and what to add to their logits.
    banned : ndarray, int64, shape (m,)
        Tokens to ban, whatever their bias.
    """
    logits[biased] += values
    logits[banned] = -np.inf


def process(logits: Logits, tokens: Sequence[int], processors: Iterable[LogitsProcessor]) -> Logits:
    """Return what the caller's functions make of the logits.

    Raises
    ------
    ParameterError
        If a function returns no logits.
    """
    for processor in processors:
        returned = processor(tokens, logits)
        try:
            made = np.ascontiguousarray(returned, np.float32)
        except (TypeError, ValueError):
            made = None
        if returned is None or made is None:
            raise ParameterError(
                f"a logits_processor returned {shown(returned)}, expected logits of shape"
                f" {logits.shape}"
            )
        if made.shape != logits.shape:
            raise ParameterError(
                f"a logits_processor returned an array of shape {made.shape},"
                f" expected {logits.shape}: logits for the whole vocabulary"
            )
        logits = made
    return logits


@np.errstate(all="ignore")
def softmax(logits: Logits, temperature: float) -> Floats:
    """Return probabilities (vocab_size,) in double precision. A logit of -inf gives 0.

    Infinite logits share all of the probability.
    """
    wide = logits.astype(np.float64)
    best = wide.max()
    if best == np.inf:
        return np.asarray((wide == np.inf) / np.count_nonzero(wide == np.inf))
    e = np.exp((wide - best) / temperature)
    return np.asarray(e / e.sum())


def cut(p: Floats, top_k: int, typical_p: float, top_p: float, min_p: float) -> NDArray[np.int64]:
    """Return the tokens that may be drawn.

    Parameters
    ----------
    p : ndarray, float64, shape (n,)
        Probabilities.
    top_k : int
        The ``top_k`` most probable tokens. 0: all.
    typical_p : float
        Of these the ones whose surprise is nearest to the entropy: the fewest whose sum reaches
        this. 1: all.
    top_p : float
        The fewest most probable ones whose sum exceeds this. 0 and 1: all.
    min_p : float
        Those at least this fraction as probable as the most probable one left. 0: all.

    Returns
    -------
    ndarray, int64, shape (m,)
        At least one token. The most probable first, and the lower index first among equals. Without
        a cut they are in order of index.
    """
    n = len(p)
    cuts_top_p = 0 < top_p < 1
    if not (0 < top_k < n or typical_p < 1 or cuts_top_p or min_p > 0):
        return np.flatnonzero(p)
    floor = 0.0  # a lower probability cannot be in the result, and need not be sorted
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
        # The floor has dropped part of the sum: scale only after an earlier cut.
        whole = p[order].sum() if 0 < top_k < n or typical_p < 1 else 1.0
        sums = np.cumsum(p[order]) / whole
        order = order[: int(np.searchsorted(sums, top_p, side="right")) + 1]
    if min_p > 0:
        order = order[p[order] >= min_p * p[order[0]]]
    return order

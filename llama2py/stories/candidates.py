"""Choose the best of several candidates for one story.

Candidates without a flaw come first, then those whose subject comes back, then those that the model
itself finds more probable. The flaws are those of small models: loops, sentences that come twice,
texts that do not end. The mean log-probability of a text finds nonsense: what surprises the model
that wrote it is rarely meant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engine.session import Session
from ..generation.job import Job
from ..generation.logprobs import continuation_logprobs
from ..model import Model
from ..tokenizers.tokenizer import Tokenizer
from .english import has_word, sentences, word_list, word_pattern
from .guide import RepeatedGrams

# A text is a story if the model ended it and it has more tokens than this.
_SHORTEST = 90
# The share of a text's 4-grams that have occurred before in the text; stories have refrains.
_MOST_REPEATED = 0.025
# More repeated 4-grams would need a text of over 200 words: such a candidate is not finished.
DROPPED_ABOVE = 5
# What flaws count, for texts that all have one.
_DROPPED, _LOOP, _NO_END, _SHORT, _SENTENCE_TWICE, _REPETITIONS = 32, 16, 4, 2, 1, 1
# What the log-probability of a required word counts, against the mean of all tokens: a word that
# the model would not have written is rarely used well.
_WORD_WEIGHT = 0.05
# Nats per token that a subject is worth if it always comes back, against one that never does.
_SUBJECT_NATS = 0.5
_FUNCTION_WORDS = frozenset(
    word_list(
        "a about all an and are as at be but by can did do does for from get go had has have he"
        " her his how i if in into is it its made make many me my named no not of on one or our"
        " out she so some that the their them they this to too two up very was we were what when"
        " where which who whose why will with without you your"
    )
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished text that may become the story.

    Attributes
    ----------
    job : Job
        How it was written.
    start : str
        The opening.
    text : str
        Whole sentences, the opening included.
    ended : bool
        Whether the model ended it.
    looped : bool
        Whether it was ended because of a loop.
    dropped : bool
        Whether it was left unfinished, because of its repetitions.
    n_first : int
        Number of tokens of a first sentence that was drawn in another way than the rest.
    """

    job: Job
    start: str
    text: str
    ended: bool
    looped: bool
    dropped: bool
    n_first: int = 0

    def has_all(self, words: Sequence[str]) -> bool:
        """Return whether every word appears."""
        return all(has_word(self.text, word) for word in words)

    def flaws(self, max_words: int) -> int:
        """Return 0 for a text without a flaw, and more the worse its flaws are."""
        n_tokens = len(self.job.tokens)
        return (
            _DROPPED * self.dropped
            + _LOOP * self.looped
            + _NO_END * (not self.ended)
            + _SHORT * (n_tokens <= min(_SHORTEST, max_words))
            + _SENTENCE_TWICE * has_sentence_twice(self.text)
            + _REPETITIONS * (repeated_share(self.text) >= _MOST_REPEATED)
        )


def has_sentence_twice(text: str) -> bool:
    """Return whether a sentence comes twice, quotation marks and case aside."""
    plain = [sentence.strip("\"'“”‘’ ").casefold() for sentence in sentences(text)]
    return len(set(plain)) < len(plain)


def repeated_share(text: str) -> float:
    """Return the share of a text's 4-grams of words that have occurred before in it."""
    grams = RepeatedGrams()
    grams.read(text)
    return grams.n_repeated / max(1, grams.n_grams)


def subject_words(about: str) -> list[str]:
    """Return the words of a subject that a story about it repeats."""
    words = re.findall(r"\w[\w'’-]*", about)
    words = [re.sub(r"['’]s$", "", word) for word in words]
    return [word for word in dict.fromkeys(words) if word.casefold() not in _FUNCTION_WORDS]


def subject_returns(text: str, words: Sequence[str]) -> float:
    """Return how well a text keeps to its subject, from 0 to 1.

    Each word counts if it comes once, if it comes twice, and, twice as much, if it is in the last
    third of the text.

    Parameters
    ----------
    text : str
        The text after the opening.
    words : sequence of str
        As `subject_words` returns.
    """
    if not words:
        return 0.0
    last_third = len(text) * 2 // 3
    points = 0
    for word in words:
        places = [match.start() for match in word_pattern(word).finditer(text)]
        points += min(2, len(places)) + 2 * any(place >= last_third for place in places)
    return points / (4 * len(words))


def best_of(
    candidates: Sequence[Candidate],
    model: Model,
    max_words: int,
    words: Sequence[str],
    subject: Sequence[str],
) -> Candidate:
    """Return the best candidate, and of several equal ones the first.

    Parameters
    ----------
    candidates : sequence of Candidate
        At least one.
    model : Model
        The model that wrote them. It scores a text only if there are others as good.
    max_words : int
        The maximum length of the story.
    words : sequence of str
        Words that must appear. A candidate that lacks one is only returned if all lack one.
    subject : sequence of str
        As `subject_words` returns.
    """
    ratings = [(not each.has_all(words), each.flaws(max_words)) for each in candidates]
    best = min(ratings)
    left = [each for each, rating in zip(candidates, ratings, strict=True) if rating == best]
    if len(left) == 1:
        return left[0]
    with model.session() as session:
        values = [_value(each, session, model.tokenizer, words, subject) for each in left]
    return left[values.index(max(values))]


def _value(
    candidate: Candidate,
    session: Session,
    tokenizer: Tokenizer,
    words: Sequence[str],
    subject: Sequence[str],
) -> float:
    """Return the mean log-probability of a candidate, in nats, and what its subject is worth.

    A first sentence of its own does not count: the most probable one is always the same.
    """
    job = candidate.job
    end = [job.stopped_by] if isinstance(job.stopped_by, int) else []
    tokens = [*job.prompt_tokens, *job.tokens, *end]
    n_given = len(job.prompt_tokens) + candidate.n_first
    logprobs = continuation_logprobs(session, tokens[:n_given], tokens[n_given:])
    value = float(logprobs.mean()) if len(logprobs) else -math.inf
    value += _SUBJECT_NATS * subject_returns(candidate.text[len(candidate.start) :], subject)
    if words:
        pieces = _pieces(tokenizer, tokens[:n_given], tokens[n_given:])
        value += _WORD_WEIGHT * _word_logprob(logprobs, pieces, words)
    # NumPy's exp may differ in the last bit from one CPU to another; the choice must not.
    return round(value, 5)


def _pieces(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """Return the text of each token after a prompt."""
    decoder = tokenizer.decoder(previous=prompt[-1])
    return [decoder.feed(token) for token in tokens]


def _word_logprob(
    logprobs: NDArray[np.float64], pieces: Sequence[str], words: Sequence[str]
) -> float:
    """Return the mean log-probability of required words where they are most probable.

    Parameters
    ----------
    logprobs : ndarray, float64, shape (n,)
        Of each token.
    pieces : sequence of str, length n
        The text of each token.
    words : sequence of str
        Those that do not occur do not count.
    """
    text = "".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    best = []
    for word in words:
        places = [match.span() for match in word_pattern(word).finditer(text)]
        tokens = [np.searchsorted(ends, (start, end - 1), side="right") for start, end in places]
        if tokens:
            best.append(max(float(logprobs[a : b + 1].sum()) for a, b in tokens))
    return sum(best) / len(best) if best else 0.0

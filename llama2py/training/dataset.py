"""Stories as batches of tokens: each story from its BOS to the BOS that ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CorpusError
from ..tokenizers.tokenizer import Tokenizer

IGNORED = -1  # a target that does not count
Tokens = NDArray[np.int64]


def held_out(stories: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Part the stories at random: those to train on, and those to measure on (at least one)."""
    order = np.random.default_rng(seed).permutation(len(stories))
    n = min(len(stories) - 1, max(1, round(len(stories) * share))) if share else 0
    return [stories[i] for i in sorted(order[n:])], [stories[i] for i in sorted(order[:n])]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens and, for each, the token behind it.

    Attributes
    ----------
    tokens, targets : ndarray, int64, shape (rows, time)
        Padded behind each story's end; the targets there are `IGNORED`.
    """

    tokens: Tokens
    targets: Tokens

    @property
    def n_tokens(self) -> int:
        """How many targets count."""
        return int(np.count_nonzero(self.targets != IGNORED))


class Dataset:
    """Encoded stories, sorted into buckets of like length, so that rows need little padding.

    A story is a row of its own and begins at position 0, as it does when it is told: no earlier
    story is in its context, and no attention is spent on one. Only a handful of row lengths occur,
    so compiled code fits them all.

    Parameters
    ----------
    stories : sequence of str
        The texts.
    tokenizer : Tokenizer
        Encodes them.
    max_seq_len : int
        Longest row; what is longer goes on in a row of its own, without a BOS.
    batch_tokens : int
        Tokens of a batch, padding included: ``batch_tokens // length`` rows.

    Raises
    ------
    CorpusError
        If there is no story.
    """

    def __init__(
        self, stories: Sequence[str], tokenizer: Tokenizer, max_seq_len: int, batch_tokens: int
    ) -> None:
        if not stories:
            raise CorpusError("there is no story left to train on, expected at least two")
        self.batch_tokens = batch_tokens
        self.n_tokens = 0
        self._buckets: dict[int, list[Tokens]] = {length: [] for length in _lengths(max_seq_len)}
        for story in stories:
            tokens = [*tokenizer.encode(story, bos=True), tokenizer.bos_id]
            for start in range(0, len(tokens) - 1, max_seq_len):
                row = np.array(tokens[start : start + max_seq_len + 1], dtype=np.int64)
                length = next(length for length in self._buckets if length >= len(row) - 1)
                self._buckets[length].append(row)
                self.n_tokens += len(row) - 1

    @property
    def n_batches(self) -> int:
        """Batches of a pass."""
        return sum(-(-len(rows) // self._rows(length)) for length, rows in self._buckets.items())

    def _rows(self, length: int) -> int:
        """Rows of that length in a batch."""
        return max(1, self.batch_tokens // length)

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        """All rows once, in an order that seed and epoch give."""
        rng = np.random.default_rng([seed, epoch])
        order = []
        for length, rows in self._buckets.items():
            n = self._rows(length)
            shuffled = rng.permutation(len(rows))
            order += [(length, shuffled[i : i + n], n) for i in range(0, len(rows), n)]
        for index in rng.permutation(len(order)):
            length, chosen, n = order[index]
            rows = self._buckets[length]
            yield _pad([rows[i] for i in chosen], length, n)


def _lengths(max_seq_len: int) -> list[int]:
    """Row lengths: steps of a quarter to a third, so that padding stays near a tenth."""
    lengths, length = [], 128
    while length < max_seq_len:
        lengths.append(length)
        length += 32 if length < 256 else 64 if length < 384 else 128
    return [*lengths, max_seq_len]


def _pad(rows: Sequence[Tokens], length: int, n: int) -> Batch:
    """Rows (with one token more than their length) as a batch of n rows; the last may be empty."""
    tokens = np.zeros((n, length), np.int64)
    targets = np.full((n, length), IGNORED, np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row) - 1] = row[:-1]
        targets[i, : len(row) - 1] = row[1:]
    return Batch(tokens, targets)

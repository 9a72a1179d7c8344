"""Turn stories into batches of tokens. A story's tokens run from its BOS to a closing BOS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CorpusError
from ..tokenizers.tokenizer import Tokenizer

IGNORED = -1  # a target that does not count
Tokens = NDArray[np.int64]


def split_stories(stories: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split stories at random into those to train on and those held out.

    Parameters
    ----------
    stories : sequence of str
        At least one.
    share : float
        Share of the stories to hold out: at least one story, unless it is 0 or there is only one.
    seed : int
        Decides which stories are held out.

    Returns
    -------
    train_stories, held_out_stories : list of str
        Each in the order of ``stories``.
    """
    order = np.random.default_rng(seed).permutation(len(stories))
    n = min(len(stories) - 1, max(1, round(len(stories) * share))) if share else 0
    return [stories[i] for i in sorted(order[n:])], [stories[i] for i in sorted(order[:n])]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens, and the next token of each.

    Attributes
    ----------
    tokens, targets : ndarray, int64, shape (rows, length)
        Rows are padded at the end; the targets of padding are `IGNORED`.
    n_bytes : int
        Bytes of the text that the targets stand for.
    """

    tokens: Tokens
    targets: Tokens
    n_bytes: int

    @property
    def n_tokens(self) -> int:
        """Number of targets that count."""
        return int(np.count_nonzero(self.targets != IGNORED))


@dataclass(frozen=True, slots=True)
class _Row:
    """Up to ``max_seq_len`` targets of one story, and the token before them."""

    tokens: Tokens
    n_bytes: int


class Dataset:
    """Encoded stories in buckets of similar length, so that batches need little padding.

    Each story is a row of its own and starts at position 0, as in generation: no other story is in
    its context. Only a few row lengths occur, so that compiled code serves all of them.

    Parameters
    ----------
    stories : sequence of str
        The texts.
    tokenizer : Tokenizer
        Encodes them.
    max_seq_len : int
        Tokens of the longest row. A longer story continues in further rows, without a BOS.
    batch_tokens : int
        Tokens per batch, padding included: a batch has ``batch_tokens // length`` rows.

    Attributes
    ----------
    n_tokens : int
        Targets of one pass.

    Raises
    ------
    CorpusError
        If there is no story.
    """

    def __init__(
        self, stories: Sequence[str], tokenizer: Tokenizer, max_seq_len: int, batch_tokens: int
    ) -> None:
        if not stories:
            raise CorpusError("no story is left to train on; the corpus needs at least two")
        self.batch_tokens = batch_tokens
        self.n_tokens = 0
        self._buckets: dict[int, list[_Row]] = {length: [] for length in _lengths(max_seq_len)}
        for story in stories:
            for row in _rows(story, tokenizer, max_seq_len):
                n_targets = len(row.tokens) - 1
                length = next(length for length in self._buckets if length >= n_targets)
                self._buckets[length].append(row)
                self.n_tokens += n_targets

    @property
    def n_batches(self) -> int:
        """Batches per pass."""
        return sum(
            -(-len(rows) // self._batch_rows(length)) for length, rows in self._buckets.items()
        )

    def _batch_rows(self, length: int) -> int:
        """Return the number of rows in a batch of rows of ``length`` tokens."""
        return max(1, self.batch_tokens // length)

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield every row once, in an order that depends on ``seed`` and ``epoch`` only."""
        rng = np.random.default_rng([seed, epoch])
        order = []
        for length, rows in self._buckets.items():
            n = self._batch_rows(length)
            shuffled = rng.permutation(len(rows))
            order += [(length, shuffled[i : i + n], n) for i in range(0, len(rows), n)]
        for index in rng.permutation(len(order)):
            length, chosen, n = order[index]
            rows = self._buckets[length]
            yield _pad([rows[i] for i in chosen], length, n)


def _rows(story: str, tokenizer: Tokenizer, max_seq_len: int) -> Iterator[_Row]:
    """Yield the rows of one story."""
    tokens = [*tokenizer.encode(story, bos=True), tokenizer.bos_id]
    n_targets = len(tokens) - 1
    decoder = tokenizer.decoder(previous=tokens[0])
    for start in range(0, n_targets, max_seq_len):
        row = tokens[start : start + max_seq_len + 1]
        if n_targets <= max_seq_len:
            n_bytes = len(story.encode())  # no need to decode: the row is the whole story
        else:
            n_bytes = sum(len(decoder.feed(token).encode()) for token in row[1:])
        yield _Row(np.array(row, dtype=np.int64), n_bytes)


def _lengths(max_seq_len: int) -> list[int]:
    """Return the row lengths: steps of a quarter to a third keep padding near a tenth."""
    lengths, length = [], 128
    while length < max_seq_len:
        lengths.append(length)
        length += 32 if length < 256 else 64 if length < 384 else 128
    return [*lengths, max_seq_len]


def _pad(rows: Sequence[_Row], length: int, n: int) -> Batch:
    """Make a batch of ``n`` rows; rows beyond those given are all padding."""
    tokens = np.zeros((n, length), np.int64)
    targets = np.full((n, length), IGNORED, np.int64)
    for i, row in enumerate(rows):
        n_targets = len(row.tokens) - 1
        tokens[i, :n_targets] = row.tokens[:-1]
        targets[i, :n_targets] = row.tokens[1:]
    return Batch(tokens, targets, sum(row.n_bytes for row in rows))

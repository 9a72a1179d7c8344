"""Stories become batches that lose no token and no byte."""

from __future__ import annotations

import numpy as np
import pytest

from llama2py import CorpusError
from llama2py.training.dataset import IGNORED, Dataset, split_stories
from tests.conftest import tiny_tokenizer
from tests.support.tiny_training import made_up_stories


def test_each_story_is_on_one_side_of_the_split() -> None:
    stories = [f"story {i}" for i in range(50)]
    train, held_out = split_stories(stories, 0.2, seed=1)
    assert len(held_out) == 10
    assert sorted(train + held_out) == sorted(stories)
    assert split_stories(stories, 0.2, seed=2)[1] != held_out
    assert split_stories(stories, 0.0, seed=1) == (stories, [])
    assert len(split_stories(stories, 0.001, seed=1)[1]) == 1
    assert split_stories(["only one"], 0.5, seed=1) == (["only one"], [])


@pytest.mark.parametrize("max_seq_len", [7, 40, 500])
def test_a_pass_has_every_token_and_byte_once(max_seq_len: int) -> None:
    """Also where a story is longer than the context, and rows begin within a character."""
    tokenizer = tiny_tokenizer()
    stories = [*made_up_stories(30), "a", "Ein Bär 🐻 und eine 🐭, " * 9]
    dataset = Dataset(stories, tokenizer, max_seq_len, batch_tokens=4 * max_seq_len)
    batches = list(dataset.batches(seed=1, epoch=0))
    assert len(batches) == dataset.n_batches
    n_tokens = sum(len(tokenizer.encode(story)) for story in stories)  # a BOS in, a BOS out
    assert sum(batch.n_tokens for batch in batches) == dataset.n_tokens == n_tokens
    assert sum(batch.n_bytes for batch in batches) == sum(len(s.encode()) for s in stories)
    targets = np.concatenate([batch.targets.ravel() for batch in batches])
    expected = [t for s in stories for t in [*tokenizer.encode(s, bos=False), tokenizer.bos_id]]
    assert sorted(targets[targets != IGNORED]) == sorted(expected)


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    dataset = Dataset(made_up_stories(40), tiny_tokenizer(), 64, batch_tokens=256)

    def order(seed: int, epoch: int) -> bytes:
        return b"".join(batch.tokens.tobytes() for batch in dataset.batches(seed, epoch))

    assert order(1, 0) == order(1, 0)
    assert len({order(1, 0), order(1, 1), order(2, 0)}) == 3


def test_no_story_is_an_error() -> None:
    with pytest.raises(CorpusError, match="at least two"):
        Dataset([], tiny_tokenizer(), 64, 64)

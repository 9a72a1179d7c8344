"""Stories that repeat themselves: how a loop is found, and what the teller does about it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2py import Model, Story, StoryTeller
from llama2py.stories.guide import LoopDetector
from llama2py.stories.teller import TRIES
from llama2py.tokenizers.tokenizer import BOS
from tests.support.scripted import ScriptedBackend
from tests.support.scripted_stories import TOKENIZER, is_whole, raw


def first_round(tokens: list[int]) -> tuple[int, int] | None:
    """The number of tokens when a loop is found, and up to the end of its first round."""
    detector = LoopDetector()
    for n, token in enumerate(tokens, 1):
        if (end := detector.accept(token)) is not None:
            return n, end
    return None


def repeats(text: str) -> int:
    """The largest number of times that words repeat in a row, over at least 30 words: the oracle.

    It compares words, not tokens, at every place and for every period.
    """
    words, most = text.split(), 0
    for period in range(1, len(words) // 2 + 1):
        run = 0
        for i in range(period, len(words)):
            run = run + 1 if words[i] == words[i - period] else 0
            if run >= period and run + period >= 30:
                most = max(most, (run + period) // period)
    return most


# ---- the detector ----


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([7] * 30, (24, 1)),
        ([1, 2, 3] + [7] * 30, (27, 4)),
        ([1, 2] * 20, (24, 2)),
        ([9, 8, *[1, 2] * 20], (26, 4)),
        ([*range(8)] * 3, (24, 8)),
        ([*range(50)] * 3, (150, 50)),
        ([*range(50)] * 2, None),
        ([7] * 23, None),
        ([1, 2, 3, 1, 2, 4] * 3, None),  # 18 tokens
        ([*range(8), *range(8), *range(7), 99] * 2, None),
        ([], None),
    ],
)
def test_three_rounds_and_24_tokens_are_a_loop(
    tokens: list[int], found: tuple[int, int] | None
) -> None:
    assert first_round(tokens) == found


@given(st.lists(st.integers(0, 2), max_size=60))
def test_a_loop_is_found_at_its_first_token_and_only_then(tokens: list[int]) -> None:
    """Compared with a search of every period at every place."""

    def loops(n: int) -> bool:
        for period in range(1, n // 3 + 1):
            length = max(3 * period, 24)
            tail = tokens[n - length : n] if length <= n else []
            if tail and tail[period:] == tail[:-period]:
                return True
        return False

    expected = next((n for n in range(1, len(tokens) + 1) if loops(n)), None)
    found = first_round(tokens)
    assert (found and found[0]) == expected


# ---- the teller ----

LOOP = " so it ran." + " and then" * 3  # as tokens of one byte: 27 in the loop
SECOND = " it sat."


def test_a_story_that_loops_is_written_again_with_another_seed() -> None:
    backend = ScriptedBackend([*raw(LOOP), *raw(SECOND), BOS], 300)
    teller = StoryTeller(Model(backend, TOKENIZER), candidates=1)
    assert teller(opening="A cat.", seed=5) == Story("A cat. it sat.", "A story", 5, True)
    assert len(set(backend.coins)) == len(backend.coins)  # the second try has its own coins


def test_a_story_ends_before_the_loop_if_every_try_loops() -> None:
    backend = ScriptedBackend(raw(LOOP) * TRIES, 300)
    story = StoryTeller(Model(backend, TOKENIZER), candidates=1)(opening="A cat.", seed=5)
    assert story == Story("A cat. so it ran.", "A story", 5, False)


def test_a_greedy_story_that_loops_is_not_tried_again() -> None:
    """At temperature 0 every try would be the same."""
    backend = ScriptedBackend(raw(LOOP), 300)
    story = StoryTeller(Model(backend, TOKENIZER), temperature=0)(opening="A cat.", seed=5)
    assert story == Story("A cat. so it ran.", "A story", 5, False)


def test_a_try_that_loops_does_not_count_though_it_has_all_words() -> None:
    """All tries loop, and so the opening names the word."""
    text = " owl owl owl owl owl owl owl"
    first, others = raw(text)[:24], [token for token in raw(text)[:24] for _ in range(TRIES - 1)]
    backend = ScriptedBackend([*first, *others, *raw(" it ran."), BOS], 300)
    story = StoryTeller(Model(backend, TOKENIZER), candidates=1)(
        opening="A cat.", words=["owl"], seed=5
    )
    assert story.text == "A cat. It is a story about owl. it ran."


# ---- the built-in model ----


@pytest.fixture(scope="module")
def tell() -> Iterator[StoryTeller]:
    """A teller with the built-in model."""
    with StoryTeller() as teller:
        yield teller


@pytest.mark.parametrize(
    ("about", "seed"),
    [("the moon and the sea", 71), ("Lily and her cat", 272)],
)
def test_seeds_that_used_to_loop_give_whole_stories(
    tell: StoryTeller, about: str, seed: int
) -> None:
    story = tell(about, seed=seed)
    assert repeats(story.text) < 3
    assert is_whole(story.text)
    assert story.ended
    assert [story] == list(tell.many(1, about=about, seed=seed, max_batch=1))
    assert story in list(tell.many(3, about=about, seed=seed - 1, max_batch=3))


def test_no_story_of_seeds_1_to_15_loops(tell: StoryTeller) -> None:
    assert max(repeats(story.text) for story in tell.many(15, seed=1)) < 3


@pytest.mark.slow
@pytest.mark.parametrize("about", ["", "Lily and her cat"])
def test_no_story_of_seeds_1_to_500_loops(tell: StoryTeller, about: str) -> None:
    stories = list(tell.many(500, seed=1, about=about))
    assert max(repeats(story.text) for story in stories) < 3


def test_the_oracle_counts_repeats() -> None:
    assert repeats("a " * 30) == 30
    assert repeats("x y " + "one two three four five six seven eight nine ten " * 3) == 3
    assert repeats("he ran and ran and ran and ran") == 0  # seven words
    assert repeats(" ".join(map(str, range(100)))) == 0

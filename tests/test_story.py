"""Stories: whole, reproducible, in bounds, with the words that were asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice

import pytest
from conftest import tiny_model

import llama2py
from llama2py import ClosedError, ParameterError, PromptError, Story, StoryTeller
from llama2py.words import has_word


@pytest.fixture(scope="module")
def tell() -> StoryTeller:
    """The built-in model's."""
    return StoryTeller()


def is_whole(text: str) -> bool:
    return text[-1] in ".!?\"'" and text == text.strip()


def test_a_story_is_about_what_was_asked(tell: StoryTeller) -> None:
    story = tell("a dragon who is afraid of fire", seed=7)
    assert str(story) == story.text
    assert story.text.startswith("Once upon a time, there was a dragon who was afraid of fire.")
    assert story.title == "A dragon who is afraid of fire"
    assert story.words > 30
    assert story == tell("a dragon who is afraid of fire", seed=7)
    assert story != tell("a dragon who is afraid of fire", seed=8)
    assert is_whole(story.text)


@pytest.mark.parametrize("max_batch", [1, 7])
def test_many_are_what_single_calls_tell(tell: StoryTeller, max_batch: int) -> None:
    many = list(tell.many(9, seed=3, max_words=60, max_batch=max_batch))
    assert many == [tell(seed=3 + i, max_words=60) for i in range(9)]
    assert [story.seed for story in many] == list(range(3, 12))


def test_stories_keep_within_their_words_and_are_whole(tell: StoryTeller) -> None:
    for max_words in (10, 25, 80):
        for story in tell.many(12, seed=1, max_words=max_words):
            assert 0 < story.words <= max_words
            assert is_whole(story.text)


def test_long_stories_end_by_themselves(tell: StoryTeller) -> None:
    stories = list(tell.many(12, seed=1))
    assert sum(story.ended for story in stories) >= 6
    assert all(story.text[0].isupper() or story.text[0] == '"' for story in stories)


def test_words_appear_whatever_it_takes(tell: StoryTeller) -> None:
    words = ["dragon", "umbrella"]
    for story in tell.many(3, seed=5, words=words):
        assert all(has_word(story.text, word) for word in words)
    assert tell(seed=5, words=words) == next(tell.many(1, seed=5, words=words))
    with tiny_model() as model:  # random weights: only the opening can name them
        story = StoryTeller(model)(words=["ab", "cd"], seed=1, max_words=20)
        assert has_word(story.text, "ab")
        assert has_word(story.text, "cd")


def test_an_opening_is_taken_as_it_is(tell: StoryTeller) -> None:
    story = tell(opening="The cat and the queen", seed=2)
    assert story.text.startswith("The cat and the queen")
    assert is_whole(story.text)


def test_numbers_out_of_range_are_errors_at_once(tell: StoryTeller) -> None:
    for wrong in (
        {"max_words": 9},
        {"max_words": 10_001},
        {"seed": -1},
        {"seed": 1 << 64},
        {"about": "a cat", "opening": "A dog"},
        {"opening": "word " * 12, "max_words": 12},
        {"words": [" "]},
    ):
        with pytest.raises(ParameterError):
            tell.many(1, **wrong)  # type: ignore[arg-type,unused-ignore]
    for count, batch in ((-1, 1), (1, 0)):
        with pytest.raises(ParameterError):
            tell.many(count, max_batch=batch)
    with pytest.raises(PromptError):
        tell.many(1, opening="word " * 600, max_words=5000)
    with pytest.raises(ParameterError):
        StoryTeller(temperature=-1)


def test_without_end_and_none(tell: StoryTeller) -> None:
    assert list(tell.many(0)) == []
    last = (1 << 64) - 1
    stories = list(islice(tell.many(None, seed=last, max_words=20), 2))
    assert [story.seed for story in stories] == [last, 0]  # seeds begin anew


def test_a_page_in_a_notebook_is_escaped() -> None:
    page = Story("A <b> & c.\nSecond.", "<i>", 3, True)._repr_html_()
    assert "<p>A &lt;b&gt; &amp; c.</p><p>Second.</p>" in page
    assert "<h3>&lt;i&gt;</h3>" in page


def test_a_model_that_was_handed_in_stays_open() -> None:
    with llama2py.load() as model:
        with StoryTeller(model) as tell:
            tell(seed=1, max_words=20)
        assert model.generate(seed=1, max_tokens=3).tokens
    with StoryTeller() as tell:
        pass
    with pytest.raises(ClosedError):
        tell(seed=1)


def test_the_command() -> None:
    def run(*more: str) -> str:
        call = [sys.executable, "-m", "llama2py", "story", *more]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout

    text = run("a small bear", "-s", "4")
    assert text.startswith("Once upon a time, there was a small bear.")
    assert max(map(len, text.splitlines())) <= 80
    lines = run("-s", "4", "-n", "3", "--jsonl", "--max-words", "40").splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [4, 5, 6]

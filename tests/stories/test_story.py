"""Stories of the built-in model; what a call refuses, how many it tells, titles, closed models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llama2py import ClosedError, Model, ParameterError, PromptError, Session, Story, StoryTeller
from llama2py._data import builtin_model
from llama2py.engine.native import Engine
from llama2py.stories.words import has_word
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, random_checkpoint, tiny_model, tiny_tokenizer
from tests.support.scripted_stories import is_whole, scripted, told


@pytest.fixture(scope="module")
def builtin() -> StoryTeller:
    """The built-in model's."""
    return StoryTeller()


@pytest.fixture(scope="module")
def tell() -> Iterator[StoryTeller]:
    """Random weights, and a context that openings fit in."""
    with Model(Engine(random_checkpoint(replace(TINY, seq_len=128))), tiny_tokenizer()) as model:
        yield StoryTeller(model)


# ---- the built-in model ----


def test_a_story_is_about_what_was_asked(builtin: StoryTeller) -> None:
    story = builtin("a dragon who is afraid of fire", seed=7)
    assert str(story) == story.text
    assert story.text.startswith("Once upon a time, there was a dragon who was afraid of fire.")
    assert story.title == "A dragon who is afraid of fire"
    assert story.words > 30
    assert story == builtin("a dragon who is afraid of fire", seed=7)
    assert story != builtin("a dragon who is afraid of fire", seed=8)
    assert is_whole(story.text)


@pytest.mark.parametrize("max_batch", [1, 7])
def test_many_are_what_single_calls_tell(builtin: StoryTeller, max_batch: int) -> None:
    many = list(builtin.many(9, seed=3, max_words=60, max_batch=max_batch))
    assert many == [builtin(seed=3 + i, max_words=60) for i in range(9)]
    assert [story.seed for story in many] == list(range(3, 12))


def test_stories_keep_within_their_words_and_are_whole(builtin: StoryTeller) -> None:
    for max_words in (10, 25, 80):
        for story in builtin.many(12, seed=1, max_words=max_words):
            assert 0 < story.words <= max_words
            assert is_whole(story.text)


def test_long_stories_end_by_themselves(builtin: StoryTeller) -> None:
    stories = list(builtin.many(12, seed=1))
    assert sum(story.ended for story in stories) >= 6
    assert all(story.text[0].isupper() or story.text[0] == '"' for story in stories)


def test_words_appear_whatever_it_takes(builtin: StoryTeller) -> None:
    words = ["dragon", "umbrella"]
    for story in builtin.many(3, seed=5, words=words):
        assert all(has_word(story.text, word) for word in words)
    assert builtin(seed=5, words=words) == next(builtin.many(1, seed=5, words=words))
    with tiny_model() as model:  # random weights: only the opening can name them
        story = StoryTeller(model)(words=["ab", "cd"], seed=1, max_words=20)
        assert has_word(story.text, "ab")
        assert has_word(story.text, "cd")


def test_an_opening_is_taken_as_it_is(builtin: StoryTeller) -> None:
    story = builtin(opening="The cat and the queen", seed=2)
    assert story.text.startswith("The cat and the queen")
    assert is_whole(story.text)


def test_the_command() -> None:
    def run(*more: str) -> str:
        call = [sys.executable, "-m", "llama2py", "story", *more]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout

    text = run("a small bear", "-s", "4")
    assert text.startswith("Once upon a time, there was a small bear.")
    assert max(map(len, text.splitlines())) <= 80
    lines = run("-s", "4", "-n", "3", "--jsonl", "--max-words", "40").splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [4, 5, 6]


# ---- what is refused ----

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"about": "a dog", "opening": "A dog"}, "both about and opening"),
    ({"max_words": 9}, "max_words is 9, expected 10 to 10000"),
    ({"max_words": 10_001}, "max_words is 10001"),
    ({"max_words": -1}, "max_words is -1"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**64}, f"seed is {2**64}"),
    ({"words": ["owl", " \n"]}, "word that must appear is empty"),
    ({"words": ""}, "word that must appear is empty"),
    ({"opening": "a " * 11, "max_words": 10}, "opening has 11 words"),
    ({"words": list("abcdefgh"), "max_words": 10}, "opening has 14 words"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_arguments_are_errors_of_the_call(
    tell: StoryTeller, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        tell(**wrong)
    with pytest.raises(ParameterError, match=message):
        tell.many(3, **wrong)  # not first when it is read
    with pytest.raises(ParameterError, match=message):
        tell.many(0, **wrong)


@pytest.mark.parametrize(
    "wrong", [{"opening": "a" * 300}, {"opening": "\ud800"}, {"about": "x" * 300}]
)
def test_an_opening_that_cannot_be_run_is_an_error_of_the_call(
    tell: StoryTeller, wrong: dict[str, Any]
) -> None:
    with pytest.raises(PromptError):
        tell(**wrong)
    with pytest.raises(PromptError):
        tell.many(3, **wrong)


@pytest.mark.parametrize(("count", "max_batch"), [(-1, 1), (1, 0), (1, -3)])
def test_counts_out_of_range_are_errors_of_the_call(
    tell: StoryTeller, count: int, max_batch: int
) -> None:
    with pytest.raises(ParameterError, match=r"count is|max_batch is"):
        tell.many(count, max_batch=max_batch)


@pytest.mark.parametrize("wrong", [{"max_words": 20.5}, {"seed": 1.0}, {"max_batch": 2.0}])
def test_numbers_are_whole(tell: StoryTeller, wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        tell.many(1, **wrong)


def test_an_opening_of_just_max_words_is_a_story() -> None:
    assert told("", opening="a b c d e f g h i j.", max_words=10).text == "a b c d e f g h i j."


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 1.5}, {"temperature": float("nan")}]
)
def test_bad_sampling_is_an_error_before_anything_is_loaded(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        StoryTeller("no such file", **wrong)


# ---- how many ----


def test_none_is_without_end(tell: StoryTeller) -> None:
    stories = tell.many(None, seed=7, max_words=10, max_batch=3)
    assert [story.seed for story in islice(stories, 10)] == list(range(7, 17))


def test_no_story_asked_for_none_told(tell: StoryTeller) -> None:
    assert list(tell.many(0)) == []
    assert list(tell.many(0, words=["owl"])) == []


@pytest.mark.parametrize("count", [0, 3])
def test_a_bar_changes_no_story(
    tell: StoryTeller, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = list(tell.many(count, seed=1))
    assert list(tell.many(count, seed=1, progress=True)) == expected
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{count}/{count}" in err or not count


def test_nothing_runs_before_the_first_story_is_asked_for() -> None:
    teller, backend = scripted("a.", [BOS] * 99)
    stories = teller.many(3, seed=1)
    assert backend.runs == []
    next(stories)
    assert backend.runs


@pytest.fixture
def most_open(monkeypatch: pytest.MonkeyPatch) -> Callable[[StoryTeller], Callable[[], int]]:
    """Watches a teller's model: the most sessions that were open at once."""

    def watch(teller: StoryTeller) -> Callable[[], int]:
        now = most = 0
        teller.model.reuse_prefixes(0)  # or some would be kept for later prompts
        make = teller.model.session

        def session() -> Session:
            nonlocal now, most
            opened = make()
            shut, done = opened.close, False
            now += 1
            most = max(most, now)

            def close() -> None:
                nonlocal now, done
                now -= not done
                done = True
                shut()

            monkeypatch.setattr(opened, "close", close)
            return opened

        monkeypatch.setattr(teller.model, "session", session)
        return lambda: most if now == 0 else -now

    return watch


@pytest.mark.parametrize(
    ("way", "most"), [({}, 2), ({"words": ["owl"]}, 2)], ids=["plain", "words"]
)
def test_so_many_at_a_time(
    tell: StoryTeller,
    most_open: Callable[[StoryTeller], Callable[[], int]],
    way: dict[str, Any],
    most: int,
) -> None:
    """With words the tries of one story are what runs together. None stays open."""
    at_once = most_open(tell)
    assert len(list(tell.many(5, seed=1, max_batch=2, **way))) == 5
    assert at_once() == most


@pytest.mark.parametrize(("way", "most"), [({}, 1), ({"words": ["owl"]}, 2)])
def test_an_opening_is_encoded_once(
    tell: StoryTeller, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any], most: int
) -> None:
    """Not for every story and try; the one that names the words is another."""
    encoded: list[str | Sequence[int]] = []
    encode = tell.model.prompt_tokens

    def prompt_tokens(prompt: str | Sequence[int]) -> list[int]:
        encoded.append(prompt)
        return encode(prompt)

    monkeypatch.setattr(tell.model, "prompt_tokens", prompt_tokens)
    assert len(list(tell.many(3, seed=1, about="a dog", **way))) == 3
    assert len(encoded) == most


def test_one_call_is_one_session(
    tell: StoryTeller, most_open: Callable[[StoryTeller], Callable[[], int]]
) -> None:
    at_once = most_open(tell)
    tell(seed=1)
    assert at_once() == 1


# ---- titles and pages ----


@pytest.mark.parametrize(
    ("opening", "title"),
    [
        ("Once there was a girl named Lily.", "The story of Lily"),
        ("Once upon a time, Tom saw Sam.", "The story of Tom"),
        ("One day, Max met a cat named Kit.", "The story of Kit"),
        ("It was a day in may.", "A story"),
        ("Lily was sad.", "The story of Lily"),
        ("Tom and Sam went home.", "The story of Tom"),
        ("There was a cat.", "A story"),
        ("He was sad.", "A story"),
        ("One day, she met Mr. Fox.", "The story of Mr. Fox"),
    ],
)
def test_a_title_tells_the_hero(opening: str, title: str) -> None:
    assert told("", opening=opening).title == title


def test_about_is_the_title(tell: StoryTeller) -> None:
    assert tell("two OWLS", seed=1).title == "Two OWLS"
    assert tell("Lily", seed=1).title == "Lily"


@pytest.mark.parametrize(
    ("about", "title"), [("  a  dog\n", "A dog"), ("a\nb", "A b"), (" ", "A story")]
)
def test_white_space_makes_no_title(about: str, title: str) -> None:
    assert told(" it ran.", about=about).title == title


def test_a_page_is_escaped_and_has_a_paragraph_for_each_line() -> None:
    page = Story('<b> & "c"\n\n \nd <script>', "<i>&", 7, True)._repr_html_()
    assert page.count("<p>") == 2
    assert "<p>&lt;b&gt; &amp; &quot;c&quot;</p>" in page
    assert "<h3>&lt;i&gt;&amp;</h3>" in page
    assert "<script>" not in page
    assert "5 words, seed 7" in page


# ---- models ----


def test_a_model_handed_in_stays_open() -> None:
    with tiny_model() as model:
        with StoryTeller(model) as teller:
            assert teller.model is model
        teller.close()
        assert model.generate(max_tokens=2, seed=1)


@pytest.mark.parametrize("path", [None, builtin_model()], ids=["default", "path"])
def test_a_model_of_its_own_is_closed(path: Path | None) -> None:
    with StoryTeller(path, threads=1) as teller:
        story = teller("a dog", seed=1, max_words=20)
        assert story.text.startswith("Once upon a time, there was a dog.")
        assert story.words <= 20
    teller.close()
    with pytest.raises(ClosedError):
        teller("a dog")


def test_a_closed_model_is_an_error_of_the_call() -> None:
    with tiny_model() as model:
        teller = StoryTeller(model)
    with pytest.raises(ClosedError):
        teller.many(1)


@pytest.mark.parametrize("how", [{"tokenizer": "a.bin"}, {"threads": 1}])
def test_what_a_loaded_model_has_already_is_refused(how: dict[str, Any]) -> None:
    with tiny_model() as model, pytest.raises(ParameterError, match="with a loaded model"):
        StoryTeller(model, **how)

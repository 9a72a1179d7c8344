"""StoryTeller: the built-in model, wrong arguments, the number of stories, titles, closing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from llama2py import ClosedError, Model, ParameterError, PromptError, Session, Story, StoryTeller
from llama2py._data import builtin_model
from llama2py.engine.native import Engine
from llama2py.stories.english import has_word
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, random_checkpoint, tiny_model, tiny_tokenizer
from tests.support.scripted_stories import is_whole, scripted, story_of


@pytest.fixture(scope="module")
def builtin() -> StoryTeller:
    """A teller with the built-in model."""
    return StoryTeller()


@pytest.fixture(scope="module")
def tell() -> Iterator[StoryTeller]:
    """A teller with random weights and a context that fits the openings."""
    with Model(Engine(random_checkpoint(replace(TINY, seq_len=128))), tiny_tokenizer()) as model:
        yield StoryTeller(model)


# ---- the built-in model ----


def test_a_story_is_about_its_subject(builtin: StoryTeller) -> None:
    story = builtin("a dragon who is afraid of fire", seed=7)
    assert str(story) == story.text
    assert story.text.startswith("Once upon a time, there was a dragon who was afraid of fire.")
    assert story.title == "A dragon who is afraid of fire"
    assert story.words > 30
    assert story == builtin("a dragon who is afraid of fire", seed=7)
    assert story != builtin("a dragon who is afraid of fire", seed=8)
    assert is_whole(story.text)


@pytest.mark.parametrize("max_batch", [1, 7])
def test_many_gives_the_same_stories_as_single_calls(builtin: StoryTeller, max_batch: int) -> None:
    many = list(builtin.many(9, seed=3, max_words=60, max_batch=max_batch))
    assert many == [builtin(seed=3 + i, max_words=60) for i in range(9)]
    assert [story.seed for story in many] == list(range(3, 12))


def test_stories_end_within_their_words_after_a_sentence(builtin: StoryTeller) -> None:
    for max_words in (10, 25, 80):
        for story in builtin.many(12, seed=1, max_words=max_words):
            assert 0 < story.words <= max_words
            assert is_whole(story.text)


def test_most_stories_are_ended_by_the_model(builtin: StoryTeller) -> None:
    stories = list(builtin.many(12, seed=1))
    assert sum(story.ended for story in stories) >= 6
    assert all(story.text[0].isupper() or story.text[0] == '"' for story in stories)


@pytest.mark.parametrize("seed", [4, 5])
def test_a_single_candidate_is_the_text_of_the_model(builtin: StoryTeller, seed: int) -> None:
    """At temperature 0.7, with the names that the model gave it."""
    model = builtin.model
    text = model.generate("", None, 0.7, 0.9, seed=seed).text
    assert StoryTeller(model, candidates=1)(seed=seed).text == text.strip()
    assert builtin(seed=seed).text != text.strip()


def test_heroes_have_different_names(builtin: StoryTeller) -> None:
    """The model calls half of them Tim or Lily."""
    titles = Counter(story.title for story in builtin.many(20, seed=1))
    names = {title: n for title, n in titles.items() if title.startswith("The story of")}
    assert sum(names.values()) >= 12
    assert max(names.values()) <= 3


def test_words_appear_in_every_story(builtin: StoryTeller) -> None:
    words = ["dragon", "umbrella"]
    for story in builtin.many(3, seed=5, words=words):
        assert all(has_word(story.text, word) for word in words)
    assert builtin(seed=5, words=words) == next(builtin.many(1, seed=5, words=words))
    with tiny_model() as model:  # with random weights only the opening can name the words
        story = StoryTeller(model)(words=["ab", "cd"], seed=1, max_words=20)
        assert has_word(story.text, "ab")
        assert has_word(story.text, "cd")


def test_an_opening_is_used_as_it_is(builtin: StoryTeller) -> None:
    story = builtin(opening="The cat and the queen", seed=2)
    assert story.text.startswith("The cat and the queen")
    assert is_whole(story.text)


# ---- wrong arguments ----

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"about": "a dog", "opening": "A dog"}, "about and opening are both given"),
    ({"max_words": 9}, "max_words is 9, expected a whole number from 10 to 10000"),
    ({"max_words": 10_001}, "max_words is 10001"),
    ({"max_words": -1}, "max_words is -1"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**64}, f"seed is {2**64}"),
    ({"words": ["owl", " \n"]}, "words has an empty word"),
    ({"words": ""}, "words has an empty word"),
    ({"opening": "a " * 11, "max_words": 10}, "opening has 11 words"),
    ({"words": list("abcdefgh"), "max_words": 10}, "opening has 14 words"),
    ({"max_words": 20.5}, "max_words is 20.5, expected a whole number"),
    ({"max_words": None}, "max_words is None, expected a whole number"),
    ({"seed": 1.0}, "seed is 1.0, expected a whole number"),
    ({"words": 5}, "words is 5, expected a sequence of str"),
    ({"words": ["owl", None]}, "words is .*, expected a sequence of str"),
    ({"about": 5}, "about is 5, expected a str"),
    ({"opening": b"A"}, "opening is b'A', expected a str"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_arguments_are_errors_of_the_call(
    tell: StoryTeller, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        tell(**wrong)
    with pytest.raises(ParameterError, match=message):
        tell.many(3, **wrong)  # and not only when the iterator is read
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


@pytest.mark.parametrize(
    ("count", "max_batch"), [(-1, 1), (1, 0), (1, -3), (2.0, 1), ("3", 1), (1, 2.0)]
)
def test_counts_out_of_range_are_errors_of_the_call(
    tell: StoryTeller, count: Any, max_batch: Any
) -> None:
    with pytest.raises(ParameterError, match=r"count is|max_batch is"):
        tell.many(count, max_batch=max_batch)


def test_an_opening_of_exactly_max_words_is_a_story() -> None:
    assert story_of("", opening="a b c d e f g h i j.", max_words=10).text == "a b c d e f g h i j."


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 1.5},
        {"temperature": float("nan")},
        {"candidates": 0},
        {"candidates": 2.5},
    ],
)
def test_bad_sampling_is_an_error_before_anything_is_loaded(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        StoryTeller("no such file", **wrong)


# ---- the number of stories ----


def test_a_count_of_none_gives_endless_stories(tell: StoryTeller) -> None:
    stories = tell.many(None, seed=7, max_words=10, max_batch=3)
    assert [story.seed for story in islice(stories, 10)] == list(range(7, 17))


def test_a_count_of_0_gives_no_story(tell: StoryTeller) -> None:
    assert list(tell.many(0)) == []
    assert list(tell.many(0, words=["owl"])) == []


@pytest.mark.parametrize("count", [0, 3])
def test_a_progress_bar_does_not_change_the_stories(
    tell: StoryTeller, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = list(tell.many(count, seed=1))
    assert list(tell.many(count, seed=1, progress=True)) == expected
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{count}/{count}" in err or not count


def test_nothing_runs_before_the_first_story_is_taken() -> None:
    teller, backend = scripted("a.", [BOS] * 99)
    stories = teller.many(3, seed=1)
    assert backend.runs == []
    next(stories)
    assert backend.runs


@pytest.fixture
def most_open(monkeypatch: pytest.MonkeyPatch) -> Callable[[StoryTeller], Callable[[], int]]:
    """Watch all sessions: the largest number that is open at a time."""

    def watch(teller: StoryTeller) -> Callable[[], int]:
        teller.model.reuse_prefixes(0)  # the cache would keep some sessions open
        is_open: set[int] = set()
        most = 0
        make, close = Session.__init__, Session.close

        def init(self: Session, *args: Any, **kwargs: Any) -> None:
            nonlocal most
            make(self, *args, **kwargs)
            is_open.add(id(self))
            most = max(most, len(is_open))

        def shut(self: Session) -> None:
            is_open.discard(id(self))
            close(self)

        monkeypatch.setattr(Session, "__init__", init)
        monkeypatch.setattr(Session, "close", shut)
        return lambda: -len(is_open) or most

    return watch


@pytest.mark.parametrize(
    ("way", "most"), [({}, 3), ({"words": ["owl"]}, 3)], ids=["plain", "words"]
)
def test_max_batch_bounds_the_open_sessions(
    tell: StoryTeller,
    most_open: Callable[[StoryTeller], Callable[[], int]],
    way: dict[str, Any],
    most: int,
) -> None:
    """One more session scores the candidates. No session stays open."""
    at_once = most_open(tell)
    assert len(list(tell.many(5, seed=1, max_batch=2, **way))) == 5
    assert 2 <= at_once() <= most


@pytest.mark.parametrize(("way", "most"), [({}, 1), ({"words": ["owl"]}, 2)])
def test_an_opening_is_encoded_only_once(
    tell: StoryTeller, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any], most: int
) -> None:
    """Not for each story and try; the opening that names the words is a second one."""
    encoded: list[str | Sequence[int]] = []
    encode = tell.model.prompt_tokens

    def prompt_tokens(prompt: str | Sequence[int]) -> list[int]:
        encoded.append(prompt)
        return encode(prompt)

    monkeypatch.setattr(tell.model, "prompt_tokens", prompt_tokens)
    assert len(list(tell.many(3, seed=1, about="a dog", **way))) == 3
    assert len(encoded) == most


@pytest.mark.parametrize(("candidates", "most"), [(1, 1), (4, 5)])
def test_one_call_uses_a_session_per_candidate(
    tell: StoryTeller,
    most_open: Callable[[StoryTeller], Callable[[], int]],
    candidates: int,
    most: int,
) -> None:
    """Several candidates need one more, which scores them."""
    at_once = most_open(tell)
    StoryTeller(tell.model, candidates=candidates)(seed=1)
    assert candidates <= at_once() <= most


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
        ("Once upon a time, Deep in the forest, it was dark.", "A story"),
        ("She saw Deep water, and Deep snow. It was deep.", "A story"),
        (
            "There was a Big dog. One day, Zak ran. His mom saw Zak, and Zak ran.",
            "The story of Zak",
        ),
    ],
)
def test_a_title_names_the_hero(opening: str, title: str) -> None:
    assert story_of("", opening=opening).title == title


def test_the_subject_is_the_title(tell: StoryTeller) -> None:
    assert tell("two OWLS", seed=1).title == "Two OWLS"
    assert tell("Lily", seed=1).title == "Lily"


@pytest.mark.parametrize(
    ("about", "title"), [("  a  dog\n", "A dog"), ("a\nb", "A b"), (" ", "A story")]
)
def test_white_space_is_left_out_of_a_title(about: str, title: str) -> None:
    assert story_of(" it ran.", about=about).title == title


def test_a_page_is_escaped_and_has_a_paragraph_per_line() -> None:
    page = Story('<b> & "c"\n\n \nd <script>', "<i>&", 7, True)._repr_html_()
    assert page.count("<p>") == 2
    assert "<p>&lt;b&gt; &amp; &quot;c&quot;</p>" in page
    assert "<h3>&lt;i&gt;&amp;</h3>" in page
    assert "<script>" not in page
    assert "5 words, seed 7" in page
    assert "1 word, seed 7" in Story("Hm.", "A story", 7, True)._repr_html_()


def test_a_story_teller_has_a_useful_repr() -> None:
    with tiny_model() as model:
        teller = StoryTeller(model, temperature=0.5)
        assert repr(teller) == f"<StoryTeller temperature=0.5, top_p=0.9, candidates=8, {model!r}>"
        assert repr(StoryTeller(model, candidates=3)) == f"<StoryTeller candidates=3, {model!r}>"
    assert repr(teller).endswith("candidates=8, <Model (closed)>>")


# ---- models ----


def test_a_model_of_the_caller_stays_open() -> None:
    with tiny_model() as model:
        with StoryTeller(model) as teller:
            assert teller.model is model
        teller.close()
        assert model.generate(max_tokens=2, seed=1)


@pytest.mark.parametrize("path", [None, builtin_model()], ids=["default", "path"])
def test_a_model_that_the_teller_loaded_is_closed(path: Path | None) -> None:
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
def test_settings_of_load_are_refused_for_a_loaded_model(how: dict[str, Any]) -> None:
    with (
        tiny_model() as model,
        pytest.raises(ParameterError, match="cannot be set for a loaded model"),
    ):
        StoryTeller(model, **how)

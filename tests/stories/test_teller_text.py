"""The text of stories, with random and scripted models: reproducible, within bounds, whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from llama2py import Model, Story, StoryTeller
from llama2py.checkpoint import Conventions
from llama2py.engine.native import Engine
from llama2py.stories.english import has_word
from llama2py.stories.teller import CANDIDATES, SEED_STRIDE, TRIES
from llama2py.tokenizers.tokenizer import BOS
from tests.conftest import TINY, random_checkpoint, tiny_model
from tests.support.scripted import ScriptedBackend
from tests.support.scripted_stories import TOKENIZER, is_whole, raw, scripted, story_of

LAST_SEED = 2**64 - 1


@pytest.fixture(scope="module")
def tell() -> Iterator[StoryTeller]:
    """A teller with random weights and a context that fits the openings."""
    with Model(Engine(random_checkpoint(replace(TINY, seq_len=128))), TOKENIZER) as model:
        yield StoryTeller(model)


WAYS: list[dict[str, Any]] = [
    {},
    {"about": "a dog"},
    {"about": "Lily"},
    {"opening": "The cat sat", "max_words": 12},
    {"words": ["owl"]},
    {"about": "two owls", "words": ["owl", "cab", "ice cream"], "max_words": 30},
]

# ---- seeds ----


@pytest.mark.parametrize("way", WAYS)
def test_the_same_seed_gives_the_same_story(tell: StoryTeller, way: dict[str, Any]) -> None:
    stories = [tell(seed=seed, **way) for seed in (0, 0, 3, 3, LAST_SEED)]
    assert stories[0] == stories[1]
    assert stories[2] == stories[3]
    assert [story.seed for story in stories] == [0, 0, 3, 3, LAST_SEED]


def test_different_seeds_give_different_stories(tell: StoryTeller) -> None:
    assert len({story.text for story in tell.many(8, seed=1)}) == 8


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("max_batch", [1, 3])
def test_many_gives_the_same_stories_as_calls(
    tell: StoryTeller, way: dict[str, Any], max_batch: int
) -> None:
    expected = [tell(seed=5 + i, **way) for i in range(5)]
    assert list(tell.many(5, seed=5, max_batch=max_batch, **way)) == expected


@pytest.mark.parametrize("way", [{}, {"words": ["owl"]}])
def test_after_the_last_seed_comes_the_first(tell: StoryTeller, way: dict[str, Any]) -> None:
    stories = list(tell.many(3, seed=LAST_SEED - 1, **way))
    assert stories == [tell(seed=seed, **way) for seed in (LAST_SEED - 1, LAST_SEED, 0)]


def test_a_story_has_the_random_seed_that_repeats_it(tell: StoryTeller) -> None:
    first, second = tell(), tell()
    assert first.seed != second.seed
    assert tell(seed=first.seed) == first
    many = list(tell.many(3))
    assert [story.seed - many[0].seed for story in many] == [0, 1, 2]


def test_temperature_and_top_p_change_the_story() -> None:
    with tiny_model() as model:
        cold, wild = StoryTeller(model, temperature=0), StoryTeller(model, temperature=1.5)
        assert cold(seed=1).text == cold(seed=2).text
        assert wild(seed=1).text != wild(seed=2).text
        assert (
            StoryTeller(model, top_p=0.1)(seed=1).text != StoryTeller(model, top_p=1)(seed=1).text
        )


@pytest.mark.parametrize("seed", [0, *(-n * SEED_STRIDE % 2**64 for n in range(1, CANDIDATES))])
def test_each_try_has_its_own_random_numbers(seed: int) -> None:
    """Two equal tries would be a wasted one."""
    backend = ScriptedBackend([BOS] * 100, 300)
    StoryTeller(Model(backend, TOKENIZER))(words=["owl"], seed=seed)
    assert len(set(backend.coins[:CANDIDATES])) == CANDIDATES


def test_no_try_shares_its_random_numbers_with_another_story() -> None:
    coins: Counter[float] = Counter()
    for seed in range(1, 6):
        backend = ScriptedBackend([BOS] * 100, 300)
        StoryTeller(Model(backend, TOKENIZER), candidates=1)(words=["owl"], seed=seed)
        assert len(backend.coins) == TRIES + 1  # the last try's opening names the owl
        coins.update(backend.coins[:TRIES])
    assert max(coins.values()) == 1


# ---- the text ----


def test_a_story_is_its_opening_and_the_text_of_the_model() -> None:
    story = story_of(" sat. it ran!", opening="The cat")
    assert story == Story("The cat sat. it ran!", "A story", 1, True)
    assert (str(story), story.words) == (story.text, 5)


def test_the_subject_becomes_an_opening_and_a_title() -> None:
    story = story_of(" it ran.", about="a cat who is sad")
    assert story.text == "Once upon a time, there was a cat who was sad. it ran."
    assert story.title == "A cat who is sad"


def test_the_model_begins_a_story_without_an_opening() -> None:
    assert story_of("a cat sat. it ran").text == "a cat sat."


@pytest.mark.parametrize("way", WAYS)
def test_every_story_ends_with_a_sentence(tell: StoryTeller, way: dict[str, Any]) -> None:
    for story in tell.many(10, seed=1, **way):
        assert is_whole(story.text)
        assert story.words <= way.get("max_words", 300)


@pytest.mark.parametrize("max_words", [10, 11, 25])
def test_no_story_has_more_than_max_words(tell: StoryTeller, max_words: int) -> None:
    for way in ({}, {"opening": "One two."}, {"words": ["owl"]}):
        for story in tell.many(10, seed=1, max_words=max_words, **way):
            assert story.words <= max_words


def test_a_story_may_have_exactly_max_words() -> None:
    story = story_of(" b c d. e f g h i j. k", opening="A", max_words=10)
    assert story.text == "A b c d. e f g h i j."


def test_a_story_stops_soon_after_max_words() -> None:
    """A model that never ends a story is not run to the end of the context."""
    teller, backend = scripted(" a" * 100, [])
    teller(opening="One.", seed=1, max_words=10)
    prompt = len(TOKENIZER.encode("One."))
    assert len(backend.runs) <= prompt + 2 * 11


def test_a_story_cut_by_the_context_ends_with_a_sentence() -> None:
    teller, _ = scripted("a b. c d" * 20, [], seq_len=30)
    story = teller(seed=1)
    assert (is_whole(story.text), story.ended) == (True, False)


def test_a_story_ends_at_the_end_token_of_the_models_metadata() -> None:
    tokens = [*raw(" and slept. The"), 270, *raw(" end.")]
    model = Model(
        ScriptedBackend(tokens, 300, 256), TOKENIZER, Conventions(end_tokens=frozenset([270]))
    )
    with StoryTeller(model, temperature=0) as tell:
        story = tell(opening="A cat ate", seed=1)
    assert story.text == "A cat ate and slept."


def test_a_story_has_not_ended_if_its_last_sentence_is_open() -> None:
    assert not story_of(" sat. it", opening="The cat").ended
    assert story_of(" sat.\n", opening="The cat").ended  # white space is not a sentence


def test_a_story_cut_by_max_words_has_not_ended() -> None:
    """The guide stops it after ten words, a full stop and a space; the model wanted more."""
    story = story_of(" b c d e f g h i j. k l m.", opening="A", max_words=10)
    assert story.text == "A b c d e f g h i j."
    assert not story.ended


def test_line_breaks_do_not_count_as_words() -> None:
    story = story_of(" b.\n\nc d.\n\ne f.\n\ng h.\n\ni j.", opening="A", max_words=10)
    assert story.words == 10
    assert story.ended


def test_a_story_never_has_part_of_a_character() -> None:
    assert story_of(" a🐶.", opening="A").text == "A a🐶."
    teller, _ = scripted("a" * 20 + ". " + "🐶" * 20, seq_len=24)
    assert teller(seed=1).text == "a" * 20 + "."


def test_an_opening_is_never_cut() -> None:
    opening = 'Tom said, "Hi." Sam said, "Go'
    assert story_of(" on. we will. and", opening=opening).text.startswith(opening)


# ---- words ----


@pytest.mark.parametrize("words", [["owl"], "owl", ["ice  cream", "Zoë"], ["C++", "a", "b", "c"]])
def test_words_appear_whatever_the_model_says(tell: StoryTeller, words: Any) -> None:
    required = [words] if isinstance(words, str) else words
    for story in tell.many(8, seed=1, about="a dog", words=words):
        assert all(has_word(story.text, " ".join(word.split())) for word in required)


def script_of_tries(texts: list[str], last: str = "") -> list[int]:
    """Return the tokens of one text alone, of the others in one batch, then of one more alone."""
    first, *others = ([*raw(text), BOS] for text in texts)
    length = max(map(len, others))
    batch = [tokens[i] for i in range(length) for tokens in others if i < len(tokens)]
    return [*first, *batch, *raw(last), BOS]


def story_with_owl(script: list[int], opening: str) -> Story:
    """Return the story that must have an owl, by a teller without other candidates."""
    backend = ScriptedBackend(script, 300)
    tell = StoryTeller(Model(backend, TOKENIZER), candidates=1)
    return tell(opening=opening, words=["owl"], seed=1)


@pytest.mark.parametrize("more", ['"', '" he said. ', "x", ")x "])
def test_the_sentence_that_names_the_words_is_never_cut(more: str) -> None:
    story = story_with_owl(script_of_tries([" x."] * TRIES, more), "A cat.")
    assert story.text.startswith("A cat. It is a story about owl.")


@pytest.mark.parametrize(
    ("opening", "words"),
    [('Tom said, "Hi." Sam said, "Go', ["owl"]), ("A cat sat.", ['"owl'])],
)
def test_words_appear_after_an_open_quotation(opening: str, words: list[str]) -> None:
    backend = ScriptedBackend([BOS] * 100, 300)
    story = StoryTeller(Model(backend, TOKENIZER))(opening=opening, words=words, seed=1)
    assert all(has_word(story.text, word) for word in words)


def test_the_first_try_with_all_words_is_the_story() -> None:
    """The third and the fifth try have the word, the third is returned."""
    tries = [" cat."] * TRIES
    tries[2], tries[4] = " owl.", " owls"
    assert story_with_owl(script_of_tries(tries), "An").text == "An owl."


def test_a_word_in_the_opening_needs_no_second_try() -> None:
    teller, backend = scripted("", [BOS] * CANDIDATES)
    story = teller(opening="The owls sat.", words=["owl"], seed=4)
    assert story == Story("The owls sat.", "A story", 4, True)
    assert len({position for position, _ in backend.runs}) == len(TOKENIZER.encode("The owls sat."))


def test_a_word_in_the_sentence_that_is_cut_does_not_count() -> None:
    story = story_with_owl(script_of_tries([" owl x"] * TRIES), "A cat.")
    assert story.text == "A cat. It is a story about owl."


# ---- candidates ----


def candidates_of(texts: list[str], scores: list[int], **how: Any) -> str:
    """Return the story of a model that writes these candidates and gives each a score.

    A score is the number of tokens of the text that the model finds probable when it reads it.
    """
    written = [[*raw(text), BOS] for text in texts]
    length = max(map(len, written))
    script = [tokens[i] for i in range(length) for tokens in written if i < len(tokens)]
    for tokens, score in zip(written, scores, strict=True):
        script.append(0)  # the last token of the opening but one
        script += [*tokens[:score], *[0] * (len(tokens) - score)]
    backend = ScriptedBackend(script, 300, 512)
    teller = StoryTeller(Model(backend, TOKENIZER), candidates=len(texts))
    return teller(seed=1, **how).text


LONG = " One fine day a cat met an owl and they both ran to the sea and had a lot of fun together"


def test_the_most_probable_of_several_good_candidates_is_the_story() -> None:
    texts = [f"{LONG} {number}." for number in ("one", "two", "six")]
    for best in range(3):
        scores = [40 if number == best else 20 for number in range(3)]
        assert candidates_of(texts, scores, opening="So.") == f"So.{texts[best]}"


def test_the_first_of_equally_probable_candidates_is_the_story() -> None:
    texts = [f"{LONG} {number}." for number in ("one", "two")]
    assert candidates_of(texts, [30, 30], opening="So.") == f"So.{texts[0]}"


@pytest.mark.parametrize(
    "flawed",
    [
        " It ran.",  # short
        f"{LONG}. It sat. It sat.",
        f"{LONG}. And then they ran to the sea and had a lot of fun together again.",
        f"{LONG} x" + " x" * 30,
    ],
)
def test_a_candidate_without_a_flaw_comes_first(flawed: str) -> None:
    """It is not scored at all: there is no other as good."""
    good = f"{LONG} one."
    assert candidates_of([flawed, good], [0, 0], opening="So.") == f"So.{good}"
    assert candidates_of([good, flawed], [0, 0], opening="So.") == f"So.{good}"


def test_a_candidate_with_all_words_comes_first() -> None:
    """Both are short, and the one without the word is more probable."""
    texts = [" A cat ran.", " A pig ran."]
    assert candidates_of(texts, [9, 1], opening="So.", words=["pig"]) == f"So.{texts[1]}"


def test_a_candidate_whose_subject_comes_back_is_preferred() -> None:
    """Both are equally probable."""
    more = [" The pig ran far away.", " The dog ran far away."]
    texts = [f"{LONG}.{each}" for each in more]
    for about, best in (("a pig", 0), ("a dog", 1)):
        story = candidates_of(texts, [30, 30], about=about)
        assert story.endswith(more[best])

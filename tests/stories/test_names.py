"""Names of heroes: unknown ones that known ones stand in for, and heroes with other names."""

from __future__ import annotations

from collections import Counter

import pytest

from llama2py import StoryTeller, load
from llama2py.stories.names import BOYS, GIRLS, disguise, gender_of, with_another_hero
from llama2py.tokenizers.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The built-in model's vocabulary."""
    with load() as model:
        return model.tokenizer


@pytest.mark.parametrize(
    ("name", "gender"),
    [
        ("Lily", "girl"),
        ("Tim", "boy"),
        ("Søren", "boy"),
        ("Zoë", "girl"),
        ("Aisha", "girl"),
        ("María José", "girl"),
        ("Мария", "girl"),
        ("Иван", "boy"),
        ("Никита", "boy"),
        ("Ελένη Παπαδοπούλου", None),
        ("أحمد", "boy"),
        ("فاطمة", "girl"),
        ("小明", "boy"),
        ("小丽", "girl"),
        ("花子", "girl"),
        ("太郎", "boy"),
        ("민준", None),
        ("Luca", "boy"),
        ("Sasha-Marie", "girl"),
        ("Minh", "boy"),
        ("Xué", None),
    ],
)
def test_a_gender_is_known_by_name_or_ending_or_uncertain(name: str, gender: str | None) -> None:
    assert gender_of(name) == gender


@pytest.mark.parametrize(
    ("context", "gender"),
    [("Robin and his dog", "boy"), ("Robin and her dog", "girl"), ("a girl named Robin", "girl")],
)
def test_words_of_the_wish_decide_about_the_gender(context: str, gender: str) -> None:
    assert gender_of("Robin", context) == gender


@pytest.mark.parametrize(
    ("wish", "known", "told"),
    [
        ("Søren", ["Tim"], "Tim"),
        ("Мария и её кот", ["Lily", "Spot"], "Lily and Spot"),
        ("أحمد", ["Tim"], "Tim"),
        ("小明", ["Tim"], "Tim"),
        ("Søren and his dog", ["Tim"], "Tim and his dog"),
        ("Lily and Priyanka", ["Lucy"], "Lily and Lucy"),
        ("Tim and Jürgen", ["Tom"], "Tim and Tom"),
        ("a girl named Bjørk", ["Lily"], "a girl named Lily"),
        ("Bartholomew's dog", ["Tim"], "Tim's dog"),
        ("María José and the sea", ["Lily"], "Lily and the sea"),
        ("Mr. Søren", ["Tim"], "Mr. Tim"),
        ("Jürgen & Анна", ["Tim", "Lily"], "Tim and Lily"),
    ],
)
def test_an_unknown_name_gets_a_known_one(
    tokenizer: Tokenizer, wish: str, known: list[str], told: str
) -> None:
    names = disguise(wish, [], tokenizer, is_opening=False)
    assert list(names.known.values()) == known
    assert names.put_on(wish) == told


@pytest.mark.parametrize(
    "wish",
    ["", "dragon", "Lily and her cat", "Dr. Fox", "a boy in Paris", "a boy in Zürich", "The café"],
)
def test_other_words_stay_as_they_are(tokenizer: Tokenizer, wish: str) -> None:
    names = disguise(wish, [], tokenizer, is_opening=False)
    assert not names.known
    assert names.put_on(wish) == wish


def test_the_first_word_of_an_opening_is_no_name(tokenizer: Tokenizer) -> None:
    names = disguise("Yesterday Bartholomew ran.", [], tokenizer, is_opening=True)
    assert names.known == {"Bartholomew": "Tim"}


def test_every_name_is_put_back(tokenizer: Tokenizer) -> None:
    names = disguise("Søren and Мария", [], tokenizer, is_opening=False)
    text = "Tim's dog saw Tim and Lily. Timber! Lily, Tim."
    assert names.take_off(text) == "Søren's dog saw Søren and Мария. Timber! Мария, Søren."


def test_a_thing_put_back_at_the_beginning_of_a_sentence_has_a_capital(
    tokenizer: Tokenizer,
) -> None:
    names = disguise("Мария и её кот", [], tokenizer, is_opening=False)
    assert names.take_off("She saw Spot. Spot ran.") == "She saw её кот. Её кот ran."


def test_somebody_of_unknown_gender_is_called_they(tokenizer: Tokenizer) -> None:
    names = disguise("민준", [], tokenizer, is_opening=False)
    text = names.take_off(
        "Tim was sad. He was alone. \"He's lost his dog,\" she told him. He hasn't."
    )
    assert text == (
        '민준 was sad. They were alone. "They have lost their dog," she told them. They haven\'t.'
    )


# ---- heroes ----


def test_another_hero_has_a_name_for_the_same_gender() -> None:
    for seed in range(99):
        girl = with_another_hero("Lily saw Lucy. Lily's lily!", seed)
        boy = with_another_hero("One day, Tim ran. Timber fell on Tim.", seed)
        name = girl.split()[0]
        assert name in GIRLS
        assert name != "Lucy"
        assert girl == f"{name} saw Lucy. {name}'s lily!"
        assert boy.split()[2] in BOYS
        assert boy == f"One day, {boy.split()[2]} ran. Timber fell on {boy.split()[2]}."


def test_a_story_without_a_known_name_stays_as_it_is() -> None:
    assert with_another_hero("A dog named Rex saw Gus.", 5) == "A dog named Rex saw Gus."


def test_the_names_of_heroes_are_spread_evenly() -> None:
    names = Counter(with_another_hero("Tim ran.", seed).split()[0] for seed in range(1, 501))
    assert max(names.values()) <= 500 / len(BOYS) + 2


@pytest.mark.parametrize("about", ["Søren", "Мария и её кот", "أحمد", "小明"])
def test_a_story_about_an_unknown_name_has_it_everywhere(about: str) -> None:
    with StoryTeller(candidates=2) as tell:
        story = tell(about, seed=3)
    first = about.split()[0]
    assert story.title == about
    assert story.text.count(first) >= 2
    assert "Tim" not in story.text
    assert "Lily" not in story.text

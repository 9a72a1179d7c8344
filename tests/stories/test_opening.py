"""Openings in correct English from nouns, names, quotations and half sentences."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama2py.stories.english import has_word
from llama2py.stories.opening import opening_about, opening_with

# ---- opening_about ----

ONCE = "Once upon a time, there "


@pytest.mark.parametrize(
    ("about", "rest"),
    [
        ("a dragon who is afraid of fire", "was a dragon who was afraid of fire."),
        ("A Dragon", "was a Dragon."),
        ("dragon", "was a dragon."),
        ("owl", "was an owl."),
        ("  an   owl ", "was an owl."),
        ("dragons", "were dragons."),
        ("three kittens", "were three kittens."),
        ("kittens who like milk", "were kittens who liked milk."),
        ("glass bowl", "was a glass bowl."),
        ("the lost ball", "was a lost ball."),
        ("a boy who can't sleep", "was a boy who could not sleep."),
        ("a girl who doesn’t like cake", "was a girl who did not like cake."),
        ("a story about two cats", "were two cats."),
        ("flying dogs", "were flying dogs."),
        ("flying dog", "was a flying dog."),
        ("king", "was a king."),
        ("duckling", "was a duckling."),
        ("1 dog", "was 1 dog."),
        ("AN owl", "was an owl."),
        ("one cat", "was one cat."),
        ("ice cream", "was an ice cream."),
        ("a glass", "was a glass."),
        ("a bus", "was a bus."),
        ("octopus", "was an octopus."),
        ("princess", "was a princess."),
        ("dress with dots", "was a dress with dots."),
        ("two friends and a bear", "were two friends and a bear."),
        ("cats and dogs", "were cats and dogs."),
        ("boys in a boat", "were boys in a boat."),
        ("many sheep", "were many sheep."),
        ("the three bears", "were three bears."),
        ("the dogs", "were dogs."),
        ("a king with no clothes", "was a king with no clothes."),
        ("a boy in Paris", "was a boy in Paris."),
        ("a girl named Lily", "was a girl named Lily."),
        ("dragon's egg", "was a dragon's egg."),
        ("a girl who is lost", "was a girl who was lost."),
        ("two cats who are lost", "were two cats who were lost."),
        ("a boy who has a dog that is sick", "was a boy who had a dog that was sick."),
        ("a cat which isn't black", "was a cat which was not black."),
        ("gas station", "was a gas station."),
        ("a dragon who does not fly", "was a dragon who did not fly."),
        ("a dragon who cannot fly", "was a dragon who could not fly."),
        ("a girl who lost her doll", "was a girl who lost her doll."),
        ("a\tbear\n\nwho  is  big", "was a bear who was big."),
        ("a dog\u00a0that is small", "was a dog that was small."),
    ],
)
def test_a_noun_becomes_a_sentence_in_the_past(about: str, rest: str) -> None:
    assert opening_about(about) == ONCE + rest


@given(st.text(max_size=60))
def test_any_text_gives_an_opening(about: str) -> None:
    opening = opening_about(about)
    assert has_word(opening_with(opening, ["owl"]), "owl")
    assert opening == " ".join(opening.split())


@pytest.mark.parametrize("about", ["Lily", "Lily and her cat", "Tom's dog", "Dr. Fox", "Élodie"])
def test_a_name_begins_a_sentence(about: str) -> None:
    assert opening_about(about) == f"One day, {about}"


@pytest.mark.parametrize("about", ["A story!", "Tom ran.", "Who is there?", 'He said, "Hi."'])
def test_a_sentence_is_the_opening_itself(about: str) -> None:
    assert opening_about(f" {about}\n") == about


@given(st.text("ab Tz é\n\t", max_size=20))
@example("the")
@example("a")
def test_white_space_makes_no_difference(about: str) -> None:
    opening = opening_about(about)
    assert opening_about(f"\n {about}\t") == opening
    assert opening == " ".join(opening.split())
    assert bool(opening) == bool(about.strip())


@pytest.mark.parametrize(
    ("about", "rest"),
    [
        ("unicorn", "was a unicorn."),
        ("uniform", "was a uniform."),
        ("hour", "was an hour."),
        ("honest man", "was an honest man."),
        ("ewe", "was a ewe."),
        ("one-eyed monster", "was a one-eyed monster."),
        ("umbrella", "was an umbrella."),
        ("unusual uncle", "was an unusual uncle."),
        ("uninvited guest", "was an uninvited guest."),
    ],
)
def test_a_or_an_goes_by_the_sound(about: str, rest: str) -> None:
    assert opening_about(about) == ONCE + rest


@pytest.mark.parametrize(
    ("about", "rest"),
    [
        ("mice", "were mice."),
        ("snowmen", "were snowmen."),
        ("some sheep", "were some sheep."),
        ("children", "were children."),
        ("the children who like cake", "were children who liked cake."),
        ("eight mice", "were eight mice."),
        ("2 mice", "were 2 mice."),
        ("a few birds", "were a few birds."),
        ("kittens playing", "were kittens playing."),
        ("girls named Lily", "were girls named Lily."),
        ("dogs at the park", "were dogs at the park."),
    ],
)
def test_plurals_get_a_plural_verb(about: str, rest: str) -> None:
    assert opening_about(about) == ONCE + rest


@pytest.mark.parametrize(
    ("about", "rest"),
    [
        ("some milk", "was some milk."),
        ("some cake", "was some cake."),
        ("lens", "was a lens."),
        ("omen", "was an omen."),
    ],
)
def test_a_singular_may_have_some_or_a_final_s(about: str, rest: str) -> None:
    assert opening_about(about) == ONCE + rest


@pytest.mark.parametrize("word", ["this", "every", "each", "our", "your", "its", "My", "no"])
def test_a_noun_with_a_determiner_gets_no_article(word: str) -> None:
    assert opening_about(f"{word} dog") == f"This is a story about {word.lower()} dog."


@pytest.mark.parametrize(
    "about",
    [
        "a dragon that barks",  # an unknown verb, which would stay in the present
        "a fish who isles",  # begins with "is"
        "kittens who feed birds",
        "a boy who never eats",
        "a boy whose dog is lost",
        "a boy who is sad because he has no dog",
        "a boy who lives in a tree and barks",
        "a girl who's lost",
        'a dog called "What is this"',
        "the sun",
        "the sun and the moon",
        "the biggest dog",
        "friendship",
        "learning to swim",
        "sharing",
        "how the cat got lost",
        "big talking dogs",
        "cats lost in space",
    ],
)
def test_an_uncertain_subject_is_repeated_as_it_is(about: str) -> None:
    assert opening_about(about) == f"This is a story about {about}."


@pytest.mark.parametrize(
    ("about", "opening"),
    [
        ("the dog is sad", "One day, the dog was sad."),
        ("a dragon learns to fly", "One day, a dragon learned to fly."),
        ("Lily loves her cat", "One day, Lily loved her cat"),
        ("He has a dog", "One day, he had a dog"),
        ("I have a dog", "One day, I had a dog"),
        ("in the forest", "Once upon a time, in the forest,"),
        ("Once upon a time there is a cat", "Once upon a time there is a cat"),
        ("one day Tim", "one day Tim"),
        ("", ""),
        (" - ", ""),
    ],
)
def test_half_a_sentence_is_left_open(about: str, opening: str) -> None:
    assert opening_about(about) == opening


@pytest.mark.parametrize(
    ("about", "rest"),
    [
        ("dragons who don't fly", "were dragons who did not fly."),
        ("dragons who aren't green", "were dragons who were not green."),
        ("a dragon who won't fly", "was a dragon who would not fly."),
        ("dragons who do not fly", "were dragons who did not fly."),
    ],
)
def test_every_negation_is_put_into_the_past(about: str, rest: str) -> None:
    assert opening_about(about) == ONCE + rest


@pytest.mark.parametrize("mark", [",", ";", ":", " -", "…"])
def test_no_full_stop_follows_another_mark(mark: str) -> None:
    opening = opening_about(f"a dragon{mark}")
    assert re.fullmatch(r".* a dragon[.…]", opening)


@pytest.mark.parametrize("about", ['"Hello," said Tom', "“Hello”", "“Hello,” said Tom"])
def test_a_quotation_is_not_a_noun(about: str) -> None:
    assert "a “" not in opening_about(about)
    assert about in opening_about(about)
    assert "there was" not in opening_about(about)


def test_a_noun_may_end_with_a_quotation() -> None:
    assert opening_about('a dog called "Spot"') == ONCE + 'was a dog called "Spot".'


# ---- opening_with ----


@pytest.mark.parametrize(
    ("start", "words", "opening"),
    [
        ("", [], ""),
        ("A cat sat", [], "A cat sat"),
        ("A cat sat.", ["CAT"], "A cat sat."),
        ("", ["owl"], "It is a story about owl."),
        ("", ["a", "b", "c"], "It is a story about a, b and c."),
        ("A cat sat!", ["owl"], "A cat sat! It is a story about owl."),
        ('He said, "Go."', ["owl"], 'He said, "Go." It is a story about owl.'),
        ("A concat", ["cat"], "A concat. It is a story about cat."),
        ("One day, Tim", ["moon"], "One day, Tim. It is a story about moon."),
        ("A cat,", ["owl", "cat", "sun"], "A cat. It is a story about owl and sun."),
        ('A cat called "Spot"', ["owl"], 'A cat called "Spot". It is a story about owl.'),
    ],
)
def test_the_opening_names_missing_words(start: str, words: list[str], opening: str) -> None:
    assert opening_with(start, words) == opening


@given(st.text("ab .!'", max_size=15), st.lists(st.sampled_from(["a", "bb", "a b", "c"])))
def test_an_opening_with_words_holds_them_all(start: str, words: list[str]) -> None:
    opening = opening_with(start, words)
    assert all(has_word(opening, word) for word in words)
    assert opening.strip().startswith(
        start.lstrip().rstrip(" '")
    )  # an opening quotation mark at the end is dropped


@pytest.mark.parametrize("words", [["cat", "cat"], ["cat", "Cat"]])
def test_a_word_is_named_once(words: list[str]) -> None:
    assert opening_with("", words).lower().count("cat") == 1

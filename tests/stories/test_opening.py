"""Openings in correct English from nouns, names, quotations and half sentences."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama2py.stories.english import has_word
from llama2py.stories.opening import is_wish, opening_about, opening_with, subject_of

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
        ("a dragon that barks", "was a dragon that barked."),
        ("a fish who isles", "was a fish who isled."),
        ("kittens who feed birds", "were kittens who fed birds."),
        ("a boy who never eats", "was a boy who never ate."),
        ("a boy whose dog is lost", "was a boy whose dog was lost."),
        ("a boy who is sad because he has no dog", "was a boy who was sad because he had no dog."),
        ("a boy who lives in a tree and barks", "was a boy who lived in a tree and barked."),
        ("a girl who's lost", "was a girl who was lost."),
        ('a dog called "What is this"', 'was a dog called "What is this".'),
        ("a girl who has that dream", "was a girl who had that dream."),
        ("dragons that fly", "were dragons that flew."),
        ("a dog that the boys like", "was a dog that the boys like."),
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


@pytest.mark.parametrize("about", ["Lily and her cat", "Tom's dog", "Dr. Fox", "Élodie"])
def test_a_name_begins_a_sentence(about: str) -> None:
    assert opening_about(about) == f"One day, {about}"


@pytest.mark.parametrize(("name", "child"), [("Lily", "girl"), ("Tim", "boy")])
def test_a_known_name_is_a_child(name: str, child: str) -> None:
    assert opening_about(name) == f"{ONCE}was a little {child} named {name}."


@pytest.mark.parametrize("about", ["A dog!", "Tom ran.", "Who is there?", 'He said, "Hi."'])
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


@pytest.mark.parametrize(
    ("about", "opening"),
    [
        ("this dog", "Once upon a time, there was a dog."),
        ("these mice", "Once upon a time, there were mice."),
        ("My dog", "One day, a little girl and her dog"),
        ("our dog", "One day, a little girl and her dog"),
        ("his dog", "One day, a little boy and his dog"),
        ("its tail", "One day, a little dog and its tail"),
        ("my dog is sad", "One day, a little girl's dog was sad."),
        ("every dog", "One day, every dog"),
        ("Each dog", "One day, each dog"),
        ("no dog", "One day, no dog"),
    ],
)
def test_a_noun_with_a_determiner_has_somebody_to_belong_to(about: str, opening: str) -> None:
    assert opening_about(about) == opening


@pytest.mark.parametrize(
    ("about", "opening"),
    [
        ("the sun", "One day, the sun"),
        ("the sun and the moon", "One day, the sun and the moon"),
        ("the biggest dog", "One day, the biggest dog"),
        ("big talking dogs", "One day, big talking dogs"),
        ("cats lost in space", "One day, cats lost in space"),
        ("friendship", "One day, a little girl learned about friendship."),
        ("snow", "Once upon a time, there was a little girl who loved snow."),
        ("learning to swim", "One day, a little girl was learning to swim."),
        ("sharing", "One day, a little girl was sharing."),
        ("how the cat got lost", "One day, a little girl wanted to know how the cat got lost."),
        ("why the sky is blue", "One day, a little girl wanted to know why the sky was blue."),
        ("How to bake a cake", "One day, a little girl wanted to know how to bake a cake."),
    ],
)
def test_every_subject_has_an_opening_that_stories_know(about: str, opening: str) -> None:
    assert opening_about(about) == opening


@pytest.mark.parametrize(
    ("wish", "subject"),
    [
        ("Tell me about a sad frog", "a sad frog"),
        ("tell me a story about two owls, please.", "two owls"),
        ("Please tell a short bedtime story about Lily and her cat!", "Lily and her cat"),
        ("I'd like a story about a king", "a king"),
        ("I’d like a story about a king", "a king"),
        ("Can you write me a funny story where a cow flies?", "a cow flies"),
        ("Tell me why the sky is blue", "why the sky is blue"),
        ("a story about two cats", "two cats"),
        ("story of a bear", "a bear"),
        ("tell me a story", ""),
        ("A story!", ""),
    ],
)
def test_a_wish_is_not_an_opening(wish: str, subject: str) -> None:
    assert is_wish(wish)
    assert subject_of(wish) == subject
    assert opening_about(wish) == opening_about(subject)


@pytest.mark.parametrize(
    "text",
    [
        "a girl who loves stories about cats",
        "a dog tells stories about cats",
        "Once upon a time, a story about a cat",
        "Tell a joke",
        "a storyteller",
        "about",
        "",
    ],
)
def test_other_texts_are_no_wishes(text: str) -> None:
    assert not is_wish(text)
    assert subject_of(text) == text


@given(st.text(max_size=60))
def test_no_opening_says_that_it_is_a_story(about: str) -> None:
    assert not opening_about(f"my {about}").startswith("This is a story")


@pytest.mark.parametrize(
    ("about", "opening"),
    [
        ("the dog is sad", "One day, the dog was sad."),
        ("a dragon learns to fly", "One day, a dragon learned to fly."),
        ("a sad dog sings", "One day, a sad dog sang."),
        ("an apple falls", "One day, an apple fell."),
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

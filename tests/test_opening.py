"""Openings that read as English, and texts cut at a sentence's end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2py.opening import has_word, opening_about, opening_with, whole_sentences


@pytest.mark.parametrize(
    ("about", "opening"),
    [
        (
            "a dragon who is afraid of fire",
            "Once upon a time, there was a dragon who was afraid of fire.",
        ),
        ("A Dragon", "Once upon a time, there was a Dragon."),
        ("dragon", "Once upon a time, there was a dragon."),
        ("owl", "Once upon a time, there was an owl."),
        ("  an   owl ", "Once upon a time, there was an owl."),
        ("dragons", "Once upon a time, there were dragons."),
        ("three kittens", "Once upon a time, there were three kittens."),
        ("kittens who like milk", "Once upon a time, there were kittens who liked milk."),
        ("glass bowl", "Once upon a time, there was a glass bowl."),
        ("glass", "Once upon a time, there was a glass."),
        ("bus", "Once upon a time, there was a bus."),
        ("the lost ball", "Once upon a time, there was a lost ball."),
        ("a boy who can't sleep", "Once upon a time, there was a boy who could not sleep."),
        (
            "a girl who doesn't like cake",
            "Once upon a time, there was a girl who did not like cake.",
        ),
        ("Lily and her cat", "One day, Lily and her cat"),
        ("The sun was hot.", "The sun was hot."),
        ("", ""),
        (" ", ""),
    ],
)
def test_openings(about: str, opening: str) -> None:
    assert opening_about(about) == opening


def test_an_opening_with_words_names_what_is_missing() -> None:
    assert opening_with("", ["cake"]) == "It is a story about cake."
    assert opening_with("There was a cat.", ["cat", "cake", "sun"]) == (
        "There was a cat. It is a story about cake and sun."
    )
    assert opening_with("One day, Tim", ["moon"]) == "One day, Tim. It is a story about moon."
    assert opening_with("There was a cat.", ["cat"]) == "There was a cat."


@pytest.mark.parametrize(
    ("text", "word", "has"),
    [
        ("The Dragon sat.", "dragon", True),
        ("Two dragons!", "dragon", True),
        ("boxes", "box", True),
        ("dragonfly", "dragon", False),
        ("an ice cream", "ice cream", True),
        ("concatenate", "cat", False),
        ("a.b", "a+b", False),
        ("2+2", "2+2", True),
    ],
)
def test_words(text: str, word: str, has: bool) -> None:
    assert has_word(text, word) is has


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("He ran. She", "He ran."),
        ("He ran! She sat? It", "He ran! She sat?"),
        ('He said, "Hi." Then', 'He said, "Hi."'),
        ('He ran. He said, "Hi. I', "He ran."),  # no end inside an open quotation
        ('"Hi. I', '"Hi.'),  # unless there is no other
        ("no end, ever", "no end, ever."),
        ("no end,", "no end."),
        ("3.5 cakes. And", "3.5 cakes."),
        ("Well... yes", "Well..."),
        ("", ""),
        (" \n", ""),
        ("One.\nTwo.\nThr", "One.\nTwo."),
    ],
)
def test_a_text_is_cut_behind_a_sentence(text: str, cut: str) -> None:
    assert whole_sentences(text, 100) == cut


def test_so_many_words() -> None:
    assert whole_sentences("One two three. Four five. Six.", 5) == "One two three. Four five."
    assert whole_sentences("One two three. Four five. Six.", 4) == "One two three."


@given(st.text(alphabet='ab .!?",\n', max_size=60), st.integers(1, 20))
def test_any_text(text: str, max_words: int) -> None:
    cut = whole_sentences(text, max_words)
    assert len(cut.split()) <= max_words
    if any(character in "ab" for character in cut):
        assert cut.rstrip("\"')")[-1] in ".!?"
    assert text.strip().startswith(cut) or text.strip().startswith(cut[:-1])

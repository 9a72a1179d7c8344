"""English for stories: words in a text, and a text cut after a sentence."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2py.stories.english import has_word, whole_sentences

# ---- has_word ----


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A cat.", "cat"),
        ("a CAT", "Cat"),
        ("Cats!", "cat"),
        ("the foxes", "fox"),
        ("the cat's tail", "cat"),
        ('"Cat," he said', "cat"),
        ("the un-cat-like", "cat"),
        ("ein BÄR", "bär"),
        ("two ice creams", "ice cream"),
        ("is it C++?", "c++"),
        ("don't", "don't"),
        ("don’t", "don't"),
        ("boxes", "box"),
        ("two heroes", "hero"),
        ("2+2", "2+2"),
    ],
)
def test_a_word_is_found(text: str, word: str) -> None:
    assert has_word(text, word)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "cat"),
        ("caterpillar", "cat"),
        ("tomcat", "cat"),
        ("cat_1", "cat"),
        ("catsup", "cat"),
        ("cat", "cats"),
        ("a.b", "a+b"),
        ("abc", "a.c"),
        ("Bären", "bär"),
        ("ice and cream", "ice cream"),
        ("he stares", "star"),
        ("concatenate", "cat"),
    ],
)
def test_a_different_word_is_not_found(text: str, word: str) -> None:
    assert not has_word(text, word)


@given(
    st.lists(st.sampled_from(["cat", "cats", "Cat", "tomcat", "catty", "ca", "cates"]), max_size=8),
    st.sampled_from([" ", ", ", "-", "\n", '." "']),
)
def test_words_are_found_among_words(words: list[str], gap: str) -> None:
    expected = any(word.lower() in {"cat", "cats"} for word in words)
    assert has_word(gap.join(words), "cat") is expected


@pytest.mark.parametrize(
    ("text", "word"), [("two puppies", "Puppy"), ("the wolves", "wolf"), ("KNIVES", "knife")]
)
def test_irregular_plurals_are_found(text: str, word: str) -> None:
    assert has_word(text, word)


@pytest.mark.parametrize(("text", "word"), [("as", "a"), ("his hat", "hi"), ("its hat", "it")])
def test_short_words_have_no_plural(text: str, word: str) -> None:
    assert not has_word(text, word)


def test_any_white_space_may_stand_between_words() -> None:
    assert has_word("some ice\ncream", "ice cream")


# ---- whole_sentences ----


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("He ran. And then", "He ran."),
        ("What?! He", "What?!"),
        ("Wow!!! He", "Wow!!!"),
        ("He ran... then stopped. And", "He ran... then stopped."),
        ("He ran... and", "He ran..."),
        ('"Go!" she said. And', '"Go!" she said.'),
        ('He said, "Go!" And', 'He said, "Go!"'),
        ("He said, 'Go!' And", "He said, 'Go!'"),
        ("(He ran.) And", "(He ran.)"),
        ('"Hi," he said. "Yes! And', '"Hi," he said.'),
        ('"Hi." "Bye." "And', '"Hi." "Bye."'),
        ('"Go. Run. And', '"Go. Run.'),  # no other end
        ("a 3.5 b c", "a 3.5 b c."),
        ("He ran.And then", "He ran.And then."),
        ("He ran\n\nand", "He ran\n\nand."),
        ("Hello --", "Hello."),
        ("Hello,\n", "Hello."),
        ("\n He ran.\n\nShe ran. \n", "He ran.\n\nShe ran."),
    ],
)
def test_a_text_is_cut_after_its_last_whole_sentence(text: str, cut: str) -> None:
    assert whole_sentences(text, 100) == cut


@pytest.mark.parametrize(
    ("max_words", "cut"),
    [
        (1, "One."),
        (2, "One."),
        (3, "One. Two three."),
        (5, "One. Two three."),
        (6, "One. Two three.\nFour, five six!"),
        (99, "One. Two three.\nFour, five six!"),
    ],
)
def test_a_text_is_cut_within_max_words(max_words: int, cut: str) -> None:
    assert whole_sentences("One. Two three.\nFour, five six! Seven", max_words) == cut


def test_one_long_sentence_is_cut_inside() -> None:
    assert whole_sentences("One two, three four.", 2) == "One two."


TEXTS = st.text(st.sampled_from("abé.!?\"')(,;:- \n\t\x1c\u00a0🐶"), max_size=80)


@given(TEXTS, st.integers(0, 12))
def test_no_result_has_more_than_max_words(text: str, max_words: int) -> None:
    cut = whole_sentences(text, max_words)
    assert len(cut.split()) <= max_words
    assert bool(cut) == bool(text.strip() and max_words)


@given(TEXTS, st.integers(1, 12))
def test_every_result_ends_a_sentence(text: str, max_words: int) -> None:
    cut = whole_sentences(text, max_words)
    assert not cut or re.search(r"""[.!?]["')]*$""", cut)


@given(TEXTS, st.integers(1, 12))
def test_the_result_is_the_beginning_of_the_text(text: str, max_words: int) -> None:
    words = text.split()[:max_words]
    ends = [i for i, word in enumerate(words) if re.search(r"""[.!?]["')]*$""", word)]
    cut = whole_sentences(text, max_words)
    if ends:
        assert text.strip().startswith(cut)
    else:
        assert text.strip().startswith(cut[:-1])  # a full stop was added
    # The longest with balanced quotation marks, or the longest of all.
    balanced = [i for i in ends if "".join(words[: i + 1]).count('"') % 2 == 0]
    if balanced or ends:
        assert len(cut.split()) == (balanced or ends)[-1] + 1


@given(TEXTS, st.integers(1, 12))
def test_a_result_is_not_cut_again(text: str, max_words: int) -> None:
    cut = whole_sentences(text, max_words)
    assert whole_sentences(cut, max_words) == cut


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("He ran. She met Mr. Fox and", "He ran."),
        ("He ran. Then Mrs. Smith", "He ran."),
        ("He ran. They went to Dr. Bear", "He ran."),
    ],
)
def test_an_abbreviation_does_not_end_a_sentence(text: str, cut: str) -> None:
    assert whole_sentences(text, 100) == cut


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("He said, “Go.” And", "He said, “Go.”"),
        ("He said, ‘Go.’ And", "He said, ‘Go.’"),
        ("He said, “Go!”", "He said, “Go!”"),
        ("He ran. He said, “Go. And", "He ran."),
    ],
)
def test_typographic_quotation_marks_are_quotation_marks(text: str, cut: str) -> None:
    assert whole_sentences(text, 100) == cut


def test_an_ellipsis_ends_a_sentence() -> None:
    assert whole_sentences("He ran…", 100) == "He ran…"


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ('He said "', "He said."),
        ("He said: “", "He said."),
        ('He said "yes"', 'He said "yes".'),
        ("He met Mr.", "He met Mr."),
    ],
)
def test_an_added_full_stop_follows_a_word(text: str, cut: str) -> None:
    assert whole_sentences(text, 100) == cut


@pytest.mark.parametrize(
    ("start", "more", "cut"),
    [
        ("He ran. The", " cat sat. And", "He ran. The cat sat."),
        ("He ran. The", " cat and", "He ran. The cat and."),  # not back to "He ran."
        ("An owl.", '" he said', "An owl."),
        ("An owl.", '"', "An owl."),
        ("An owl.", "x", "An owl."),
        ("An owl.", " It ran. It", "An owl. It ran."),
        ('He said, "Go.', " Run. And", 'He said, "Go. Run.'),
        ('He said, "Go.', '" He ran. She', 'He said, "Go." He ran.'),
        ('She said, "Hi." He said, "Go', " on. And", 'She said, "Hi." He said, "Go on.'),
    ],
)
def test_the_start_is_never_cut(start: str, more: str, cut: str) -> None:
    assert whole_sentences(start + more, 100, start) == cut


@given(TEXTS, TEXTS)
def test_any_start_that_ends_a_sentence_is_kept(start: str, more: str) -> None:
    start = start.strip() + "a."
    assert whole_sentences(start + more, 200, start).startswith(start)

"""The guide of a story: its length, and the words that it leads to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py.stories.guide import StoryGuide
from tests.conftest import tiny_tokenizer

# Of conftest's tokenizer: " c", "a", "t" and so on.
TOKENIZER = tiny_tokenizer()
CAT = TOKENIZER.encode("cat", bos=False)
MANY = " ".join(["x"] * 500)  # an opening so long that wishes are at their strongest


def guide(start: str = "", max_words: int = 1000, words: Sequence[str] = ()) -> StoryGuide:
    return StoryGuide(TOKENIZER, start, max_words, words)


def wishes(guide: StoryGuide) -> dict[int, float]:
    """What it adds to each token's logit, where it is not nothing."""
    logits = np.zeros(300, np.float32)
    guide.adjust(logits)
    return {int(token): float(logits[token]) for token in np.flatnonzero(logits)}


def hear(guide: StoryGuide, text: str) -> bool:
    """A token for each byte, as no word is spelled by itself; whether the story may go on."""
    heard = [guide.accept(3 + ord(letter), letter) for letter in text]
    return all(heard)


def say(guide: StoryGuide, tokens: Sequence[int]) -> None:
    """A word's own tokens."""
    for token in tokens:
        guide.accept(token, TOKENIZER.piece(token).decode())


# ---- length ----


@pytest.mark.parametrize("max_words", [10, 11, 50])
def test_a_story_goes_on_until_it_has_more_words(max_words: int) -> None:
    """Its last word is over when the next begins."""
    g = guide("One two.", max_words)
    for _ in range(max_words - 2):
        assert hear(g, " ab")
    assert not hear(g, " a")


def test_without_an_opening_all_words_count() -> None:
    """The first token of a text comes without its space."""
    g = guide("", 10)
    assert hear(g, "a" + " b" * 9)
    assert not hear(g, " c d")


def test_pieces_of_several_words_count_each() -> None:
    g = guide("One.", 10)
    assert g.accept(260, " a b c d e f g h i")  # nine: ten in all
    assert not g.accept(260, " j k")


@pytest.mark.parametrize("gap", ["\n\n", "  ", " \n"])
def test_paragraphs_are_no_words(gap: str) -> None:
    g = guide("One.", 10)
    assert hear(g, f"{gap}b" * 8)  # nine words in all


# ---- words ----


def test_without_words_nothing_is_favoured() -> None:
    g = guide(MANY)
    hear(g, " abc " * 20)
    assert wishes(g) == {}


def test_a_missing_word_is_favoured_by_its_first_token() -> None:
    assert list(wishes(guide(MANY, words=["cat"]))) == [CAT[0]]


def test_a_wish_grows_with_the_story_up_to_a_bound() -> None:
    strengths = [
        wishes(guide(" ".join(["x"] * n), words=["cat"])).get(CAT[0], 0.0)
        for n in (0, 30, 60, 110, 500, 900)
    ]
    assert strengths[0] == 0
    assert strengths == sorted(strengths)
    assert len(set(strengths[:4])) == 4
    assert strengths[-1] == strengths[-2]


def test_a_word_begun_is_helped_on_token_by_token() -> None:
    g = guide(MANY, words=["cat"])
    first = wishes(g)[CAT[0]]
    for i, token in enumerate(CAT[:-1]):
        say(g, [token])
        (wished,) = wishes(g).items()
        assert wished[0] == CAT[i + 1]
        assert wished[1] > first


def test_another_word_begun_alike_is_let_go() -> None:
    g = guide(MANY, words=["cat"])
    say(g, CAT[:1])
    say(g, [TOKENIZER.encode("o", bos=False)[-1]])  # " co"
    assert list(wishes(g)) == [CAT[0]]


def test_a_word_that_begins_again_is_begun() -> None:
    g = guide(MANY, words=["cat"])
    say(g, [CAT[0], CAT[0]])
    assert list(wishes(g)) == [CAT[1]]


@pytest.mark.parametrize("said", [" cat ", " Cat.", " cats,", ' "CAT" ', "\ncat\n"])
def test_a_word_that_has_appeared_is_wished_no_more(said: str) -> None:
    """However it was spelled, and in whatever tokens."""
    g = guide(MANY, words=["cat"])
    hear(g, said)
    assert wishes(g) == {}


def test_a_word_in_the_opening_is_no_wish() -> None:
    assert wishes(guide("The Cats " + MANY, words=["cat"])) == {}


def test_of_two_words_each_is_wished_until_it_comes() -> None:
    g = guide(MANY, words=["cat", "dog"])
    dog = TOKENIZER.encode("dog", bos=False)
    assert set(wishes(g)) == {CAT[0], dog[0]}
    say(g, CAT)
    hear(g, " ")
    assert set(wishes(g)) == {dog[0]}


def test_a_word_of_several_words_is_one() -> None:
    g = guide(MANY, words=["ice cream"])
    hear(g, " ice and cream ")
    assert wishes(g)
    hear(g, " an ice cream ")
    assert wishes(g) == {}


def test_what_is_there_is_changed_and_nothing_else() -> None:
    logits: NDArray[np.float32] = np.arange(300, dtype=np.float32)
    guide(MANY, words=["cat"]).adjust(logits)
    assert np.flatnonzero(logits != np.arange(300)).tolist() == [CAT[0]]
    assert logits[CAT[0]] > CAT[0]


def test_a_word_inside_another_has_not_appeared() -> None:
    g = guide(MANY, words=["cat"])
    hear(g, " concat ")
    assert wishes(g)


def test_a_longer_word_has_not_appeared_while_it_is_spelled() -> None:
    g = guide(MANY, words=["cat"])
    hear(g, " caterpillar ")
    assert wishes(g)


def test_a_word_inside_another_never_appears_later() -> None:
    g = guide(MANY, words=["cat"])
    hear(g, " a concat that goes on and on and on and on")
    assert wishes(g)


def test_words_that_begin_alike_are_wished_no_more_than_one() -> None:
    """The bound is a token's: twice as much would be a loop of it."""
    one, two = (wishes(guide(MANY, words=words)) for words in (["cat"], ["cat", "cup"]))
    assert two == one


def test_the_openings_last_word_may_go_on() -> None:
    g = guide(MANY + " cat", words=["cat"])
    hear(g, "erpillar ")
    assert wishes(g)
    assert not wishes(guide(MANY + " cat.", words=["cat"]))


def test_an_opening_amid_a_word_counts_it_once() -> None:
    g = guide("a b c d e f g h i j", 10)
    assert hear(g, "jj")
    assert not hear(g, " k")


def test_a_word_over_two_lines_has_appeared() -> None:
    g = guide(MANY, words=["ice cream"])
    hear(g, " ice\ncream ")
    assert wishes(g) == {}

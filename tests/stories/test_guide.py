"""StoryGuide: the length of a story, and the bias towards missing words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py.generation.sampling import Sampler, SamplingParams
from llama2py.stories.guide import StoryGuide
from tests.conftest import tiny_model, tiny_tokenizer

# The tokens of conftest's tokenizer are " c", "a", "t" and so on.
TOKENIZER = tiny_tokenizer()
CAT = TOKENIZER.encode("cat", bos=False)
MANY = " ".join(["x"] * 500)  # an opening so long that the bias is at its maximum


def guide(start: str = "", max_words: int = 1000, words: Sequence[str] = ()) -> StoryGuide:
    return StoryGuide(TOKENIZER, start, max_words, words)


def biases(guide: StoryGuide) -> dict[int, float]:
    """The non-zero values that a guide adds to logits, by token."""
    logits = np.zeros(300, np.float32)
    guide.adjust(logits)
    return {int(token): float(logits[token]) for token in np.flatnonzero(logits)}


def accept_bytes(guide: StoryGuide, text: str) -> bool:
    """Accept a text as one token per byte; return whether the story may go on."""
    accepted = [guide.accept(3 + ord(letter), letter) for letter in text]
    return all(accepted)


def accept_tokens(guide: StoryGuide, tokens: Sequence[int]) -> None:
    """Accept the tokens that the tokenizer spells a word with."""
    for token in tokens:
        guide.accept(token, TOKENIZER.piece(token).decode())


# ---- length ----


@pytest.mark.parametrize("max_words", [10, 11, 50])
def test_a_story_goes_on_until_it_has_more_than_max_words(max_words: int) -> None:
    """The last word is complete when the next one begins."""
    g = guide("One two.", max_words)
    for n in range(max_words - 2):
        assert accept_bytes(g, f" {n}")  # no word twice, which could be a loop
    assert not accept_bytes(g, " a")


def test_all_words_count_without_an_opening() -> None:
    """The first token of a text has no space before it."""
    g = guide("", 10)
    assert accept_bytes(g, "a" + " b" * 9)
    assert not accept_bytes(g, " c d")


def test_each_word_of_a_piece_counts() -> None:
    g = guide("One.", 10)
    assert g.accept(260, " a b c d e f g h i")  # nine: ten in all
    assert not g.accept(260, " j k")


@pytest.mark.parametrize("gap", ["\n\n", "  ", " \n"])
def test_white_space_does_not_count_as_words(gap: str) -> None:
    g = guide("One.", 10)
    assert accept_bytes(g, gap + gap.join("bcdefghi"))  # nine words in all


def test_a_story_ends_when_it_loops() -> None:
    g = guide("One two.")
    assert accept_bytes(g, " ran." + " ab" * 7)
    assert g.text_before_loop is None
    assert accept_bytes(g, " a")
    assert not accept_bytes(g, "b")  # 24 tokens
    assert g.text_before_loop == "One two. ran. ab"


def test_a_story_ends_when_too_many_4_grams_come_again() -> None:
    g = StoryGuide(TOKENIZER, "", 1000, most_repeated=2)
    assert accept_bytes(g, "the cat sat on a mat and the cat sat on it. ")  # two come again
    assert not accept_bytes(g, "then it ran off and the cat sat on it. It was so very glad. ")
    assert g.dropped
    assert not g.adjusts


def test_the_sampling_changes_after_the_first_sentence() -> None:
    with tiny_model() as model:
        first, rest = SamplingParams(1.0, 0.95), SamplingParams(0.6, 0.9)
        sampler = Sampler(model.backend, first, 1)
        g = StoryGuide(TOKENIZER, "", 1000, (), (sampler, rest))
        assert accept_bytes(g, 'Mr. Fox said, "Hi')
        assert (sampler.params, g.n_first) == (first, 0)
        assert accept_bytes(g, "!")
        assert (sampler.params, g.n_first) == (rest, len('Mr. Fox said, "Hi!'))
        sampler.params = first  # never changed again
        assert accept_bytes(g, '" He ran.')
        assert sampler.params == first


# ---- words ----


def test_a_word_that_makes_no_sense_gets_no_bias() -> None:
    """Its first token is too improbable. Later in the story less probable ones are enough."""
    for start, limit in (("x", 5), (" ".join(["x"] * 200), 10)):
        for distance in (limit - 1, limit + 1):
            logits = np.zeros(300, np.float32)
            logits[7] = distance
            g = guide(start, words=["cat"])
            accept_bytes(g, " y z y")
            g.adjust(logits)
            assert (logits[CAT[0]] != 0) == (distance < limit)


def test_a_complete_word_gets_no_bias_before_the_next_token() -> None:
    """It would come twice: "violin violin"."""
    g = guide(MANY, words=["cat"])
    accept_tokens(g, CAT)
    assert biases(g) == {}


def test_there_is_no_bias_without_words() -> None:
    g = guide(MANY)
    accept_bytes(g, " abc " * 20)
    assert biases(g) == {}


def test_the_first_token_of_a_missing_word_gets_a_bias() -> None:
    assert list(biases(guide(MANY, words=["cat"]))) == [CAT[0]]


def test_the_bias_grows_with_the_story_up_to_a_maximum() -> None:
    values = [
        biases(guide(" ".join(["x"] * n), words=["cat"])).get(CAT[0], 0.0)
        for n in (0, 30, 60, 110, 500, 900)
    ]
    assert values[0] == 0
    assert values == sorted(values)
    assert len(set(values[:4])) == 4
    assert values[-1] == values[-2]


def test_a_begun_word_gets_a_larger_bias_token_by_token() -> None:
    g = guide(MANY, words=["cat"])
    first = biases(g)[CAT[0]]
    for i, token in enumerate(CAT[:-1]):
        accept_tokens(g, [token])
        (bias,) = biases(g).items()
        assert bias[0] == CAT[i + 1]
        assert bias[1] > first


def test_another_word_that_begins_alike_resets_the_bias() -> None:
    g = guide(MANY, words=["cat"])
    accept_tokens(g, CAT[:1])
    accept_tokens(g, [TOKENIZER.encode("o", bos=False)[-1]])  # " co"
    assert list(biases(g)) == [CAT[0]]


def test_a_word_that_begins_twice_is_begun() -> None:
    g = guide(MANY, words=["cat"])
    accept_tokens(g, [CAT[0], CAT[0]])
    assert list(biases(g)) == [CAT[1]]


@pytest.mark.parametrize("said", [" cat ", " Cat.", " cats,", ' "CAT" ', "\ncat\n"])
def test_a_word_that_has_appeared_gets_no_bias(said: str) -> None:
    """Whatever its spelling and its tokens."""
    g = guide(MANY, words=["cat"])
    accept_bytes(g, said)
    assert biases(g) == {}


def test_a_word_in_the_opening_gets_no_bias() -> None:
    assert biases(guide("The Cats " + MANY, words=["cat"])) == {}


def test_each_of_two_words_gets_a_bias_until_it_appears() -> None:
    g = guide(MANY, words=["cat", "dog"])
    dog = TOKENIZER.encode("dog", bos=False)
    assert set(biases(g)) == {CAT[0], dog[0]}
    accept_tokens(g, CAT)
    accept_bytes(g, " ")
    assert set(biases(g)) == {dog[0]}


def test_words_with_a_space_are_one_word() -> None:
    g = guide(MANY, words=["ice cream"])
    accept_bytes(g, " ice and cream ")
    assert biases(g)
    accept_bytes(g, " an ice cream ")
    assert biases(g) == {}


def test_only_the_logit_of_the_missing_word_changes() -> None:
    logits: NDArray[np.float32] = np.arange(300, dtype=np.float32)
    guide(MANY, words=["cat"]).adjust(logits)
    assert np.flatnonzero(logits != np.arange(300)).tolist() == [CAT[0]]
    assert logits[CAT[0]] > CAT[0]


def test_a_word_inside_another_has_not_appeared() -> None:
    g = guide(MANY, words=["cat"])
    accept_bytes(g, " concat ")
    assert biases(g)


def test_a_longer_word_has_not_appeared_while_it_is_spelled() -> None:
    g = guide(MANY, words=["cat"])
    accept_bytes(g, " caterpillar ")
    assert biases(g)


def test_a_word_inside_another_never_appears_later() -> None:
    g = guide(MANY, words=["cat"])
    accept_bytes(g, " a concat that goes on and on and on and on")
    assert biases(g)


def test_words_that_begin_alike_get_one_bias() -> None:
    """The maximum is per token: a double bias would repeat the token in a loop."""
    one, two = (biases(guide(MANY, words=words)) for words in (["cat"], ["cat", "cup"]))
    assert two == one


def test_the_last_word_of_the_opening_may_be_unfinished() -> None:
    g = guide(MANY + " cat", words=["cat"])
    accept_bytes(g, "erpillar ")
    assert biases(g)
    assert not biases(guide(MANY + " cat.", words=["cat"]))


def test_a_word_that_the_opening_begins_counts_once() -> None:
    g = guide("a b c d e f g h i j", 10)
    assert accept_bytes(g, "jj")
    assert not accept_bytes(g, " k")


def test_a_word_over_two_lines_has_appeared() -> None:
    g = guide(MANY, words=["ice cream"])
    accept_bytes(g, " ice\ncream ")
    assert biases(g) == {}

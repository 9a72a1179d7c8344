"""Trained vocabularies: our encoder returns what sentencepiece, which trained them, returns."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.errors import ParameterError
from llama2py.formats.corpus import read_stories
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.support.tiny_training import NOUNS, VERBS, made_up_stories

sentencepiece = pytest.importorskip("sentencepiece", reason="needs the extra [train]")

from llama2py.training.vocabulary import (  # noqa: E402 (needs sentencepiece)
    MAX_LINE,
    read_sentencepiece,
    train_sentencepiece,
    train_vocabulary,
)


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_sentencepiece(made_up_stories(200), 400)


def agree(model: bytes, texts: list[str]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = read_sentencepiece(model)
    for text in texts:
        assert tokenizer.encode(text, bos=False) == processor.encode(text), repr(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def random_text(rng: random.Random) -> str:
    """Return code points of all planes, and some text that the vocabulary knows."""
    parts = []
    for _ in range(rng.randint(0, 40)):
        kind = rng.random()
        if kind < 0.4:
            parts.append(rng.choice([*NOUNS, *VERBS, " ", "  ", "\n", "\t", "0", "Once"]))
        else:
            code = rng.choice([rng.randrange(32, 0x250), rng.randrange(1, 0x110000)])
            # Surrogates are not characters; sentencepiece reads U+2581 as a space, and ends at NUL.
            if not 0xD800 <= code < 0xE000 and code != 0x2581:
                parts.append(chr(code))
    return "".join(parts)


def test_random_text_is_encoded_as_sentencepiece_does(model: bytes) -> None:
    rng = random.Random(2)
    agree(model, made_up_stories(100, seed=3) + [random_text(rng) for _ in range(1000)])


def test_the_corpus_is_encoded_as_sentencepiece_does(test_data: Path) -> None:
    stories = read_stories(test_data / "data" / "corpus" / "tinystories.txt")
    agree(train_sentencepiece(stories[:3000], 1000), stories[-1000:])


def test_another_vocabulary_encodes_differently(model: bytes) -> None:
    """The comparison would notice a difference."""
    other = train_vocabulary(made_up_stories(200, seed=9)[:20], 380)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = made_up_stories(5, seed=4)
    assert [other.encode(text, bos=False) for text in texts] != [
        processor.encode(text) for text in texts
    ]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581")))
@settings(max_examples=300, deadline=None)
def test_any_text_is_encoded_as_sentencepiece_does(text: str) -> None:
    agree(MODEL, [text])


MODEL = train_sentencepiece(made_up_stories(50, seed=5), 350)


def test_a_trained_vocabulary_has_the_layout_of_tokenizer_bin(model: bytes, tmp_path: Path) -> None:
    tokenizer = read_sentencepiece(model)
    assert len(tokenizer) == 400
    assert tokenizer.piece(1) == b"\n<s>\n"
    assert tokenizer.piece(2) == b"\n</s>\n"
    assert tokenizer.piece(3) == b"<0x00>"
    assert tokenizer.piece(258) == b"<0xFF>"
    write_tokenizer_bin(tokenizer, tmp_path / "tok.bin")
    again = load_tokenizer(tmp_path / "tok.bin", 400)
    assert vocabulary(again) == vocabulary(tokenizer)
    text = made_up_stories(1)[0]
    assert again.encode(text) == tokenizer.encode(text)


def vocabulary(tokenizer: Tokenizer) -> list[tuple[bytes, float]]:
    return [(tokenizer.piece(i), tokenizer.score(i)) for i in range(len(tokenizer))]


def test_training_twice_gives_the_same_vocabulary(model: bytes) -> None:
    assert vocabulary(train_vocabulary(made_up_stories(200), 400)) == vocabulary(
        read_sentencepiece(model)
    )


@pytest.mark.parametrize("size", [0, 259, 1 << 25, 1 << 40])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ParameterError, match=f"vocab_size is {size}, expected 260 to 16777216"):
        train_vocabulary(made_up_stories(20), size)


def test_too_large_a_size_is_refused_with_the_largest_possible(model: bytes) -> None:
    stories = made_up_stories(20)
    with pytest.raises(
        ParameterError, match=r"100000 is too large for this text; use at most"
    ) as e:
        train_vocabulary(stories, 100_000)
    largest = int(str(e.value).split()[-1])
    assert len(train_vocabulary(stories, largest)) == largest


def test_too_small_a_size_is_refused_with_the_smallest_possible() -> None:
    """The message names no option of sentencepiece, which nobody can set here."""
    stories = ["".join(chr(0x4E00 + i) for i in range(500)) + " aa ab"] * 3
    with pytest.raises(ParameterError, match=r"500 is too small: the text has 50\d diff") as e:
        train_vocabulary(stories, 500)
    assert "coverage" not in str(e.value)
    smallest = int(str(e.value).split()[-1])
    assert len(train_vocabulary(stories, smallest)) == smallest


def test_text_without_characters_is_refused() -> None:
    with pytest.raises(ParameterError, match="no characters to learn from"):
        train_vocabulary(["\u2585"], 300)


def test_a_book_in_one_line_is_learned_from() -> None:
    """sentencepiece skips long lines: a book in one line, with a short second one."""
    words = " ".join(made_up_stories(15_000)).replace("\n", " ").split(" ")
    book = " ".join(words)
    assert len(book) > 1 << 20
    lines = [" ".join(words[i : i + 50]) for i in range(0, len(words), 50)]
    second = "\nzebra zebra zebra"
    assert vocabulary(train_vocabulary([book + second], 350)) == vocabulary(
        train_vocabulary(["\n".join(lines) + second], 350)
    )


@pytest.mark.parametrize("length", [MAX_LINE, MAX_LINE + 3, 70_002, 400_002])
def test_a_long_word_is_learned_from(length: int) -> None:
    """sentencepiece 0.2.0 ends the process for a word of over 65,535 characters."""
    word = "\U0001f43b\U0001f42d\u00e9" * (length // 3)
    tokenizer = train_vocabulary([word + "\nab ab"], 266)
    assert len(tokenizer.encode("\U0001f43b\U0001f42d", bos=False)) <= 3


def test_a_line_with_sentencepieces_own_mark_is_learned_from() -> None:
    marked = [story.replace(",", " \u2585") for story in made_up_stories(100)]
    plain = [story.replace("\u2585", "\n") for story in marked]
    other = ["zebra zebra"]
    assert vocabulary(train_vocabulary(marked + other, 340)) == vocabulary(
        train_vocabulary(plain + other, 340)
    )

"""Training a vocabulary: our encoder gives what sentencepiece, which trained it, gives."""

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

sentencepiece = pytest.importorskip("sentencepiece", reason="needs the extra [train]")

from llama2py.training.vocabulary import (  # noqa: E402 (needs sentencepiece)
    read_sentencepiece,
    train_sentencepiece,
    train_vocabulary,
)

NOUNS = ("dragon", "kitten", "tree", "bird", "girl", "boat", "café", "queue")
VERBS = ("sang", "ran away", "ate 12 cakes", 'said: "Don\'t!"', "slept", "was happy")


def made_up_stories(n: int, seed: int = 1) -> list[str]:
    """A corpus that needs no file."""
    rng = random.Random(seed)
    return [
        "\n".join(
            f"Once a {rng.choice(NOUNS)} {rng.choice(VERBS)}, and the {rng.choice(NOUNS)}"
            f" {rng.choice(VERBS)}."
            for _ in range(rng.randint(1, 4))
        )
        for _ in range(n)
    ]


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
    """Code points of all planes, and now and then what the vocabulary knows."""
    parts = []
    for _ in range(rng.randint(0, 40)):
        kind = rng.random()
        if kind < 0.4:
            parts.append(rng.choice([*NOUNS, *VERBS, " ", "  ", "\n", "\t", "0", "Once"]))
        else:
            code = rng.choice([rng.randrange(32, 0x250), rng.randrange(1, 0x110000)])
            # A surrogate is no character; sentencepiece reads U+2581 as a space, and ends at NUL.
            if not 0xD800 <= code < 0xE000 and code != 0x2581:
                parts.append(chr(code))
    return "".join(parts)


def test_it_encodes_as_sentencepiece_does(model: bytes) -> None:
    rng = random.Random(2)
    agree(model, made_up_stories(100, seed=3) + [random_text(rng) for _ in range(1000)])


def test_it_encodes_the_corpus_as_sentencepiece_does(test_data: Path) -> None:
    stories = read_stories(test_data / "data" / "corpus" / "tinystories.txt")
    agree(train_sentencepiece(stories[:3000], 1000), stories[-1000:])


def test_another_vocabulary_does_not_agree(model: bytes) -> None:
    """The comparison would notice: a vocabulary of another corpus encodes otherwise."""
    other = train_vocabulary(made_up_stories(200, seed=9)[:20], 380)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = made_up_stories(5, seed=4)
    assert [other.encode(text, bos=False) for text in texts] != [
        processor.encode(text) for text in texts
    ]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581")))
@settings(max_examples=300, deadline=None)
def test_any_text_is_encoded_alike(text: str) -> None:
    agree(MODEL, [text])


MODEL = train_sentencepiece(made_up_stories(50, seed=5), 350)


def test_the_layout_is_that_of_tokenizer_bin(model: bytes, tmp_path: Path) -> None:
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


def test_training_twice_gives_the_same(model: bytes) -> None:
    assert vocabulary(train_vocabulary(made_up_stories(200), 400)) == vocabulary(
        read_sentencepiece(model)
    )


@pytest.mark.parametrize("size", [0, 259, 100_000])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(ParameterError, match=str(size)):
        train_vocabulary(made_up_stories(20), size)

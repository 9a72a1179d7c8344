"""Byte pair encoding against recorded outputs, a plain quadratic encoder and sentencepiece."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llama2py._data import bundled_tokenizer
from llama2py.tokenizers import bpe
from llama2py.tokenizers.bpe import FIRST_BYTE, FIRST_PIECE, MergeEncoder
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.pretokenize import GPT2
from llama2py.tokenizers.tokenizer import BOS, Tokenizer
from tests.support.made_tokenizers import scored_vocabulary
from tests.support.trained_vocabularies import both, byte_level
from tests.support.vocabulary_files import SPECIAL

# No deadlines: the first call loads the vocabulary, and machines differ.


relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


thorough = settings(relaxed, max_examples=400)


@cache
def bundled() -> Tokenizer:
    return load_tokenizer(bundled_tokenizer())


def plain_encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode as llama2.c's run.c does, step by step, in quadratic time."""
    pieces = [tokenizer.piece(token) for token in range(len(tokenizer))]
    ids: dict[bytes, int] = {}
    for token in range(FIRST_PIECE, len(pieces)):
        ids.setdefault(pieces[token], token)
    tokens: list[int] = []
    for character in " " + text if text else "":
        raw = character.encode()
        tokens += [ids[raw]] if raw in ids else [byte + FIRST_BYTE for byte in raw]
    while True:
        best_score, best_at, best_token = float("-inf"), -1, -1
        for at in range(len(tokens) - 1):
            left, right = tokens[at], tokens[at + 1]
            if left < FIRST_PIECE or right < FIRST_PIECE:
                continue  # bytes do not merge
            token = ids.get(pieces[left] + pieces[right], -1)
            if token >= 0 and tokenizer.score(token) > best_score:
                best_score, best_at, best_token = tokenizer.score(token), at, token
        if best_at < 0:
            return [BOS, *tokens]
        tokens[best_at : best_at + 2] = [best_token]


def encode_both_ways(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a text whole and in chunks. Both must give the same tokens."""
    whole = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "UNCUT_LENGTH", 0)
        assert tokenizer.encode(text) == whole  # fills the cache
        assert tokenizer.encode(text) == whole  # reads it
        patch.setattr(bpe, "CACHED_LENGTH", 0)
        assert tokenizer.encode(text) == whole
    return whole


# ---- recorded outputs and sentencepiece ----


@pytest.mark.parametrize("name", ["tok32000", "tok512"])
def test_llama2c_prints_the_same_tokens(test_data: Path, name: str) -> None:
    path = bundled_tokenizer() if name == "tok32000" else test_data / "data" / "tok512.bin"
    tokenizer = load_tokenizer(path)
    rows: list[dict[str, Any]] = json.loads((test_data / "golden" / "tokenizer.json").read_text())
    assert len(rows) > 200
    for row in rows:
        assert encode_both_ways(tokenizer, row["text"]) == row[name], row["text"]
        assert tokenizer.decode(row[name]) == row["text"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", [1]),
        (" ", [1, 259]),
        ("a", [1, 263]),
        ("\n", [1, 29871, 13]),
        ("Hello, world!", [1, 15043, 29892, 3186, 29991]),
        ("<s>", [1, 529, 29879, 29958]),
        ("<0x41>", [1, 529, 29900, 29916, 29946, 29896, 29958]),
        ("\u2581", [1, 29871, 229, 153, 132]),
        ("a\0b", [1, 263, 3, 29890]),
    ],
)
def test_known_texts_have_known_tokens(text: str, tokens: list[int]) -> None:
    assert encode_both_ways(bundled(), text) == tokens
    assert bundled().decode(tokens) == text


def test_sentencepiece_finds_the_same_tokens(test_data: Path) -> None:
    """Except for a literal U+2581, which sentencepiece reads as a space.

    The model normalizes nothing else: its normalizer is "identity", its dummy prefix is on.
    """
    sentencepiece = pytest.importorskip("sentencepiece")
    model = test_data / "data" / "formats" / "stories260K-hf" / "tokenizer.model"
    if not model.is_file():
        pytest.skip(f"no {model}")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ours = load_tokenizer(test_data / "data" / "tok512.bin")

    @relaxed
    @given(st.text() | st.text("thea \n<s>/0x1", max_size=60))
    @example("  <s> </s><0x41>\0\r\n\u00a0\u3000\ufeff\u0301\U0001f436 ")
    def check(text: str) -> None:
        text = text.replace("\u2581", "")
        tokens = ours.encode(text)
        assert tokens[1:] == theirs.encode(text)
        assert ours.decode(tokens) == theirs.decode(tokens[1:]) == text

    check()
    with (test_data / "data" / "corpus" / "tinystories.txt").open() as corpus:
        for _, line in zip(range(2000), corpus, strict=False):
            assert ours.encode(line)[1:] == theirs.encode(line)
    for code in range(0x3000):  # with the marks and spaces that a normalizer could touch
        text = f"a{chr(code)}b"
        assert (ours.encode(text)[1:] == theirs.encode(text)) == (code != 0x2581), hex(code)


# ---- the plain encoder ----


ALPHABET = "ab \u00e9\u2581\n\U0001f436"


small_pieces = st.text("ab ", max_size=4).map(str.encode) | st.one_of(
    st.text(ALPHABET, max_size=4).map(str.encode), st.binary(max_size=3)
)


@thorough
@given(
    st.lists(st.tuples(small_pieces, st.integers(-3, 3).map(float)), max_size=40),
    st.lists(st.sampled_from(ALPHABET), unique=True),
    st.text("ab ", max_size=40) | st.text(ALPHABET + "c", max_size=40),
)
@example([(b"ba", 1.0), (b"ab", 1.0)], ["a", "b", " "], "ababab")
@example([(b"aa", 0.0), (b"aaa", 2.0), (b"aaaa", 1.0)], ["a"], "a" * 13)
@example([(b"a b", 2.0), (b" b", 1.0), (b"a ", 1.0)], ["a", "b", " "], "a b a b")
@example([(b"ab", 1.0), (b" a", 1.0)], ["a"], "ab")  # a piece that no merge can make
@example([(b"", 9.0), (b"a", 1.0), (b"a", 2.0), (b"aa", 0.0), (b"aa", 5.0)], [], "aaa")
def test_any_vocabulary_agrees_with_the_plain_encoder(
    scored: list[tuple[bytes, float]], characters: list[str], text: str
) -> None:
    scored = scored + [(character.encode(), 0.0) for character in characters]
    tokenizer = Tokenizer(
        SPECIAL + [piece for piece, _ in scored],
        [0.0] * FIRST_PIECE + [score for _, score in scored],
    )
    tokens = encode_both_ways(tokenizer, text)
    assert tokens == plain_encode(tokenizer, text)
    assert tokenizer.decode(tokens) == text


@relaxed
@given(st.text(max_size=60) | st.text("then said \n,.\"'Tome", max_size=80))
def test_bundled_vocabulary_agrees_with_the_plain_encoder(text: str) -> None:
    assert encode_both_ways(bundled(), text) == plain_encode(bundled(), text)


def test_tok512_agrees_with_the_plain_encoder(test_data: Path) -> None:
    tokenizer = load_tokenizer(test_data / "data" / "tok512.bin")
    corpus = (test_data / "data" / "corpus" / "tinystories.txt").read_text()
    for start in range(0, 100_000, 2_000):
        text = corpus[start : start + 150]
        assert encode_both_ways(tokenizer, text) == plain_encode(tokenizer, text)


def test_the_best_score_wins_then_the_leftmost() -> None:
    assert scored_vocabulary(_=0, a=0, b=0, ab=1, ba=2).encode("aba")[-2:] == [260, 263]
    assert scored_vocabulary(_=0, a=0, b=0, ab=2, ba=2).encode("aba")[-2:] == [262, 260]
    assert scored_vocabulary(_=0, a=0, aa=-1e30).encode("aaa")[-2:] == [261, 260]


def test_a_long_run_is_not_quadratic() -> None:
    for text in ["x" * 200_000, "ab" * 100_000, "\u6f22\U0001f436" * 50_000]:
        assert bundled().decode(bundled().encode(text)) == text


def test_the_cache_stays_within_bounds() -> None:
    tokenizer = load_tokenizer(bundled_tokenizer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "CACHED_CHUNKS", 10)
        text = " ".join(map(str, range(1000)))
        assert tokenizer.encode(text) == bundled().encode(text)
    assert 0 < len(tokenizer._encoder._chunk_ids) <= 10


# ---- merges ----


@pytest.mark.parametrize("whole_first", [True, False])
def test_a_word_is_taken_whole_only_on_request(tmp_path: Path, whole_first: bool) -> None:
    """As Llama 3's are. Of two merges that make a piece, the first in the list comes first."""
    found = byte_level((GPT2,))
    vocab = {**found["model"]["vocab"]}
    letters = {letter: vocab[letter] for letter in "abcx"}
    pieces = [*letters, "ab", "bc", "abc", "xab", "aa", "aaa"]
    found = {
        **found,
        "added_tokens": [{**found["added_tokens"][0], "id": len(pieces)}],
        "model": {
            **found["model"],
            "ignore_merges": whole_first,
            "unk_token": "x",  # the other bytes are not pieces
            "vocab": {piece: token for token, piece in enumerate(pieces)},
            "merges": ["b c", "a b", "x ab", "a a", "a aa", "aa a"],
        },
    }
    theirs, ours = both(found, tmp_path)
    assert (ours.encode("abc", bos=False) == [6]) == whole_first
    for text in ("abc", "xab", "xabc", "aaa", "aaaa", "aaaaa", "aaaaaaa", "abaabcaaab"):
        assert ours.encode(text, bos=False) == theirs.encode(text).ids, text


def test_without_merges_the_lowest_id_wins() -> None:
    """tiktoken's rule: the piece with the lowest rank first, the leftmost of equals."""
    ids = {piece: rank for rank, piece in enumerate(["a", "b", "c", "bc", "ab", "abc", "ca"])}
    encoder = MergeEncoder(ids, None, lambda character: [], whole_first=False)
    assert encoder.encode("abc") == [5]  # bc before ab
    assert encoder.encode("ab") == [4]
    assert encoder.encode("caab") == [6, 4]
    assert encoder.merges == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"), ("c", "a")]

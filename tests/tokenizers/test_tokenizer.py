"""Tokenizer, Decoder and special tokens: decoding, streaming, padding, BOS and errors."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llama2py._data import bundled_tokenizer
from llama2py.errors import PromptError, TokenizerError
from llama2py.tokenizers.bpe import FIRST_BYTE, FIRST_PIECE
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import ByteLevel, Characters, MergeTokenizer
from llama2py.tokenizers.pretokenize import QWEN2
from llama2py.tokenizers.tokenizer import BOS, EOS, Prefix, Specials, Tokenizer
from tests.conftest import tiny_tokenizer
from tests.support.made_tokenizers import early_specials, merging_with, scored_vocabulary
from tests.support.vocabulary_files import SPECIAL

# No deadlines: the first call loads the vocabulary, and machines differ.


relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@cache
def bundled() -> Tokenizer:
    return load_tokenizer(bundled_tokenizer())


# ---- both directions ----


@relaxed
@given(st.text())
@example("  leading, trailing  ")
@example("\u2581\0\r\n\ufeff\ufffd\U0010ffff")
def test_decode_undoes_encode(text: str) -> None:
    tokens = bundled().encode(text)
    assert bundled().decode(tokens) == text
    assert bundled().encode(text, bos=False, eos=True) == [*tokens[1:], EOS]


@relaxed
@given(st.text())
def test_a_vocabulary_without_a_space_spells_it_in_bytes(text: str) -> None:
    tokenizer = scored_vocabulary(a=0)
    tokens = tokenizer.encode(text)
    assert tokens[:2] == ([BOS, FIRST_BYTE + 0x20] if text else [BOS])
    assert tokenizer.decode(tokens) == text


def in_order(prefix: Prefix, adds_bos: bool) -> Tokenizer:
    pieces = [*SPECIAL, b"a", b" a", b" "]
    scores = [0.0] * len(pieces)
    return Tokenizer(pieces, scores, adds_bos=adds_bos, prefix=prefix)


@relaxed
@given(st.text())
def test_decoding_without_bos_keeps_the_space_that_encoding_adds(text: str) -> None:
    for tokenizer, space in (
        (bundled(), " "),
        (in_order("each", adds_bos=False), " "),
        (in_order("control", adds_bos=False), " "),
        (in_order("none", adds_bos=False), ""),
    ):
        tokens = tokenizer.encode(text, bos=False)
        assert tokenizer.decode(tokens) == (space + text if text else "")
        assert tokenizer.decode([tokenizer.bos_id, *tokens]) == text


@relaxed
@given(st.text())
@example(" ")
@example("  a")
def test_decoding_loses_a_space_that_keeps_encoding_from_adding_one(text: str) -> None:
    for kind in (Characters("each", True), Characters("first", True)):
        tokenizer = merging_with(kind)
        assert tokenizer.decode(tokenizer.encode(text)) == text.removeprefix(" ")
    for kind in (Characters("each"), Characters("none")):
        tokenizer = merging_with(kind)
        assert tokenizer.decode(tokenizer.encode(text)) == text


byte_tokens = st.integers(FIRST_BYTE, FIRST_PIECE - 1)


@relaxed
@given(st.lists(byte_tokens | st.integers(0, 2) | st.integers(0, 31999)), st.none() | st.just(BOS))
def test_streamed_text_is_the_whole_text(tokens: list[int], previous: int | None) -> None:
    decoder = bundled().decoder(previous)
    streamed = "".join([decoder.feed(token) for token in tokens]) + decoder.flush()
    assert streamed == bundled().decode([BOS, *tokens] if previous == BOS else tokens)
    assert decoder.flush() == ""


@relaxed
@given(st.binary())
def test_bytes_decode_as_python_decodes_them(raw: bytes) -> None:
    text = bundled().decode([byte + FIRST_BYTE for byte in raw])
    assert text == raw.decode(errors="replace")


def test_an_emoji_arrives_whole() -> None:
    decoder = bundled().decoder(BOS)
    dog = [byte + FIRST_BYTE for byte in "\U0001f436".encode()]
    assert [decoder.feed(token) for token in dog] == ["", "", "", "\U0001f436"]
    assert [decoder.feed(token) for token in [*dog[:2], 263]] == ["", "", "\ufffd a"]
    assert [decoder.feed(token) for token in dog[:3]] == ["", "", ""]
    assert decoder.flush() == "\ufffd"


def test_bos_decodes_to_nothing_and_removes_a_space() -> None:
    decode = bundled().decode
    space, a, space_byte = 29871, 263, FIRST_BYTE + 0x20
    assert decode([a]) == " a"
    assert decode([BOS, a, BOS, a]) == "aa"
    assert decode([BOS, space, a]) == " a"
    assert decode([BOS, 259]) == " "
    assert decode([BOS, space_byte]) == " "
    first, second = FIRST_BYTE + 0xC3, FIRST_BYTE + 0xA9
    assert decode([first, second]) == "\u00e9"
    assert decode([first, BOS, second]) == "\ufffd\ufffd"
    assert decode([a, EOS, a]) == " a\n</s>\n a"


# ---- padding ----


def test_padding_decodes_to_nothing(tmp_path: Path) -> None:
    plain = tiny_tokenizer()
    padded = plain.padded(330)
    assert (len(padded), len(plain), padded.n_tokens) == (330, 300, 300)
    ids = plain.encode("a cab")
    assert padded.encode("a cab") == ids
    assert padded.decode([*ids, 300, 329]) == plain.decode(ids)
    with pytest.raises(PromptError, match="token 330 is not in the vocabulary"):
        padded.decode([330])
    write_tokenizer_bin(plain.padded(310), tmp_path / "t.bin")
    again = load_tokenizer(tmp_path / "t.bin", 310)
    assert again.encode("a cab") == ids
    assert again.decode([1, 305, 309]) == ""


# ---- special tokens ----

SPECIAL_TEXTS = st.dictionaries(st.text("ab<", max_size=4), st.integers(0, 99), max_size=8)


def split_by_hand(text: str, ids: dict[str, int]) -> list[str | int]:
    """At each place, try every special token, the longest first."""
    parts: list[str | int] = []
    plain, place = "", 0
    while place < len(text):
        found = [name for name in ids if name and text.startswith(name, place)]
        if found:
            longest = max(found, key=len)
            parts += [plain, ids[longest]] if plain else [ids[longest]]
            plain, place = "", place + len(longest)
        else:
            plain, place = plain + text[place], place + 1
    return [*parts, plain] if plain else parts


@relaxed
@given(SPECIAL_TEXTS, SPECIAL_TEXTS, st.text("ab<c", max_size=30))
@example({"aab": 1, "ab": 2, "a": 3}, {"aa": 4, "]^-\\": 5}, "aaab]^-\\")
def test_a_text_is_split_at_the_longest_special_tokens(
    added: dict[str, int], control: dict[str, int], text: str
) -> None:
    specials = Specials(added, control)
    assert list(specials.split(text)) == split_by_hand(text, added)
    assert list(specials.split(text, trusted=True)) == split_by_hand(text, {**control, **added})
    assert list(specials.split_at_control(text)) == split_by_hand(text, control)


# ---- the rest ----


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(PromptError, match=r"U\+D83D, half of a surrogate pair, at position 1"):
        bundled().encode("a\ud83d")


@pytest.mark.parametrize("token", [-1, 32000, 1 << 70])
def test_unknown_ids_are_refused(token: int) -> None:
    message = f"^token {token} is not in the vocabulary, expected 0 to 31999$"
    for call in [bundled().piece, bundled().score, bundled().decoder().feed]:
        with pytest.raises(PromptError, match=message):
            call(token)
    with pytest.raises(PromptError, match=message):
        bundled().decode([BOS, token])


@pytest.mark.parametrize(
    ("pieces", "scores", "message"),
    [
        (SPECIAL, [0.0], "259 tokens have 1 scores"),
        (SPECIAL[:-1], [0.0] * 258, "the vocabulary has 258 tokens, expected at least 259"),
        (SPECIAL[::-1], [0.0] * 259, "token 3 is b'<0xFC>', expected the byte <0x00>"),
        (SPECIAL, [0.0] * 258 + [float("nan")], "the score of token 258 is nan, expected"),
        (SPECIAL, [float("-inf")] + [0.0] * 258, "the score of token 0 is -inf, expected"),
        (SPECIAL, [0.0, 1e300] + [0.0] * 257, "the score of token 1 is inf, expected"),
    ],
)
def test_a_malformed_vocabulary_is_refused(
    pieces: list[bytes], scores: list[float], message: str
) -> None:
    with pytest.raises(TokenizerError, match="^" + message):
        Tokenizer(pieces, scores)


def test_a_tokenizer_describes_itself() -> None:
    tokenizer = bundled()
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == len(tokenizer) == 32000
    assert repr(tokenizer) == "<Tokenizer: 32000 tokens>"
    assert [tokenizer.piece(i) for i in (0, 1, 2, 68, 263)] == [*SPECIAL[:3], b"<0x41>", b" a"]
    assert [tokenizer.score(i) for i in (0, 258, 259, 263)] == [0.0, 0.0, -1e9, -4.0]
    assert pickle.loads(pickle.dumps(tokenizer)).encode("Once") == tokenizer.encode("Once")


def test_any_tokenizer_can_be_pickled() -> None:
    """Programs with several processes do so."""
    byte_level = MergeTokenizer(["a", "b", "ab"], [("a", "b")], ByteLevel((QWEN2,)), 0, 1)
    for tokenizer in (tiny_tokenizer(), early_specials(), merging_with(Characters()), byte_level):
        tokenizer.encode("ab é")
        again = pickle.loads(pickle.dumps(tokenizer))
        assert type(again) is type(tokenizer)
        assert again.encode("n ab [IMG]é") == tokenizer.encode("n ab [IMG]é")

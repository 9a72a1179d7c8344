"""Scores turned into merges and back, and vocabularies for which that is impossible."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.checkpoint.gguf.writer import _head
from llama2py.errors import TokenizerError
from llama2py.tokenizers.gguf import gguf_pairs
from llama2py.tokenizers.huggingface import tokenizer_config, tokenizer_json
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import ByteLevel, Characters, MergeTokenizer
from llama2py.tokenizers.pretokenize import DIGITS, QWEN2
from llama2py.tokenizers.scores_and_merges import spelled, to_merges, to_scores
from llama2py.tokenizers.sentencepiece import sentencepiece_model
from llama2py.tokenizers.tokenizer import Specials, Tokenizer
from tests.conftest import tiny_tokenizer
from tests.support.made_tokenizers import STORIES, scored

relaxed = settings(deadline=None, max_examples=200)


@pytest.mark.parametrize("name", scored())
def test_scores_survive_as_merges(name: str, tmp_path: Path) -> None:
    tokenizer = scored()[name]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(tokenizer))
    (tmp_path / "tokenizer_config.json").write_bytes(tokenizer_config(tokenizer, 64))
    again = to_scores(load_tokenizer(path))
    assert type(again) is Tokenizer
    assert [again.piece(i) for i in range(len(again))] == [
        tokenizer.piece(i) for i in range(len(tokenizer))
    ]
    assert (again.specials, again.eos_id) == (tokenizer.specials, tokenizer.eos_id)

    @relaxed
    @given(STORIES)
    def check(text: str) -> None:
        assert again.encode(text) == tokenizer.encode(text)

    check()


def pieces(*more: bytes) -> Tokenizer:
    tiny = tiny_tokenizer()
    all_pieces = [*(tiny.piece(i) for i in range(300)), *more]
    return Tokenizer(all_pieces, [-float(i) for i in range(len(all_pieces))])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (b"\xff", r"token 300 is b'\\xff', which is not UTF-8"),
        (b"ab", "tokens 300 and 301 are both 'ab'"),
        ("▁".encode(), r"token 300 is '▁': in other formats U\+2581 is a space"),
    ],
)
def test_a_piece_that_only_llama2c_has_is_refused(more: bytes, message: str) -> None:
    tokenizer = pieces(more, more)
    for write in (tokenizer_json, sentencepiece_model, gguf_pairs):
        with pytest.raises(TokenizerError, match=message):
            write(tokenizer)


def test_a_byte_level_vocabulary_has_no_scores() -> None:
    letters = MergeTokenizer(["a", "b", "ab"], [("a", "b")], ByteLevel((QWEN2, DIGITS)), 0, 1)
    for write in (to_scores, sentencepiece_model):
        with pytest.raises(TokenizerError, match="a byte-level vocabulary has no scores"):
            write(letters)
    with pytest.raises(TokenizerError, match="in a way that GGUF has no name for"):
        gguf_pairs(letters)


def test_merges_without_equivalent_scores_are_refused() -> None:
    tiny = tiny_tokenizer()
    texts = ["<unk>", "<s>", "</s>", *(tiny.piece(i).decode() for i in range(3, 259))]
    texts += ["a", "b", "ab", "ba", "aba"]
    ways = {"ab": [("a", "b")], "ba": [("b", "a")], "aba": [("a", "ba"), ("ab", "a")]}

    def make(*order: tuple[str, str]) -> MergeTokenizer:
        return MergeTokenizer(texts, order, Characters(), 1, 2, None, 0)

    good = [*ways["ba"], *ways["ab"], *ways["aba"]]
    found = to_scores(make(*good))
    assert found.score(262) > found.score(261) > found.score(263)  # not in the order of the ids
    with pytest.raises(TokenizerError, match="'aba' is missing some of the merges"):
        to_scores(make(*good[:-1]))
    with pytest.raises(TokenizerError, match="'aba' is missing some of the merges"):
        to_scores(make(*good[:2]))
    equal = to_scores(make(good[2], good[0], good[3], good[1]))
    assert equal.score(263) == equal.score(262) > equal.score(261)
    other = MergeTokenizer(texts[3:], good, Characters(), 1, 2)
    with pytest.raises(TokenizerError, match="does not begin with unknown, BOS, EOS, other"):
        to_scores(other)


def test_a_vocabulary_with_another_layout_survives_gguf(tmp_path: Path) -> None:
    """Gemma's begins with <pad>, <eos>, <bos> and <unk>, and has added tokens that merges make."""
    package = pytest.importorskip("tokenizers")
    texts = spelled(tiny_tokenizer())
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", "▁▁"]
    pieces = [*first, *texts[3:], "\n", "▁n▁n"]
    spaces = [("\n", "\n"), ("▁", "▁")]
    others = [*to_merges(tiny_tokenizer(), texts), ("▁n", "▁n")]
    control = {text: token for token, text in enumerate(first[:4])}
    specials = Specials({"\n\n": 4, "▁▁": 5}, control, pieces=frozenset([4, 5]))

    def make(*merges: tuple[str, str]) -> MergeTokenizer:
        return MergeTokenizer(pieces, merges, Characters("none"), 2, 1, specials, 3)

    with pytest.raises(TokenizerError, match="the added token '▁▁' is found by merges that come l"):
        gguf_pairs(make(*others, *spaces))
    ours = make(*spaces, *others)
    path = tmp_path / "x.gguf"
    path.write_bytes(_head(gguf_pairs(ours), []))
    inside = load_tokenizer(path)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(ours))
    theirs = package.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (inside.bos_id, inside.eos_id, inside.unk_id) == (2, 1, 3)
    assert inside.specials.control == control
    assert not inside.specials.fixed

    @settings(deadline=None, max_examples=200)
    @given(st.text("abcn \n<é", max_size=20) | st.sampled_from(["<bos>a<eos>", "a<unk>"]))
    def check(text: str) -> None:
        wanted = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, bos=False, special=True) == wanted
        assert inside.encode(text, bos=False, special=True) == wanted
        assert inside.decode(inside.encode(text)) == text

    check()

"""Vocabularies with merges against the ``tokenizers`` package and sentencepiece."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama2py.errors import TokenizerError
from llama2py.tokenizers.gguf import gguf_pairs
from llama2py.tokenizers.huggingface import tokenizer_json
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import ByteLevel
from llama2py.tokenizers.pretokenize import GPT2
from tests.support.trained_vocabularies import (
    ADDED,
    BYTE_LEVEL,
    TEXTS,
    both,
    byte_level,
    characters,
    compare,
    corpus,
    load_merges,
)

relaxed = settings(deadline=None, max_examples=300)


@pytest.mark.parametrize(
    ("form", "sequence", "prefix"),
    [("NFC", False, False), ("NFC", True, True), ("NFKC", True, True), ("", False, True)],
)
def test_normalization_and_a_leading_space_are_as_in_tokenizers(
    form: Any, sequence: bool, prefix: bool, tmp_path: Path
) -> None:
    """Many vocabularies that people train have one of these."""
    hf = pytest.importorskip("tokenizers")
    found = json.loads(json.dumps(byte_level((GPT2,))))
    step = {"type": form} if form else None
    found["normalizer"] = {"type": "Sequence", "normalizers": [step]} if sequence else step
    found["pre_tokenizer"]["pretokenizers"][0]["add_prefix_space"] = prefix
    found["added_tokens"][-1]["normalized"] = False
    theirs, ours = both(found, tmp_path)
    path = tmp_path / "again" / "tokenizer.json"
    path.parent.mkdir()
    path.write_bytes(tokenizer_json(ours))
    again, written = load_tokenizer(path), hf.Tokenizer.from_file(str(path))
    assert ours.kind == ByteLevel((GPT2,), form, prefix)
    with pytest.raises(
        TokenizerError, match=r"the vocabulary (puts a|normalizes) .*, which GGUF cannot say"
    ):
        gguf_pairs(ours)
    letters = st.sampled_from(["e", "é", "\u0301", "a", "\u0323", "\u030a", "ᄒ", "ᅡ", "ᆫ", "\u212a",
                               "cat sat", "\u2126", "\ufb1d", "\u0344", " ", "s", "½", "\xa0",
                               "\ufb01", "ａ", "…", "\u2003", *ADDED])  # fmt: skip

    @relaxed
    @given(st.lists(letters, max_size=12).map("".join) | TEXTS)
    def check(text: str) -> None:
        wanted = theirs.encode(text).ids
        assert written.encode(text).ids == wanted
        for tokenizer in (ours, again):
            assert tokenizer.encode(text, bos=False, special=True) == wanted
        assert ours.decode(wanted) == theirs.decode(wanted)
        normal = unicodedata.normalize(form, text) if form else text
        if "cat sat" in text or (prefix and normal[:1] == " "):
            return  # an added token gets a space after it, a leading space none before it
        assert ours.decode([ours.bos_id, *ours.encode(text, bos=False)]) == normal

    check()


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_tokenizers_finds_the_same_byte_level_tokens(tmp_path: Path, name: str) -> None:
    found = byte_level(*BYTE_LEVEL[name])
    theirs, ours = both(found, tmp_path)
    assert ours.vocab_size == theirs.get_vocab_size()
    check = relaxed(given(TEXTS)(compare(theirs, ours)))
    check()
    for text in corpus():
        assert ours.encode(text, bos=False) == theirs.encode(text).ids


@pytest.mark.parametrize("prefix", ["normalizer", "replace", "always", "first", "never"])
def test_tokenizers_finds_the_same_character_tokens(tmp_path: Path, prefix: str) -> None:
    theirs, ours = both(characters(prefix), tmp_path)

    def check(text: str) -> None:
        text = text.replace("▁", "_")
        tokens = ours.encode(text, bos=False, special=True)
        assert tokens == theirs.encode(text, add_special_tokens=False).ids

    relaxed(given(TEXTS)(check))()
    for text in corpus():
        check(text)


def test_control_tokens_are_found_only_in_trusted_texts(tmp_path: Path) -> None:
    _, ours = both(byte_level((GPT2,)), tmp_path)
    start = ours.specials.control["<|im_start|>"]
    text = "<|im_start|>the cat sat on"
    trusted, plain = ours.encode(text, bos=False, special=True), ours.encode(text, bos=False)
    assert trusted[0] == start
    assert start not in plain
    assert ours.decode(plain) == text
    assert ours.decode(trusted) == "the cat sat on"
    added = ours.specials.added["cat sat"]
    assert added in trusted
    assert added in plain
    assert ours.bos_id == ours.eos_id == 0
    assert ours.encode("a", eos=True) == [*ours.encode("a", bos=False), 0]  # no template adds BOS


def test_a_character_that_spans_tokens_arrives_whole(tmp_path: Path) -> None:
    _, ours = both(byte_level((GPT2,)), tmp_path)
    decoder = ours.decoder(previous=ours.bos_id)
    pieces = [decoder.feed(token) for token in ours.encode("a 🐻!", bos=False)]
    assert "".join(pieces) == "a 🐻!"
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) > 4


# ---- a real one ----


@pytest.fixture(scope="module")
def real(test_data: Path) -> Path:
    return test_data / "data" / "formats" / "stories260K-hf"


def test_a_real_tokenizer_json_is_equivalent_to_its_scores(real: Path) -> None:
    """It is the vocabulary of tok512.bin: any text has the same ids by merges and by scores."""
    ours = load_merges(real / "tokenizer.json")
    scored = load_tokenizer(real.parents[1] / "tok512.bin")
    inside = load_tokenizer(real.parent / "stories260K-f32.gguf", 512)
    assert (ours.bos_id, ours.eos_id, len(ours)) == (1, 2, 512)

    @relaxed
    @given(TEXTS)
    def check(text: str) -> None:
        tokens = ours.encode(text)
        assert tokens == scored.encode(text) == inside.encode(text)
        assert ours.decode(tokens) == scored.decode(tokens) == text

    check()


def test_tokenizers_and_sentencepiece_read_the_real_one_alike(real: Path) -> None:
    hf = pytest.importorskip("tokenizers")
    sentencepiece = pytest.importorskip("sentencepiece")
    ours = load_merges(real / "tokenizer.json")
    theirs = hf.Tokenizer.from_file(str(real / "tokenizer.json"))
    theirs.add_special_tokens(["<unk>"])  # transformers adds what tokenizer_config.json names
    processor = sentencepiece.SentencePieceProcessor(model_file=str(real / "tokenizer.model"))

    @relaxed
    @given(TEXTS)
    @example("<s>")
    @example("a <unk></s> b<s>c")
    def check(text: str) -> None:
        text = text.replace("▁", "_")
        special = ours.encode(text, bos=False, special=True)
        assert special == theirs.encode(text, add_special_tokens=False).ids
        # This sentencepiece model does not normalize, but it drops NUL.
        if "\0" not in text:
            assert ours.encode(text, bos=False) == processor.encode(text)

    check()


# ---- added tokens ----

ADDED_TEXTS = st.sampled_from(
    ["<x>", "<x>y", "x", " x", "x ", "é", "e\u0301", "the", " the", "a\nb", "\u212a", "12", "_"]
)
FLAGS = st.fixed_dictionaries(
    {name: st.booleans() for name in ("normalized", "single_word", "lstrip", "rstrip", "special")}
)
AROUND = st.sampled_from(
    ["<x>", "<x>y", "x", " x", "x ", "é", "e\u0301", "the", " ", "  ", "\n", "\t", "\u3000", "a",
     "_", "\u0301", "\u200d", "²", "Ⓐ", "½", "K", "\u212a", "12", "3", "a\nb", "."]
)  # fmt: skip


def with_added(found: dict[str, Any], added: dict[str, dict[str, bool]]) -> dict[str, Any]:
    """Add tokens to a tokenizer.json; those that are in the vocabulary keep their ids."""
    found = json.loads(json.dumps(found))
    vocab = found["model"]["vocab"]
    known = {token["content"] for token in found["added_tokens"]}
    ids = {*vocab.values(), *(token["id"] for token in found["added_tokens"])}
    for text, flags in added.items():
        if text not in known and text not in vocab:
            ids.add(len(ids))
            found["added_tokens"].append({"id": len(ids) - 1, "content": text, **flags})
    return found


def test_a_normalized_token_takes_the_space_that_normalization_puts(tmp_path: Path) -> None:
    """Prepend and Replace make "▁<x>" of it, as of the text."""
    for normalized in (True, False):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
        flags["normalized"] = normalized
        theirs, ours = both(with_added(characters("normalizer"), {"<x>": flags}), tmp_path)
        token = ours.specials.added["<x>"]
        plain = ours.encode("the", bos=False), ours.encode("cat", bos=False)
        wanted = [*plain[0], token, *plain[1]]
        tokens = ours.encode("the <x> cat", bos=False)
        assert (tokens == wanted) == normalized
        assert tokens == theirs.encode("the <x> cat").ids


def test_an_added_token_of_save_pretrained_takes_no_space_of_its_own(
    real: Path, tmp_path: Path
) -> None:
    """add_tokens makes normalized tokens; Prepend gives them the space before the next text."""
    found = json.loads((real / "tokenizer.json").read_bytes())
    flags = {**dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)}
    added = {"id": 512, "content": "<x>", **flags, "normalized": True}
    found["added_tokens"].append(added)
    theirs, ours = both(found, tmp_path)
    assert ours.encode("Once <x> upon", bos=False) == [403, 512, 407]
    assert theirs.encode("Once <x> upon", add_special_tokens=False).ids == [403, 512, 407]


KINDS = ["normalizer", "replace", "gemma", "always", "first", "never", "both", "", "NFC", "NFKC"]


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_are_matched_as_in_tokenizers(kind: str, tmp_path: Path) -> None:
    hf = pytest.importorskip("tokenizers")
    if kind == "both":  # a normalizer makes marks of spaces, a pre-tokenizer puts one first
        base = {**characters("first"), "normalizer": characters("replace")["normalizer"]}
    elif kind == "gemma":  # splits at spaces, of which the normalizer leaves none
        split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
        base = {**characters("replace"), "pre_tokenizer": {**split, "invert": False}}
    elif kind in ("normalizer", "replace", "always", "first", "never"):
        base = characters(kind)
    else:
        base = {**byte_level((GPT2,)), "normalizer": {"type": kind} if kind else None}

    @relaxed
    @given(st.dictionaries(ADDED_TEXTS, FLAGS, max_size=4), st.lists(AROUND, max_size=8))
    def check(added: dict[str, dict[str, bool]], parts: list[str]) -> None:
        theirs, ours = both(with_added(base, added), tmp_path)
        text = "".join(parts)
        wanted = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, bos=False, special=True) == wanted
        (tmp_path / "again.json").write_bytes(tokenizer_json(ours))
        if all(len(name) > 1 for name in added):  # or it is a character of the vocabulary there
            written = hf.Tokenizer.from_file(str(tmp_path / "again.json"))
            assert written.encode(text, add_special_tokens=False).ids == wanted
        again = load_merges(tmp_path / "again.json")
        assert again.specials == ours.specials
        assert again.encode(text, bos=False, special=True) == wanted

    check()

"""Vocabularies written for others: tokenizers, sentencepiece and our own readers see the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py._data import bundled_tokenizer
from llama2py.checkpoint.gguf.writer import _head
from llama2py.errors import TokenizerError
from llama2py.formats.gguf_metadata import read_gguf_metadata
from llama2py.tokenizers.export import export_tokenizer
from llama2py.tokenizers.gguf import read_gguf_vocabulary
from llama2py.tokenizers.huggingface import read_tokenizer_json
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import ByteLevel, Characters, MergeTokenizer
from llama2py.tokenizers.output import (
    gguf_pairs,
    sentencepiece_model,
    tokenizer_config,
    tokenizer_json,
)
from llama2py.tokenizers.pretokenize import DIGITS, GPT2, LLAMA3, QWEN2, TEKKEN, UNTOLD
from llama2py.tokenizers.scores import to_scores
from llama2py.tokenizers.sentencepiece import read_sentencepiece
from llama2py.tokenizers.specials import Specials
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.conftest import tiny_tokenizer
from tests.tokenizers.test_tokenizer_merges import TEXTS, byte_level

relaxed = settings(deadline=None, max_examples=200)
STORIES = st.lists(
    st.sampled_from(["Once upon a time", " there was", "  ", "   ", "    ", "         ", "\n",
                     "cafe", "1234", "▁", "日本", "🐻", "é", "isn't", "a", " b", "<s>", "<0x41>",
                     "\t"])
).map("".join)  # fmt: skip
PATTERNS = {
    "gpt2": ((GPT2,), False),
    "smollm": ((DIGITS, GPT2), False),
    "llama3": ((LLAMA3,), True),
    "qwen2": ((QWEN2,), False),
    "tekken": ((TEKKEN,), True),
    "smaug": ((LLAMA3,), False),
    "untold": (UNTOLD, False),
}


def with_specials() -> Tokenizer:
    """Scores, a control token that ends a text, and one of the user's."""
    tiny = tiny_tokenizer()
    pieces = [tiny.piece(token) for token in range(300)] + [b"<|end|>", b"  ", b"MARK"]
    scores = [tiny.score(token) for token in range(300)] + [0.0, 0.0, 0.0]
    return Tokenizer(pieces, scores, Specials({"MARK": 302, "  ": 301}, {"<|end|>": 300}), 300)


def early_specials() -> Tokenizer:
    """Special tokens before the bytes, as Mistral 7B v0.3 has them."""
    tiny = tiny_tokenizer()
    early = [b"[INST]", b"[/INST]", b"[IMG]"]
    pieces = [*map(tiny.piece, range(3)), *early, *map(tiny.piece, range(3, 300))]
    scores = [0.0] * 3 + [tiny.score(token) for token in range(300)]
    return Tokenizer(
        pieces, scores, Specials({"[IMG]": 5}, {"[INST]": 3, "[/INST]": 4}), first_byte=6
    )


def scored() -> dict[str, Tokenizer]:
    return {
        "tiny": tiny_tokenizer(),
        "llama2": load_tokenizer(bundled_tokenizer()),
        "specials": with_specials(),
        "early": early_specials(),
    }


def same(ours: Tokenizer, theirs: Tokenizer) -> None:
    """All that a vocabulary with scores has."""
    assert type(ours) is type(theirs) is Tokenizer
    ids = range(len(theirs))
    assert [ours.piece(i) for i in ids] == [theirs.piece(i) for i in ids]
    assert len(ours) == len(theirs)
    assert [ours.score(i) for i in ids] == [theirs.score(i) for i in ids]
    assert (ours.specials, ours.first_byte) == (theirs.specials, theirs.first_byte)
    assert (ours.bos_id, ours.eos_id, ours.adds_bos) == (
        theirs.bos_id,
        theirs.eos_id,
        theirs.adds_bos,
    )


# ---- vocabularies with scores ----


@pytest.mark.parametrize("name", scored())
def test_gguf_gives_back_all_of_it(name: str, tmp_path: Path) -> None:
    tokenizer = scored()[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(_head(gguf_pairs(tokenizer), []))
    same(read_gguf_vocabulary(path), tokenizer)


@pytest.mark.parametrize("name", ["tiny", "llama2", "early"])
def test_sentencepiece_reads_it(name: str, tmp_path: Path) -> None:
    package = pytest.importorskip("sentencepiece")
    tokenizer = scored()[name]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(tokenizer))
    same(read_sentencepiece(path), tokenizer)
    theirs = package.SentencePieceProcessor(str(path))
    assert (theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id()) == (0, 1, 2, -1)
    assert len(theirs) == len(tokenizer)

    @relaxed
    @given(STORIES)
    def check(text: str) -> None:
        text = text.replace("▁", "_")  # a space to sentencepiece, which here it is not
        assert theirs.encode(text) == tokenizer.encode(text, bos=False)

    check()


def test_sentencepiece_finds_the_special_tokens(tmp_path: Path) -> None:
    package = pytest.importorskip("sentencepiece")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(with_specials()))
    theirs = package.SentencePieceProcessor(str(path))
    assert theirs.is_control(300)
    for text in ("aMARKb", "<|end|>"):
        wanted = with_specials().encode(text, bos=False)
        assert (302 in wanted) == ("MARK" in text)
        if "MARK" in text:
            assert 302 in theirs.encode(text)
        else:
            assert theirs.encode(text) == wanted


@pytest.mark.parametrize("name", scored())
def test_tokenizers_reads_it(name: str, tmp_path: Path) -> None:
    package = pytest.importorskip("tokenizers")
    tokenizer = scored()[name]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(tokenizer))
    (tmp_path / "tokenizer_config.json").write_bytes(tokenizer_config(tokenizer, 64))
    theirs, ours = package.Tokenizer.from_file(str(path)), read_tokenizer_json(path)
    assert theirs.get_vocab_size() == len(ours) == len(tokenizer)
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (1, tokenizer.eos_id, 0)

    @relaxed
    @given(STORIES)
    def check(text: str) -> None:
        text = text.replace("▁", "_").replace("<s>", "")
        wanted = tokenizer.encode(text)
        assert ours.encode(text) == wanted
        assert theirs.encode(text).ids == wanted
        assert ours.decode(wanted) == tokenizer.decode(wanted)

    check()


def test_the_merges_are_those_that_transformers_makes(test_data: Path) -> None:
    """Of the same vocabulary: its own tokenizer.json is recorded."""
    theirs = json.loads((test_data / "data/formats/stories260K-hf/tokenizer.json").read_bytes())
    ours = json.loads(tokenizer_json(load_tokenizer(test_data / "data/tok512.bin")))
    merges = [
        entry.split(" ") if isinstance(entry, str) else entry for entry in theirs["model"]["merges"]
    ]
    assert [entry.split(" ") for entry in ours["model"]["merges"]] == merges
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("name", scored())
def test_scores_come_back_from_merges(name: str, tmp_path: Path) -> None:
    tokenizer = scored()[name]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(tokenizer))
    (tmp_path / "tokenizer_config.json").write_bytes(tokenizer_config(tokenizer, 64))
    again = to_scores(read_tokenizer_json(path))
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


def test_the_chat_template_goes_along(tmp_path: Path) -> None:
    template = "{{ bos_token }}[INST] \u00e9"
    path = tmp_path / "x.gguf"
    path.write_bytes(_head(gguf_pairs(tiny_tokenizer(), template), []))
    pairs = read_gguf_metadata(path, TokenizerError).pairs
    assert pairs["tokenizer.chat_template"] == template.encode()
    about = json.loads(tokenizer_config(with_specials(), 77, template))
    assert about == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 77,
        "chat_template": template,
    }


# ---- byte level ----


@pytest.fixture(params=PATTERNS)
def merging(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, MergeTokenizer]:
    """A byte-level vocabulary, as tokenizers and as we have it."""
    package = pytest.importorskip("tokenizers")
    found = byte_level(*PATTERNS[request.param])
    (tmp_path / "tokenizer.json").write_text(json.dumps(found), "utf-8")
    theirs = package.Tokenizer.from_str(json.dumps(found))
    return theirs, read_tokenizer_json(tmp_path / "tokenizer.json")


def test_byte_level_comes_back(merging: tuple[Any, MergeTokenizer], tmp_path: Path) -> None:
    package = pytest.importorskip("tokenizers")
    theirs, ours = merging
    path = tmp_path / "again.json"
    path.write_bytes(tokenizer_json(ours))
    written, again = package.Tokenizer.from_file(str(path)), read_tokenizer_json(path)
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(_head(gguf_pairs(ours), []))
    inside = read_gguf_vocabulary(gguf)
    for other in (again, inside):
        assert isinstance(other, MergeTokenizer)
        assert (other.kind, other.merges, other.whole_first) == (
            ours.kind,
            ours.merges,
            ours.whole_first,
        )
        assert other.specials == ours.specials
        assert (other.bos_id, other.adds_bos) == (ours.bos_id, ours.adds_bos)

    @relaxed
    @given(TEXTS)
    def check(text: str) -> None:
        wanted = theirs.encode(text).ids
        assert written.encode(text).ids == wanted
        assert written.decode(wanted) == theirs.decode(wanted)
        for other in (again, inside):
            assert other.encode(text, special=True, bos=False) == wanted

    check()


@pytest.mark.parametrize("adds_bos", [True, False])
def test_whether_texts_begin_with_bos_comes_back(
    merging: tuple[Any, MergeTokenizer], adds_bos: bool, tmp_path: Path
) -> None:
    package = pytest.importorskip("tokenizers")
    _, ours = merging
    ours.adds_bos = adds_bos
    begin = [ours.bos_id] * adds_bos
    path, gguf = tmp_path / "again.json", tmp_path / "x.gguf"
    path.write_bytes(tokenizer_json(ours))
    gguf.write_bytes(_head(gguf_pairs(ours), []))
    for other in (read_tokenizer_json(path), read_gguf_vocabulary(gguf)):
        assert other.encode("cat") == begin + other.encode("cat", bos=False)
        assert other.encode("") == [ours.bos_id]  # or a model would have nothing to start from
    written = package.Tokenizer.from_file(str(path))
    bare = written.encode("cat", add_special_tokens=False).ids
    assert written.encode("cat").ids == begin + bare


# ---- what cannot be written ----


def test_characters_of_other_kinds(tmp_path: Path) -> None:
    """With tokenizers as the judge of the file, and no scores for them."""
    package = pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(tiny_tokenizer()))
    plain = read_tokenizer_json(path)
    for kind in (Characters("each", True), Characters("first", True), Characters("none")):
        pieces = [plain.piece(i).decode() for i in range(300)]
        ours = MergeTokenizer(pieces, plain.merges, kind, 1, 2, plain.specials, 0)
        path.write_bytes(tokenizer_json(ours))
        assert read_tokenizer_json(path).kind == kind
        theirs = package.Tokenizer.from_file(str(path))
        for text in ("a b", " a b", "", "  a"):
            assert theirs.encode(text).ids == ours.encode(text), (kind, text)
        for write in (to_scores, sentencepiece_model, gguf_pairs):
            if write is gguf_pairs and kind.prefix != "none":
                continue  # with a warning: see other_spaces
            with pytest.raises(TokenizerError, match="puts no space, or not always one, before"):
                write(ours)


def pieces(*more: bytes) -> Tokenizer:
    tiny = tiny_tokenizer()
    all_pieces = [*(tiny.piece(i) for i in range(300)), *more]
    return Tokenizer(all_pieces, [-float(i) for i in range(len(all_pieces))])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (b"\xff", r"token 300 is b'\\xff', expected UTF-8"),
        (b"ab", "tokens 300 and 301 are both 'ab'"),
        ("▁".encode(), r"token 300 is '▁', expected no U\+2581"),
    ],
)
def test_pieces_that_only_llama2c_has(more: bytes, message: str) -> None:
    tokenizer = pieces(more, more)
    for write in (tokenizer_json, sentencepiece_model, gguf_pairs):
        with pytest.raises(TokenizerError, match=message):
            write(tokenizer)


def test_byte_level_has_no_scores() -> None:
    letters = MergeTokenizer(["a", "b", "ab"], [("a", "b")], ByteLevel((QWEN2, DIGITS)), 0, 1)
    for write in (to_scores, sentencepiece_model):
        with pytest.raises(TokenizerError, match="is at byte level, expected a format that holds"):
            write(letters)
    with pytest.raises(TokenizerError, match="GGUF has no name for how the vocabulary cuts"):
        gguf_pairs(letters)


def test_merges_that_no_scores_do() -> None:
    tiny = tiny_tokenizer()
    texts = ["<unk>", "<s>", "</s>", *(tiny.piece(i).decode() for i in range(3, 259))]
    texts += ["a", "b", "ab", "ba", "aba"]
    ways = {"ab": [("a", "b")], "ba": [("b", "a")], "aba": [("a", "ba"), ("ab", "a")]}

    def make(*order: tuple[str, str]) -> MergeTokenizer:
        return MergeTokenizer(texts, order, Characters(), 1, 2, None, 0)

    good = [*ways["ba"], *ways["ab"], *ways["aba"]]
    found = to_scores(make(*good))
    assert found.score(262) > found.score(261) > found.score(263)  # not in the order of the ids
    with pytest.raises(TokenizerError, match="the merges that make 'aba' are not all those of two"):
        to_scores(make(*good[:-1]))
    with pytest.raises(TokenizerError, match="the merges that make 'aba' are not all those of two"):
        to_scores(make(*good[:2]))
    equal = to_scores(make(good[2], good[0], good[3], good[1]))
    assert equal.score(263) == equal.score(262) > equal.score(261)
    other = MergeTokenizer(texts[3:], good, Characters(), 1, 2)
    with pytest.raises(TokenizerError, match="does not begin with <unk>, <s>, </s>, special"):
        to_scores(other)


# ---- export-tokenizer ----


def test_export_from_and_to_each(tmp_path: Path, test_data: Path) -> None:
    source = test_data / "data/tok512.bin"
    wanted = source.read_bytes()
    for name in ("a.json", "a.model"):
        export_tokenizer(source, tmp_path / name)
        export_tokenizer(tmp_path / name, tmp_path / "back.bin")
        assert (tmp_path / "back.bin").read_bytes() == wanted, name
    export_tokenizer(tmp_path / "a.json", tmp_path / "b.model")
    assert (tmp_path / "b.model").read_bytes() == (tmp_path / "a.model").read_bytes()
    for name in ("stories260K-hf", "stories260K-f32.gguf", "stories260K-meta"):
        export_tokenizer(test_data / "data/formats" / name, tmp_path / "out.bin")
        assert (tmp_path / "out.bin").read_bytes() == wanted, name


def test_export_says_what_it_cannot(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(_head(gguf_pairs(with_specials()), []))
    with pytest.raises(
        TokenizerError, match=r"out\.bin: the vocabulary has special tokens, an EOS"
    ):
        export_tokenizer(gguf, out)
    with pytest.raises(
        TokenizerError, match=r"out\.txt: the name ends otherwise, expected \.bin, "
    ):
        export_tokenizer(gguf, tmp_path / "out.txt")
    with pytest.raises(TokenizerError, match=r"no tokenizer in it, expected tokenizer\.bin or "):
        export_tokenizer(tmp_path, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.gguf"]
    export_tokenizer(gguf, tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").encode("aMARK")[-1] == 302

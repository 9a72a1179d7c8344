"""tokenizer.json: what is refused, malformed files, and files that are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.errors import TokenizerError
from llama2py.tokenizers.gguf import gguf_pairs
from llama2py.tokenizers.huggingface import (
    MAX_COLONS,
    MAX_CONTAINERS,
    MAX_ITEMS,
    tokenizer_config,
    tokenizer_json,
)
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import Characters, MergeTokenizer
from llama2py.tokenizers.pretokenize import GPT4O
from llama2py.tokenizers.scores_and_merges import to_scores
from llama2py.tokenizers.sentencepiece import sentencepiece_model
from tests.conftest import tiny_tokenizer
from tests.support.made_tokenizers import STORIES, scored
from tests.support.trained_vocabularies import TEXTS, byte_level, compare, load_merges

Json = dict[str, Any]
relaxed = settings(deadline=None, max_examples=200)


def tiny(**changes: Any) -> Json:
    """A byte-level file of three tokens; ``model__x`` changes something in the model."""
    vocab = {"a": 0, "b": 1, "ab": 2}
    model = {"type": "BPE", "vocab": vocab, "merges": ["a b"], "unk_token": "a"}
    found: Json = {
        "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": model,
    }
    for key, value in changes.items():
        (model if key.startswith("model__") else found)[key.removeprefix("model__")] = value
    return found


def sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}


REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ([1], "the JSON is not an object"),
    "no model": (tiny(model=None), "model is None, expected a JSON object"),
    "wordpiece": (tiny(model__type="WordPiece"), "model.type is 'WordPiece', expected 'BPE'"),
    "dropout": (tiny(model__dropout=0.1), "model.dropout is 0.1, expected null"),
    "no vocabulary": (tiny(model__vocab=[]), "model.vocab is [], expected a JSON object"),
    "an id of text": (tiny(model__vocab={"a": "0"}), "the id of 'a' is '0', expected a JSON whole"),
    "an id of truth": (tiny(model__vocab={"a": True}), "the id of 'a' is True, expected a JSON"),
    "an id twice": (tiny(model__vocab={"a": 0, "b": 0}), "'a' and 'b' have the same id, 0"),
    "a negative id": (
        tiny(model__vocab={"a": -1}, added_tokens=[]),
        "the ids of the tokens are -1 to -1, expected 0 to at most 299999",
    ),
    "a huge id": (
        tiny(model__vocab={"a": 1 << 70}, added_tokens=[]),
        f"the ids of the tokens are {1 << 70} to {1 << 70}, expected 0 to at most 299999",
    ),
    "a merge of three": (tiny(model__merges=["a b c"]), "merge 0 is 'a b c', expected two pieces"),
    "a merge of numbers": (tiny(model__merges=[[1, 2]]), "merge 0 is [1, 2], expected two pieces"),
    "a merge of strangers": (
        tiny(model__merges=[["a", "c"]]),
        "merge 0 is 'a' and 'c': both, and the two together, must be pieces of the vocabulary",
    ),
    "half a pair": (
        tiny(
            model__vocab={"a": 0, "b": 1, "ab": 2, "\ud800": 3},
            added_tokens=[{"id": 4, "content": "<s>"}],
        ),
        "'utf-8' codec",
    ),
    "an added token in the way": (
        tiny(added_tokens=[{"id": 0, "content": "<s>"}]),
        "the added token '<s>' has the id 0, expected 3",
    ),
    "another pattern": (
        tiny(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            }
        ),
        "pre_tokenizer has the step {'type': 'Split', 'pattern': {'Regex': '(a+)+$'}",
    ),
    "a prefix space before each digit": (
        tiny(
            pre_tokenizer=sequence(SINGLE_DIGITS, {"type": "ByteLevel", "add_prefix_space": True})
        ),
        "pre_tokenizer has the step {'type': 'ByteLevel', 'add_prefix_space': True}, which is not",
    ),
    "a normalizer": (tiny(normalizer={"type": "NFD"}), "normalizer has the step {'type': 'NFD'}"),
    "two normalizers": (
        tiny(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}),
        "normalizer has the step {'type': 'NFC'}",
    ),
    "a step after the bytes": (
        tiny(
            pre_tokenizer=sequence({"type": "ByteLevel", "add_prefix_space": False}, SINGLE_DIGITS)
        ),
        "pre_tokenizer has the step {'type': 'ByteLevel', 'add_prefix_space': False}, which is not",
    ),
    "no bytes": (tiny(pre_tokenizer=None), "model.byte_fallback is not true, and no"),
    "lower case": (
        tiny(pre_tokenizer=None, model__byte_fallback=True, normalizer={"type": "Lowercase"}),
        "normalizer has the step {'type': 'Lowercase'}",
    ),
    "spaces that stay spaces": (
        tiny(
            pre_tokenizer=None,
            model__byte_fallback=True,
            normalizer={"type": "Prepend", "prepend": "▁"},
        ),
        "neither a Replace nor a Metaspace turns spaces into '▁': one is needed",
    ),
    "two ways to put a space": (
        tiny(
            pre_tokenizer={"type": "Metaspace", "replacement": "▁", "split": False},
            model__byte_fallback=True,
            normalizer={"type": "Prepend", "prepend": "▁"},
        ),
        "normalizer has the step {'type': 'Prepend', 'prepend': '▁'}, which is not supported",
    ),
    "no beginning": (
        tiny(added_tokens=[]),
        "no token is known to begin or end a text: put a tokenizer_config.json",
    ),
}


@pytest.mark.parametrize(("found", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_needs_more_is_refused(tmp_path: Path, found: Any, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(TokenizerError) as caught:
        load_merges(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("begin", "end"),
    [("<s>", "</s>"), ("<bos>", "<eos>"), ("[BOS]", "[EOS]"), ("<|endoftext|>", "<|endoftext|>")],
)
def test_the_usual_names_of_bos_and_eos_are_known(tmp_path: Path, begin: str, end: str) -> None:
    path = tmp_path / "tokenizer.json"
    names = dict.fromkeys([end, begin])
    added = [{"id": 3 + i, "content": name, "special": True} for i, name in enumerate(names)]
    path.write_text(json.dumps(tiny(added_tokens=added)), "utf-8")
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2 + len(names), 3)


def test_the_config_beside_names_bos_and_eos(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tiny()), encoding="utf-8")
    ours = load_merges(path)
    assert (ours.bos_id, ours.eos_id) == (3, 3)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "b"}}')
    ours = load_merges(path)
    assert (ours.bos_id, ours.eos_id) == (3, 1)
    assert ours.encode("ac", eos=True) == [0, 0, 1]  # a byte without a piece is unknown
    assert ours.piece(2) == b"ab"
    assert re.fullmatch(r"<Tokenizer: 4 tokens>", repr(ours))


@pytest.mark.parametrize(("stated", "begins"), [("true", True), ("false", False), ('"x"', True)])
def test_the_config_says_whether_texts_begin_with_bos(
    stated: str, begins: bool, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(tiny_tokenizer()))
    (tmp_path / "tokenizer_config.json").write_text(f'{{"add_bos_token": {stated}}}', "utf-8")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.adds_bos == begins
    assert tokenizer.encode("ab") == [1] * begins + tokenizer.encode("ab", bos=False)
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("", bos=False) == []


def test_far_more_items_than_a_vocabulary_has_are_refused(tmp_path: Path) -> None:
    path, large = tmp_path / "tokenizer.json", " " * 20_000_000
    for many, message in (
        ("[]" * 60_000, "60001 lists and objects and 0 commas, many more than a real file of"),
        ("," * 60_000, "60000 commas, many more than a real file of its size"),
        ("[" * (MAX_CONTAINERS + 1) + large, r"\d+ lists and objects and 0 commas, many more"),
        ("," * (MAX_ITEMS + 1) + large, r"\d+ commas, many more than a real file"),
        (":" * (MAX_COLONS + 1), "more names than a vocabulary of 300000 tokens"),
    ):
        path.write_text('{"model" ' + many, "utf-8")
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(path)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for content in (b"{", b'{"a": \xff}', b"{" * 40_000, b'{"a":' * 40_000):
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=r"json: (this is not JSON \(|the JSON is nested)"):
            load_tokenizer(path)
    with pytest.raises(TokenizerError, match=r"none: no such file"):
        load_merges(tmp_path / "none")
    path.write_text(json.dumps(tiny()), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_bytes(b"[")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: this is not JSON"):
        load_tokenizer(path)


SCALARS = st.none() | st.booleans() | st.integers(-2, 5) | st.sampled_from(["a", "ab", "", "a b"])


JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner)
)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([*tiny(), *(f"model__{key}" for key in tiny()["model"]), "normalizer"]), JUNK
)
def test_any_json_makes_a_tokenizer_or_a_tokenizer_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.json"
    path.write_text(json.dumps(tiny(**{key: value})), encoding="utf-8")
    try:
        tokenizer = load_merges(path)
    except TokenizerError:
        return
    tokenizer.decode(tokenizer.encode("ab cab"))


# ---- missing bytes and ids ----

LETTERS = st.text("ab \x04\x06é日", max_size=12)


@pytest.mark.parametrize("unknown", [None, "<unk>", "?"])
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("by_characters", [False, True])
def test_bytes_that_a_vocabulary_lacks_are_treated_as_in_tokenizers(
    by_characters: bool, fuse: bool, unknown: str | None, tmp_path: Path
) -> None:
    """SmolLM2 lacks 21 bytes and has no unknown token: what needs them is left out."""
    package = pytest.importorskip("tokenizers")
    space, merges = ("▁", []) if by_characters else ("Ġ", [["Ã", "©"]])
    vocab = ["a", "b", "ab", space, "bb", "?", "aba", "<s>", "<unk>"]
    vocab += ["<0xC3>", "<0xA9>", "<0x04>"] if by_characters else ["Ã", "©", "Ã©", "æ"]
    merges += [["a", "b"], ["b", "b"], ["ab", "a"]]
    found = tiny(
        added_tokens=[{"id": 7, "content": "<s>", **dict.fromkeys(FLAGS, False), "special": True}],
        model__vocab={piece: token for token, piece in enumerate(vocab)},
        model__merges=merges,
        model__unk_token=unknown,
        model__fuse_unk=fuse,
        model__byte_fallback=by_characters,
    )
    found["pre_tokenizer"] = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
    }  # fmt: skip
    if by_characters:
        found["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False
        }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", **found}), encoding="utf-8")
    theirs, ours = package.Tokenizer.from_file(str(path)), load_merges(path)
    (note,) = [note for note in ours.notes if "lacks" in note]
    assert ("left out" in note) == (unknown is None)

    @relaxed
    @given(LETTERS)
    def check(text: str) -> None:
        assert ours.encode(text, bos=False) == theirs.encode(text).ids

    check()
    path.write_bytes(tokenizer_json(ours))
    again = load_merges(path)
    assert (again.kind, again.unk_id, again.notes) == (ours.kind, ours.unk_id, ours.notes)


FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def test_ids_that_no_piece_has_are_unused(tmp_path: Path) -> None:
    package = pytest.importorskip("tokenizers")
    added = [{"id": 3, "content": "<s>", **dict.fromkeys(FLAGS, False), "special": True}]
    found = tiny(model__vocab={"a": 0, "b": 5, "ab": 9}, added_tokens=added)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", **found}), encoding="utf-8")
    theirs, ours = package.Tokenizer.from_file(str(path)), load_merges(path)
    assert ours.encode("abb<s>", bos=False, special=True) == theirs.encode("abb<s>").ids
    assert ours.encode("abb<s>", bos=False, special=True) == [9, 5, 3]
    assert [ours.piece(token) for token in range(10)] == [
        (theirs.id_to_token(token) or "").encode() for token in range(10)
    ]
    path.write_bytes(tokenizer_json(ours))
    assert load_merges(path).encode("abb<s>", bos=False, special=True) == [9, 5, 3]


@pytest.mark.parametrize("special", [True, False])
def test_a_special_token_may_be_a_piece_that_merges_make(special: bool, tmp_path: Path) -> None:
    """So it is when a config names "!" as padding: texts still have their exclamation marks."""
    package = pytest.importorskip("tokenizers")
    vocab = {"a": 0, "!": 1, "!!": 2, "!!a": 3, "<s>": 4}
    added = [
        {"id": token, "content": text, **dict.fromkeys(FLAGS, False), "special": special}
        for text, token in vocab.items()
        if text in ("!", "!!", "<s>")
    ]
    merges = ["! !", "!! a"]
    found = tiny(model__vocab=vocab, model__merges=merges, added_tokens=added, model__unk_token="a")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", **found}), encoding="utf-8")
    theirs, ours = package.Tokenizer.from_file(str(path)), load_merges(path)
    theirs_plain = package.Tokenizer.from_file(str(path))
    theirs_plain.encode_special_tokens = True  # special tokens are text there
    for text in ("!", "!!a", "a!!!a", "<s>!"):
        assert ours.encode(text, bos=False, special=True) == theirs.encode(text).ids
        if special:
            plain = ours.encode(text, bos=False)
            assert plain == theirs_plain.encode(text).ids
            if "<" not in text:
                assert ours.decode(plain) == text


def test_a_split_that_keeps_the_matches_isolates_them(tmp_path: Path) -> None:
    """GPT-4o's tokenizer.json, and Phi-4's, have it so; DeepSeek's has line breaks in a pattern."""
    package = pytest.importorskip("tokenizers")
    found = byte_level((GPT4O,))
    split = {"type": "Split", "pattern": {"Regex": GPT4O}, "behavior": "Removed", "invert": True}
    letters = found["pre_tokenizer"]["pretokenizers"][-1]
    breaks = {"type": "Split", "pattern": {"Regex": "[\r\n]"}, "behavior": "Isolated"}
    path = tmp_path / "tokenizer.json"
    for steps in ([split, letters], [{**breaks, "invert": False}, letters]):
        found = {**found, "pre_tokenizer": sequence(*steps)}
        path.write_text(json.dumps(found), encoding="utf-8")
        theirs, ours = package.Tokenizer.from_file(str(path)), load_merges(path)
        relaxed(given(TEXTS)(compare(theirs, ours)))()
    # Of a pattern that leaves something between its matches, the other kind would drop text.
    dropping = {**split, "pattern": {"Regex": r"\p{N}+"}}
    path.write_text(json.dumps({**found, "pre_tokenizer": sequence(dropping, letters)}), "utf-8")
    with pytest.raises(TokenizerError, match=r"pre_tokenizer has the step .* which is not"):
        load_tokenizer(path)


# ---- writing ----


@pytest.mark.parametrize("name", scored())
def test_tokenizers_reads_a_written_one(name: str, tmp_path: Path) -> None:
    package = pytest.importorskip("tokenizers")
    tokenizer = scored()[name]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(tokenizer))
    (tmp_path / "tokenizer_config.json").write_bytes(tokenizer_config(tokenizer, 64))
    theirs, ours = package.Tokenizer.from_file(str(path)), load_merges(path)
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


def test_the_merges_are_the_ones_that_transformers_makes(test_data: Path) -> None:
    """Its tokenizer.json of the same vocabulary is recorded."""
    theirs = json.loads((test_data / "data/formats/stories260K-hf/tokenizer.json").read_bytes())
    ours = json.loads(tokenizer_json(load_tokenizer(test_data / "data/tok512.bin")))
    merges = [
        entry.split(" ") if isinstance(entry, str) else entry for entry in theirs["model"]["merges"]
    ]
    assert [entry.split(" ") for entry in ours["model"]["merges"]] == merges
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        assert ours[name] == theirs[name]


def test_tokenizers_reads_every_way_of_putting_spaces(tmp_path: Path) -> None:
    """Other formats can only say that there is a space before a text, or none."""
    package = pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(tiny_tokenizer()))
    plain = load_merges(path)
    for kind in (Characters("each", True), Characters("first", True), Characters("none")):
        pieces = [plain.piece(i).decode() for i in range(300)]
        ours = MergeTokenizer(pieces, plain.merges, kind, 1, 2, plain.specials, 0)
        path.write_bytes(tokenizer_json(ours))
        assert load_merges(path).kind == kind
        theirs = package.Tokenizer.from_file(str(path))
        for text in ("a b", " a b", "", "  a"):
            assert theirs.encode(text).ids == ours.encode(text), (kind, text)
        for write in (to_scores, sentencepiece_model, gguf_pairs):
            if write is gguf_pairs or kind.prefix == "none":
                write(ours)  # perhaps with a warning: see space_changes
                continue
            with pytest.raises(TokenizerError, match="does not put a space before every text"):
                write(ours)

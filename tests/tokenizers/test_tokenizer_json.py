"""What a tokenizer.json may not ask for, and malformed ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.errors import TokenizerError
from llama2py.tokenizers.huggingface import MAX_CONTAINERS, MAX_ITEMS, read_tokenizer_json
from llama2py.tokenizers.load import load_tokenizer

Json = dict[str, Any]


def tiny(**changes: Any) -> Json:
    """A byte-level file of three tokens; ``model__x`` changes something in the model."""
    vocab = {"a": 0, "b": 1, "ab": 2}
    model = {"type": "BPE", "vocab": vocab, "merges": ["a b"], "unk_token": "a"}
    found: Json = {
        "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": model,
    }
    for key, value in changes.items():
        (model if key.startswith("model__") else found)[key.removeprefix("model__")] = value
    return found


def sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}
REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ([1], "the file is [1], expected a JSON object"),
    "no model": (tiny(model=None), "model is None, expected a JSON object"),
    "wordpiece": (tiny(model__type="WordPiece"), "model.type is 'WordPiece', expected 'BPE'"),
    "dropout": (tiny(model__dropout=0.1), "model.dropout is 0.1, expected none"),
    "no vocabulary": (tiny(model__vocab=[]), "model.vocab is [], expected a JSON object"),
    "an id of text": (tiny(model__vocab={"a": "0"}), "the id of 'a' is '0', expected a JSON whole"),
    "an id of truth": (tiny(model__vocab={"a": True}), "the id of 'a' is True, expected a JSON"),
    "an id twice": (tiny(model__vocab={"a": 0, "b": 0}), "token 0 is there twice, expected one"),
    "a gap": (tiny(model__vocab={"a": 0, "b": 2}), "3 tokens have other ids, expected 0 and up"),
    "a negative id": (tiny(model__vocab={"a": -1}), "2 tokens have other ids, expected 0 and up"),
    "a huge id": (tiny(model__vocab={"a": 1 << 70}), "2 tokens have other ids, expected 0 and up"),
    "a merge of three": (tiny(model__merges=["a b c"]), "merge 0 is 'a b c', expected two pieces"),
    "a merge of numbers": (tiny(model__merges=[[1, 2]]), "merge 0 is [1, 2], expected two pieces"),
    "a merge of strangers": (
        tiny(model__merges=[["a", "c"]]),
        "merge 0 joins 'a' and 'c', expected pieces of the vocabulary that make a third",
    ),
    "half a pair": (tiny(model__vocab={"a": 0, "b": 1, "ab": 2, "\ud800": 4}), "'utf-8' codec"),
    "an added token that strips": (
        tiny(added_tokens=[{"id": 3, "content": "<s>", "lstrip": True}]),
        "added token '<s>' has lstrip, expected none that do",
    ),
    "an added token in the way": (
        tiny(added_tokens=[{"id": 0, "content": "<s>"}]),
        "added token '<s>' has id 0, which is 'a', expected an id of its own",
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
        "pre_tokenizer has the step {'type': 'ByteLevel', 'add_prefix_space': True}, expected a",
    ),
    "a normalizer": (tiny(normalizer={"type": "NFD"}), "normalizer has the step {'type': 'NFD'}"),
    "two normalizers": (
        tiny(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}),
        "normalizer has the step {'type': 'NFC'}",
    ),
    "a special token behind a normalizer": (
        tiny(
            normalizer={"type": "NFC"},
            added_tokens=[{"id": 3, "content": "<s>", "normalized": True, "special": True}],
        ),
        "added token '<s>' is looked for behind NFC, expected before it",
    ),
    "an added token behind a normalizer": (
        tiny(
            normalizer={"type": "NFC"},
            added_tokens=[{"id": 3, "content": "<s>", "normalized": True}],
        ),
        "added token '<s>' is looked for behind NFC, expected before it",
    ),
    "a step behind the bytes": (
        tiny(
            pre_tokenizer=sequence({"type": "ByteLevel", "add_prefix_space": False}, SINGLE_DIGITS)
        ),
        "pre_tokenizer has the step {'type': 'ByteLevel', 'add_prefix_space': False}, expected a",
    ),
    "a byte missing": (
        tiny(model__unk_token=None),
        "the byte 0x00 is no piece, expected all 256, or a token for oth",
    ),
    "unknown bytes as one": (
        tiny(model__fuse_unk=True),
        "the byte 0x00 is no piece, expected all 256, or a token for oth",
    ),
    "no bytes": (tiny(pre_tokenizer=None), "model.byte_fallback is not true, expected it or a B"),
    "lower case": (
        tiny(pre_tokenizer=None, model__byte_fallback=True, normalizer={"type": "Lowercase"}),
        "normalizer has the step {'type': 'Lowercase'}",
    ),
    "no beginning": (
        tiny(added_tokens=[]),
        "no token begins or ends a text, expected a tokenizer_",
    ),
}


@pytest.mark.parametrize(
    ("begin", "end"),
    [("<s>", "</s>"), ("<bos>", "<eos>"), ("[BOS]", "[EOS]"), ("<|endoftext|>", "<|endoftext|>")],
)
def test_the_usual_names_where_no_file_tells(tmp_path: Path, begin: str, end: str) -> None:
    path = tmp_path / "tokenizer.json"
    names = dict.fromkeys([end, begin])
    added = [{"id": 3 + i, "content": name, "special": True} for i, name in enumerate(names)]
    path.write_text(json.dumps(tiny(added_tokens=added)), "utf-8")
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2 + len(names), 3)


def test_far_too_many_items(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for many in ("[]" * (MAX_CONTAINERS + 1), "," * (MAX_ITEMS + 1)):
        path.write_text('{"model": ' + many, "utf-8")
        with pytest.raises(TokenizerError, match="the file has far more items than a vocabulary"):
            load_tokenizer(path)


@pytest.mark.parametrize(("found", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_done_is_refused(tmp_path: Path, found: Any, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(TokenizerError) as caught:
        read_tokenizer_json(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_files_that_are_no_json(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for content in (b"{", b'{"a": \xff}', b"{" * 200_000, b'{"a":' * 200_000):
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: cannot be read \("):
            load_tokenizer(path)
    with pytest.raises(TokenizerError, match=r"none: cannot be read \("):
        read_tokenizer_json(tmp_path / "none")
    path.write_text(json.dumps(tiny()), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_bytes(b"[")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json beside it cannot be read"):
        load_tokenizer(path)


def test_the_config_beside_names_the_ends(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tiny()), encoding="utf-8")
    ours = read_tokenizer_json(path)
    assert (ours.bos_id, ours.eos_id) == (3, 3)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "ab"}}')
    ours = read_tokenizer_json(path)
    assert (ours.bos_id, ours.eos_id) == (3, 2)
    assert ours.encode("abc", eos=True) == [2, 0, 2]  # what nothing stands for is the unknown
    assert ours.piece(2) == b"ab"
    assert re.fullmatch(r"<Tokenizer: 4 tokens>", repr(ours))


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
        tokenizer = read_tokenizer_json(path)
    except TokenizerError:
        return
    tokenizer.decode(tokenizer.encode("ab cab"))

"""The files beside a tokenizer.json, against transformers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from llama2py.errors import TokenizerError
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import MergeTokenizer
from llama2py.tokenizers.tokenizer import Matching
from tests.support.sentencepiece_files import model
from tests.support.trained_vocabularies import load_merges

Json = dict[str, Any]

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def token(content: str, special: bool = True, **flags: bool) -> Json:
    return {"content": content, **PLAIN, "special": special, **flags}


def write(folder: Path, added: list[Json], **files: Any) -> Path:
    """Write a tokenizer.json of the pieces a, b, ab and <s>, and other files by their stems."""
    found = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3},
            "merges": ["a b"],
        },
    }
    for stem, content in {"tokenizer": found, **files}.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "tokenizer.json"


NAMES = {"bos_token": "<s>", "eos_token": "<x>"}
FILES: dict[str, tuple[list[Json], Json]] = {
    "added_tokens_decoder": (
        [],
        {
            "tokenizer_config": {
                **NAMES,
                "added_tokens_decoder": {
                    "4": token("<x>"),
                    "5": token("<y>", special=False, normalized=True, lstrip=True),
                },
            }
        },
    ),
    "a token that the decoder makes special": (
        [{"id": 4, **token("<x>", special=False)}],
        {"tokenizer_config": {**NAMES, "added_tokens_decoder": {"4": token("<x>")}}},
    ),
    "added_tokens.json": (
        [],
        {"tokenizer_config": NAMES, "added_tokens": {"<y>": 5, "<x>": 4}},
    ),
    "added_tokens.json beside a decoder": (
        [],
        {
            "tokenizer_config": {**NAMES, "added_tokens_decoder": {"4": token("<y>")}},
            "added_tokens": {"<z>": 4},
        },
    ),
    "special_tokens_map.json": (
        [],
        {
            "tokenizer_config": {"bos_token": "<s>"},
            "special_tokens_map": {"eos_token": token("<y>")},
            "added_tokens": {"<x>": 4, "<y>": 5},
        },
    ),
    "additional_special_tokens": (
        [],
        {"tokenizer_config": {**NAMES, "additional_special_tokens": ["<x>", "<y>"]}},
    ),
    "extra_special_tokens": (
        [],
        {"tokenizer_config": {**NAMES, "extra_special_tokens": {"image_token": "<y>"}}},
    ),
    "a token of the user's": ([], {"tokenizer_config": {**NAMES, "image_token": "<y>"}}),
    "padding": ([], {"tokenizer_config": {**NAMES, "pad_token": "[PAD]"}}),
    "a BOS that the vocabulary lacks": (
        [],
        {"tokenizer_config": {"bos_token": "<x>", "eos_token": "<s>"}},
    ),
    "a piece as EOS": ([], {"tokenizer_config": {"bos_token": "<s>", "eos_token": "ab"}}),
}


@pytest.mark.parametrize(("added", "files"), FILES.values(), ids=FILES)
def test_tokens_of_the_files_beside_a_vocabulary_are_those_of_transformers(
    added: list[Json], files: Json, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    if "image_token" in files.get("tokenizer_config", {}) and transformers.__version__ < "5":
        pytest.skip("transformers 4 ignores names of the user's own")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    ours = load_merges(write(tmp_path, added, **files))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert len(ours) == len(theirs)
    decoder = theirs.added_tokens_decoder
    assert ours.specials.control == {str(t): i for i, t in decoder.items() if t.special}
    assert ours.specials.added == {str(t): i for i, t in decoder.items() if not t.special}
    for text in ("ab<s><x>a<y> [PAD]b", "<x>", " <y> a", "b<z>"):
        wanted = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, bos=False, special=True) == wanted


@pytest.mark.parametrize("name", [None, ""])
@pytest.mark.parametrize("which", ["bos", "eos"])
def test_a_name_that_is_null_or_empty_names_no_token(
    which: str, name: str | None, tmp_path: Path
) -> None:
    """The other token stands for it, which info says, and no text begins with it."""
    other = "eos" if which == "bos" else "bos"
    config = {f"{which}_token": name, f"{other}_token": "ab"}
    ours = load_merges(write(tmp_path, [], tokenizer_config=config))
    if which == "bos":  # <s> is a usual name
        assert (ours.bos_id, ours.eos_id, ours.adds_bos) == (3, 2, False)
        assert ours.notes[-1].startswith("the vocabulary lacks")
    else:
        assert (ours.bos_id, ours.eos_id) == (2, 2)
        assert ours.notes[-1] == ("no file names the token EOS: 'ab' is used where one is needed")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"added_tokens": {"<x>": 9}},
            "tokenizer.json: the added token '<x>' has the id 9, expected 4",
        ),
        ({"added_tokens": {"<x>": "4"}}, "added_tokens.json: the id of '<x>' is '4', expected a"),
        (
            {"tokenizer_config": {"added_tokens_decoder": []}},
            "tokenizer_config.json: added_tokens_decoder is not an object of tokens by their ids",
        ),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"x": token("<x>")}}},
            "tokenizer_config.json: added_tokens_decoder has the name 'x', expected the id",
        ),
        (
            {"tokenizer_config": {"eos_token": 4}},
            "tokenizer_config.json: a special token is 4, expected a string or an object with",
        ),
        (
            {"tokenizer_config": {"extra_special_tokens": "<x>"}},
            "tokenizer_config.json: the extra special tokens are not a list",
        ),
    ],
)
def test_a_malformed_file_beside_a_vocabulary_is_refused(
    files: Json, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(write(tmp_path, [], **files))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_a_tokenizer_model_gets_the_tokens_of_the_files_beside_it(tmp_path: Path) -> None:
    """ChatML's tokens are so in many directories of Mistral and Llama 2."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model())
    plain = load_tokenizer(path)
    assert not isinstance(plain, MergeTokenizer)
    n = len(plain)
    (tmp_path / "added_tokens.json").write_text(
        json.dumps({"<|im_end|>": n, "<|im_start|>": n + 1})
    )
    config = {"bos_token": "<s>", "eos_token": token("<|im_end|>"), "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(path)
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, len(ours)) == (1, n, False, n + 2)
    assert ours.specials.control == {"<|im_end|>": n}
    assert ours.specials.added == {"<|im_start|>": n + 1}
    assert ours.specials.matching["<|im_start|>"] == Matching()
    a = plain.encode("a", bos=False)
    bare = plain.encode("a", bos=False)[1:]
    assert ours.encode("a<|im_start|>a<|im_end|>", special=True) == [*a, n + 1, *bare, n]
    assert ours.encode("a") == a
    # As in transformers, which has this name for its older way.
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": True}))
    older = load_tokenizer(path)
    assert older.encode("a<|im_start|>a<|im_end|>", special=True) == [*a, n + 1, *a, n]
    assert ours.decode([*a, n]) == " a"
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": n + 3}))
    with pytest.raises(TokenizerError, match=rf"'<\|im_end\|>' has the id {n + 3}, expected {n}$"):
        load_tokenizer(path)

"""Exporting a vocabulary from every source to every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama2py.checkpoint.gguf.writer import _head
from llama2py.errors import TokenizerError
from llama2py.tokenizers.export import export_tokenizer, space_changes
from llama2py.tokenizers.gguf import gguf_pairs
from llama2py.tokenizers.huggingface import tokenizer_json
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import ByteLevel, Characters, MergeTokenizer
from llama2py.tokenizers.pretokenize import QWEN2
from llama2py.tokenizers.sentencepiece import sentencepiece_model
from llama2py.tokenizers.tokenizer import Matching, Specials
from tests.conftest import tiny_tokenizer
from tests.support.made_tokenizers import early_specials, merging_with, with_specials


def test_each_format_is_exported_to_each(tmp_path: Path, test_data: Path) -> None:
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


def test_an_error_says_what_a_format_cannot_hold(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(_head(gguf_pairs(with_specials()), []))
    with pytest.raises(TokenizerError, match=r"out\.bin: a tokenizer\.bin cannot hold this"):
        export_tokenizer(gguf, out)
    with pytest.raises(TokenizerError, match=r"out\.txt: the name must end in \.bin, \.json or"):
        export_tokenizer(gguf, tmp_path / "out.txt")
    with pytest.raises(TokenizerError, match=r"the directory has no tokenizer, expected tok"):
        export_tokenizer(tmp_path, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.gguf"]
    export_tokenizer(gguf, tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").encode("aMARK")[-1] == 302


def test_a_config_that_would_change_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(_head(gguf_pairs(with_specials()), []))
    config = tmp_path / "tokenizer_config.json"
    for text, message in (
        ('{"eos_token": "<s>"}', f"{config} would give the vocabulary another BOS or EOS: choose"),
        ('{"eos_token": 3}', f"the file would not load: {config}: a special token is 3, expected"),
    ):
        config.write_text(text, encoding="utf-8")
        with pytest.raises(TokenizerError) as caught:
            export_tokenizer(gguf, tmp_path / "tokenizer.json")
        assert message in str(caught.value)
        assert not (tmp_path / "tokenizer.json").exists()
        assert config.read_text("utf-8") == text
    config.unlink()
    export_tokenizer(gguf, tmp_path / "tokenizer.json")
    assert json.loads(config.read_text("utf-8"))["eos_token"] == "<|end|>"
    assert load_tokenizer(tmp_path / "tokenizer.json").eos_id == 300


# ---- spaces ----


MARK, END = Specials(added={"MARK": 300}), Specials(control={"MARK": 300})


BEFORE = "this format puts a space before a text"
AFTER = "this format puts a space after"
NO_SPACE = "this format puts no space after"


@pytest.mark.parametrize(
    ("specials", "kind", "changes"),
    [
        (None, None, {}),
        (None, Characters("each"), {}),
        (MARK, Characters("each"), {"model": [NO_SPACE]}),
        (END, Characters("each"), {}),
        (None, Characters("each", True), {"gguf": [BEFORE]}),
        (None, Characters("first", True), {"gguf": [BEFORE]}),
        (
            MARK,
            Characters("first", True),
            {"gguf": [AFTER, BEFORE]},
        ),
        (
            END,
            Characters("first", True),
            {"gguf": [AFTER, BEFORE]},
        ),
    ],
)
def test_each_change_of_spaces_is_reported(
    specials: Specials | None,
    kind: Characters | None,
    changes: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    """The written file itself shows the changes."""
    ours = merging_with(kind, specials) if kind else tiny_tokenizer()
    paths = {name: tmp_path / f"x.{name}" for name in ("json", "model", "gguf")}
    paths["json"].write_bytes(tokenizer_json(ours))
    paths["gguf"].write_bytes(_head(gguf_pairs(ours), []))
    if kind in (None, Characters("each")):
        paths["model"].write_bytes(sentencepiece_model(ours))
    else:
        del paths["model"]  # refused
    for name, path in paths.items():
        there, changed = load_tokenizer(path), space_changes(ours, name)
        beginnings = changes.get(name, [])
        assert len(changed) == len(beginnings)
        for each, beginning in zip(changed, beginnings, strict=True):
            assert each.startswith(beginning)
        inner = [f"n{text}n" for text in ("MARK", " MARK", "ab")]
        for texts, word in ((inner, "special tokens"), (["n", " n", "  "], "that begins with one")):
            same = [there.encode(t, special=True) == ours.encode(t, special=True) for t in texts]
            assert all(same) == (not any(word in each for each in changed)), (name, texts)


def test_a_tokenizer_model_puts_no_space_after_user_defined_symbols(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(early_specials()))
    ours = load_tokenizer(path)
    assert ours.prefix == "control"
    assert space_changes(ours, "model") == []
    for name in ("json", "gguf"):
        (changed,) = space_changes(ours, name)
        assert (
            changed
            == "this format puts a space after special tokens in a text, the source puts none"
        )
    export_tokenizer(path, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == path.read_bytes()


def test_a_rule_of_an_added_token_that_a_format_cannot_hold_is_reported() -> None:
    for matching, kind, is_reported in (
        (Matching(normalized=True), Characters("each"), True),
        (Matching(normalized=True), Characters("each", prefix_once=True), False),
        (Matching(lstrip=True), Characters("each", prefix_once=True), True),
    ):
        ours = merging_with(kind, Specials({"MARK": 300}, matching={"MARK": matching}))
        changes = [change for change in space_changes(ours, "gguf") if "single_word" in change]
        assert bool(changes) == is_reported
        assert space_changes(ours, "json") == []


def test_unknown_bytes_that_gguf_leaves_out_are_reported() -> None:
    pieces = ["a", "b", "ab", "<unk>"]
    for unknown, is_reported in ((3, True), (None, False)):
        kind = ByteLevel((QWEN2,))
        ours = MergeTokenizer(pieces, [("a", "b")], kind, 0, 1, unk_id=unknown)
        change = "this format leaves out bytes that the vocabulary lacks, the source makes <unk>"
        found = [text.startswith(change) for text in space_changes(ours, "gguf")]
        assert found == [True] * is_reported
        assert space_changes(ours, "json") == []

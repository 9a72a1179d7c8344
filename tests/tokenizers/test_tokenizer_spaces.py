"""Where a space comes before a text, which formats say in their own ways; and pickling."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from llama2py.checkpoint.gguf.writer import _head
from llama2py.tokenizers.export import export_tokenizer, other_spaces
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import ByteLevel, Characters, MergeTokenizer
from llama2py.tokenizers.output import gguf_pairs, sentencepiece_model, tokenizer_json
from llama2py.tokenizers.pretokenize import QWEN2
from llama2py.tokenizers.scores import spelled, to_merges
from llama2py.tokenizers.sentencepiece import read_sentencepiece
from llama2py.tokenizers.specials import Specials
from tests.conftest import tiny_tokenizer
from tests.tokenizers.test_tokenizer_output import early_specials


def merging_with(kind: Characters, specials: Specials | None = None) -> MergeTokenizer:
    """The tiny vocabulary with merges, and one token more."""
    texts = spelled(tiny_tokenizer())
    merges = to_merges(tiny_tokenizer(), texts)
    return MergeTokenizer([*texts, "MARK"], merges, kind, 1, 2, specials, 0)


MARK, END = Specials(added={"MARK": 300}), Specials(control={"MARK": 300})


@pytest.mark.parametrize(
    ("specials", "kind", "changes"),
    [
        (None, None, {}),
        (None, Characters("each"), {}),
        (MARK, Characters("each"), {"model": ["there no space"]}),
        (END, Characters("each"), {}),
        (None, Characters("each", True), {"gguf": ["there a text that begins"]}),
        (None, Characters("first", True), {"gguf": ["there a text that begins"]}),
        (MARK, Characters("first", True), {"gguf": ["there a space", "there a text that begins"]}),
        (END, Characters("first", True), {"gguf": ["there a space", "there a text that begins"]}),
    ],
)
def test_other_spaces_are_told(
    specials: Specials | None,
    kind: Characters | None,
    changes: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    """By what the written file itself does."""
    ours = merging_with(kind, specials) if kind else tiny_tokenizer()
    paths = {name: tmp_path / f"x.{name}" for name in ("json", "model", "gguf")}
    paths["json"].write_bytes(tokenizer_json(ours))
    paths["gguf"].write_bytes(_head(gguf_pairs(ours), []))
    if kind in (None, Characters("each")):
        paths["model"].write_bytes(sentencepiece_model(ours))
    else:
        del paths["model"]  # refused
    for name, path in paths.items():
        there, told = load_tokenizer(path), other_spaces(ours, name)
        beginnings = changes.get(name, [])
        assert len(told) == len(beginnings)
        for each, beginning in zip(told, beginnings, strict=True):
            assert each.startswith(beginning)
        inner = [f"n{text}n" for text in ("MARK", " MARK", "ab")]
        for texts, word in ((inner, "special tokens"), (["n", " n", "  "], "begins with a space")):
            same = [there.encode(t, special=True) == ours.encode(t, special=True) for t in texts]
            assert all(same) == (not any(word in each for each in told)), (name, texts)


def test_user_defined_symbols_of_a_tokenizer_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(early_specials()))
    ours = read_sentencepiece(path)
    assert ours.prefix_each is False
    assert other_spaces(ours, "model") == []
    for name in ("json", "gguf"):
        (told,) = other_spaces(ours, name)
        assert told == "there a space comes behind special tokens in a text, here none"
    export_tokenizer(path, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == path.read_bytes()


def test_any_tokenizer_can_be_pickled() -> None:
    """As programs with several processes do."""
    byte_level = MergeTokenizer(["a", "b", "ab"], [("a", "b")], ByteLevel((QWEN2,)), 0, 1)
    for tokenizer in (tiny_tokenizer(), early_specials(), merging_with(Characters()), byte_level):
        tokenizer.encode("ab é")
        again = pickle.loads(pickle.dumps(tokenizer))
        assert type(again) is type(tokenizer)
        assert again.encode("n ab [IMG]é") == tokenizer.encode("n ab [IMG]é")

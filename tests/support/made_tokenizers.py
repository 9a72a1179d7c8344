"""Tokenizers of every kind, made from pieces."""

from __future__ import annotations

from hypothesis import strategies as st

from llama2py._data import bundled_tokenizer
from llama2py.tokenizers.bpe import FIRST_PIECE
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import Characters, MergeTokenizer
from llama2py.tokenizers.scores_and_merges import spelled, to_merges
from llama2py.tokenizers.tokenizer import Specials, Tokenizer
from tests.conftest import tiny_tokenizer
from tests.support.vocabulary_files import SPECIAL

#: Texts that vocabularies with scores treat in different ways.


STORIES = st.lists(
    st.sampled_from(["Once upon a time", " there was", "  ", "   ", "    ", "         ", "\n",
                     "cafe", "1234", "▁", "日本", "🐻", "é", "isn't", "a", " b", "<s>", "<0x41>",
                     "\t"])
).map("".join)  # fmt: skip


def scored_vocabulary(**pieces: float) -> Tokenizer:
    """Make a small tokenizer. A keyword is a piece (with _ for a space), its value the score."""
    texts = [name.replace("_", " ").encode() for name in pieces]
    return Tokenizer(SPECIAL + texts, [0.0] * FIRST_PIECE + list(pieces.values()))


def with_specials() -> Tokenizer:
    """Make one with a control token that is its EOS, and user-defined symbols."""
    tiny = tiny_tokenizer()
    pieces = [tiny.piece(token) for token in range(300)] + [b"<|end|>", b"  ", b"MARK"]
    scores = [tiny.score(token) for token in range(300)] + [0.0, 0.0, 0.0]
    return Tokenizer(pieces, scores, Specials({"MARK": 302, "  ": 301}, {"<|end|>": 300}), 300)


def early_specials() -> Tokenizer:
    """Make one with special tokens before the bytes, as Mistral 7B v0.3 has them."""
    tiny = tiny_tokenizer()
    early = [b"[INST]", b"[/INST]", b"[IMG]"]
    pieces = [*map(tiny.piece, range(3)), *early, *map(tiny.piece, range(3, 300))]
    scores = [0.0] * 3 + [tiny.score(token) for token in range(300)]
    return Tokenizer(
        pieces, scores, Specials({"[IMG]": 5}, {"[INST]": 3, "[/INST]": 4}), first_byte=6
    )


def scored() -> dict[str, Tokenizer]:
    """Return a vocabulary with scores of each kind."""
    return {
        "tiny": tiny_tokenizer(),
        "llama2": load_tokenizer(bundled_tokenizer()),
        "specials": with_specials(),
        "early": early_specials(),
    }


def merging_with(kind: Characters, specials: Specials | None = None) -> MergeTokenizer:
    """Make the tiny vocabulary with merges and one token more."""
    texts = spelled(tiny_tokenizer())
    merges = to_merges(tiny_tokenizer(), texts)
    return MergeTokenizer([*texts, "MARK"], merges, kind, 1, 2, specials, 0)


def assert_same(ours: Tokenizer, theirs: Tokenizer) -> None:
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

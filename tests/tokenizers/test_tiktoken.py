"""Llama 3's tokenizer.model: pieces and ranks."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.errors import TokenizerError
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import LETTERS, MergeTokenizer
from llama2py.tokenizers.pretokenize import LLAMA3
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.support.trained_vocabularies import TEXTS, byte_level, load_merges
from tests.support.vocabulary_files import RANKED_PIECES, ranks_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks_file(RANKED_PIECES))
    return path


def by_hand(word: bytes, known: dict[bytes, int]) -> list[int]:
    """Merge the two neighbours whose union has the lowest rank, the leftmost of equals."""
    if word in known:
        return [known[word]]
    parts = [word[i : i + 1] for i in range(len(word))]
    while True:
        pairs = enumerate(pairwise(parts))
        ways = [(known[a + b], i) for i, (a, b) in pairs if a + b in known]
        if not ways:
            return [known[part] for part in parts]
        _, i = min(ways)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_words_merge_by_rank(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, MergeTokenizer)
    the, n = 258, len(RANKED_PIECES)
    assert tokenizer.encode(" the the123") == [n, the, the, 260]
    assert tokenizer.encode("\n\nthe", bos=False) == [259, ord("t"), 257]
    assert tokenizer.decode(tokenizer.encode("Zoë 🐻\n\n  the")) == "Zoë 🐻\n\n  the"


def test_the_special_tokens_are_the_ones_of_llama_3_1(path: Path) -> None:
    tokenizer, begin = load_tokenizer(path), len(RANKED_PIECES)
    assert len(tokenizer) == begin + 256
    assert (tokenizer.bos_id, tokenizer.eos_id) == (begin, begin + 1)
    control = tokenizer.specials.control
    # The ids of Llama 3.1's, from 128000 on.
    known = {
        "<|begin_of_text|>": 128000,
        "<|end_of_text|>": 128001,
        "<|reserved_special_token_0|>": 128002,
        "<|reserved_special_token_1|>": 128003,
        "<|finetune_right_pad_id|>": 128004,
        "<|reserved_special_token_2|>": 128005,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eom_id|>": 128008,
        "<|eot_id|>": 128009,
        "<|python_tag|>": 128010,
        "<|reserved_special_token_3|>": 128011,
        "<|reserved_special_token_247|>": 128255,
    }
    assert {name: control[name] - begin + 128000 for name in known} == known
    assert len(control) == 256
    assert tokenizer.encode("<|eot_id|>", bos=False, special=True) == [begin + 9]
    assert begin + 9 not in tokenizer.encode("<|eot_id|>")
    assert tokenizer.decode([begin, begin + 9]) == ""


def test_ranks_and_merges_give_the_same_tokens(tmp_path: Path) -> None:
    """tokenizers trains a vocabulary; a slow encoder reads its ranks."""
    found = byte_level((LLAMA3,), True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(found), "utf-8")
    theirs = load_merges(tmp_path / "tokenizer.json")
    to_byte = {letter: byte for byte, letter in enumerate(LETTERS)}
    special = set(theirs.specials.ids())
    ordered = [
        bytes(to_byte[letter] for letter in theirs.piece(i).decode())
        for i in range(len(theirs))
        if i not in special
    ]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks_file(ordered))
    ours = load_tokenizer(path)
    known = {piece: rank for rank, piece in enumerate(ordered)}

    @settings(deadline=None, max_examples=200)
    @given(TEXTS)
    def check(text: str) -> None:
        tokens = ours.encode(text, bos=False)
        assert ours.decode(tokens) == text
        plain = [theirs.piece(t) for t in theirs.encode(text, bos=False)]
        if not any(theirs.specials.added.get(p.decode()) for p in plain):
            assert [ours.piece(t) for t in tokens] == plain

    check()
    for word in (b"the", b"thethe", b"theirsthe", b"dogcat", b"matsat", b"bonecatand"):
        assert ours.encode(word.decode(), bos=False) == by_hand(word, known)


HOSTILE = {
    "empty line": (
        ranks_file(RANKED_PIECES) + b"\n",
        "line 262 is b'', expected a piece and a rank",
    ),
    "no rank": (b"IQ== 0\nIg==\n", "line 2 is b'Ig==', expected a piece and a rank"),
    "no base64": (b"IQ== 0\nI=== 1\n", "line 2 is b'I=== 1', expected a piece and a rank"),
    "half of base64": (b"IQ== 0\nI 1\n", "line 2 is not base64 ("),
    "another rank": (b"IQ== 0\nIg== 2\n", "line 2 has rank 2, expected 1"),
    "twice": (b"IQ== 0\nIQ== 1\n", "line 2 repeats the piece b'!'"),
    "Llama 4's": (
        ranks_file([n.to_bytes(3, "big") for n in range(128_001)]),
        "the file has 128001 pieces, expected Llama 3's, at most 128000",
    ),
    "long": (
        b"IQ== 0\n" + base64.b64encode(bytes(129)) + b" 1\n",
        "the piece of line 2 has 129 bytes",
    ),
    "a byte missing": (
        ranks_file(RANKED_PIECES[:65] + RANKED_PIECES[66:]),
        "the byte 0x41 is missing",
    ),
    "huge": (
        b"IQ== 0\n" * (1 << 20),
        "7340032 bytes, expected Llama 3's tokenizer.model of at most",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_any_bytes_make_a_tokenizer_or_a_tokenizer_error(tmp_path: Path) -> None:
    good, path = ranks_file(RANKED_PIECES), tmp_path / "tokenizer.model"

    @settings(deadline=None)
    @given(st.binary(max_size=60), st.integers(0, len(good)))
    def check(junk: bytes, at: int) -> None:
        for data in (good[:at], good[:at] + junk, good[:at] + junk + good[at + len(junk) :]):
            path.write_bytes(data)
            with suppress(TokenizerError):
                assert isinstance(load_tokenizer(path), Tokenizer)

    check()

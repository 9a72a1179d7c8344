"""Llama 3's tokenizer.model, padded vocabularies, and those that want no BOS."""

from __future__ import annotations

import base64
import json
import struct
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama2py
from llama2py.checkpoint import write_checkpoint
from llama2py.errors import PromptError, TokenizerError
from llama2py.tokenizers.export import export_tokenizer
from llama2py.tokenizers.gguf import read_gguf_vocabulary
from llama2py.tokenizers.huggingface import read_tokenizer_json
from llama2py.tokenizers.load import load_tokenizer, write_tokenizer_bin
from llama2py.tokenizers.merge_tokenizer import LETTERS, MergeTokenizer
from llama2py.tokenizers.output import tokenizer_json
from llama2py.tokenizers.pretokenize import LLAMA3
from llama2py.tokenizers.tiktoken import looks_like_ranks
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.conftest import TINY, random_checkpoint, tiny_tokenizer
from tests.support.gguf_files import ARRAY, BOOL, I32, array
from tests.tokenizers.test_tokenizer_gguf import metadata
from tests.tokenizers.test_tokenizer_merges import TEXTS, byte_level

PIECES = [bytes([byte]) for byte in range(256)] + [b" t", b"he", b" the", b"\n\n", b"123"]


def ranks(pieces: list[bytes]) -> bytes:
    lines = (base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces))
    return b"".join(lines)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks(PIECES))
    return path


def by_hand(word: bytes, known: dict[bytes, int]) -> list[int]:
    """Join the two neighbours whose union has the lowest rank, the leftmost of equals."""
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


def test_words_are_joined_by_rank(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, MergeTokenizer)
    the, n = 258, len(PIECES)
    assert tokenizer.encode(" the the123") == [n, the, the, 260]
    assert tokenizer.encode("\n\nthe", bos=False) == [259, ord("t"), 257]
    assert tokenizer.decode(tokenizer.encode("Zoë 🐻\n\n  the")) == "Zoë 🐻\n\n  the"


def test_the_special_tokens_are_metas(path: Path) -> None:
    tokenizer, begin = load_tokenizer(path), len(PIECES)
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


def test_ranks_do_what_tokenizers_merges_do(tmp_path: Path) -> None:
    """A vocabulary trained by tokenizers, in both forms, and a slow reading of the ranks."""
    found = byte_level((LLAMA3,), True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(found), "utf-8")
    theirs = read_tokenizer_json(tmp_path / "tokenizer.json")
    to_byte = {letter: byte for byte, letter in enumerate(LETTERS)}
    special = set(theirs.specials.ids())
    ordered = [
        bytes(to_byte[letter] for letter in theirs.piece(i).decode())
        for i in range(len(theirs))
        if i not in special
    ]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks(ordered))
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
    "empty line": (ranks(PIECES) + b"\n", "line 262 is b'', expected a piece and a rank"),
    "no rank": (b"IQ== 0\nIg==\n", "line 2 is b'Ig==', expected a piece and a rank"),
    "no base64": (b"IQ== 0\nI=== 1\n", "line 2 is b'I=== 1', expected a piece and a rank"),
    "half of base64": (b"IQ== 0\nI 1\n", "line 2: "),
    "another rank": (b"IQ== 0\nIg== 2\n", "line 2 has rank 2, expected 1"),
    "twice": (b"IQ== 0\nIQ== 1\n", "piece 1 is b'!', expected another of 1 to 128 bytes"),
    "Llama 4's": (
        ranks([n.to_bytes(3, "big") for n in range(128_001)]),
        "128001 pieces, expected Llama 3's, at most 128000",
    ),
    "long": (b"IQ== 0\n" + base64.b64encode(bytes(129)) + b" 1\n", "piece 1 is b'\\x00\\x00"),
    "a byte missing": (ranks(PIECES[:65] + PIECES[66:]), "the byte 0x41 is no piece, expected all"),
    "huge": (b"IQ== 0\n" * (1 << 20), "7340032 bytes, expected at most 4194304"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_ranks(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_any_bytes_make_a_tokenizer_or_a_tokenizer_error(tmp_path: Path) -> None:
    good, path = ranks(PIECES), tmp_path / "tokenizer.model"

    @settings(deadline=None)
    @given(st.binary(max_size=60), st.integers(0, len(good)))
    def check(junk: bytes, at: int) -> None:
        for data in (good[:at], good[:at] + junk, good[:at] + junk + good[at + len(junk) :]):
            path.write_bytes(data)
            with suppress(TokenizerError):
                assert isinstance(load_tokenizer(path), Tokenizer)

    check()


def test_what_looks_so() -> None:
    assert looks_like_ranks(b"IQ== 0\nIg== 1\nI")
    assert looks_like_ranks(b"IQ== 0\r\nIg== 1\r")
    assert not looks_like_ranks(b"IQ== 0")
    assert not looks_like_ranks(b"\x06\0\0\0\0\0\0\0\n\0\0\0")
    assert not looks_like_ranks(b'{"version": 1\n0')


# ---- vocabularies smaller than the model's ----


def test_padding_decodes_to_nothing(path: Path, tmp_path: Path) -> None:
    plain = load_tokenizer(path)
    size = len(plain)
    padded = load_tokenizer(path, size + 30, padded=True)
    assert (len(padded), len(plain)) == (size + 30, size)
    assert padded.encode("the cat") == plain.encode("the cat")
    ids = plain.encode("the cat")
    assert padded.decode([*ids, size, size + 29]) == plain.decode(ids)
    with pytest.raises(PromptError, match=rf"token {size + 30} is not in the vocabulary"):
        padded.decode([size + 30])
    write_tokenizer_bin(tiny_tokenizer().padded(310), tmp_path / "t.bin")
    again = load_tokenizer(tmp_path / "t.bin", 310)
    assert again.encode("a cab") == tiny_tokenizer().encode("a cab")
    assert again.decode([1, 305, 309]) == ""


def test_only_a_little_padding_is_believed(path: Path) -> None:
    size = len(load_tokenizer(path))
    load_tokenizer(path, size + 34, padded=True)
    for vocab_size, padded in ((size + 35, True), (size - 1, True), (size + 1, False)):
        with pytest.raises(
            TokenizerError, match=rf"has {size} tokens, the model has {vocab_size};"
        ):
            load_tokenizer(path, vocab_size, padded)


def test_a_model_with_more_rows_than_its_tokenizer(tmp_path: Path) -> None:
    """In its own directory, and what becomes of it in other formats."""
    big = random_checkpoint(replace(TINY, vocab_size=304), seed=2)
    write_checkpoint(tmp_path / "big.bin", big.config, big.tensors)
    folder = llama2py.convert(tmp_path / "big.bin", tmp_path / "big", tokenizer=False)
    write_tokenizer_bin(tiny_tokenizer(), tmp_path / "tokenizer.bin")
    export_tokenizer(tmp_path / "tokenizer.bin", folder / "tokenizer.json")
    with llama2py.load(folder) as model:
        assert len(model.tokenizer) == 304
        told = model.generate("abc", temperature=1.0, seed=3, max_tokens=40)
    for name in ("again.gguf", "again.bin", "again"):
        llama2py.convert(folder, tmp_path / name)
        with llama2py.load(tmp_path / name) as model:
            assert len(model.tokenizer) == 304
            again = model.generate("abc", temperature=1.0, seed=3, max_tokens=40)
            assert (again.tokens, again.text) == (told.tokens, told.text)
    with pytest.raises(TokenizerError, match="has 300 tokens, the model has 304"):
        llama2py.load(folder, tmp_path / "tokenizer.bin")


# ---- BOS, or none ----


@pytest.mark.parametrize(("told", "begins"), [("true", True), ("false", False), ('"x"', True)])
def test_the_config_says_whether_texts_begin_with_bos(
    told: str, begins: bool, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(tiny_tokenizer()))
    (tmp_path / "tokenizer_config.json").write_text(f'{{"add_bos_token": {told}}}', "utf-8")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.adds_bos == begins
    assert tokenizer.encode("ab") == [1] * begins + tokenizer.encode("ab", bos=False)
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("", bos=False) == []


def test_a_gguf_says_whether_texts_begin_with_bos(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    for value, begins in ((b"\0", False), (b"\1", True)):
        path.write_bytes(metadata(add_bos_token=(BOOL, value)))
        tokenizer = read_gguf_vocabulary(path)
        assert tokenizer.encode("a") == [1] * begins + [259]
        assert tokenizer.encode("") == [1]
    write_tokenizer_bin(tokenizer, tmp_path / "out.bin")
    path.write_bytes(metadata(add_bos_token=(BOOL, b"\0")))
    with pytest.raises(TokenizerError, match=r"expected one that a tokenizer\.bin can hold"):
        write_tokenizer_bin(read_gguf_vocabulary(path), tmp_path / "out.bin")


def test_unused_tokens_are_never_read_nor_printed(tmp_path: Path) -> None:
    """They fill the vocabulary up to the rows of an embedding."""
    types = [1] * 259 + [1, 1, 5]
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(
        metadata(token_type=(ARRAY, array(I32, [struct.pack("<i", t) for t in types])))
    )
    tokenizer = read_gguf_vocabulary(path)
    assert len(tokenizer) == 262
    assert 261 not in tokenizer.encode("aa")
    assert tokenizer.decode([1, 259, 261]) == "a"

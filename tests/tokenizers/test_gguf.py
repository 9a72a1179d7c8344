"""GGUF's vocabularies: read, written, and hostile ones."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.checkpoint.gguf.writer import _head
from llama2py.errors import TokenizerError
from llama2py.formats.gguf_metadata import read_gguf_metadata
from llama2py.tokenizers.gguf import gguf_pairs
from llama2py.tokenizers.huggingface import tokenizer_config, tokenizer_json
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import ByteLevel, MergeTokenizer
from llama2py.tokenizers.pretokenize import DIGITS, GPT2, LLAMA3, LLAMACPP_DEFAULT, QWEN2, TEKKEN
from llama2py.tokenizers.sentencepiece import sentencepiece_model
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.conftest import tiny_tokenizer
from tests.support.gguf_files import ARRAY, BOOL, F32, I32, STRING, U32, array, gguf_file, string
from tests.support.made_tokenizers import assert_same, scored, with_specials
from tests.support.trained_vocabularies import (
    BYTE_LEVEL,
    TEXTS,
    both,
    byte_level,
    compare,
    load_merges,
)
from tests.support.vocabulary_files import (
    PIECES,
    TOKENIZER_BIN,
    gguf_of_json,
    gguf_pairs_file,
    gguf_vocabulary,
)

relaxed = settings(deadline=None, max_examples=200)
NAN = float("nan")


# ---- reading ----


def test_a_gguf_vocabulary_becomes_a_tokenizer_bin(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf_vocabulary())
    write_tokenizer_bin(load_tokenizer(path), tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == TOKENIZER_BIN


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        (b"llama-bpe", "llama3"),
        (b"smollm", "smollm"),
        (b"starcoder", "smollm"),
        (b"gpt-2", "gpt2"),
        (b"qwen2", "qwen2"),
        (b"tekken", "tekken"),
        (b"gpt-4o", "gpt-4o"),
        (b"deepseek-llm", "deepseek-llm"),
        (b"deepseek-coder", "deepseek-coder"),
        (b"default", "llama.cpp"),
        (None, "llama.cpp"),
    ],
)
def test_the_name_of_a_pattern_means_what_tokenizers_does(
    tmp_path: Path, pre: bytes | None, name: str
) -> None:
    found = byte_level(*BYTE_LEVEL[name])
    theirs, _ = both(found, tmp_path)
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf_of_json(found, pre=pre))
    ours = load_tokenizer(path)
    assert (ours.bos_id, ours.eos_id) == (0, 2)
    relaxed(given(TEXTS)(compare(theirs, ours)))()


def test_a_sentencepiece_gguf_has_special_tokens(tmp_path: Path) -> None:
    base = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    tokens = [*base, "▁".encode(), b"a", b"b", b"ab", b"<|im_end|>", b"ba"]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 3, 4]
    scores = [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0, 0.0, 0.0]
    values: dict[str, Any] = {
        "model": b"llama", "tokens": tokens, "scores": scores, "token_type": types,
        "eos_token_id": 263,
    }  # fmt: skip
    path = tmp_path / "chat.gguf"
    path.write_bytes(gguf_file({f"tokenizer.ggml.{k}": v for k, v in values.items()}))
    ours = load_tokenizer(path)
    assert ours.eos_id == 263
    # The user-defined symbol is found before any merge, the control token only in trusted texts.
    assert ours.encode("aba") == [1, 259, 260, 264]
    assert ours.encode("ab<|im_end|>", special=True) == [1, 259, 262, 263]
    assert 263 not in ours.encode("ab<|im_end|>")
    assert ours.decode([1, 259, 262, 263]) == "ab"
    with pytest.raises(TokenizerError, match=r"a tokenizer\.bin cannot hold merges or special"):
        write_tokenizer_bin(ours, tmp_path / "out.bin")
    assert not (tmp_path / "out.bin").exists()


def test_a_gguf_says_whether_texts_begin_with_bos(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    for value, begins in ((b"\0", False), (b"\1", True)):
        path.write_bytes(gguf_vocabulary(add_bos_token=(BOOL, value)))
        tokenizer = load_tokenizer(path)
        assert tokenizer.encode("a") == [1] * begins + [259]
        assert tokenizer.encode("") == [1]
    write_tokenizer_bin(tokenizer, tmp_path / "out.bin")
    path.write_bytes(gguf_vocabulary(add_bos_token=(BOOL, b"\0")))
    with pytest.raises(TokenizerError, match=r"a tokenizer\.bin cannot hold merges or special"):
        write_tokenizer_bin(load_tokenizer(path), tmp_path / "out.bin")


def test_unused_tokens_are_never_found_and_decode_to_nothing(tmp_path: Path) -> None:
    """They fill the vocabulary up to the rows of an embedding."""
    types = [1] * 259 + [1, 1, 5]
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(
        gguf_vocabulary(token_type=(ARRAY, array(I32, [struct.pack("<i", t) for t in types])))
    )
    tokenizer = load_tokenizer(path)
    assert len(tokenizer) == 262
    assert 261 not in tokenizer.encode("aa")
    assert tokenizer.decode([1, 259, 261]) == "a"


# ---- values that llama.cpp reads ----

NO_TOKEN = (U32, struct.pack("<I", 0xFFFFFFFF))
ZEROS = array(U32, [bytes(4)] * len(PIECES))
MORE = array(F32, [struct.pack("<f", 0.0)] * (len(PIECES) + 3))
#: Each changes nothing: the vocabulary is that of the default values.
EQUAL = {
    "no BOS": {"bos_token_id": NO_TOKEN},
    "no EOS": {"eos_token_id": NO_TOKEN},
    "no unknown": {"unknown_token_id": NO_TOKEN},
    "BOS that is missing": {"bos_token_id": None},
    "EOS outside of the vocabulary": {"eos_token_id": (U32, struct.pack("<I", 262))},
    "no scores": {"scores": None},
    "scores of integers": {"scores": (ARRAY, ZEROS)},
    "more scores than tokens": {"scores": (ARRAY, MORE)},
    "no types": {"token_type": None},
}


@pytest.mark.parametrize("changes", EQUAL.values(), ids=EQUAL)
def test_a_value_that_names_nothing_counts_as_missing(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf_vocabulary(**changes))
    ours = load_tokenizer(path)
    path.write_bytes(gguf_vocabulary())
    plain = load_tokenizer(path)
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (1, 2, 0)
    for text in ("a", "aaa a", "</s>a", "é"):
        assert ours.encode(text, special=True) == plain.encode(text, special=True)


def test_bos_may_be_another_token(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf_vocabulary(bos_token_id=(U32, struct.pack("<I", 261))))
    ours = load_tokenizer(path)
    assert ours.encode("a") == [261, 259]
    assert ours.decode([261, 259]) == "a"
    with pytest.raises(TokenizerError, match=r"a tokenizer\.bin cannot hold"):
        write_tokenizer_bin(ours, tmp_path / "out.bin")
    path.write_bytes(_head(gguf_pairs(ours), []))
    assert load_tokenizer(path).bos_id == 261


def test_a_vocabulary_may_put_no_space_before_a_text(tmp_path: Path) -> None:
    """Yi's and Gemma's do not."""
    package = pytest.importorskip("tokenizers")
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path / "vocabulary.gguf"
    types = [2, 3, 3, *[6] * 256, 1, 1, 1]
    kinds = (ARRAY, array(I32, [struct.pack("<i", kind) for kind in types]))
    path.write_bytes(gguf_vocabulary(add_space_prefix=(BOOL, b"\0"), token_type=kinds))
    ours = load_tokenizer(path)
    assert (ours.encode("a a"), ours.encode(" a")) == ([1, 261, 259], [1, 259])
    assert ours.decode([1, 259]) == " a"
    (tmp_path / "x.json").write_bytes(tokenizer_json(ours))
    (tmp_path / "x.model").write_bytes(sentencepiece_model(ours))
    path.write_bytes(_head(gguf_pairs(ours), []))
    theirs = package.Tokenizer.from_file(str(tmp_path / "x.json"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "x.model"))
    others = [load_tokenizer(tmp_path / name) for name in ("x.json", "x.model", path.name)]
    for text in ("a a", " a", "aa", "  ", "é a"):
        wanted = ours.encode(text)
        assert theirs.encode(text).ids == wanted
        assert [1, *processor.encode(text)] == wanted
        for other in others:
            assert other.encode(text) == wanted
            assert other.decode(wanted) == text
    with pytest.raises(TokenizerError, match=r"a tokenizer\.bin cannot hold"):
        write_tokenizer_bin(ours, tmp_path / "out.bin")


def special_vocabulary(name: bytes, *more: tuple[bytes, int]) -> bytes:
    """A vocabulary of a and space, and further tokens with their types."""
    base = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    tokens = [*base, "▁".encode(), b"a", *(token for token, _ in more)]
    values: dict[str, Any] = {
        "model": b"llama",
        "tokens": tokens,
        "scores": [0.0] * len(tokens),
        "token_type": [2, 3, 3, *[6] * 256, 1, 1, *(kind for _, kind in more)],
    }
    pairs = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return gguf_file({"general.name": name, **pairs})


@pytest.mark.parametrize(("name", "strips"), [(b"Phi-3 mini", True), (b"Phi 4", False)])
def test_special_tokens_of_phi_3_take_the_space_after_them(
    name: bytes, strips: bool, tmp_path: Path
) -> None:
    """llama.cpp knows by the model's name; the tokenizer.json of Phi-3 says rstrip."""
    more = ((b"<|endoftext|>", 3), (b"<|end|>", 3), (b"<|user|>", 4))
    path = tmp_path / "phi.gguf"
    path.write_bytes(special_vocabulary(name, *more))
    ours = load_tokenizer(path)
    space, a, end_of_text, end, user = 259, 260, 261, 262, 263
    left = [] if strips else [space]
    for text, wanted in (
        ("<|user|> \na", [user, space, a] if strips else [user, space, space, 13, a]),
        ("<|end|> a", [end, *left, space, a]),
        ("</s> a", [2, *left, space, a]),
        ("<s> a", [1, space, space, a]),
        ("<|endoftext|> a", [end_of_text, space, space, a]),
    ):
        assert ours.encode(text, bos=False, special=True) == wanted, text


def test_a_token_that_ends_a_turn_is_a_control_token_by_its_text(tmp_path: Path) -> None:
    path = tmp_path / "chat.gguf"
    path.write_bytes(special_vocabulary(b"", (b"<|im_end|>", 1), (b"<|im_start|>", 4)))
    ours = load_tokenizer(path)
    assert ours.specials.control == {"<|im_end|>": 261}
    assert ours.specials.added == {"<|im_start|>": 262}
    assert ours.encode("a<|im_end|>", special=True) == [1, 259, 260, 261]
    assert 261 not in ours.encode("a<|im_end|>")


@pytest.mark.parametrize("pre", [None, b"default"])
def test_a_byte_level_vocabulary_without_a_pattern_is_warned_about(
    pre: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf_of_json(byte_level((GPT2,)), pre=pre))
    ours = load_tokenizer(path)
    assert ours.warnings == ours.notes
    assert [note.startswith("tokenizer.ggml.pre is missing") for note in ours.notes] == (
        [True] if pre is None else []
    )


def test_byte_level_ids_that_no_token_has_count_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    none = 0xFFFFFFFF
    for values, expected in (
        ({"bos_token_id": none, "eos_token_id": 2}, (2, 2)),
        ({"bos_token_id": 1, "eos_token_id": none}, (1, 1)),
        ({"bos_token_id": none, "eos_token_id": none}, (0, 0)),  # <|endoftext|>
        ({"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": none}, (1, 2)),
        ({"bos_token_id": 1, "eos_token_id": 2, "token_type": None}, (1, 2)),
    ):
        path.write_bytes(gguf_of_json(byte_level((GPT2,)), pre=b"gpt-2", **values))
        ours = load_tokenizer(path)
        assert (ours.bos_id, ours.eos_id) == expected


@pytest.mark.parametrize("suffix", [".bin", ".gguf", ".model", ".json"])
def test_trusted_texts_have_bos_and_eos_in_every_format(suffix: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    path = tmp_path / f"tokenizer{suffix}"
    if suffix == ".bin":
        write_tokenizer_bin(tokenizer, path)
    elif suffix == ".gguf":
        path.write_bytes(_head(gguf_pairs(tokenizer), []))
    else:
        make = sentencepiece_model if suffix == ".model" else tokenizer_json
        path.write_bytes(make(tokenizer))
    ours = load_tokenizer(path)
    a = ours.encode("a", bos=False)
    assert ours.encode("a</s><s>a", special=True) == [1, *a, 2, 1, *a]
    assert ours.encode("<unk>", bos=False, special=True) == [0]
    assert not {0, 1, 2} & set(ours.encode("a</s><s>a<unk>", bos=False))
    assert ours.controls_in("a</s>b<s></s>") == ["</s>", "<s>"]
    assert ours.controls_in("a</sb") == []


HOSTILE = {
    "no vocabulary": (gguf_pairs_file(0, b""), "the metadata lacks tokenizer.ggml.model"),
    "wordpiece": (
        gguf_vocabulary(model=(STRING, string(b"bert"))),
        "tokenizer.ggml.model is b'bert', expected b'llama' (sentencepiece) or b'gpt2' (byte",
    ),
    "byte level without merges": (
        gguf_vocabulary(model=(STRING, string(b"gpt2"))),
        "the metadata lacks tokenizer.ggml.merges",
    ),
    "byte level cut in an unknown way": (
        gguf_vocabulary(model=(STRING, string(b"gpt2")), pre=(STRING, string(b"falcon"))),
        "tokenizer.ggml.pre is b'falcon', expected default, gpt-2, gpt2, phi-2, mellum,",
    ),
    "add_bos that is a number": (
        gguf_vocabulary(add_bos_token=(U32, struct.pack("<I", 1))),
        "tokenizer.ggml.add_bos_token is 1, expected true or false",
    ),
    "no tokens": (
        gguf_vocabulary(tokens=None),
        "the metadata lacks tokenizer.ggml.tokens",
    ),
    "scores of strings": (
        gguf_vocabulary(scores=(ARRAY, array(STRING, [string(b"1")] * len(PIECES)))),
        "tokenizer.ggml.scores is <array of 262>, expected an array of numbers",
    ),
    "too few scores": (
        gguf_vocabulary(scores=(ARRAY, array(F32, [bytes(4)]))),
        "262 tokens have 1 scores",
    ),
    "too few types": (
        gguf_vocabulary(token_type=(ARRAY, array(I32, [bytes(4)]))),
        "262 tokens have 1 types",
    ),
    "nan": (
        gguf_vocabulary(scores=(ARRAY, array(F32, [struct.pack("<f", NAN)] * len(PIECES)))),
        "the score of token 0 is nan, expected a finite float32",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_vocabulary_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_any_bytes_make_a_tokenizer_or_a_tokenizer_error(tmp_path: Path) -> None:
    good = gguf_vocabulary()
    path = tmp_path / "mutated.gguf"

    @settings(deadline=None)
    @given(st.binary(max_size=60), st.integers(0, 400) | st.integers(0, len(good)))
    def check(junk: bytes, at: int) -> None:
        for data in [junk, b"GGUF\3\0\0\0" + junk, good[:at], good[:at] + junk + good[at + 1 :]]:
            path.write_bytes(data)
            with suppress(TokenizerError):
                assert isinstance(load_tokenizer(path), Tokenizer)

    check()


# ---- writing ----


@pytest.mark.parametrize("name", scored())
def test_a_written_vocabulary_is_read_back_whole(name: str, tmp_path: Path) -> None:
    tokenizer = scored()[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(_head(gguf_pairs(tokenizer), []))
    assert_same(load_tokenizer(path), tokenizer)


def test_the_chat_template_is_written(tmp_path: Path) -> None:
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


PATTERNS = {
    "gpt2": ((GPT2,), False),
    "smollm": ((DIGITS, GPT2), False),
    "llama3": ((LLAMA3,), True),
    "qwen2": ((QWEN2,), False),
    "tekken": ((TEKKEN,), True),
    "smaug": ((LLAMA3,), False),
    "llama.cpp": (LLAMACPP_DEFAULT, False),
}


@pytest.fixture(params=PATTERNS)
def merging(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, MergeTokenizer]:
    """Return a byte-level vocabulary as tokenizers and llama2py read it."""
    package = pytest.importorskip("tokenizers")
    found = byte_level(*PATTERNS[request.param])
    (tmp_path / "tokenizer.json").write_text(json.dumps(found), "utf-8")
    theirs = package.Tokenizer.from_str(json.dumps(found))
    return theirs, load_merges(tmp_path / "tokenizer.json")


def test_byte_level_survives_both_formats(
    merging: tuple[Any, MergeTokenizer], tmp_path: Path
) -> None:
    package = pytest.importorskip("tokenizers")
    theirs, ours = merging
    path = tmp_path / "again.json"
    path.write_bytes(tokenizer_json(ours))
    written, again = package.Tokenizer.from_file(str(path)), load_merges(path)
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(_head(gguf_pairs(ours), []))
    inside = load_tokenizer(gguf)
    for other in (again, inside):
        assert isinstance(other, MergeTokenizer)
        assert isinstance(other.kind, ByteLevel)
        # llama.cpp leaves bytes out in its own way
        assert replace(other.kind, closes_gaps=True) == ours.kind
        assert other.merges == ours.merges
        assert other.specials.added == ours.specials.added
        assert other.specials.control == ours.specials.control
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
def test_adds_bos_survives_both_formats(
    merging: tuple[Any, MergeTokenizer], adds_bos: bool, tmp_path: Path
) -> None:
    package = pytest.importorskip("tokenizers")
    _, ours = merging
    ours.adds_bos = adds_bos
    begin = [ours.bos_id] * adds_bos
    path, gguf = tmp_path / "again.json", tmp_path / "x.gguf"
    path.write_bytes(tokenizer_json(ours))
    gguf.write_bytes(_head(gguf_pairs(ours), []))
    for other in (load_merges(path), load_tokenizer(gguf)):
        assert other.encode("cat") == begin + other.encode("cat", bos=False)
        assert other.encode("") == [ours.bos_id]  # a model needs a first token
    written = package.Tokenizer.from_file(str(path))
    bare = written.encode("cat", add_special_tokens=False).ids
    assert written.encode("cat").ids == begin + bare

"""tokenizer.model against sentencepiece, written and read, and hostile files."""

from __future__ import annotations

import io
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.errors import TokenizerError
from llama2py.formats import sniff
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.sentencepiece import parse_sentencepiece, sentencepiece_model
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.support.made_tokenizers import STORIES, assert_same, scored, with_specials
from tests.support.sentencepiece_files import GOOD, field, model, varint

TEXTS = st.lists(
    st.sampled_from(["the", "cat", "cats", " ", "  ", "   ", "\n", "<sep>", "é", "🐻", "1", "a"])
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0▁"), max_size=8),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def real(test_data: Path) -> Path:
    return test_data / "data" / "formats" / "stories260K-hf" / "tokenizer.model"


# ---- reading ----


def test_sentencepiece_reads_a_real_one_alike(real: Path) -> None:
    sentencepiece: Any = pytest.importorskip("sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(real))
    ours = load_tokenizer(real, 512)
    for token in range(3, theirs.vocab_size()):  # BOS and EOS are spelled in llama2.c's way
        assert ours.piece(token).decode() == theirs.id_to_piece(token).replace("▁", " ")
        assert ours.score(token) == theirs.get_score(token)
    for text in [
        "Once upon a time, there was a little girl named Lily.",
        "  two spaces,\n\na line;\ttab",
        "café 你好 🐻",
        "",
        "a",
    ]:
        assert ours.encode(text) == [1, *theirs.encode(text)]


def test_a_real_one_becomes_the_tokenizer_bin(real: Path, test_data: Path, tmp_path: Path) -> None:
    write_tokenizer_bin(load_tokenizer(real, 512), tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == (test_data / "data" / "tok512.bin").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": False},
        {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},  # Gemma's
        {"bos_id": -1, "pad_id": 1},
        {"eos_id": -1, "pad_id": 2, "add_dummy_prefix": False},
    ],
)
def test_bos_eos_and_the_space_are_as_the_settings_say(
    options: dict[str, Any], tmp_path: Path
) -> None:
    sentencepiece: Any = pytest.importorskip("sentencepiece")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(model_type="bpe", **options))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = load_tokenizer(path)
    bos, eos = theirs.bos_id(), theirs.eos_id()
    assert (ours.bos_id, ours.eos_id) == (eos if bos < 0 else bos, bos if eos < 0 else eos)
    assert ours.unk_id == theirs.unk_id()
    assert ours.adds_bos == (bos >= 0)
    for text in ("the cat", " the cats  sat", "é on 日本", "a", ""):
        tokens = ours.encode(text, bos=False)
        assert tokens == theirs.encode(text)
        assert ours.decode([ours.bos_id, *tokens]) == text


def train(**options: Any) -> bytes:
    """Train a small model with sentencepiece. It keeps spaces as they are."""
    sentencepiece: Any = pytest.importorskip("sentencepiece")
    rng = random.Random(2)
    words = ["the", "cat", "cats", "sat", " ", "on", "a", "mat", "é"]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(rng.choices(words, k=20)) for _ in range(300)]),
        model_writer=trained,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options},
    )
    return trained.getvalue()


@pytest.mark.parametrize(
    "symbols",
    [
        {},
        # The trainer puts these before the bytes, as in Mistral 7B v0.3.
        {"user_defined_symbols": ["<sep>", "cats", "▁▁", "▁1"]},
        {"user_defined_symbols": ["<sep>", "  ", "a 1", "t a"]},  # with spaces: never found
        {"control_symbols": ["<sep>", "[INST]"], "user_defined_symbols": ["1"]},
    ],
)
def test_sentencepiece_reads_a_trained_one_alike(
    tmp_path: Path, symbols: dict[str, list[str]]
) -> None:
    sentencepiece: Any = pytest.importorskip("sentencepiece")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(model_type="bpe", **symbols))
    ours = load_tokenizer(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert len(ours) == theirs.vocab_size()
    assert ours.first_byte == 3 + sum(map(len, symbols.values())) == theirs.piece_to_id("<0x00>")
    found = [text for text in symbols.get("user_defined_symbols", []) if " " not in text]
    assert list(ours.specials.added) == [text.replace("▁", " ") for text in found]

    @settings(deadline=None, max_examples=300)
    @given(TEXTS)
    def check(text: str) -> None:
        assert ours.encode(text, bos=False) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text

    check()


def test_sentencepiece_encodes_texts_between_control_tokens_alike(
    tmp_path: Path,
) -> None:
    """Mistral's own code encodes these texts one by one and puts the tokens between them."""
    sentencepiece: Any = pytest.importorskip("sentencepiece")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(
        train(model_type="bpe", control_symbols=["[INST]"], user_defined_symbols=["<sep>"])
    )
    ours = load_tokenizer(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    inst = theirs.piece_to_id("[INST]")

    @settings(deadline=None, max_examples=300)
    @given(st.lists(TEXTS, max_size=4))
    def check(texts: list[str]) -> None:
        wanted = theirs.encode(texts[0]) if texts else []
        for text in texts[1:]:
            wanted += [inst, *theirs.encode(text)]
        assert ours.encode("[INST]".join(texts), bos=False, special=True) == wanted
        parts = [part for text in texts for part in (inst, text)][1:]
        assert ours.encode_parts(parts) == wanted

    check()


def test_a_note_says_what_sentencepiece_would_normalize(tmp_path: Path) -> None:
    """llama2.c drops repeated spaces in training and keeps them in run.c."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(model_type="bpe"))
    assert load_tokenizer(path).notes == ()
    path.write_bytes(train(model_type="bpe", remove_extra_whitespaces=True))
    ours = load_tokenizer(path)
    assert ours.decode(ours.encode("the  cat")) == "the  cat"
    begin = "with this tokenizer, sentencepiece "
    end = "; llama2py keeps texts as they are"
    assert ours.padded(len(ours) + 1).notes == (begin + "drops repeated spaces" + end,)
    path.write_bytes(train(model_type="bpe", normalization_rule_name="nmt_nfkc"))
    assert load_tokenizer(path).notes == (begin + "normalizes texts ('nmt_nfkc')" + end,)
    path.write_bytes(model(normalizer=field(1, b"\x1b[2J\nx") + field(2, b"t") + field(4, 0)))
    assert load_tokenizer(path).notes == (begin + r"normalizes texts ('\x1b[2J\nx')" + end,)


def test_the_type_of_a_piece_makes_it_special(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    chat = field(1, field(1, b"<|im_end|>") + field(2, 0.0) + field(3, 3))
    path.write_bytes(model(tail=chat + field(1, field(1, b"aa") + field(2, 0.0) + field(3, 4))))
    ours = load_tokenizer(path)
    assert (ours.specials.control, ours.specials.added) == ({"<|im_end|>": 261}, {"aa": 262})
    assert ours.encode("aaa<|im_end|>", special=True)[-1] == 261
    assert 262 in ours.encode("aaa")
    path.write_bytes(model(tail=field(1, field(1, b"aa") + field(2, 0.0) + field(3, 3))))
    ours = load_tokenizer(path)
    # The text of a control token is encoded with other pieces, and no merge makes the token.
    assert ours.encode("aa", bos=False) == [259, 260, 260]
    assert ours.encode("aa", bos=False, special=True) == [261]


def test_a_unigram_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(model_type="unigram"))
    with pytest.raises(TokenizerError, match=r"the algorithm is 1, expected 2 \(BPE\)"):
        load_tokenizer(path)


def test_text_before_the_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    data = train(model_type="bpe", user_defined_symbols=["<sep>"])
    symbol = field(1, b"<sep>") + field(2, 0.0)
    assert data.count(field(1, symbol + field(3, 4))) == 1
    path.write_bytes(data.replace(field(1, symbol + field(3, 4)), field(1, symbol)))
    with pytest.raises(TokenizerError, match=r"token 3 is b'<sep>': only special tokens may come"):
        load_tokenizer(path)


def test_a_real_one_that_is_cut_short_is_refused(real: Path, tmp_path: Path) -> None:
    data = real.read_bytes()
    path = tmp_path / "tokenizer.model"
    for size in [1, 2, 5, 100, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(TokenizerError, match=r"tokenizer\.model: "):
            load_tokenizer(path)


NONE = (1 << 64) - 1  # -1
HOSTILE = {
    "cut in a piece": (GOOD[:20], "field 1 at byte"),
    "cut in a tag": (GOOD + b"\xff", "the number at byte"),
    "an endless number": (GOOD + b"\xff" * 20, "the number at byte"),
    "a huge length": (GOOD + b"\x0a" + varint(2**63), "field 1 at byte"),
    "a group": (GOOD + b"\x0b", "field 1 at byte"),
    "a piece that is a number": (GOOD + field(1, 5), "token 261 is the number 5, expected bytes"),
    "a score of 8 bytes": (
        GOOD + field(1, field(1, b"x") + varint(2 << 3 | 1) + bytes(8)),
        "token 261 has a malformed score or type",
    ),
    "nan": (
        GOOD + field(1, field(1, b"x") + field(2, float("nan"))),
        "the score of token 261 is nan, expected a finite float32",
    ),
    "unigram": (model(trainer=field(3, 1)), "the algorithm is 1, expected 2 (BPE)"),
    "no settings": (model(trainer=b""), "the algorithm is 1, expected 2 (BPE)"),
    "unused": (
        model(tail=field(1, field(1, b"c") + field(3, 5))),
        "token 261 is of type UNUSED, which is not supported",
    ),
    "a BOS in texts": (
        GOOD.replace(
            field(1, b"<s>") + field(2, 0.0) + field(3, 3),
            field(1, b"<s>") + field(2, 0.0) + field(3, 4),
        ),
        "token 1 is user-defined: BOS and EOS must not match a text",
    ),
    "spaces after words": (
        model(field(3, 2) + field(24, 1)),
        "treat_whitespace_as_suffix is true",
    ),
    "no BOS or EOS": (
        model(trainer=field(3, 2) + field(41, NONE) + field(42, NONE)),
        "neither BOS nor EOS is a token",
    ),
    "an EOS of bytes": (
        model(trainer=field(3, 2) + field(42, b"2")),
        "the id in field 42 is b'2', expected a whole number",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_model_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    assert sniff.kind_of(data[: sniff.HEAD]) == sniff.SENTENCEPIECE
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_any_bytes_make_a_tokenizer_or_a_tokenizer_error(junk: bytes, at: int) -> None:
    for data in [junk, GOOD[:at], GOOD[:at] + junk + GOOD[at + len(junk) :], GOOD[:at] + junk]:
        with suppress(TokenizerError):
            assert isinstance(parse_sentencepiece(data), Tokenizer)


# ---- writing ----


relaxed = settings(deadline=None, max_examples=200)


@pytest.mark.parametrize("name", ["tiny", "llama2", "early"])
def test_sentencepiece_reads_a_written_one(name: str, tmp_path: Path) -> None:
    package = pytest.importorskip("sentencepiece")
    tokenizer = scored()[name]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(tokenizer))
    assert_same(load_tokenizer(path), tokenizer)
    theirs = package.SentencePieceProcessor(str(path))
    assert (theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id()) == (0, 1, 2, -1)
    assert len(theirs) == len(tokenizer)

    @relaxed
    @given(STORIES)
    def check(text: str) -> None:
        text = text.replace("▁", "_")  # sentencepiece reads it as a space
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

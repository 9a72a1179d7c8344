"""Reading tokenizer.model without sentencepiece, checked against sentencepiece itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llama2py.errors import TokenizerError
from llama2py.sentencepiece_model import read_pieces
from llama2py.tokenizer_files import load_tokenizer

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "  two spaces,\n\na line;\ttab",
    "caf\u00e9 \u4f60\u597d \U0001f600",
    "",
    "a",
]


@pytest.fixture(scope="module")
def model(test_data: Path) -> Path:
    return test_data / "data" / "formats" / "stories260K-hf" / "tokenizer.model"


def test_pieces_and_scores(model: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces, scores = read_pieces(model.read_bytes())
    ids = range(processor.vocab_size())
    assert [piece.decode() for piece in pieces] == [processor.id_to_piece(i) for i in ids]
    assert scores == [processor.get_score(i) for i in ids]


def test_it_encodes_as_sentencepiece_and_as_tokenizer_bin(model: Path, test_data: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ours = load_tokenizer(model, 512)
    exported = load_tokenizer(test_data / "data" / "tok512.bin", 512)
    for text in TEXTS:
        assert ours.encode(text, bos=True) == [1, *processor.encode(text)]
        assert ours.encode(text, bos=True) == exported.encode(text, bos=True)


def test_a_cut_model_is_an_error(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    copy = tmp_path / "tokenizer.model"
    for size in [1, 2, 5, 100, len(data) // 2, len(data) - 1]:
        copy.write_bytes(data[:size])
        with pytest.raises(TokenizerError, match=r"tokenizer\.model: .*expected"):
            load_tokenizer(copy)
    shutil.copyfile(model, copy)
    assert load_tokenizer(copy).vocab_size == 512


def test_another_kind_of_model_is_an_error(model: Path, tmp_path: Path) -> None:
    """Llama 3's tokenizer.model is a text of another kind."""
    copy = tmp_path / "tokenizer.model"
    copy.write_bytes(b"IQ== 0\nIg== 1\n" * 100)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: "):
        load_tokenizer(copy)
    # model_type (field 3 of the trainer's numbers) 2, BPE, made 1, unigram.
    data = model.read_bytes()
    place = data.rindex(b"\x18\x02")
    copy.write_bytes(data[:place] + b"\x18\x01" + data[place + 2 :])
    with pytest.raises(TokenizerError, match="no sentencepiece model of byte-pair encoding"):
        load_tokenizer(copy)

"""Training a vocabulary: byte-pair encoding by sentencepiece, stored as tokenizer.bin."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import sentencepiece

from ..errors import ParameterError, TokenizerError
from ..tokenizers.bpe import FIRST_PIECE
from ..tokenizers.sentencepiece import tokenizer_of_pieces
from ..tokenizers.tokenizer import Tokenizer

UNKNOWN = " \u2047 "  # how sentencepiece prints the unknown token, in Llama's vocabulary too


def train_vocabulary(stories: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a vocabulary with byte fallback, with llama2.c's settings.

    Parameters
    ----------
    stories : sequence of str
        What to learn from.
    vocab_size : int
        Number of ids, the 259 of unknown, BOS, EOS and the bytes included.

    Returns
    -------
    Tokenizer
        It encodes as sentencepiece does.

    Raises
    ------
    ParameterError
        If the size is too small for the bytes, or too large for the texts.
    """
    return read_sentencepiece(train_sentencepiece(stories, vocab_size))


def train_sentencepiece(stories: Sequence[str], vocab_size: int) -> bytes:
    """The same as a sentencepiece model.

    Notes
    -----
    Source of the settings: karpathy/llama2.c, ``tinystories.py``.
    """
    if vocab_size <= FIRST_PIECE:
        raise ParameterError(f"vocab_size is {vocab_size}, expected more than {FIRST_PIECE}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(stories),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            self_test_sample_size=0,
            character_coverage=1.0,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            unk_surface=UNKNOWN,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,  # llama2.c leaves it out; but its run.c keeps them
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise ParameterError(
            f"no vocabulary of {vocab_size} ids can be made of these texts ({reason}),"
            " expected a size that fits them"
        ) from None
    return model.getvalue()


def read_sentencepiece(model: bytes) -> Tokenizer:
    """The vocabulary of a sentencepiece model, as llama2.c's ``tokenizer.py`` takes it over."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    if not processor.is_byte(3):
        raise TokenizerError("this sentencepiece model has no byte fallback, expected one with it")
    ids = range(processor.vocab_size())
    pieces = [processor.id_to_piece(token).encode() for token in ids]
    return tokenizer_of_pieces(pieces, [processor.get_score(token) for token in ids])


def _lines(stories: Sequence[str]) -> Iterator[str]:
    """sentencepiece learns from lines; a newline itself is encoded as its byte."""
    for story in stories:
        yield from filter(None, story.split("\n"))

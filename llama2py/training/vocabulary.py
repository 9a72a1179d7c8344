"""Train a vocabulary: byte-pair encoding by sentencepiece, with llama2.c's settings."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence

import sentencepiece

from ..config import MAX_VOCAB
from ..errors import ParameterError, TokenizerError
from ..tokenizers.bpe import FIRST_PIECE
from ..tokenizers.sentencepiece import tokenizer_of_pieces
from ..tokenizers.tokenizer import Tokenizer

UNKNOWN = " \u2047 "  # what sentencepiece prints for the unknown token, as in Llama's vocabulary
# Characters. sentencepiece's trainer numbers the characters of a word in 16 bits and aborts the
# process on a longer one (up to 0.2.0). It skips lines of over max_sentence_length bytes.
MAX_LINE = 60_000
RESERVED = "\u2585"  # sentencepiece also skips lines that hold its own mark for unknown characters


def train_vocabulary(stories: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a vocabulary with byte fallback, with llama2.c's settings.

    Parameters
    ----------
    stories : sequence of str
        The texts to learn from.
    vocab_size : int
        Number of token ids, including 259 for unknown, BOS, EOS and the bytes.

    Returns
    -------
    Tokenizer
        It encodes as sentencepiece does.

    Raises
    ------
    ParameterError
        If the size is too small for the bytes and characters, or too large for the texts.
    """
    return read_sentencepiece(train_sentencepiece(stories, vocab_size))


def train_sentencepiece(stories: Sequence[str], vocab_size: int) -> bytes:
    """Train as `train_vocabulary` does, and return a sentencepiece model.

    Notes
    -----
    Source of the settings: karpathy/llama2.c, ``tinystories.py``.
    """
    if not FIRST_PIECE < vocab_size <= MAX_VOCAB:
        raise ParameterError(
            f"vocab_size is {vocab_size}, expected {FIRST_PIECE + 1} to {MAX_VOCAB}"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # A list, not a generator: sentencepiece would take Ctrl-C in a generator for an error.
            sentence_iterator=iter(list(_lines(stories))),
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
            remove_extra_whitespaces=False,  # llama2.c's trainer removes them, its run.c does not
            max_sentence_length=4 * MAX_LINE,  # UTF-8 takes at most 4 bytes for a character
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ParameterError(_explain(str(error), vocab_size)) from None
    return model.getvalue()


def _explain(message: str, vocab_size: int) -> str:
    """Turn sentencepiece's message, which names options of its own, into advice."""
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocab_size {vocab_size} is too small: the text has"
            f" {int(match[1]) - FIRST_PIECE} different characters; use at least {match[1]}"
        )
    if match := re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        return f"vocab_size {vocab_size} is too large for this text; use at most {match[1]}"
    if "!sentences_.empty()" in message:
        return "the text holds no characters to learn from"
    return f"sentencepiece cannot train a vocabulary ({' '.join(message.split())[-200:]})"


def read_sentencepiece(model: bytes) -> Tokenizer:
    """Return the vocabulary of a sentencepiece model, as llama2.c's ``tokenizer.py`` exports it."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    if not processor.is_byte(3):
        raise TokenizerError("the sentencepiece model has no byte fallback")
    ids = range(processor.vocab_size())
    pieces = [processor.id_to_piece(token).encode() for token in ids]
    return tokenizer_of_pieces(pieces, [processor.get_score(token) for token in ids])


def _lines(stories: Sequence[str]) -> Iterator[str]:
    """Yield lines that sentencepiece accepts. A newline needs no piece: it is encoded as a byte."""
    for story in stories:
        for line in story.replace(RESERVED, "\n").split("\n"):
            yield from filter(None, _split_long(line))


def _split_long(line: str) -> Iterator[str]:
    """Split a line of over `MAX_LINE` characters, at spaces where there are any.

    A piece never crosses a space, and a line gets one in front, so the pieces learned are the same.
    """
    start = 0
    while len(line) - start > MAX_LINE:
        space = line.rfind(" ", start + 1, start + MAX_LINE)
        if space < 0:
            yield line[start : start + MAX_LINE]
            start += MAX_LINE
        else:
            yield line[start:space]
            start = space + 1
    yield line[start:]

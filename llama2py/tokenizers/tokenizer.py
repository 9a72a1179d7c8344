"""The tokenizer: text to token ids and back, exactly as llama2.c does it.

A vocabulary is a list of pieces (bytes), each with a score. Ids 0, 1 and 2 are unknown, BOS and
EOS, ids 3 to 258 stand for the 256 bytes, and everything from 259 up is text. Some have special
tokens before the bytes (Mistral 7B v0.3: 768), which then come later.

Source: karpathy/llama2.c, ``run.c``.
"""

from __future__ import annotations

import codecs
import copy
import math
from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property

from ..errors import PromptError, TokenizerError
from .bpe import FIRST_BYTE, N_BYTES, PairEncoder
from .specials import Specials

UNK, BOS, EOS = 0, 1, 2


class Tokenizer:
    """A vocabulary, and the two directions through it. Threads may share one.

    Parameters
    ----------
    pieces : sequence of bytes
        The piece of every token id, spaces as plain spaces; from ``first_byte`` on ``<0x00>`` to
        ``<0xFF>``.
    scores : sequence of float
        One finite float32 a piece: of all joins that are possible, the highest scored comes first.
    specials : Specials, optional
        Tokens that no join makes, behind EOS and beside the bytes.
    eos_id : int
        The id that ends a text, where it is not llama2.c's.
    adds_bos : bool
        Whether a text begins with BOS, as models of this vocabulary expect it.
    first_byte : int
        The id of byte 0. Between EOS and it there are only special tokens, and empty pieces.
    prefix_each : bool
        Whether each stretch of text between two special tokens gets a space before it, as llama.cpp
        and transformers' Llama have it; or only each between two control tokens, as sentencepiece.

    Attributes
    ----------
    adds_bos, first_byte, prefix_each
        As above.
    notes : tuple of str
        What a user should know of where it comes from.

    Raises
    ------
    TokenizerError
        If the two do not make a vocabulary.

    Notes
    -----
    Unknown, BOS, EOS and bytes are never matched from text: a user who types ``<s>`` or ``<0x41>``
    means these characters. A piece that stands at several ids is encoded as the lowest of them.
    """

    unk_id = UNK
    bos_id = BOS
    eos_id = EOS
    first_byte = FIRST_BYTE
    prefix_each = True
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        pieces: Sequence[bytes],
        scores: Sequence[float],
        specials: Specials | None = None,
        eos_id: int = EOS,
        adds_bos: bool = True,
        first_byte: int = FIRST_BYTE,
        prefix_each: bool = True,
    ) -> None:
        self.adds_bos, self.first_byte, self.prefix_each = adds_bos, first_byte, prefix_each
        first_piece = first_byte + N_BYTES
        specials = specials or Specials()
        if len(pieces) != len(scores):
            raise TokenizerError(
                f"{len(pieces)} tokens have {len(scores)} scores, expected one each"
            )
        if first_byte <= EOS:
            raise TokenizerError(f"byte 0 is token {first_byte}, expected it behind EOS")
        if len(pieces) < first_piece:
            raise TokenizerError(
                f"the vocabulary has {len(pieces)} tokens, expected at least {first_piece}"
                " (unknown, BOS, EOS and the 256 bytes)"
            )
        special = set(specials.ids())
        for token in range(EOS + 1, first_byte):
            if pieces[token] and token not in special:
                raise TokenizerError(
                    f"token {token}, before the bytes, is {pieces[token][:40]!r},"
                    " expected only special tokens there"
                )
        for byte, piece in enumerate(pieces[first_byte:first_piece]):
            if piece != b"<0x%02X>" % byte:
                raise TokenizerError(
                    f"token {byte + first_byte} is {piece[:40]!r}, expected the byte <0x{byte:02X}>"
                )
        if not 0 <= eos_id < len(pieces):
            raise TokenizerError(f"the id of EOS is {eos_id}, expected one of {len(pieces)} tokens")
        self.eos_id = eos_id
        # What each id prints.
        outputs = list(pieces)
        outputs[BOS] = b""
        outputs[first_byte:first_piece] = [bytes([byte]) for byte in range(256)]
        self._set_up(pieces, array("f", scores), outputs, specials)
        # Finite float32 numbers cannot add up to anything else in double precision.
        if not math.isfinite(sum(self._scores)):
            token = next(i for i, score in enumerate(self._scores) if not math.isfinite(score))
            raise TokenizerError(
                f"the score of token {token} is {self._scores[token]}, expected a finite float32"
            )

    def _set_up(
        self,
        pieces: Sequence[bytes],
        scores: array[float],
        outputs: list[bytes],
        specials: Specials,
    ) -> None:
        """Keep what every kind of vocabulary has."""
        self._pieces = tuple(pieces)
        self.n_tokens = len(pieces)
        """Ids that are tokens: all but the empty pieces at the end, which are padding."""
        while self.n_tokens and not pieces[self.n_tokens - 1]:
            self.n_tokens -= 1
        self._scores = scores
        self._outputs = outputs
        self.specials = specials
        """The tokens that no join makes."""
        for token in specials.control.values():
            outputs[token] = b""

    def padded(self, vocab_size: int) -> Tokenizer:
        """The same vocabulary with ids up to that of a model whose embedding has more rows.

        Many models have some, so that their number is a round one. No text is encoded to such an
        id, it prints nothing, and no text that is generated has it: see `n_tokens`.
        """
        more = vocab_size - len(self)
        result = copy.copy(self)
        result._pieces = self._pieces + (b"",) * more
        result._scores = self._scores + array("f", bytes(4 * more))
        result._outputs = self._outputs + [b""] * more
        return result

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __repr__(self) -> str:
        return f"<Tokenizer: {len(self)} tokens>"

    def piece(self, token: int) -> bytes:
        """The vocabulary's own entry for one id: ``<0x41>`` for a byte, ``\\n<s>\\n`` for BOS.

        Raises
        ------
        PromptError
            If there is no such id.
        """
        self._check(token)
        return self._pieces[token]

    def score(self, token: int) -> float:
        """The score of one id, a float32.

        Raises
        ------
        PromptError
            If there is no such id.
        """
        self._check(token)
        return self._scores[token]

    def _check(self, token: int) -> None:
        if not 0 <= token < len(self._pieces):
            raise PromptError(
                f"token {token} is not in the vocabulary, expected 0 to {len(self._pieces) - 1}"
            )

    # Most of what encoding needs is not needed to load a vocabulary or to decode.
    @cached_property
    def _encoder(self) -> PairEncoder:
        pieces = list(self._pieces)
        for token in self.specials.ids():
            pieces[token] = b""  # never made of text
        return PairEncoder(pieces, self._scores, self.first_byte)

    @cached_property
    def _prefix(self) -> int:
        """The id of the space that ``encode`` puts first: a byte's where no piece is a space."""
        return self._encoder.character(" ")[0]

    def encode(
        self, text: str, bos: bool = True, eos: bool = False, special: bool = False
    ) -> list[int]:
        """The token ids of a text, in O(n log n) for n characters of any kind.

        Parameters
        ----------
        text : str
            Anything that UTF-8 can hold, NUL included, and taken as it is: no normalization. A text
            that is not empty is encoded with one space before it, as sentencepiece does. (It reads
            a literal U+2581 as a space, too; here that is a character like any other.)
        bos, eos : bool
            Whether to put BOS before it and EOS behind it. Where the vocabulary's models want no
            BOS (`adds_bos`), it comes only before an empty text: they, too, need a token to start.
        special : bool
            Whether a control token's text, such as ``<|eot_id|>``, means the token. By default it
            means the characters, so that no user's text can end a turn.

        Raises
        ------
        PromptError
            If the text holds half of a surrogate pair.
        """
        tokens = [self.bos_id] if bos and (self.adds_bos or not text) else []
        tokens += self._encode_text(text, special, first=True)
        if eos:
            tokens.append(self.eos_id)
        return tokens

    def encode_parts(self, parts: Iterable[str | int], first: bool = True) -> list[int]:
        """The token ids of texts and the tokens between them, as a chat template puts them.

        Parameters
        ----------
        parts : iterable of str or int
            Texts, which are encoded as by `encode`, so that no control token is found in them, and
            token ids, which stay what they are.
        first : bool
            Whether nothing stands before them, which some vocabularies mark with a space.

        Raises
        ------
        PromptError
            If a text holds half of a surrogate pair.
        """
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, int):
                tokens.append(part)
            else:
                tokens += self._encode_text(part, False, first)
            first = first and part == ""
        return tokens

    def _check_text(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            what = f"U+{code:04X}, half of a surrogate pair,"
            if 0xDC80 <= code <= 0xDCFF:  # how Python stands in for bytes that it could not decode
                what = f"the byte 0x{code - 0xDC00:02X}, which is not UTF-8,"
            raise PromptError(
                f"the text holds {what} at position {error.start}, expected whole characters"
            ) from None

    def _encode_text(self, text: str, special: bool, first: bool) -> list[int]:
        """The ids of a text, special tokens and all; ``first`` if nothing stands before it."""
        self._check_text(text)
        tokens: list[int] = []
        if not text:
            return tokens
        if self.prefix_each:
            for part in self.specials.split(text, special):
                tokens += [part] if isinstance(part, int) else self._encode_part(part, first)
                first = False
            return tokens
        # sentencepiece puts the space first, then looks for added tokens. It knows no control ones
        # in a text: programs split at them.
        for stretch in self.specials.split_at_control(text) if special else [text]:
            parts = [stretch] if isinstance(stretch, int) else self.specials.split(" " + stretch)
            for part in parts:
                tokens += [part] if isinstance(part, int) else self._encoder.encode(part)
        return tokens

    def _encode_part(self, text: str, first: bool) -> list[int]:
        """The ids of a text without added tokens; ``first`` if nothing stands before it."""
        return self._encoder.encode(" " + text)

    def _strips(self, token: int) -> bool:
        """Whether a token right behind BOS loses the space it begins with."""
        # The byte token of a space keeps it, as in llama2.c, unless encode() itself spells it so.
        return not 0 <= token - self.first_byte < N_BYTES or token == self._prefix

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids: ``decode(encode(text)) == text`` for every text.

        Parameters
        ----------
        tokens : iterable of int
            A BOS among them prints nothing and takes one leading space off the piece behind it;
            EOS prints its piece. Bytes that are not UTF-8 become U+FFFD.

        Raises
        ------
        PromptError
            If an id is not in the vocabulary.
        """
        decoder = self.decoder()
        return "".join([decoder.feed(token) for token in tokens]) + decoder.flush()

    def decoder(self, previous: int | None = None) -> Decoder:
        """A decoder for tokens as they come, the first of them coming after ``previous``."""
        return Decoder(self, previous)


class Decoder:
    """Tokens in, text out, one at a time: what it returns, put together, is the whole text.

    A character that is spread over several tokens is held back until its last byte is there, so an
    emoji arrives whole. Made by ``Tokenizer.decoder``.
    """

    def __init__(self, tokenizer: Tokenizer, previous: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._previous = previous
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The text that one more token completes, perhaps none.

        Raises
        ------
        PromptError
            If the id is not in the vocabulary.
        """
        tokenizer = self._tokenizer
        tokenizer._check(token)
        after_bos = self._previous == tokenizer.bos_id
        self._previous = token
        if token == tokenizer.bos_id:
            return self.flush()  # a new text starts: a character left open stays incomplete
        output = tokenizer._outputs[token]
        if after_bos and tokenizer._strips(token):
            output = output.removeprefix(b" ")
        return self._utf8.decode(output)

    def flush(self) -> str:
        """What is left at the end: U+FFFD if the last character is incomplete, else nothing."""
        return self._utf8.decode(b"", final=True)

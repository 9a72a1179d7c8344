"""MergeTokenizer: a vocabulary with a list of merges in place of scores.

There are two kinds. `Characters` is sentencepiece's vocabulary in Hugging Face's form: a text is
one long word of characters, and a character that is not a piece falls back to its bytes.
`ByteLevel` (GPT-2, Llama 3, SmolLM2) cuts a text into words, and a piece is made of letters that
stand for bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal
from unicodedata import normalize

from .._util import counted
from ..errors import TokenizerError
from .bpe import MergeEncoder
from .pretokenize import words
from .tokenizer import SPACES, Specials, Splitter, Tokenizer

SPACE_MARK = "\u2581"  # how sentencepiece writes a space inside a piece


def _byte_letters() -> list[str]:
    """Return the letter that stands for each byte: itself if printable, else U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


LETTERS = _byte_letters()
# A text decoded as Latin-1 has one character for each byte.
_TO_LETTERS = dict(enumerate(LETTERS))
_TO_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}
_NEVER = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])  # bytes that UTF-8 never has


@dataclass(frozen=True)
class ByteLevel:
    """Pieces of letters that stand for bytes.

    Parameters
    ----------
    patterns : tuple of str
        The patterns that cut a text into words: see `pretokenize.words`.
    form : {'', 'NFC', 'NFKC'}
        The Unicode normalization form that a text is put into first, if any; the decoded text is
        then in that form. Python's Unicode tables can be newer than those of ``tokenizers``.
    prefix : bool
        Whether a space is put before each stretch between two added tokens that does not begin with
        one.
    whole_first : bool
        Whether a word that is a piece becomes that piece, whatever the merges make of it.
    fuses_unknown : bool
        Whether adjacent bytes without a piece become one unknown token.
    closes_gaps : bool
        Whether a byte that is left out makes its neighbours adjacent, so that they can merge: so in
        ``tokenizers``, not in llama.cpp.
    """

    patterns: tuple[str, ...]
    form: Literal["", "NFC", "NFKC"] = ""
    prefix: bool = False
    whole_first: bool = False
    fuses_unknown: bool = False
    closes_gaps: bool = True


@dataclass(frozen=True)
class Characters:
    """Pieces of characters, with ``▁`` for a space.

    Parameters
    ----------
    prefix : {'each', 'first', 'none'}
        Where a space is put before the text: before each stretch between two added tokens, before
        the first stretch only, or nowhere.
    prefix_once : bool
        True if a pre-tokenizer (Metaspace) puts the space, and none before a text that begins with
        one. False if a normalizer puts it, always.
    whole_first : bool
        Whether a text that is a piece becomes that piece, whatever the merges make of it.
    fuses_unknown : bool
        Whether adjacent characters that have neither a piece nor bytes become one unknown token.
    marks_first : bool
        Whether a normalizer makes ``▁`` of spaces, before the added tokens that are matched in
        normalized text are found. Otherwise a pre-tokenizer does.
    """

    prefix: str = "each"
    prefix_once: bool = False
    whole_first: bool = False
    fuses_unknown: bool = True
    marks_first: bool = True


class MergeTokenizer(Tokenizer):
    """A vocabulary with merges. It has no scores and no first byte; the rest is as in `Tokenizer`.

    Parameters
    ----------
    pieces : sequence of str
        The piece of every token id, as the vocabulary spells it.
    merges : iterable of (str, str), or None
        The pairs of pieces that merge, the best first. None ranks merges by the id of the piece
        that they produce, the lowest first.
    kind : ByteLevel or Characters
        What the pieces are made of, and how a text is turned into that.
    bos_id, eos_id : int
        The ids that begin and end a text.
    specials : Specials
        The special tokens.
    unk_id : int, optional
        The id of a character that the vocabulary cannot spell; without one it is left out.
    adds_bos : bool
        Whether a text begins with BOS, as models of this vocabulary expect it.

    Attributes
    ----------
    kind
        As above.
    has_unknown : bool
        Whether there is an ``unk_id``.
    lacks_bytes : bool
        Whether there are texts that the vocabulary cannot spell.

    Raises
    ------
    TokenizerError
        If the pieces and merges are not a vocabulary.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        merges: Iterable[tuple[str, str]] | None,
        kind: ByteLevel | Characters,
        bos_id: int,
        eos_id: int,
        specials: Specials | None = None,
        unk_id: int | None = None,
        adds_bos: bool = True,
    ) -> None:
        specials = specials or Specials()
        for name, token in (("BOS", bos_id), ("EOS", eos_id), ("unknown", unk_id)):
            if token is not None and not 0 <= token < len(pieces):
                raise TokenizerError(
                    f"the id of {name} is {token}, expected 0 to {len(pieces) - 1}"
                )
        self.kind = kind
        self.has_unknown = unk_id is not None
        self.adds_bos = adds_bos
        special = set(specials.ids())
        # The lowest id of equal pieces stays.
        ids: dict[str, int] = {}
        for token, piece in enumerate(pieces):
            if token not in special or token in specials.pieces:
                ids.setdefault(piece, token)
        self._byte_ids = {
            byte: ids[f"<0x{byte:02X}>"] for byte in range(256) if f"<0x{byte:02X}>" in ids
        }
        outputs = [self._output(piece, token in special) for token, piece in enumerate(pieces)]
        if isinstance(kind, Characters):
            for byte, token in self._byte_ids.items():
                outputs[token] = bytes([byte])
            # A mark in a piece is a space. A piece with a plain space never matches a text.
            ids = {
                piece.replace(SPACE_MARK, " "): token
                for piece, token in ids.items()
                if " " not in piece
            }
            if merges is not None:
                merges = (
                    (left.replace(SPACE_MARK, " "), right.replace(SPACE_MARK, " "))
                    for left, right in merges
                )
        try:
            fallback = self._fallback(unk_id)
            encoder = MergeEncoder(ids, merges, fallback, kind.whole_first, specials.control)
            raw = [piece.encode() for piece in pieces]
        except ValueError as error:  # or UnicodeEncodeError: half of a surrogate pair
            raise TokenizerError(str(error)) from None
        self.bos_id, self.eos_id = bos_id, eos_id
        self.unk_id = bos_id if unk_id is None else unk_id
        self._set_up(raw, array("f", bytes(4 * len(raw))), outputs, specials)
        for piece in encoder.reached:  # a text may have it
            outputs[ids[piece]] = self._output(piece, special=False)
        self._merges = encoder
        missing = self._missing_bytes(ids)
        self._letters: Mapping[int, str | None] = _TO_LETTERS
        if unk_id is None and isinstance(kind, ByteLevel) and kind.closes_gaps:
            self._letters = {**_TO_LETTERS, **dict.fromkeys(missing)}
        self._leaves_out = unk_id is None and isinstance(kind, Characters) and bool(missing)
        needed = [f"0x{byte:02X}" for byte in missing if byte not in _NEVER]
        self.lacks_bytes = bool(needed)
        if needed:
            self.notes = (
                f"the vocabulary lacks {counted(len(needed), 'byte')} ({', '.join(needed[:3])}"
                f"{', ...' if len(needed) > 3 else ''}): characters that need one are"
                f" {'left out' if unk_id is None else 'unknown'}, so that decoding a text may not"
                " give it back",
            )
        self._splitters: dict[bool, Splitter] = {}  # by whether control tokens count

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs of pieces that merge, the best first, as the vocabulary spells them."""
        if isinstance(self.kind, ByteLevel):
            return self._merges.merges
        return [
            (left.replace(" ", SPACE_MARK), right.replace(" ", SPACE_MARK))
            for left, right in self._merges.merges
        ]

    def _missing_bytes(self, ids: Mapping[str, int]) -> list[int]:
        """Return the bytes that have no piece."""
        if isinstance(self.kind, ByteLevel):
            return [byte for byte, letter in enumerate(LETTERS) if letter not in ids]
        return [byte for byte in range(256) if byte not in self._byte_ids]

    def _output(self, piece: str, special: bool) -> bytes:
        """Return the bytes that a token decodes to."""
        if special:
            return piece.encode(errors="replace")
        if isinstance(self.kind, Characters):
            return piece.replace(SPACE_MARK, " ").encode(errors="replace")
        try:
            return bytes([_TO_BYTES[letter] for letter in piece])
        except KeyError:  # another letter: no text is encoded to this token
            return piece.encode(errors="replace")

    def _fallback(self, unk_id: int | None) -> Callable[[str], list[int]]:
        byte_ids = self._byte_ids if isinstance(self.kind, Characters) else {}
        unknown = [] if unk_id is None else [unk_id]
        return partial(_spell, byte_ids, unknown, self.kind.fuses_unknown)

    def _encode_text(self, text: str, special: bool, first: bool) -> list[int]:
        # As in tokenizers: special tokens of the text as it is come before those of the normalized.
        self._check_text(text)
        tokens: list[int] = []
        inner = self._normalized_tokens(special)
        for part in self.specials.split(text, special):
            pieces = [part] if isinstance(part, int) else inner.split(self._normalize(part))
            for piece in pieces:
                tokens += [piece] if isinstance(piece, int) else self._encode_part(piece, first)
                first = False
        return tokens

    def _normalized_tokens(self, trusted: bool) -> Splitter:
        if trusted not in self._splitters:
            kind, spaces = self.kind, SPACES
            if isinstance(kind, Characters) and kind.marks_first:
                spaces -= {" "}
            self._splitters[trusted] = self.specials.splitter(trusted, self._normalize, spaces)
        return self._splitters[trusted]

    @property
    def normalizes(self) -> bool:
        """Whether a normalizer changes texts before they are encoded."""
        kind = self.kind
        if isinstance(kind, ByteLevel):
            return bool(kind.form)
        return kind.prefix == "each" and not kind.prefix_once

    def _normalize(self, text: str) -> str:
        kind = self.kind
        if isinstance(kind, ByteLevel):
            return normalize(kind.form, text) if kind.form else text
        # Each stretch has its space from the normalizer, unless that depends on the stretch.
        return " " + text if text and kind.prefix == "each" and not kind.prefix_once else text

    def _encode_part(self, text: str, first: bool) -> list[int]:
        """Encode a normalized text without special tokens; ``first`` if it begins the prompt."""
        kind = self.kind
        if isinstance(kind, ByteLevel):
            tokens: list[int] = []
            if kind.prefix and not text.startswith(" "):
                text = " " + text
            for word in words(text, kind.patterns):
                letters = word.encode().decode("latin-1").translate(self._letters)
                if letters:
                    tokens += self._merges.encode(letters)
            return tokens
        wanted = kind.prefix == "first" and first
        wanted = wanted or (kind.prefix == "each" and kind.prefix_once)
        if wanted and not (kind.prefix_once and text.startswith(" ")):
            text = " " + text
        if self._leaves_out:
            text = "".join(c for c in text if c in self._merges or _bytes_of(self._byte_ids, c))
        return list(self._merges.encode(text)) if text else []

    def _strips(self, token: int) -> bool:
        kind = self.kind
        if isinstance(kind, ByteLevel):
            return kind.prefix
        return kind.prefix != "none" and token not in self._byte_ids.values()


def _spell(
    byte_ids: Mapping[int, int], unknown: list[int], fuses: bool, characters: str
) -> list[int]:
    """Return the ids of the bytes of adjacent characters, or ``unknown`` where one has no id.

    As in ``tokenizers``, an unknown token comes after the bytes that follow it.
    """
    tokens: list[int] = []
    pending: list[int] = []
    for character in characters:
        found = _bytes_of(byte_ids, character)
        tokens += found
        if not found and not (fuses and pending):
            tokens += pending
            pending = unknown
    return tokens + pending


def _bytes_of(byte_ids: Mapping[int, int], character: str) -> list[int]:
    """Return the ids of the bytes of a character, or nothing if one of them has no id."""
    found = [byte_ids.get(byte) for byte in character.encode()]
    known = [token for token in found if token is not None]
    return known if len(known) == len(found) else []

"""MergeTokenizer: vocabularies with a list of merges in place of scores.

Two kinds of them. In the first, SentencePiece's turned into Hugging Face's form, a text is one long
word of characters, and a character that is no piece falls back to its bytes. In the second, byte
level (GPT-2, Llama 3, SmolLM2), a text is cut into words, and a piece is made of letters that stand
for bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal
from unicodedata import normalize

from ..errors import TokenizerError
from .merges import MergeEncoder
from .pretokenize import words
from .specials import Specials
from .tokenizer import Tokenizer

SPACE_MARK = "\u2581"  # how sentencepiece writes a space inside a piece


def _byte_letters() -> list[str]:
    """The letter that stands for each byte: itself if it prints, else one from U+0100 up."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in prints]
    letters = {byte: chr(byte) for byte in prints}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


LETTERS = _byte_letters()
# A text decoded as Latin-1 has one character a byte.
_TO_LETTERS = dict(enumerate(LETTERS))
_TO_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


@dataclass(frozen=True)
class ByteLevel:
    """The second kind.

    Parameters
    ----------
    patterns : tuple of str
        What cuts a text into words: see `pretokenize.words`.
    form : {'', 'NFC', 'NFKC'}
        Unicode's form that a text gets first, if any: what is decoded is then in that form. It is
        made by Python's tables, which can be newer than those of tokenizers.
    prefix : bool
        Whether a space is put before each stretch between two added tokens that begins with none.
    """

    patterns: tuple[str, ...]
    form: Literal["", "NFC", "NFKC"] = ""
    prefix: bool = False


@dataclass(frozen=True)
class Characters:
    """The first kind, with spaces as ``▁`` in its pieces.

    Parameters
    ----------
    prefix : {'each', 'first', 'none'}
        Where a space is put before the text: before each stretch between two added tokens, the
        first stretch only, or nowhere.
    prefix_once : bool
        Whether none is put before a text that begins with one.
    """

    prefix: str = "each"
    prefix_once: bool = False


class MergeTokenizer(Tokenizer):
    """A vocabulary with merges; all else as `Tokenizer`, whose scores and first byte it lacks.

    Parameters
    ----------
    pieces : sequence of str
        The piece of every token id, as the vocabulary spells it.
    merges : iterable of (str, str)
        What joins with what, the best first.
    kind : ByteLevel or Characters
        How text turns into what the pieces are made of.
    bos_id, eos_id : int
        The ids that begin and end a text.
    specials : Specials
        The tokens that no merge makes.
    unk_id : int, optional
        What stands for a character that nothing else does; without one it is left out.
    whole_first : bool
        Whether a word that is a piece is taken as it is.
    adds_bos : bool
        Whether a text begins with BOS, as models of this vocabulary expect it.

    Attributes
    ----------
    kind, whole_first
        As above.
    has_unknown : bool
        Whether there is a token for what no other stands for.

    Raises
    ------
    TokenizerError
        If they do not make a vocabulary.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        merges: Iterable[tuple[str, str]],
        kind: ByteLevel | Characters,
        bos_id: int,
        eos_id: int,
        specials: Specials | None = None,
        unk_id: int | None = None,
        whole_first: bool = False,
        adds_bos: bool = True,
    ) -> None:
        specials = specials or Specials()
        for name, token in (("BOS", bos_id), ("EOS", eos_id), ("unknown", unk_id)):
            if token is not None and not 0 <= token < len(pieces):
                raise TokenizerError(
                    f"the id of {name} is {token}, expected one of {len(pieces)} tokens"
                )
        self.kind = kind
        self.whole_first = whole_first
        self.has_unknown = unk_id is not None
        self.adds_bos = adds_bos
        special = set(specials.ids())
        # Of equal pieces the lowest id stays.
        ids: dict[str, int] = {}
        for token, piece in enumerate(pieces):
            if token not in special:
                ids.setdefault(piece, token)
        self._byte_ids = {
            byte: ids[f"<0x{byte:02X}>"] for byte in range(256) if f"<0x{byte:02X}>" in ids
        }
        outputs = [self._output(piece, token in special) for token, piece in enumerate(pieces)]
        if isinstance(kind, Characters):
            for byte, token in self._byte_ids.items():
                outputs[token] = bytes([byte])
            # In the vocabulary a mark is a space, and no text has another space.
            ids = {
                piece.replace(SPACE_MARK, " "): token
                for piece, token in ids.items()
                if " " not in piece
            }
            merges = [(a.replace(SPACE_MARK, " "), b.replace(SPACE_MARK, " ")) for a, b in merges]
        try:
            encoder = MergeEncoder(ids, merges, self._fallback(unk_id), whole_first)
            raw = [piece.encode() for piece in pieces]
        except ValueError as error:  # UnicodeEncodeError is one: half of a surrogate pair
            raise TokenizerError(str(error)) from None
        self.bos_id, self.eos_id = bos_id, eos_id
        self.unk_id = bos_id if unk_id is None else unk_id
        self._set_up(raw, array("f", bytes(4 * len(raw))), outputs, specials)
        self._merges = encoder

    @property
    def merges(self) -> list[tuple[str, str]]:
        """What joins with what, the best first, as the vocabulary spells it."""
        if isinstance(self.kind, ByteLevel):
            return self._merges.merges
        return [
            (left.replace(" ", SPACE_MARK), right.replace(" ", SPACE_MARK))
            for left, right in self._merges.merges
        ]

    def _output(self, piece: str, special: bool) -> bytes:
        """What a token prints."""
        if special:
            return piece.encode(errors="replace")
        if isinstance(self.kind, Characters):
            return piece.replace(SPACE_MARK, " ").encode(errors="replace")
        try:
            return bytes([_TO_BYTES[letter] for letter in piece])
        except KeyError:  # not one of the letters: a token that no text encodes to
            return piece.encode(errors="replace")

    def _fallback(self, unk_id: int | None) -> Callable[[str], list[int]]:
        unknown = [] if unk_id is None else [unk_id]
        return partial(
            _bytes_of, self._byte_ids if isinstance(self.kind, Characters) else {}, unknown
        )

    def _encode_part(self, text: str, first: bool) -> list[int]:
        kind = self.kind
        if isinstance(kind, ByteLevel):
            tokens: list[int] = []
            text = normalize(kind.form, text) if kind.form else text
            if kind.prefix and not text.startswith(" "):
                text = " " + text
            for word in words(text, kind.patterns):
                letters = word.encode().decode("latin-1").translate(_TO_LETTERS)
                tokens += self._merges.encode(letters)
            return tokens
        wanted = kind.prefix == "each" or (first and kind.prefix == "first")
        if wanted and not (kind.prefix_once and text.startswith(" ")):
            text = " " + text
        return list(self._merges.encode(text))

    def _strips(self, token: int) -> bool:
        kind = self.kind
        if isinstance(kind, ByteLevel):
            return kind.prefix
        return kind.prefix != "none" and token not in self._byte_ids.values()


def _bytes_of(byte_ids: Mapping[int, int], unknown: list[int], character: str) -> list[int]:
    """The ids of a character's bytes, if all are there."""
    found = [byte_ids.get(byte) for byte in character.encode()]
    known = [token for token in found if token is not None]
    return known if len(known) == len(found) else unknown

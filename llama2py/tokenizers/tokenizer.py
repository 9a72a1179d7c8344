"""Text to token ids and back, exactly as llama2.c does it.

A vocabulary is a list of pieces (bytes), each with a score. In llama2.c's layout, ids 0, 1 and 2
are unknown, BOS and EOS, ids 3 to 258 are the 256 bytes, and every id from 259 up is text. Some
vocabularies put special tokens before the bytes (Mistral 7B v0.3 has 768), which shifts the rest.

Source: karpathy/llama2.c, ``run.c``.
"""

from __future__ import annotations

import codecs
import copy
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import index
from typing import Literal, TypeAlias
from unicodedata import category

from ..engine.parameters import instance, shown, token_ids, whole_number
from ..errors import PromptError, TokenizerError
from .bpe import FIRST_BYTE, N_BYTES, PairEncoder

UNK, BOS, EOS = 0, 1, 2
MAX_SPECIAL_LENGTH = 256  # characters of a special token's text; real ones have up to 40
# llama2.c's exporter puts these two pieces on lines of their own.
BOS_PIECE, EOS_PIECE = b"\n<s>\n", b"\n</s>\n"
FIXED = {"<unk>": b"<unk>", "<s>": BOS_PIECE, "</s>": EOS_PIECE}
"""The texts and pieces of the ids 0, 1 and 2 in llama2.c's layout."""

Prefix: TypeAlias = Literal["each", "control", "first", "none"]

# Unicode's White_Space. The word characters of Rust's regular expressions that no Unicode category
# covers: joiners and letters in circles.
SPACES = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | frozenset(
    map(chr, range(0x2000, 0x200B))
)
_OTHER_WORD = frozenset("\u200c\u200d") | frozenset(
    chr(code)
    for first, last in (
        (0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189)
    )
    for code in range(first, last + 1)
)  # fmt: skip


def _touches_word(text: str, start: int, end: int) -> bool:
    return any(_is_word(character) for character in (text[start - 1 : start], text[end : end + 1]))


def _is_word(character: str) -> bool:
    if not character:
        return False
    kind = category(character)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in _OTHER_WORD


@dataclass(frozen=True)
class Matching:
    """The rules by which ``tokenizers`` matches a special token in a text, beyond its exact text.

    Parameters
    ----------
    normalized : bool
        Whether the token's normalized text is matched in the normalized text.
    single_word : bool
        Whether the token must not touch a letter, digit, mark or underscore.
    lstrip, rstrip : bool
        Whether the token takes the white space on its left or right with it.
    """

    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


PLAIN = Matching()


@dataclass(frozen=True)
class Specials:
    """The special tokens of a vocabulary. Each has its own text, and no merge produces it.

    Parameters
    ----------
    added : mapping of str to int
        Text to token id. These texts are tokens wherever they occur: sentencepiece's user-defined
        symbols.
    control : mapping of str to int
        Text to token id, such as ``<|eot_id|>``. These texts are tokens only if the caller trusts
        the text that they are in. They decode to nothing.
    matching : mapping of str to Matching
        How a text is matched, if not by `PLAIN`. Only vocabularies with merges have other rules.
    pieces : frozenset of int
        The special tokens that merges may produce from ordinary text, too: those that are pieces of
        a vocabulary with merges.
    fixed : mapping of str to int
        Unknown, BOS and EOS of llama2.c's layout: tokens where control tokens are. `Tokenizer` sets
        it.
    """

    added: Mapping[str, int] = field(default_factory=dict)
    control: Mapping[str, int] = field(default_factory=dict)
    matching: Mapping[str, Matching] = field(default_factory=dict)
    pieces: frozenset[int] = frozenset()
    fixed: Mapping[str, int] = field(default_factory=dict)

    def ids(self) -> list[int]:
        """Return the ids of all special tokens but the fixed ones."""
        return [*self.added.values(), *self.control.values()]

    def split(self, text: str, trusted: bool = False) -> Iterator[str | int]:
        """Split a text at its special tokens.

        Parameters
        ----------
        text : str
            Any text.
        trusted : bool
            Whether control tokens count, too.

        Yields
        ------
        str or int
            The text between two special tokens (never empty), or the id of a special token. If
            several special tokens start at the same place, the longest is taken.
        """
        return (self._all if trusted else self._added).split(text)

    def splitter(
        self, trusted: bool, normalize: Callable[[str], str], spaces: frozenset[str]
    ) -> Splitter:
        """Return the splitter for normalized texts, by the tokens that are matched in those.

        Parameters
        ----------
        trusted : bool
            Whether control tokens count, too.
        normalize : callable
            Normalizes the text of a token.
        spaces : frozenset of str
            The characters that lstrip and rstrip take.
        """
        found = {**self.control, **self.added} if trusted else self.added
        return Splitter(
            {
                normalize(text): (token, self.matching[text])
                for text, token in found.items()
                if text in self.matching and self.matching[text].normalized
            },
            spaces,
        )

    def _splitter(self, tokens: Mapping[str, int]) -> Splitter:
        """Return the splitter for texts that are not normalized."""
        rules = {text: self.matching.get(text, PLAIN) for text in tokens}
        return Splitter(
            {
                text: (token, rules[text])
                for text, token in tokens.items()
                if not rules[text].normalized
            }
        )

    @cached_property
    def _all(self) -> Splitter:
        return self._splitter({**self.fixed, **self.control, **self.added})

    @cached_property
    def _added(self) -> Splitter:
        return self._splitter(self.added)

    def split_at_control(self, text: str) -> Iterator[str | int]:
        """Split a text at its control tokens only. Yields what `split` does."""
        return self._control.split(text)

    @cached_property
    def _control(self) -> Splitter:
        return self._splitter({**self.fixed, **self.control})


class Splitter:
    """Splits texts at special tokens, as ``tokenizers`` does.

    One regular expression of all tokens would try every token at every place. This class looks up
    the two characters at a place, and tries only the lengths of the tokens that begin with them.
    """

    def __init__(
        self, tokens: Mapping[str, tuple[int, Matching]], spaces: frozenset[str] = SPACES
    ) -> None:
        self._tokens, self._spaces = tokens, spaces
        lengths: dict[str, set[int]] = {}
        for text in tokens:
            if text:
                lengths.setdefault(text[:2], set()).add(len(text))
        self._lengths = {
            start: sorted(lengths[start] | lengths.get(start[0], set()), reverse=True)
            for start in lengths
        }
        self._single = {start for start in lengths if len(start) == 1}
        first = sorted({start[0] for start in lengths})
        self._find_first = re.compile(f"[{''.join(map(re.escape, first))}]") if first else None

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the text between two tokens (never empty), and the ids of the tokens."""
        begin = 0  # of the text that is not yielded yet
        searched = 0  # no token begins before it
        for match in self._find_first.finditer(text) if self._find_first else ():
            if match.start() < searched:
                continue  # inside a token
            for length in self._lengths_at(text, match.start()):
                found = self._tokens.get(text[match.start() : match.start() + length])
                if found is None:
                    continue
                start, end = match.start(), match.start() + length
                searched = end
                token, matching = found
                if matching.single_word and _touches_word(text, start, end):
                    break
                while matching.lstrip and start > begin and text[start - 1] in self._spaces:
                    start -= 1
                while matching.rstrip and end < len(text) and text[end] in self._spaces:
                    end += 1
                if begin < start:
                    yield text[begin:start]
                yield token
                begin = end
                break
        if begin < len(text):
            yield text[begin:]

    def _lengths_at(self, text: str, place: int) -> Sequence[int]:
        lengths = self._lengths.get(text[place : place + 2])
        if lengths is not None:
            return lengths
        return (1,) if text[place] in self._single else ()


class Tokenizer:
    """A vocabulary with scores. It encodes text and decodes tokens. Threads may share it.

    Parameters
    ----------
    pieces : sequence of bytes
        The piece of every token id, with plain spaces. The 256 pieces from ``first_byte`` on are
        ``<0x00>`` to ``<0xFF>``.
    scores : sequence of float
        One finite float32 for each piece. Among all possible merges, the one that produces the
        piece with the highest score comes first.
    specials : Specials, optional
        Special tokens other than unknown, BOS, EOS and the bytes.
    eos_id : int
        The id that ends a text.
    adds_bos : bool
        Whether a text begins with BOS, as the models of this vocabulary expect.
    first_byte : int
        The id of byte 0. Only special tokens and empty pieces come between EOS and it.
    prefix : {'each', 'control', 'first', 'none'}
        Where a space is put: before each stretch of text between two special tokens, as in
        llama.cpp and transformers' older Llama; before each stretch between two control tokens, as
        in sentencepiece; before the first stretch only, as in transformers' newer Llama; or
        nowhere.
    bos_id : int
        The id that begins a text.

    Attributes
    ----------
    adds_bos, first_byte, prefix, bos_id
        As above.
    notes : tuple of str
        What a user should know about this vocabulary, one sentence each.
    warnings : tuple of str
        Those of the notes that `load` also logs.

    Raises
    ------
    TokenizerError
        If the pieces and scores are not a vocabulary.

    Notes
    -----
    Bytes are never matched in a text, and unknown, BOS and EOS only in a trusted one: a user who
    types ``<s>`` or ``<0x41>`` means these characters. A piece that several ids share is encoded as
    the lowest of them.
    """

    unk_id = UNK
    bos_id = BOS
    eos_id = EOS
    first_byte = FIRST_BYTE
    prefix: Prefix = "each"
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        pieces: Sequence[bytes],
        scores: Sequence[float],
        specials: Specials | None = None,
        eos_id: int = EOS,
        adds_bos: bool = True,
        first_byte: int = FIRST_BYTE,
        prefix: Prefix = "each",
        bos_id: int = BOS,
    ) -> None:
        self.adds_bos, self.first_byte, self.prefix = adds_bos, first_byte, prefix
        first_piece = whole_number("first_byte", first_byte) + N_BYTES
        bos_id, eos_id = whole_number("bos_id", bos_id), whole_number("eos_id", eos_id)
        specials = instance("specials", specials or Specials(), Specials, "Specials or None")
        if not hasattr(pieces, "__len__") or not set(map(type, pieces)) <= {bytes}:
            raise TokenizerError(f"pieces is {shown(pieces)}, expected a sequence of bytes")
        try:
            scores = array("f", scores)
        except (TypeError, ValueError):
            raise TokenizerError(
                f"scores is {shown(scores)}, expected a sequence of numbers"
            ) from None
        if len(pieces) != len(scores):
            raise TokenizerError(f"{len(pieces)} tokens have {len(scores)} scores")
        if first_byte <= EOS:
            raise TokenizerError(f"byte 0 is token {first_byte}, expected {EOS + 1} or higher")
        if len(pieces) < first_piece:
            raise TokenizerError(
                f"the vocabulary has {len(pieces)} tokens, expected at least {first_piece}"
                " (unknown, BOS, EOS and the 256 bytes)"
            )
        special = set(specials.ids())
        for token in range(EOS + 1, first_byte):
            if pieces[token] and token not in special:
                raise TokenizerError(
                    f"token {token} is {pieces[token][:40]!r}:"
                    " only special tokens may come before the bytes"
                )
        for byte, piece in enumerate(pieces[first_byte:first_piece]):
            if piece != b"<0x%02X>" % byte:
                raise TokenizerError(
                    f"token {byte + first_byte} is {piece[:40]!r}, expected the byte <0x{byte:02X}>"
                )
        for name, token in (("BOS", bos_id), ("EOS", eos_id)):
            if not 0 <= token < len(pieces):
                raise TokenizerError(
                    f"the id of {name} is {token}, expected 0 to {len(pieces) - 1}"
                )
        self.bos_id, self.eos_id = bos_id, eos_id
        fixed = {
            text: token
            for token, (text, piece) in enumerate(FIXED.items())
            if pieces[token] == piece and token not in special
        }
        specials = replace(specials, fixed=fixed)
        # The bytes that each id decodes to.
        outputs = list(pieces)
        outputs[bos_id] = b""
        outputs[first_byte:first_piece] = [bytes([byte]) for byte in range(256)]
        self._set_up(pieces, scores, outputs, specials)
        # A sum of finite float32 numbers is always finite in double precision.
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
        """Set the attributes that every kind of vocabulary has."""
        self._pieces = tuple(pieces)
        self.n_tokens = len(pieces)
        """The number of ids without the padding, which is the empty pieces at the end."""
        while self.n_tokens and not pieces[self.n_tokens - 1]:
            self.n_tokens -= 1
        self._scores = scores
        self._outputs = outputs
        for text, token in (*specials.added.items(), *specials.control.items()):
            if len(text) > MAX_SPECIAL_LENGTH:
                raise TokenizerError(
                    f"special token {token} has {len(text)} characters, expected at most"
                    f" {MAX_SPECIAL_LENGTH}"
                )
        self.specials = specials
        """The special tokens other than unknown, BOS, EOS and the bytes."""
        for token in specials.control.values():
            outputs[token] = b""

    def padded(self, vocab_size: int) -> Tokenizer:
        """Return the same vocabulary with padding up to ``vocab_size`` ids.

        Many models have more rows in the embedding than the vocabulary has tokens, to make it a
        round number. Encoding never yields a padding id, padding decodes to nothing, and generation
        never draws it: see `n_tokens`.
        """
        more = whole_number("vocab_size", vocab_size, len(self)) - len(self)
        result = copy.copy(self)
        result._pieces = self._pieces + (b"",) * more
        result._scores = self._scores + array("f", bytes(4 * more))
        result._outputs = self._outputs + [b""] * more
        return result

    @property
    def vocab_size(self) -> int:
        """The number of token ids, padding included."""
        return len(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __repr__(self) -> str:
        return f"<Tokenizer: {len(self)} tokens>"

    def piece(self, token: int) -> bytes:
        """Return the vocabulary's entry for an id: ``<0x41>`` for a byte, ``\\n<s>\\n`` for BOS.

        Raises
        ------
        PromptError
            If the id is not in the vocabulary.
        """
        self._check(token)
        return self._pieces[token]

    def score(self, token: int) -> float:
        """Return the score of an id, a float32.

        Raises
        ------
        PromptError
            If the id is not in the vocabulary.
        """
        self._check(token)
        return self._scores[token]

    def _check(self, token: int) -> None:
        if type(token) is not int:
            try:
                token = index(token)  # of NumPy
            except TypeError:
                raise PromptError(f"token is {shown(token)}, expected a whole number") from None
        if not 0 <= token < len(self._pieces):
            raise PromptError(
                f"token {token} is not in the vocabulary, expected 0 to {len(self._pieces) - 1}"
            )

    # Built on first use: loading a vocabulary and decoding do not need it.
    @cached_property
    def _encoder(self) -> PairEncoder:
        pieces = list(self._pieces)
        for token in self.specials.ids():
            pieces[token] = b""  # no merge produces it
        return PairEncoder(pieces, self._scores, self.first_byte)

    @cached_property
    def _prefix(self) -> int:
        """The id of the space that `encode` puts first: the byte 0x20 if no piece is a space."""
        return self._encoder.character(" ")[0]

    def encode(
        self, text: str, bos: bool = True, eos: bool = False, special: bool = False
    ) -> list[int]:
        """Return the token ids of a text, in O(n log n) time for n characters.

        Parameters
        ----------
        text : str
            Any text without lone surrogates; NUL is allowed. The text is not normalized. A text
            that is not empty gets one space before it, as in sentencepiece, unless the vocabulary
            wants none. (sentencepiece also reads a literal U+2581 as a space; here it is a
            character like any other.)
        bos, eos : bool
            Whether to put BOS before the text and EOS after it. If the models of the vocabulary
            expect no BOS (`adds_bos`), only an empty text gets it, because a model needs a first
            token.
        special : bool
            Whether a control token that is spelled out in the text, such as ``<|eot_id|>`` or
            ``</s>``, becomes that token. By default it becomes ordinary characters, so that no
            user's text can end a turn.

        Returns
        -------
        list of int

        Raises
        ------
        PromptError
            If the text is not a str, or contains half of a surrogate pair.
        """
        tokens = [self.bos_id] if bos and (self.adds_bos or not text) else []
        tokens += self._encode_text(text, special, first=True)
        if eos:
            tokens.append(self.eos_id)
        return tokens

    def encode_parts(self, parts: Iterable[str | int], first: bool = True) -> list[int]:
        """Return the token ids of a sequence of texts and tokens, such as a chat template makes.

        Parameters
        ----------
        parts : iterable of str or int
            Each text is encoded as by `encode` without ``special``, so that it cannot contain a
            control token. Each int is a token id, which is kept.
        first : bool
            Whether the parts are the beginning of the prompt. Some vocabularies put a space only
            there.

        Returns
        -------
        list of int

        Raises
        ------
        PromptError
            If a part is neither a str nor a token id, or a text contains half of a surrogate pair.
        """
        if not isinstance(parts, Iterable):
            raise PromptError(f"parts is {shown(parts)}, expected a sequence of str and token ids")
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, int):
                tokens.append(part)
            else:
                tokens += self._encode_text(part, False, first)
            first = first and part == ""
        return tokens

    def controls_in(self, text: str) -> list[str]:
        """Return the control tokens that a text spells out, each once: `encode` without ``special``
        makes ordinary characters of them.

        Parameters
        ----------
        text : str
            Any text.

        Returns
        -------
        list of str
        """
        names = {token: name for name, token in self.specials.control.items()}
        names |= {token: name for name, token in self.specials.fixed.items()}
        parts = self.specials.split(text, trusted=True)
        found = [names[part] for part in parts if isinstance(part, int) and part in names]
        return list(dict.fromkeys(found))

    def _check_text(self, text: str) -> None:
        if not isinstance(text, str):
            raise PromptError(f"text is {shown(text)}, expected a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            what = f"U+{code:04X}, half of a surrogate pair,"
            if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte that it could not decode
                what = f"the byte 0x{code - 0xDC00:02X}, which is not UTF-8,"
            raise PromptError(f"the text holds {what} at position {error.start}") from None

    def _encode_text(self, text: str, special: bool, first: bool) -> list[int]:
        """Encode a text and its special tokens; ``first`` if the text begins the prompt."""
        self._check_text(text)
        tokens: list[int] = []
        if not text:
            return tokens
        if self.prefix != "control":
            for part in self.specials.split(text, special):
                tokens += [part] if isinstance(part, int) else self._encode_part(part, first)
                first = False
            return tokens
        # sentencepiece adds the space first and then looks for added tokens. It finds no control
        # tokens in a text; programs that use it split the text at them.
        for stretch in self.specials.split_at_control(text) if special else [text]:
            parts = [stretch] if isinstance(stretch, int) else self.specials.split(" " + stretch)
            for part in parts:
                tokens += [part] if isinstance(part, int) else self._encoder.encode(part)
        return tokens

    def _encode_part(self, text: str, first: bool) -> list[int]:
        """Encode a text without special tokens; ``first`` if the text begins the prompt."""
        has_space = self.prefix == "each" or (self.prefix == "first" and first)
        return self._encoder.encode(" " + text if has_space else text)

    def _strips(self, token: int) -> bool:
        """Whether a token right after BOS loses its leading space."""
        # llama2.c keeps the space of the byte token 0x20. So does this method, unless encode() uses
        # that token for its own leading space.
        if self.prefix == "none":
            return False
        return not 0 <= token - self.first_byte < N_BYTES or token == self._prefix

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of token ids.

        ``decode(encode(text)) == text`` for every text, except where the vocabulary lacks bytes,
        normalizes texts, or puts spaces in a way that decoding cannot tell from the text's own: see
        docs/formats.md, "Decoding".

        Parameters
        ----------
        tokens : iterable of int
            A BOS decodes to nothing and removes one leading space from the next token. EOS decodes
            to its piece. Bytes that are not UTF-8 become U+FFFD.

        Returns
        -------
        str

        Raises
        ------
        PromptError
            If the tokens are no token ids, or one is not in the vocabulary.
        """
        tokens = token_ids("tokens", tokens, PromptError)
        decoder = self.decoder()
        return "".join([decoder.feed(token) for token in tokens]) + decoder.flush()

    def decoder(self, previous: int | None = None) -> Decoder:
        """Return a decoder for a stream of tokens, the first of which follows ``previous``."""
        return Decoder(self, previous)


class Decoder:
    """Decode tokens one at a time. The returned pieces, joined, are the whole text.

    A character that spans several tokens is held back until its last byte arrives, so an emoji
    arrives whole. `Tokenizer.decoder` makes one.
    """

    def __init__(self, tokenizer: Tokenizer, previous: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._previous = previous
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._incomplete = False  # whether it holds the first bytes of a character

    def feed(self, token: int) -> str:
        """Return the text that the next token completes. It may be empty.

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
            return self.flush()  # a new text begins: an incomplete character stays incomplete
        output = tokenizer._outputs[token]
        if after_bos and tokenizer._strips(token):
            output = output.removeprefix(b" ")
        if output.isascii() and not self._incomplete:
            return output.decode()  # the incremental decoder takes four times as long
        text = self._utf8.decode(output)
        self._incomplete = self._utf8.getstate()[0] != b""
        return text

    def flush(self) -> str:
        """Return the rest: U+FFFD if the last character is incomplete, else an empty string."""
        self._incomplete = False
        return self._utf8.decode(b"", final=True)

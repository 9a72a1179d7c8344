"""What keeps a story within its length, and leads it to the words that must appear."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.backend import Logits
from ..tokenizers.tokenizer import Tokenizer
from .words import word_pattern

# Added to the logit of a wished word's first token: nothing at first, this much at the end.
_WISH = 8.0
# Added to its next token once it is begun. Not more: "d" may begin another word than "dragon".
_GO_ON = 6.0
# The words after which a wish is as strong as it gets: about half a story.
_PATIENCE = 80


class StoryGuide:
    """A `Guide` for one story.

    Parameters
    ----------
    tokenizer : Tokenizer
        The model's.
    start : str
        The opening.
    max_words : int
        The story is ended once it has more.
    words : sequence of str
        Made more probable, the more so the later it gets, until they have appeared.
    """

    def __init__(
        self, tokenizer: Tokenizer, start: str, max_words: int, words: Sequence[str] = ()
    ) -> None:
        self._max_words = max_words
        self._n_words = 0
        self._text = ""
        # Missing words: the tokens of each with a space before it, and how many stand at the end.
        self._missing = {word: tokenizer.encode(word, bos=False) for word in words}
        self._begun = dict.fromkeys(self._missing, 0)
        self._patterns = {word: word_pattern(word) for word in self._missing}
        self._hear(start)

    def adjust(self, logits: Logits) -> None:
        """Favour what is missing; see `Guide.adjust`."""
        wish = _WISH * min(1.0, self._n_words / _PATIENCE)
        wishes: dict[int, float] = {}  # of words that begin alike the strongest
        for word, tokens in self._missing.items():
            begun = self._begun[word]
            strength = _GO_ON + wish if begun else wish
            wishes[tokens[begun]] = max(strength, wishes.get(tokens[begun], 0.0))
        for token, strength in wishes.items():
            logits[token] += strength

    def accept(self, token: int, piece: str) -> bool:
        """Count words and look for the wished ones; see `Guide.accept`."""
        for word, tokens in self._missing.items():
            begun = self._begun[word]
            begun = begun + 1 if token == tokens[begun] else int(token == tokens[0])
            self._begun[word] = begun % len(tokens)
        self._hear(piece)
        return self._n_words <= self._max_words

    def _hear(self, piece: str) -> None:
        """Take note of a text, and of the words that it ends."""
        if not piece:
            return
        goes_on = bool(self._text) and not self._text[-1].isspace() and not piece[0].isspace()
        self._n_words += len(piece.split()) - goes_on
        before = len(self._text)
        self._text += piece
        if not self._missing:
            return
        # The last word may go on: "cat" to "caterpillar".
        over = len(self._text)
        while over and (self._text[over - 1].isalnum() or self._text[over - 1] == "_"):
            over -= 1
        for word in list(self._missing):
            since = max(0, before - 2 * len(word) - 20)
            if self._patterns[word].search(self._text, since, over):
                del self._missing[word]

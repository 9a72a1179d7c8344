"""What keeps a story within its length, and leads it to the words that must appear."""

from __future__ import annotations

from collections.abc import Sequence

from .backend import Logits
from .tokenizer import Tokenizer
from .words import has_word

# Added to the logit of a wished word's first token: nothing at first, this much at the end.
_WISH = 5.0
# Added to its next token once it is begun. Not more: "d" may begin another word than "dragon".
_GO_ON = 3.0
# The words after which a wish is as strong as it gets: about a story's length.
_PATIENCE = 120


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

    Attributes
    ----------
    full : bool
        Whether ``max_words`` ended it.
    """

    def __init__(
        self, tokenizer: Tokenizer, start: str, max_words: int, words: Sequence[str] = ()
    ) -> None:
        self.full = False
        self._max_words = max_words
        self._n_words = len(start.split())
        self._text = start
        # Missing words: the tokens of each with a space before it, and how many stand at the end.
        self._missing = {
            word: tokenizer.encode(word, bos=False) for word in words if not has_word(start, word)
        }
        self._begun = dict.fromkeys(self._missing, 0)

    def adjust(self, logits: Logits) -> None:
        """Favour what is missing; see `Guide.adjust`."""
        wish = _WISH * min(1.0, self._n_words / _PATIENCE)
        for word, tokens in self._missing.items():
            begun = self._begun[word]
            logits[tokens[begun]] += _GO_ON + wish if begun else wish

    def accept(self, token: int, piece: str) -> bool:
        """Count words and look for the wished ones; see `Guide.accept`."""
        self._n_words += sum(map(str.isspace, piece))
        if self._missing:
            self._text += piece
            for word, tokens in list(self._missing.items()):
                begun = self._begun[word]
                begun = begun + 1 if token == tokens[begun] else int(token == tokens[0])
                self._begun[word] = begun % len(tokens)
                if has_word(self._text[-2 * len(word) - 20 :], word):
                    del self._missing[word]
        self.full = self._n_words > self._max_words
        return not self.full

"""Keep a story within its length, and lead it to the words that must appear."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.backend import Logits
from ..tokenizers.tokenizer import Tokenizer
from .english import word_pattern

# Added to the logit of a missing word's first token; grows from 0 over the first half of a story.
_MAX_BIAS = 8.0
# Added to the logit of the word's next token once the word has begun. A larger value would force
# "dragon" wherever a token " d" begins another word.
_CONTINUATION_BIAS = 6.0
# Words of the story after which the bias is at its maximum: about half a story.
_WORDS_TO_MAX_BIAS = 80


class StoryGuide:
    """The `Guide` of one story.

    Parameters
    ----------
    tokenizer : Tokenizer
        The model's tokenizer.
    start : str
        The opening.
    max_words : int
        The story ends when it has more words than this.
    words : sequence of str
        Words that must appear. Each becomes more probable as the story goes on, until it appears.
    """

    def __init__(
        self, tokenizer: Tokenizer, start: str, max_words: int, words: Sequence[str] = ()
    ) -> None:
        self._max_words = max_words
        self._n_words = 0
        self._text = ""
        # The tokens of each missing word, with a space before it.
        self._missing = {word: tokenizer.encode(word, bos=False) for word in words}
        # How many of those tokens the story ends with at the moment.
        self._n_begun = dict.fromkeys(self._missing, 0)
        self._patterns = {word: word_pattern(word) for word in self._missing}
        self._read(start)

    def adjust(self, logits: Logits) -> None:
        """Add a bias to the next token of each missing word; see `Guide.adjust`."""
        bias = _MAX_BIAS * min(1.0, self._n_words / _WORDS_TO_MAX_BIAS)
        biases: dict[int, float] = {}  # one per token, the largest where words begin alike
        for word, tokens in self._missing.items():
            begun = self._n_begun[word]
            value = _CONTINUATION_BIAS + bias if begun else bias
            biases[tokens[begun]] = max(value, biases.get(tokens[begun], 0.0))
        for token, value in biases.items():
            logits[token] += value

    def accept(self, token: int, piece: str) -> bool:
        """Count words and look for the missing ones; see `Guide.accept`."""
        for word, tokens in self._missing.items():
            begun = self._n_begun[word]
            begun = begun + 1 if token == tokens[begun] else int(token == tokens[0])
            self._n_begun[word] = begun % len(tokens)
        self._read(piece)
        return self._n_words <= self._max_words

    def _read(self, piece: str) -> None:
        """Append text to the story: count its words, and drop those found from the missing."""
        if not piece:
            return
        continues = bool(self._text) and not self._text[-1].isspace() and not piece[0].isspace()
        self._n_words += len(piece.split()) - continues
        before = len(self._text)
        self._text += piece
        if not self._missing:
            return
        # Leave out the last word, which may be unfinished: "cat" may become "caterpillar".
        end = len(self._text)
        while end and (self._text[end - 1].isalnum() or self._text[end - 1] == "_"):
            end -= 1
        for word in list(self._missing):
            since = max(0, before - 2 * len(word) - 20)
            if self._patterns[word].search(self._text, since, end):
                del self._missing[word]

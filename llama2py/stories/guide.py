"""Keep a story within its length and out of loops, and lead it to the words that must appear.

A guide also changes the sampling after the first sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.backend import Logits
from ..generation.sampling import Sampler, SamplingParams
from ..tokenizers.tokenizer import Tokenizer
from .english import ends_sentence, word_pattern, words_of

# Added to the logit of a missing word's first token; grows from 0 over the first half of a story.
_MAX_BIAS = 7.0
# Added to the logit of the word's next token once the word has begun. A larger value would force
# "dragon" wherever a token " d" begins another word.
_CONTINUATION_BIAS = 6.0
# Words of the story after which the bias is at its maximum: about half a story.
_WORDS_TO_MAX_BIAS = 80
# A word only gets a bias where it makes sense: where its first token is at most so many nats less
# probable than the best one. From 5 at the beginning, one more after each so many words.
_REACH, _WORDS_PER_NAT = 5.0, 40
# Tokens. Repeated 4-grams are counted only so often: it takes as long as the other checks.
_CHECK_EVERY = 16
# A story loops if it repeats the same tokens this many times in a row, over at least this many
# tokens. Stories have refrains, and they repeat a word ("ha, ha, ha"), but less often than this.
_LOOP_REPEATS = 3
_LOOP_TOKENS = 24
# A loop has two rounds after the first one: at least this many tokens equal earlier ones.
_FEWEST_MATCHES = _LOOP_TOKENS * (_LOOP_REPEATS - 1) // _LOOP_REPEATS


class LoopDetector:
    """Find out whether a sequence of tokens ends with a loop, such as ``a b c a b c a b c``."""

    def __init__(self) -> None:
        self._n_tokens = 0
        self._positions: dict[int, list[int]] = {}  # of each token
        # For each period, how many of the last tokens equal the token one period earlier.
        self._matches: dict[int, int] = {}

    def accept(self, token: int) -> int | None:
        """Append a token.

        Returns
        -------
        int or None
            If the sequence loops now, the number of tokens up to the end of the first round.
        """
        n, before = self._n_tokens, self._matches
        self._n_tokens = n + 1
        positions = self._positions.get(token)
        if positions is None:
            self._positions[token] = [n]
            self._matches = {}
            return None
        self._matches = {n - at: before.get(n - at, 0) + 1 for at in positions}
        positions.append(n)
        if max(self._matches.values()) < _FEWEST_MATCHES:
            return None
        looping = [
            n_matches
            for period, n_matches in self._matches.items()
            if period + n_matches >= max(_LOOP_REPEATS * period, _LOOP_TOKENS)
        ]
        return self._n_tokens - max(looping) if looping else None


class RepeatedGrams:
    """Count the 4-grams of words in a text that have occurred before in it.

    Attributes
    ----------
    n_repeated, n_grams : int
        How many have occurred before, and how many there are.
    """

    def __init__(self) -> None:
        self.n_repeated = self.n_grams = 0
        self._seen: set[tuple[str, ...]] = set()
        self._last: list[str] = []

    def read(self, text: str) -> None:
        """Read more text, which ends with a whole word."""
        words = [*self._last, *words_of(text)]
        for gram in zip(words, words[1:], words[2:], words[3:], strict=False):
            self.n_repeated += gram in self._seen
            self.n_grams += 1
            self._seen.add(gram)
        self._last = words[-3:]


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
    after_first_sentence : tuple of Sampler and SamplingParams, optional
        The sampler of the text, and its parameters from the second sentence on.
    most_repeated : int, optional
        The story ends when more 4-grams of its words than this have occurred before.

    Attributes
    ----------
    text_before_loop : str or None
        If the story was ended because it loops: its text up to the end of the first round.
    dropped : bool
        Whether the story was ended because of ``most_repeated``.
    n_first : int
        Number of tokens of the first sentence, if ``after_first_sentence`` was given.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        start: str,
        max_words: int,
        words: Sequence[str] = (),
        after_first_sentence: tuple[Sampler, SamplingParams] | None = None,
        most_repeated: int | None = None,
    ) -> None:
        self._max_words = max_words
        self._n_words = 0
        self._text = ""
        self._loops = LoopDetector()
        self._ends: list[int] = []  # the length of the text after each token
        self._after_first_sentence = after_first_sentence
        self.text_before_loop: str | None = None
        self._most_repeated = most_repeated
        self._grams = RepeatedGrams()
        self._n_read = 0  # characters that `_grams` has read
        self.dropped = False
        self.n_first = 0
        # The tokens of each missing word, with a space before it.
        self._missing = {word: tokenizer.encode(word, bos=False) for word in words}
        # How many of those tokens the story ends with at the moment.
        self._n_begun = dict.fromkeys(self._missing, 0)
        self._patterns = {word: word_pattern(word) for word in self._missing}
        self._read(start)

    @property
    def adjusts(self) -> bool:
        """Whether a word is missing."""
        return bool(self._missing)

    def adjust(self, logits: Logits) -> None:
        """Add a bias to the next token of each missing word; see `Guide.adjust`."""
        bias = _MAX_BIAS * min(1.0, self._n_words / _WORDS_TO_MAX_BIAS)
        floor = float(logits.max()) - _REACH - self._n_words / _WORDS_PER_NAT
        biases: dict[int, float] = {}  # one per token, the largest where words begin alike
        for word, tokens in self._missing.items():
            begun = self._n_begun[word]
            if begun == len(tokens):  # complete, if the next token does not continue it
                continue
            if not begun and logits[tokens[0]] < floor:
                continue
            value = _CONTINUATION_BIAS + bias if begun else bias
            biases[tokens[begun]] = max(value, biases.get(tokens[begun], 0.0))
        for token, value in biases.items():
            logits[token] += value

    def accept(self, token: int, piece: str) -> bool:
        """Count words, look for the missing ones and for a loop; see `Guide.accept`."""
        for word, tokens in self._missing.items():
            begun = self._n_begun[word] % len(tokens)
            self._n_begun[word] = begun + 1 if token == tokens[begun] else int(token == tokens[0])
        self._read(piece)
        if self._after_first_sentence and ends_sentence(self._text):
            sampler, params = self._after_first_sentence
            sampler.params = params
            self._after_first_sentence = None
            self.n_first = len(self._ends) + 1
        self._ends.append(len(self._text))
        n_before = self._loops.accept(token)
        if n_before is not None:
            self.text_before_loop = self._text[: self._ends[n_before - 1]]
            return False
        if self._most_repeated is not None and len(self._ends) % _CHECK_EVERY == 0:
            self._count_repeated()
            self.dropped = self._grams.n_repeated > self._most_repeated
            if self.dropped:
                return False
        return self._n_words <= self._max_words

    def _count_repeated(self) -> None:
        """Read the words that are complete."""
        end = max(self._text.rfind(" "), self._text.rfind("\n"), self._n_read)
        self._grams.read(self._text[self._n_read : end])
        self._n_read = end

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

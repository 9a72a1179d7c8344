"""English grammar for stories: words and plurals, sentence ends, the past tense."""

from __future__ import annotations

import re

# ---- words ----

_SHORTEST_PLURAL = 3  # letters: "as" is not the plural of "a"


def word_pattern(word: str) -> re.Pattern[str]:
    """Compile a pattern that finds a word, or several words with spaces between them.

    It ignores case, allows any white space between the parts, and finds plurals: "puppies",
    "foxes", "wolves", "ice creams".
    """
    *first, last = word.split() or [""]
    forms = "|".join(map(re.escape, _singular_and_plurals(last)))
    spaced = r"\s+".join([*map(re.escape, first), f"(?:{forms})"]).replace("'", "['’]")
    return re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE)


def _singular_and_plurals(word: str) -> list[str]:
    lower = word.lower()
    if len(word) < _SHORTEST_PLURAL:
        return [word]
    if re.search(r"(?:[sxz]|ch|sh)$", lower):
        return [word, f"{word}es"]
    if re.search(r"[^\Waeiou]y$", lower):
        return [word, f"{word[:-1]}ies"]
    if lower.endswith("o"):
        return [word, f"{word}s", f"{word}es"]
    if stem := re.match(r".*(?=fe?$)", word, re.IGNORECASE):
        return [word, f"{word}s", f"{stem[0]}ves"]
    return [word, f"{word}s"]


def has_word(text: str, word: str) -> bool:
    """Return whether a text contains a word, as `word_pattern` finds it."""
    return bool(word_pattern(word).search(text))


# ---- sentences ----

# Final punctuation with closing quotes and brackets; not the full stop of an abbreviation.
_SENTENCE_END = re.compile(r"""(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)[.!?…]+["')”’»]*(?=\s|$)""")


def ends_sentence(text: str) -> bool:
    """Return whether a text ends at the end of a sentence, closing quotation marks included."""
    return any(match.end() == len(text) for match in _SENTENCE_END.finditer(text))


def end_with_full_stop(text: str) -> str:
    """Add a full stop after the last word, unless the text already ends a sentence."""
    text = text.rstrip()
    if not text or ends_sentence(text):
        return text
    end = len(text)
    while end and _cannot_end_sentence(text[end - 1], text[end - 2 : end - 1]):
        end -= 1
    text = text[:end]
    return text if text.endswith(".") else text + "."  # "Mr." needs no second full stop


def _cannot_end_sentence(last: str, before: str) -> bool:
    """Return whether the last character is a space, a comma, a dash or an opening quote."""
    return last.isspace() or last in ",;:–—(-" or (last in "\"'“‘" and not before.strip())


def whole_sentences(text: str, max_words: int, start: str = "") -> str:
    """Cut a text after its last complete sentence within ``max_words`` words.

    Parameters
    ----------
    text : str
        Begins with ``start``.
    max_words : int
        Maximum number of words in the result, at least the number of words in ``start``.
    start : str
        Never cut: only a sentence that ends with ``start`` or after it counts.

    Returns
    -------
    str
        Whole sentences. A sentence inside an open quotation only counts if there is no other.
        A text without any sentence end keeps its words and gets a full stop.
    """
    text = text.strip()
    words = list(re.finditer(r"\S+", text))[:max_words]
    text = text[: words[-1].end()] if words else ""
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if match.end() > len(start)]
    if ends_sentence(start):
        ends.insert(0, len(start))  # whatever the model wrote directly after it
    outside = [end for end in ends if not _is_quotation_open(text[:end])]
    return text[: (outside or ends)[-1]] if ends else end_with_full_stop(text)


def _is_quotation_open(text: str) -> bool:
    return text.count('"') % 2 == 1 or text.count("“") > text.count("”")


# ---- past tense ----

# Present to past. These words are verbs wherever they stand.
_ALWAYS_VERBS = {
    "is": "was",
    "are": "were",
    "has": "had",
    "does": "did",
    "do not": "did not",
    "don't": "did not",
    "doesn't": "did not",
    "isn't": "was not",
    "aren't": "were not",
    "hasn't": "had not",
    "haven't": "had not",
    "cannot": "could not",
    "can't": "could not",
    "can not": "could not",
    "won't": "would not",
    "will not": "would not",
    "goes": "went",
    "wants": "wanted",
    "finds": "found",
    "loses": "lost",
    "learns": "learned",
    "makes": "made",
    "eats": "ate",
    "thinks": "thought",
    "gets": "got",
    "comes": "came",
    "sees": "saw",
    "takes": "took",
    "gives": "gave",
    "meets": "met",
    "knows": "knew",
    "sings": "sang",
    "says": "said",
    "becomes": "became",
    "believes": "believed",
}
# These are verbs only after a subject: "nine lives" and "a can" have none.
_VERBS_AFTER_SUBJECT = {
    "live": "lived",
    "like": "liked",
    "love": "loved",
    "want": "wanted",
    "need": "needed",
    "dream": "dreamed",
    "help": "helped",
    "play": "played",
    "run": "ran",
    "sleep": "slept",
    "find": "found",
    "lose": "lost",
    "learn": "learned",
    "make": "made",
    "eat": "ate",
    "think": "thought",
}
_VERBS_AFTER_SUBJECT |= {
    f"{verb}s": past
    for verb, past in _VERBS_AFTER_SUBJECT.items()
    if f"{verb}s" not in _ALWAYS_VERBS
}
_VERBS_AFTER_SUBJECT |= {"have": "had", "do": "did", "can": "could", "will": "would"}
_WORD_END = r"(?![\w'-])"


def _any_of(words: dict[str, str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # "do not" before "do"


_ALWAYS_VERB = re.compile(rf"(?<![\w'-])({_any_of(_ALWAYS_VERBS)}){_WORD_END}")
_SUBJECT_AND_VERB = re.compile(
    rf"\b((?:who|which|that|[Hh]e|[Ss]he|[Ii]t|[Tt]hey|[Ww]e|[Yy]ou|I|^[A-Z]\w+) )"
    rf"({_any_of(_VERBS_AFTER_SUBJECT)}){_WORD_END}"
)
PAST_FORMS = {past.split()[0] for past in [*_ALWAYS_VERBS.values(), *_VERBS_AFTER_SUBJECT.values()]}
"""The first word of every past form that `past_tense` writes."""
_RELATIVE_PRONOUN = re.compile(r"\b(?:who|which|that)\b")
_PAST_VERB = re.compile(r"\b(?:was|were|had|could|did|would|went|wanted)\b")


def past_tense(text: str) -> str:
    """Put the verbs that this module knows into the past.

    >>> past_tense("a dragon who is afraid of fire and doesn't fly")
    'a dragon who was afraid of fire and did not fly'
    """
    text = _ALWAYS_VERB.sub(lambda match: _ALWAYS_VERBS[match[1]], text)
    return _SUBJECT_AND_VERB.sub(lambda match: match[1] + _VERBS_AFTER_SUBJECT[match[2]], text)


def is_clause(text: str) -> bool:
    """Return whether a text is a clause ("a dog is sad"), not only a noun phrase ("a dog")."""
    before_relative = _RELATIVE_PRONOUN.split(text)[0]
    return bool(_ALWAYS_VERB.search(before_relative) or _PAST_VERB.search(before_relative))

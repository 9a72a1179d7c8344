"""Words in a text, and where its sentences end."""

from __future__ import annotations

import re

# The end of a sentence with what closes behind it; the full stop of an abbreviation is none.
_END = re.compile(r"""(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)[.!?…]+["')”’»]*(?=\s|$)""")
_SHORTEST_PLURAL = 3  # letters: "as" is not several a's


def word_pattern(word: str) -> re.Pattern[str]:
    """What finds a word, or several with spaces, in a text.

    In any case, whatever white space is between its parts, and as a plural: "puppies", "foxes",
    "wolves", "ice creams".
    """
    *most, last = word.split() or [""]
    forms = "|".join(map(re.escape, _forms(last)))
    spaced = r"\s+".join([*map(re.escape, most), f"(?:{forms})"]).replace("'", "['’]")
    return re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE)


def _forms(word: str) -> list[str]:
    """A word and its plurals."""
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
    """Whether a word (or several, with spaces) is in a text; see `word_pattern`."""
    return bool(word_pattern(word).search(text))


def ends_sentence(text: str) -> bool:
    """Whether a text ends where a sentence does, closing quotation marks included."""
    return any(match.end() == len(text) for match in _END.finditer(text))


def closed(text: str) -> str:
    """A text with a full stop behind its last word, unless its last sentence has ended."""
    text = text.rstrip()
    if not text or ends_sentence(text):
        return text
    end = len(text)
    while end and _is_loose(text[end - 1], text[end - 2 : end - 1]):
        end -= 1
    text = text[:end]
    return text if text.endswith(".") else text + "."  # "Mr." is followed by no second one


def _is_loose(last: str, before: str) -> bool:
    """Whether no sentence ends so: in a comma, a dash, a quotation mark that opens."""
    return last.isspace() or last in ",;:–—(-" or (last in "\"'“‘" and not before.strip())


def whole_sentences(text: str, max_words: int, start: str = "") -> str:
    """Cut a text back to the last sentence that is finished and within so many words.

    Parameters
    ----------
    text : str
        Begins with ``start``.
    max_words : int
        Most words of the result, at least as many as ``start`` has.
    start : str
        Is not cut: only sentences that end with it or behind it count.

    Returns
    -------
    str
        A sentence inside a quotation that is not closed does not count, unless there is no other.
        Without any end of a sentence the words are kept, and closed with a full stop.
    """
    text = text.strip()
    words = list(re.finditer(r"\S+", text))[:max_words]
    text = text[: words[-1].end()] if words else ""
    ends = [match.end() for match in _END.finditer(text) if match.end() > len(start)]
    if ends_sentence(start):
        ends.insert(0, len(start))  # whatever the model has put behind it
    outside = [end for end in ends if not _is_quotation_open(text[:end])]
    return text[: (outside or ends)[-1]] if ends else closed(text)


def _is_quotation_open(text: str) -> bool:
    return text.count('"') % 2 == 1 or text.count("“") > text.count("”")

"""From what a story shall be about to its first sentence, and back to its last whole one."""

from __future__ import annotations

import re

_PLURAL = {"two", "three", "four", "five", "six", "seven", "ten", "some", "many", "several", "few"}
_ARTICLES = {"a", "an", "the", "one", "another", "my", "his", "her", "their", *_PLURAL}
# Stories are told in the past; these stand behind "who", "that" or "which".
_PAST = {
    "is": "was",
    "are": "were",
    "has": "had",
    "have": "had",
    "can": "could",
    "cannot": "could not",
    "can't": "could not",
    "does": "did",
    "doesn't": "did not",
    "isn't": "was not",
    "lives": "lived",
    "live": "lived",
    "likes": "liked",
    "like": "liked",
    "loves": "loved",
    "love": "loved",
    "wants": "wanted",
    "want": "wanted",
    "finds": "found",
    "loses": "lost",
    "learns": "learned",
    "makes": "made",
    "goes": "went",
    "eats": "ate",
    "thinks": "thought",
    "needs": "needed",
}
_RELATIVE = re.compile(rf"\b(who|that|which) ({'|'.join(_PAST)})(?![\w'])")
# The end of a sentence, its closing quotation mark included.
_END = re.compile(r"""[.!?]+["')]*(?=\s|$)""")


def opening_about(about: str) -> str:
    """The first words of a story about something.

    Parameters
    ----------
    about : str
        ``"a dragon who is afraid of fire"``, ``"dragon"``, ``"three kittens"``, ``"Lily and her
        cat"``; a whole sentence (with its full stop) is the opening itself.

    Returns
    -------
    str
        A sentence; for a name the beginning of one.
    """
    about = " ".join(about.split())
    if not about or about[-1] in ".!?\"'":
        return about
    first, _, rest = about.partition(" ")
    if first[0].isupper() and first.lower() not in _ARTICLES:
        return f"One day, {about}"
    first = first.lower()
    if first == "the":
        first, about = "", rest or about
    else:
        about = f"{first} {rest}".strip()
    about = _RELATIVE.sub(lambda match: f"{match[1]} {_PAST[match[2]]}", about)
    noun = re.split(r" (?:who|that|which|with|in|on|of|from|and)\b", about)[0]
    plural = first in _PLURAL or (first not in _ARTICLES and re.search(r"[^su]s$", noun))
    if not plural and first not in _ARTICLES:
        about = f"{'an' if about[0] in 'aeiou' else 'a'} {about}"
    return f"Once upon a time, there {'were' if plural else 'was'} {about}."


def opening_with(start: str, words: list[str]) -> str:
    """An opening that holds all these words: ``start``, and a sentence that names what it lacks."""
    *most, last = [word for word in words if not has_word(start, word)] or [""]
    if not last:
        return start
    listed = f"{', '.join(most)} and {last}" if most else last
    if start and start[-1] not in ".!?\"'":
        start += "."
    return f"{start} It is a story about {listed}.".lstrip()


def has_word(text: str, word: str) -> bool:
    """Whether a word (or several, with spaces) is in a text: in any case, or as a plural."""
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?:e?s)?(?!\w)", text, re.IGNORECASE))


def whole_sentences(text: str, max_words: int) -> str:
    """Cut a text back to the last sentence that is finished and within so many words.

    A sentence inside a quotation that is not closed does not count, unless there is no other. Of a
    text without any end of a sentence the words are kept, and closed with a full stop.
    """
    text = text.strip()
    words = list(re.finditer(r"\S+", text))[:max_words]
    text = text[: words[-1].end()] if words else ""
    ends = [match.end() for match in _END.finditer(text)]
    closed = [end for end in ends if text.count('"', 0, end) % 2 == 0]
    if closed or ends:
        return text[: (closed or ends)[-1]]
    return text.rstrip(",;:- \n") + "." if text else text

"""What is told in the present, in the past: stories are."""

from __future__ import annotations

import re

# Verbs wherever they stand.
_VERBS = {
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
# Verbs behind one who does it; elsewhere they may be something else: "nine lives", "a can".
_OTHERS = {
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
_OTHERS |= {f"{verb}s": past for verb, past in _OTHERS.items() if f"{verb}s" not in _VERBS}
_OTHERS |= {"have": "had", "do": "did", "can": "could", "will": "would"}
_BOUND = r"(?![\w'-])"


def _any_of(words: dict[str, str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # "do not" before "do"


_ANYWHERE = re.compile(rf"(?<![\w'-])({_any_of(_VERBS)}){_BOUND}")
_BEHIND = re.compile(
    rf"\b((?:who|which|that|[Hh]e|[Ss]he|[Ii]t|[Tt]hey|[Ww]e|[Yy]ou|I|^[A-Z]\w+) )"
    rf"({_any_of(_OTHERS)}){_BOUND}"
)
# First words of a past, for who wants to know whether a verb is in it.
KNOWN_PAST = {past.split()[0] for past in [*_VERBS.values(), *_OTHERS.values()]}
_RELATIVE = re.compile(r"\b(?:who|which|that)\b")
_PAST = re.compile(r"\b(?:was|were|had|could|did|would|went|wanted)\b")


def in_the_past(text: str) -> str:
    """A text with those of its verbs in the past that are known here.

    >>> in_the_past("a dragon who is afraid of fire and doesn't fly")
    'a dragon who was afraid of fire and did not fly'
    """
    text = _ANYWHERE.sub(lambda match: _VERBS[match[1]], text)
    return _BEHIND.sub(lambda match: match[1] + _OTHERS[match[2]], text)


def is_clause(text: str) -> bool:
    """Whether a text says what someone does, as "a dog is sad", not only who that is."""
    told = _RELATIVE.split(text)[0]
    return bool(_ANYWHERE.search(told) or _PAST.search(told))

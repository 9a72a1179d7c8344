"""From what a story shall be about to its first sentence.

English is not to be had from a few rules. So where they do not surely make a right sentence of the
past, the story says what it is about in the words it was given: "This is a story about my dog."
"""

from __future__ import annotations

import re

from .tense import KNOWN_PAST, in_the_past, is_clause
from .words import closed, ends_sentence, has_word


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ONE = {"a", "an", "one", "another", "1"}
_SEVERAL = _set("two three four five six seven eight nine ten eleven twelve many several few")
# "There was my dog" begins no story.
_POINTING = _set(
    "the some my your his her its our their this that these those every each all any no both"
)
_PRONOUNS = {"he", "she", "it", "we", "you", "they"}
# "a few birds were", but "a bird was"
_A_FEW = re.compile(r"(?:few|dozen|hundred|thousand|couple)\b")
# Behind "the", what there is but one of.
_ONLY_ONE = re.compile(
    r"(?:\w+est|first|last|only|same|next|sun|moon|sky|sea|world|end)\b|.* the\b"
)
# Takes no article, and has no plural.
_UNCOUNTED = _set(
    "love friendship kindness happiness courage magic music fun nature milk water snow rain "
    "ice sand bread honey sunshine"
)
_PLURALS = re.compile(
    r"\w*(?:children|people|mice|geese|teeth|feet|(?<!\bo)(?<!ci)men)$"  # no omen, no specimen
)
_SINGULARS = {"lens", "gas", "atlas", "canvas"}
_FISH = {"fish", "sheep", "deer"}  # of one or of several
_PLACES = {"in", "on", "at", "under", "over", "near", "inside", "behind", "between", "beyond"}
# Behind these the thing itself has been named.
_REST = re.compile(
    r",|\s(?:who|that|which|with|without|in|on|of|from|and|or|at|for|to|by|near|under|inside|behind"
    r"|between|about|like|named|called|but)\b"
)
# Before these a word in -ing is no quality: "learning to swim", but "flying dog"
_DOING = {"", "to", "the", "a", "an", "with", "in", "my", "and"}
_AN = re.compile(
    r"(?!eu|ewe|one\b|once|uni(?![mnd])|u[^n\W][aeiou])[aeiouéè]|h(?:our|onest|ono|eir)"
)
# What no rule here puts into the past.
_UNSURE = re.compile(
    r"\b(?:whose|whom|where|when|while|because|if|what|how|why)\b|\b(?:who|that|he|she|it|they)'"
)
_RELATIVE = re.compile(r"\b(?:who|which|that)\b ?([\w']*)")
# Another verb, perhaps, of the same clause: "who was sad and sings".
_AND_ALSO = re.compile(r"\b(?:who|which|that)\b.* and (?!was\b|his\b|its\b|this\b)\w*[^\Wsu]s\b")
_BEGUN = re.compile(r"(?:once|there|one (?:day|morning|evening|night))\b", re.IGNORECASE)


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
        A sentence, "Once upon a time, there was ..." if that can be English; for a name, a place
        or a quotation the beginning of one.
    """
    about = re.sub(r"(?<=\w)’(?=\w)", "'", " ".join(about.split()))
    if ends_sentence(about) and not about.endswith("…"):
        return about
    about = re.sub(r"^(?:(?:(?:an?|the) )?(?:story|tale) )?about ", "", about.rstrip(",;:–—…- "))
    if not about or about[0] in "\"'“‘" or _BEGUN.match(about):
        return about
    first, _, rest = about.partition(" ")
    lower = first.lower()
    is_name = first[0].isupper() and lower not in {*_ONE, *_SEVERAL, *_POINTING, *_PRONOUNS}
    if not is_name and first != "I":
        about = f"{lower} {rest}".rstrip()
    past = in_the_past(about)
    if not _is_sure(about, past):
        return f"This is a story about {about}."
    if is_name or lower in {"i", *_PRONOUNS}:
        return f"One day, {past}"
    if is_clause(about):
        return f"One day, {past}."
    if lower in _PLACES:
        return f"Once upon a time, {past},"
    there = _there_was(past)
    return f"Once upon a time, {there}." if there else f"This is a story about {about}."


def opening_with(start: str, words: list[str]) -> str:
    """An opening that holds all these words: ``start``, and a sentence that names what it lacks."""
    missing = {word.lower(): word for word in reversed(words) if not has_word(start, word)}
    *most, last = [*reversed(missing.values())] or [""]
    if not last:
        return start
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"{closed(start)} It is a story about {listed}.".lstrip()


def _is_sure(about: str, past: str) -> bool:
    """Whether all of it is in the past, as far as one can tell."""
    if _UNSURE.search(about) or _AND_ALSO.search(past):
        return False
    if past != about and re.search(r"[\"“]", about):
        return False  # what someone says stays as it is
    verbs = _RELATIVE.findall(past)
    return all(verb in KNOWN_PAST or re.fullmatch(r"\w+[^\We]ed", verb) for verb in verbs)


def _there_was(thing: str) -> str:
    """``"there was a dog"`` for ``"dog"``; empty if that is not sure to be English."""
    first, _, rest = thing.partition(" ")
    if first == "the":
        if not rest or rest[0].isupper() or _ONLY_ONE.match(rest):
            return ""
        return _there_was(rest)
    if first in _ONE:
        return f"there {'were' if first == 'a' and _A_FEW.match(rest) else 'was'} {thing}"
    if first in _SEVERAL or first.isdigit():
        return f"there were {thing}"
    if first == "some":
        several = _name_of(rest)[-1] in _FISH or _is_plural(rest)
        return "" if several is None else f"there {'were' if several else 'was'} {thing}"
    if first in _POINTING or _is_doing(first, rest) or _name_of(thing)[-1] in _UNCOUNTED:
        return ""
    several = _is_plural(thing)
    if several is None:
        return ""
    return (
        f"there were {thing}" if several else f"there was a{'n' * bool(_AN.match(thing))} {thing}"
    )


def _is_doing(first: str, rest: str) -> bool:
    """Whether it begins with what one does: "sharing", but not "king", "duckling", "flying dog"."""
    is_done = first.endswith("ing") and not re.search(r"[^\Waeioul]ling$", first)
    return is_done and bool(re.search("[aeiouy]", first[:-3])) and rest.partition(" ")[0] in _DOING


def _name_of(thing: str) -> list[str]:
    """The words of a thing up to what is told of it."""
    return _REST.split(thing)[0].split() or [""]


def _is_plural(thing: str) -> bool | None:
    """Whether a thing without article is several; None if one cannot tell."""
    words = _name_of(thing)
    several = [_is_plural_word(word) for word in words]
    for i, word in enumerate(words[1:], 1):
        if re.search(r"\w\w(?:ing|ed)$", word) and (several[i - 1] or several[-1]):
            return (
                several[i - 1] or None
            )  # "kittens playing"; "big talking dogs", "dog wearing hats"
    return several[-1] if several[-1] or not any(several) else None


def _is_plural_word(word: str) -> bool:
    by_its_s = bool(re.search(r"[^\Wsui]s$", word)) and word not in _SINGULARS
    return by_its_s or bool(_PLURALS.match(word))

"""Turn a subject, such as "a dragon who is afraid of fire", into the first sentence of a story.

A few rules cannot cover English. Where they might produce a wrong sentence, the opening repeats the
subject in the user's own words: "This is a story about my dog."
"""

from __future__ import annotations

import re

from .english import (
    PAST_FORMS,
    end_with_full_stop,
    ends_sentence,
    has_word,
    is_clause,
    past_tense,
)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ONE = {"a", "an", "one", "another", "1"}
_QUANTITIES = _set("two three four five six seven eight nine ten eleven twelve many several few")
# No story begins with "There was my dog".
_DETERMINERS = _set(
    "the some my your his her its our their this that these those every each all any no both"
)
_PRONOUNS = {"he", "she", "it", "we", "you", "they"}
# "a few birds were", but "a bird was"
_A_FEW = re.compile(r"(?:few|dozen|hundred|thousand|couple)\b")
# Follows "the" where only one such thing exists: "the sun", "the biggest dog".
_UNIQUE = re.compile(r"(?:\w+est|first|last|only|same|next|sun|moon|sky|sea|world|end)\b|.* the\b")
# No article, no plural.
_UNCOUNTED = _set(
    "love friendship kindness happiness courage magic music fun nature milk water snow rain "
    "ice sand bread honey sunshine"
)
_PLURALS = re.compile(
    r"\w*(?:children|people|mice|geese|teeth|feet|(?<!\bo)(?<!ci)men)$"  # no omen, no specimen
)
_SINGULARS = {"lens", "gas", "atlas", "canvas"}
_SAME_PLURAL = {"fish", "sheep", "deer"}
_PLACES = {"in", "on", "at", "under", "over", "near", "inside", "behind", "between", "beyond"}
# Ends the noun itself: what follows describes it.
_DESCRIPTION = re.compile(
    r",|\s(?:who|that|which|with|without|in|on|of|from|and|or|at|for|to|by|near|under|inside|behind"
    r"|between|about|like|named|called|but)\b"
)
# After an -ing form, these show an activity ("learning to swim"), not a quality ("flying dog").
_AFTER_ACTIVITY = {"", "to", "the", "a", "an", "with", "in", "my", "and"}
_AN = re.compile(
    r"(?!eu|ewe|one\b|once|uni(?![mnd])|u[^n\W][aeiou])[aeiouéè]|h(?:our|onest|ono|eir)"
)
# No rule here can put these clauses into the past.
_UNCERTAIN = re.compile(
    r"\b(?:whose|whom|where|when|while|because|if|what|how|why)\b|\b(?:who|that|he|she|it|they)'"
)
_RELATIVE_VERB = re.compile(r"\b(?:who|which|that)\b ?([\w']*)")
# Possibly a second verb in the same clause: "who was sad and sings".
_SECOND_VERB = re.compile(r"\b(?:who|which|that)\b.* and (?!was\b|his\b|its\b|this\b)\w*[^\Wsu]s\b")
_STORY_START = re.compile(r"(?:once|there|one (?:day|morning|evening|night))\b", re.IGNORECASE)


def opening_about(about: str) -> str:
    """Return the first words of a story about a subject.

    Parameters
    ----------
    about : str
        ``"a dragon who is afraid of fire"``, ``"dragon"``, ``"three kittens"``, ``"Lily and her
        cat"``. A whole sentence, with its full stop, is returned as it is.

    Returns
    -------
    str
        "Once upon a time, there was ..." or another whole sentence. For a name, a place or a
        quotation, the beginning of a sentence.
    """
    about = re.sub(r"(?<=\w)’(?=\w)", "'", " ".join(about.split()))
    if ends_sentence(about) and not about.endswith("…"):
        return about
    about = re.sub(r"^(?:(?:(?:an?|the) )?(?:story|tale) )?about ", "", about.rstrip(",;:–—…- "))
    if not about or about[0] in "\"'“‘" or _STORY_START.match(about):
        return about
    first, _, rest = about.partition(" ")
    lower = first.lower()
    is_name = first[0].isupper() and lower not in {*_ONE, *_QUANTITIES, *_DETERMINERS, *_PRONOUNS}
    if not is_name and first != "I":
        about = f"{lower} {rest}".rstrip()
    past = past_tense(about)
    if not _is_past_throughout(about, past):
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
    """Return ``start``, with one more sentence that names the words it lacks."""
    missing = {word.lower(): word for word in reversed(words) if not has_word(start, word)}
    *most, last = [*reversed(missing.values())] or [""]
    if not last:
        return start
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"{end_with_full_stop(start)} It is a story about {listed}.".lstrip()


def _is_past_throughout(about: str, past: str) -> bool:
    """Return whether ``past`` has no verb left in the present, as far as the rules can tell."""
    if _UNCERTAIN.search(about) or _SECOND_VERB.search(past):
        return False
    if past != about and re.search(r"[\"“]", about):
        return False  # a quotation keeps its tense
    verbs = _RELATIVE_VERB.findall(past)
    return all(verb in PAST_FORMS or re.fullmatch(r"\w+[^\We]ed", verb) for verb in verbs)


def _there_was(thing: str) -> str:
    """Return ``"there was a dog"`` for ``"dog"``, or ``""`` if the result may not be English."""
    first, _, rest = thing.partition(" ")
    if first == "the":
        if not rest or rest[0].isupper() or _UNIQUE.match(rest):
            return ""
        return _there_was(rest)
    if first in _ONE:
        return f"there {'were' if first == 'a' and _A_FEW.match(rest) else 'was'} {thing}"
    if first in _QUANTITIES or first.isdigit():
        return f"there were {thing}"
    if first == "some":
        is_plural = _noun_words(rest)[-1] in _SAME_PLURAL or _is_plural(rest)
        return "" if is_plural is None else f"there {'were' if is_plural else 'was'} {thing}"
    if first in _DETERMINERS or _is_activity(first, rest) or _noun_words(thing)[-1] in _UNCOUNTED:
        return ""
    is_plural = _is_plural(thing)
    if is_plural is None:
        return ""
    if is_plural:
        return f"there were {thing}"
    return f"there was a{'n' * bool(_AN.match(thing))} {thing}"


def _is_activity(first: str, rest: str) -> bool:
    """Return True for "sharing", "learning to swim"; False for "king", "duckling", "flying dog"."""
    is_ing_form = first.endswith("ing") and not re.search(r"[^\Waeioul]ling$", first)
    return (
        is_ing_form
        and bool(re.search("[aeiouy]", first[:-3]))
        and rest.partition(" ")[0] in _AFTER_ACTIVITY
    )


def _noun_words(thing: str) -> list[str]:
    """Return the words of a noun without its description: "a dog" of "a dog with dots"."""
    return _DESCRIPTION.split(thing)[0].split() or [""]


def _is_plural(thing: str) -> bool | None:
    """Return whether a noun without an article is plural; None if that is uncertain."""
    words = _noun_words(thing)
    plural = [_is_plural_word(word) for word in words]
    for i, word in enumerate(words[1:], 1):
        if re.search(r"\w\w(?:ing|ed)$", word) and (plural[i - 1] or plural[-1]):
            # "kittens playing" is plural; "big talking dogs" and "dog wearing hats" are uncertain.
            return plural[i - 1] or None
    return plural[-1] if plural[-1] or not any(plural) else None


def _is_plural_word(word: str) -> bool:
    ends_in_s = bool(re.search(r"[^\Wsui]s$", word)) and word not in _SINGULARS
    return ends_in_s or bool(_PLURALS.match(word))

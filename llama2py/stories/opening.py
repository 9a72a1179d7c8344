"""Turn a subject, such as "a dragon who is afraid of fire", into the first sentence of a story.

The openings are of kinds that story models know: "Once upon a time, there was a", "One day, a". A
few rules cannot cover English. Where no rule fits, the opening is the beginning of a sentence that
the model completes: "One day, the sun".
"""

from __future__ import annotations

import re

from .english import (
    end_with_full_stop,
    ends_sentence,
    has_word,
    is_clause,
    past_tense,
    word_list,
)
from .names import BOYS, GIRLS

_ONE = {"a", "an", "one", "another", "1"}
_QUANTITIES = frozenset(
    word_list("two three four five six seven eight nine ten eleven twelve many several few")
)
# No story begins with "There was my dog".
_DETERMINERS = frozenset(
    word_list(
        "the some my your his her its our their this that these those every each all any no both"
    )
)
_PRONOUNS = {"he", "she", "it", "we", "you", "they"}
# "a few birds were", but "a bird was"
_A_FEW = re.compile(r"(?:few|dozen|hundred|thousand|couple)\b")
# Follows "the" where only one such thing exists: "the sun", "the biggest dog".
_UNIQUE = re.compile(r"(?:\w+est|first|last|only|same|next|sun|moon|sky|sea|world|end)\b|.* the\b")
# No article, no plural.
_UNCOUNTED = frozenset(
    word_list("magic music fun nature milk water snow rain ice sand bread honey sunshine")
)
_VIRTUES = frozenset(
    word_list("love friendship kindness happiness courage honesty patience trust peace hope")
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
_STORY_START = re.compile(r"(?:once|there|one (?:day|morning|evening|night))\b", re.IGNORECASE)
# ---- wishes: "Tell me a bedtime story about a frog, please" ----
_ASKING = (
    r"(?:(?:please|hi|hello|hey),? )*(?:(?:can|could|would|will) you (?:please )?)?"
    r"(?:(?:tell|write|give|read|show|make up|invent|make|create)(?: me| us| my \w+)?"
    r"|(?:i|we)(?: want|['’]d like|['’]d love| would like| would love| wish for)"
    r"(?: you to tell(?: me| us)?| to hear| to read)?|let['’]s hear|how about|what about)"
)
_KIND = (
    r"(?:(?:short|long|funny|new|little|nice|good|great|sad|happy|scary|silly|sweet|bedtime|fairy"
    r"|children's|adventure|love) )*(?:story|stories|tale|tales)\b"
)
_STORY = rf"(?:(?:an?|the|one|another|some|your) )?{_KIND}"
_WISH = re.compile(
    rf"(?:{_ASKING} {_STORY}|{_ASKING} (?=about\b)|(?:tell|show) (?:me|us) (?=how\b|why\b|what\b)"
    rf"|{_STORY}(?= about\b| of\b| where\b| in which\b|[.!?]*$))"
    r"[ ,:]*(?:(?:about|of|where|in which|with)\b)?",
    re.IGNORECASE,
)
_PLEASE = re.compile(r"[ ,]+please$", re.IGNORECASE)
# ---- subjects that are neither a noun with an article nor a name ----
_QUESTION = re.compile(r"(?:how|why|where|when|what|who|whether)\b(?! about\b)", re.IGNORECASE)
_OWNERS = {
    "my": ("a little girl", "her"),
    "our": ("a little girl", "her"),
    "your": ("a little girl", "her"),
    "their": ("a little girl", "her"),
    "her": ("a little girl", "her"),
    "his": ("a little boy", "his"),
    "its": ("a little dog", "its"),
}
_POINTING = {"this", "that", "these", "those"}


def subject_of(about: str) -> str:
    """Return what a wish for a story is about.

    >>> subject_of("Tell me a story about a sad frog, please.")
    'a sad frog'
    """
    about = re.sub(r"(?<=\w)’(?=\w)", "'", " ".join(about.split()))
    wish = _wish(about)
    if wish is None:
        return about
    return _PLEASE.sub("", about[wish.end() :].strip().rstrip(".!?,;:–—…- "))


def is_wish(text: str) -> bool:
    """Return whether a text is a wish for a story, and not the beginning of one."""
    return _wish(" ".join(text.split())) is not None


def _wish(text: str) -> re.Match[str] | None:
    """Return the part of a wish before its subject."""
    wish = _WISH.match(text)
    return wish if wish and not _touches_word(text, wish.end()) else None


def _touches_word(text: str, end: int) -> bool:
    return text[end - 1 : end + 1].isalnum() and end < len(text)


def opening_about(about: str) -> str:
    """Return the first words of a story about a subject.

    Parameters
    ----------
    about : str
        ``"a dragon who is afraid of fire"``, ``"dragon"``, ``"three kittens"``, ``"Lily and her
        cat"``, ``"how to bake a cake"``. A whole sentence, with its full stop, is returned as it
        is.

    Returns
    -------
    str
        "Once upon a time, there was ..." or another whole sentence. For many names, a place or a
        quotation, the beginning of a sentence.
    """
    about = subject_of(about)
    if ends_sentence(about) and not about.endswith("…"):
        return about
    about = about.rstrip(",;:–—…- ")
    if not about or about[0] in "\"'“‘" or _STORY_START.match(about):
        return about
    first, _, rest = about.partition(" ")
    lower = first.lower()
    is_name = first[0].isupper() and lower not in {
        *_ONE,
        *_QUANTITIES,
        *_DETERMINERS,
        *_PRONOUNS,
        *_PLACES,
    }
    if _QUESTION.match(about):
        return f"One day, a little girl wanted to know {past_tense(f'{lower} {rest}'.rstrip())}."
    if about in GIRLS or about in BOYS:
        kind = "girl" if about in GIRLS else "boy"
        return f"Once upon a time, there was a little {kind} named {about}."
    if not is_name and first != "I":
        about = f"{lower} {rest}".rstrip()
    past = past_tense(about)
    if is_name or lower in {"i", *_PRONOUNS}:
        return f"One day, {past}"
    if lower in _OWNERS and rest:
        (owner, pronoun), thing = _OWNERS[lower], past.partition(" ")[2]
        if is_clause(about):
            return f"One day, {owner}'s {thing}."
        return f"One day, {owner} and {pronoun} {thing}"
    if is_clause(about):
        return f"One day, {past}."
    if lower in _PLACES:
        return f"Once upon a time, {past},"
    if lower in _POINTING and rest:
        about = past = past.partition(" ")[2]
        first, _, rest = about.partition(" ")
    if _is_activity(first, rest):
        return f"One day, a little girl was {past}."
    if first in _VIRTUES:
        return f"One day, a little girl learned about {past}."
    if _noun_words(about)[-1] in _UNCOUNTED and first not in {*_ONE, "some"}:
        return f"Once upon a time, there was a little girl who loved {past}."
    there = _there_was(past)
    return f"Once upon a time, {there}." if there else f"One day, {past}"


def opening_with(start: str, words: list[str]) -> str:
    """Return ``start``, with one more sentence that names the words it lacks."""
    missing = {word.lower(): word for word in reversed(words) if not has_word(start, word)}
    *most, last = [*reversed(missing.values())] or [""]
    if not last:
        return start
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"{end_with_full_stop(start)} It is a story about {listed}.".lstrip()


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
    if first in _DETERMINERS or _noun_words(thing)[-1] in _UNCOUNTED | _VIRTUES:
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

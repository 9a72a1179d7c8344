"""English grammar for stories: words and plurals, sentence ends, the past tense."""

from __future__ import annotations

import re
from itertools import pairwise

# ---- words ----


def word_list(text: str) -> tuple[str, ...]:
    """Return the words of a text, between white space."""
    return tuple(text.split())


_SHORTEST_PLURAL = 3  # letters: "as" is not the plural of "a"


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation.

    >>> words_of('"No!" said Tom.')
    ['no', 'said', 'tom']
    """
    return re.findall(r"\w+(?:['’]\w+)*", text.casefold())


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


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, closing quotation marks included, without the spaces between.

    >>> sentences('"Hi!" Tom said. He ran')
    ['"Hi!"', 'Tom said.', 'He ran']
    """
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    return [part for a, b in pairwise(ends) if (part := text[a:b].strip())]


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
    "who's": "who was",
}
_MODALS = {"have": "had", "do": "did", "can": "could", "will": "would", "must": "had to"}
_IRREGULAR = dict(
    pair.split(":")
    for pair in word_list(
        "become:became begin:began bite:bit blow:blew break:broke bring:brought build:built"
        " buy:bought catch:caught choose:chose come:came dig:dug draw:drew drink:drank drive:drove"
        " eat:ate fall:fell feed:fed feel:felt fight:fought find:found fly:flew forget:forgot"
        " get:got give:gave go:went grow:grew hear:heard hide:hid hold:held keep:kept know:knew"
        " lead:led learn:learned leave:left lose:lost make:made mean:meant meet:met read:read"
        " ride:rode ring:rang rise:rose run:ran say:said see:saw sell:sold send:sent shine:shone"
        " shake:shook sing:sang sit:sat sleep:slept speak:spoke spend:spent stand:stood steal:stole"
        " sweep:swept swim:swam swing:swung take:took teach:taught tell:told think:thought"
        " throw:threw understand:understood wake:woke wear:wore win:won write:wrote"
    )
)
_REGULAR = word_list(
    "answer ask bake bark belong believe build call care carry chase chew clap clean climb collect"
    " cook count cross cry cuddle dance decide discover dream drop enjoy escape explore fix float"
    " follow giggle glow grant growl guard happen hate help hop hug hum hunt imagine invent jump"
    " kick kiss laugh lick like listen live look love miss move need open paint pick plan plant"
    " play point pretend promise pull push rescue roar roll sail save scare scream search share"
    " shout show smell smile snore sparkle start stay stop study swallow talk taste tickle touch"
    " travel trick try turn visit wait walk want wash watch wiggle wish wonder work worry"
)
_ALWAYS_VERBS |= {
    f"{verb}s": _IRREGULAR[verb]
    for verb in word_list(
        "become come eat find get give hear keep know learn lose make meet say see sing take think"
    )
}
_ALWAYS_VERBS |= {"goes": "went", "wants": "wanted", "believes": "believed"}


def _past_of(verb: str) -> str:
    """Return the past of the base form of a verb."""
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if verb.endswith("e"):
        return f"{verb}d"
    if re.search(r"[^aeiou]y$", verb):
        return f"{verb[:-1]}ied"
    if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", verb):  # one short syllable: hop, hopped
        return f"{verb}{verb[-1]}ed"
    return f"{verb}ed"


def _base_of(verb: str) -> str:
    """Return the base form of a verb in the third person: "flies" is "fly"."""
    if verb.endswith("ies"):
        return f"{verb[:-3]}y"
    if re.search(r"(?:[sxz]|ch|sh|o)es$", verb):
        return verb[:-2]
    return verb.removesuffix("s")


def _third_person(verb: str) -> str:
    if re.search(r"[^aeiou]y$", verb):
        return f"{verb[:-1]}ies"
    return f"{verb}es" if re.search(r"(?:[sxzo]|ch|sh)$", verb) else f"{verb}s"


# These are verbs only after a subject: "nine lives", "a can" and "a dream" have none.
_BASE_FORMS = {verb: _past_of(verb) for verb in [*_IRREGULAR, *_REGULAR]} | _MODALS
_THIRD_PERSON = {_third_person(verb): _past_of(verb) for verb in [*_IRREGULAR, *_REGULAR]}
_ADVERB = r"(?:(?:always|never|often|still|also|only|sometimes|really|just) )?"
_WORD_END = r"(?![\w'-])"
# "a" and up to two words before a verb: "a cow flies", "a sad dog sings", not "a game of cards".
_NOT_NOUNS = "who|that|which|of|in|on|at|to|with|from|for|and|or|about|like|named"
_A_THING = rf"^(?:an?|one)(?: (?!{_NOT_NOUNS})\w+){{1,2}}"
_ONE_SUBJECT = rf"(?:who|which|that|[Hh]e|[Ss]he|[Ii]t|^[A-Z]\w+|{_A_THING}) {_ADVERB}"
# Of a singular noun, "that" may belong to the next one: "a girl who has that dream".
_MANY_SUBJECT = rf"(?:who|which|(?<=s )that|[Tt]hey|[Ww]e|[Yy]ou|I) {_ADVERB}"


def _any_of(words: dict[str, str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # "do not" before "do"


_ALWAYS_VERB = re.compile(rf"(?<![\w'-])({_any_of(_ALWAYS_VERBS)}){_WORD_END}")
_ONE_AND_VERB = re.compile(rf"\b({_ONE_SUBJECT})({_any_of(_THIRD_PERSON | _MODALS)}){_WORD_END}")
_MANY_AND_VERB = re.compile(rf"\b({_MANY_SUBJECT})({_any_of(_BASE_FORMS)}){_WORD_END}")
# "who lived in a tree and barks"
_SECOND_VERB = re.compile(rf"\b({_ONE_SUBJECT}.* and )({_any_of(_THIRD_PERSON)}){_WORD_END}")
# Every other word with a final s after "who" is a verb, too.
_UNKNOWN_VERB = re.compile(rf"\b(who (?!always|was){_ADVERB})(\w\w+[^\Wsu]s){_WORD_END}")
_RELATIVE_PRONOUN = re.compile(r"\b(?:who|which|that|whose)\b")
_PAST_VERB = re.compile(r"\b(?:was|were|had|could|did|would|went|wanted)\b")
_QUOTATION = re.compile(r"([\"“].*?[\"”]|[\"“].*)")


def past_tense(text: str) -> str:
    """Put the verbs that this module knows into the past. Quotations stay as they are.

    >>> past_tense("a dragon who is afraid of fire and doesn't fly")
    'a dragon who was afraid of fire and did not fly'
    """
    parts = _QUOTATION.split(text)
    parts[::2] = map(_past_tense, parts[::2])
    return "".join(parts)


def _past_tense(text: str) -> str:
    text = _ALWAYS_VERB.sub(lambda match: _ALWAYS_VERBS[match[1]], text)
    verbs = _THIRD_PERSON | _BASE_FORMS
    for pattern in (_ONE_AND_VERB, _MANY_AND_VERB, _SECOND_VERB):
        text = pattern.sub(lambda match: match[1] + verbs[match[2]], text)
    return _UNKNOWN_VERB.sub(lambda match: match[1] + _past_of(_base_of(match[2])), text)


def is_clause(text: str) -> bool:
    """Return whether a text is a clause ("a dog is sad"), not only a noun phrase ("a dog")."""
    before_relative = _RELATIVE_PRONOUN.split(_QUOTATION.sub("", text))[0]
    verbs = (_ALWAYS_VERB, _PAST_VERB, _ONE_AND_VERB)
    return any(pattern.search(before_relative) for pattern in verbs)

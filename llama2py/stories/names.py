"""Names of heroes: known ones to choose from, and unknown ones that a known one stands in for.

A small model cannot spell "Søren" or "小明": it forgets the name after one sentence. A story about
such a name is written about a name that every story model knows, and the name is put back into the
finished text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..tokenizers.tokenizer import Tokenizer
from .english import ends_sentence, word_list

Gender = Literal["girl", "boy"]

GIRLS = word_list(
    "Lily Lucy Sue Mia Amy Sally Jane Sarah Daisy Mimi Emma Anna Ann Lisa Bella Ella Mary Molly"
    " Poppy Lola Luna Polly Penny Sophie Jenny Alice Kate Betty Chloe Emily Abby Ruby Clara"
    " Julie Sara Susie Zara Nina Ellie"
)
BOYS = word_list(
    "Tim Tom Max Timmy Bob Sam Jack Ben Billy John Leo Benny Joe Andy Fred Bobby Pete Freddy"
    " Sammy Jim Johnny Jake Peter Dave Joey Danny Robby Charlie David Henry Adam Luke Oscar"
    " Tommy Jimmy Mike Nick Toby"
)
"""Names that children in TinyStories have, the most frequent ones first."""

_SPREAD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: consecutive seeds get names far apart


def with_another_hero(text: str, seed: int) -> str:
    """Return a story with another name for its hero, which the seed chooses.

    Models of TinyStories call two of five heroes Tim or Lily. A text without a known name stays as
    it is.
    """
    words = re.findall(r"\w+", text)
    hero = next((word for word in words if word in GIRLS or word in BOYS), None)
    if hero is None:
        return text
    names = [
        name for name in (GIRLS if hero in GIRLS else BOYS) if name == hero or name not in words
    ]
    name = names[(seed * _SPREAD % 2**64) * len(names) >> 64]
    return re.sub(rf"\b{hero}\b", name, text)


# ---- the gender of a name, for the pronouns ----

_GIRL_NAMES = frozenset(
    word_list(
        "Zoë Zoe Chloé Noor Ingrid Astrid Sigrid Solveig Maren Karin Ingeborg Björk Carmen Pilar"
        " Mercedes Beatriz Inés Isabel Raquel Élise Amélie Émilie Noémie Léonie Hélène Irène Aimée"
        " Siobhán Niamh Aoife Gráinne Hermione Elizabeth Margaret Miriam Ruth Esther Rachel Deborah"
        " Judith Megan Lauren Allison Madison Scarlett Harper Любовь فاطمة مريم زينب خديجة هند سعاد"
        " נועה שרה רחל מרים प्रिया सीता मीरा 花子 さくら 지은 수지 민지"
    )
)
_BOY_NAMES = frozenset(
    word_list(
        "Noah Joshua Elijah Ezra Isaiah Luca Nikita Mikita Andrea Mustafa Musa Isa Joshua Mattia"
        " Никита Илья Саша Миша Ваня Петя Коля Дима Лёша Вова Серёжа Паша Гриша Данила Костя Юра"
        " أسامة حمزة طلحة معاوية موسى عيسى مصطفى יהודה अर्जुन राम कृष्ण 太郎 민수 철수 지훈"
    )
)
_GIRL_ENDING = re.compile(
    r"(?:[aàáâãäåāąαάая]|[ةה]|[子美香娜丽麗婷芳花红紅雪兰蘭梅玲静靜莉娟妹女])$"
)
_BOY_ENDING = re.compile(
    r"(?:[^\W\daeiouyéèêëïœаеёиоуыэюяьαεηιουωά]|[oój]|[明强強伟偉军軍刚剛龙龍勇杰傑郎男介建国國雷])$"
)
_FEMALE = re.compile(
    r"(?<!\w)(?:she|her|hers|girl|woman|queen|princess|sister|её|ее|ihre?|elle|ella)(?!\w)",
    re.IGNORECASE,
)
_MALE = re.compile(
    r"(?<!\w)(?:he|him|his|boy|man|king|prince|brother|его|seine?|il|él)(?!\w)", re.IGNORECASE
)
_SCRIPTS_WITH_GENDER = ("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "CJK")


def gender_of(name: str, context: str = "") -> Gender | None:
    """Return whether a name is a girl's or a boy's; None if that is uncertain.

    Words such as "his" and "girl" in ``context``, the wish for the story, count first, then lists
    of names, then the ending of the name, which is right for most European, Arabic and Chinese
    names.
    """
    girl, boy = _FEMALE.search(context), _MALE.search(context)
    if bool(girl) != bool(boy):
        return "girl" if girl else "boy"
    first = name.split()[0].split("-")[0]
    if first in _GIRL_NAMES or first in GIRLS:
        return "girl"
    if first in _BOY_NAMES or first in BOYS:
        return "boy"
    if not _script(first[-1]).startswith(_SCRIPTS_WITH_GENDER):
        return None
    if _GIRL_ENDING.search(first):
        return "girl"
    return "boy" if _BOY_ENDING.search(first) else None


def _script(letter: str) -> str:
    return unicodedata.name(letter, "")


# ---- names that stand in for others ----

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
# Words with a capital that are no names, or that the model knows as parts of names.
_NOT_NAMES = frozenset(
    word_list(
        "I The A An My His Her Our Your Their Its This That One Two Three Some Mr Mrs Ms Dr Miss"
        " King Queen Prince Princess Sir Lady Uncle Aunt Mom Mommy Mum Mummy Dad Daddy Mother"
        " Father Grandma Grandpa Granny Once There When Where Why How What Who In On At"
    )
)
_AND = frozenset(word_list("и та і а und et y e och og en & و 和 跟 と и"))
_JOINS = re.compile(r"\s*(?:,|and|&|with|,\s*and)?\s*$")
_PETS = ("Spot", "Fluffy", "Kitty")
_LONGEST_KNOWN = 2  # tokens of a name that a model can remember
_LONGEST_PHRASE = 2  # words in another script that are a name, and not a text in that language


@dataclass(frozen=True, slots=True)
class Disguise:
    """The names of a wish that a model does not know, and known names to write the story with.

    Attributes
    ----------
    known : dict of str to str
        The known name for each unknown one.
    neutral : bool
        Whether the gender of an unknown name is uncertain. Its pronouns become "they".
    """

    known: dict[str, str]
    neutral: bool = False

    def put_on(self, text: str) -> str:
        """Return a part of the wish with the known names."""
        if not self.known:
            return text
        text = self._replace(text, self.known)
        known = "|".join(self.known.values())
        return re.sub(
            rf"({known}) (?:{'|'.join(map(re.escape, _AND))}) ({known})", r"\1 and \2", text
        )

    def take_off(self, text: str) -> str:
        """Return a finished text with the names of the wish."""
        if self.neutral:
            text = _with_they(text)
        return self._replace(text, {known: name for name, known in self.known.items()})

    @staticmethod
    def _replace(text: str, names: dict[str, str]) -> str:
        if not names:
            return text
        longest_first = sorted(map(re.escape, names), key=len, reverse=True)
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)")

        def other(match: re.Match[str]) -> str:
            name = names[match[0]]
            starts = not match.start() or re.search(r"[.!?\"“]\s*$", text[: match.start()])
            return name[:1].upper() + name[1:] if starts else name

        return pattern.sub(other, text)


def disguise(wish: str, words: Iterable[str], tokenizer: Tokenizer, is_opening: bool) -> Disguise:
    """Find the unknown names in a wish for a story, and choose known names for them.

    Parameters
    ----------
    wish : str
        The subject, or with ``is_opening`` the first words of the story.
    words : iterable of str
        The words that must appear.
    tokenizer : Tokenizer
        Knows a name if it spells it with one or two tokens that are characters, not bytes.
    is_opening : bool
        The first word of an opening has a capital even if it is no name.
    """
    unknown = list(_unknown_names(wish, tokenizer, is_opening))
    for word in words:
        unknown += _unknown_names(word, tokenizer, False)
    known: dict[str, str] = {}
    neutral = False
    for number, name in enumerate(dict.fromkeys(unknown)):
        gender = gender_of(name, wish if number == 0 else "")
        if name[0].islower():
            choices: tuple[str, ...] = _PETS
        else:
            choices = GIRLS if gender == "girl" else BOYS
            neutral = neutral or gender is None
        taken = {*known.values(), *re.findall(r"\w+", " ".join([wish, *words]))}
        known[name] = next(choice for choice in choices if choice not in taken)
    return Disguise(known, neutral)


def _unknown_names(text: str, tokenizer: Tokenizer, is_opening: bool) -> Iterator[str]:
    """Yield the unknown names of a text: single words, or words in a row that make one name."""
    phrase: list[re.Match[str]] = []
    found: list[list[re.Match[str]]] = []
    last_was_name = False
    for match in _WORD.finditer(text):
        before = text[: match.start()]
        adjoins = bool(phrase) and text[phrase[-1].end() : match.start()].isspace()
        is_foreign = not _script(match[0][0]).startswith("LATIN")
        if is_foreign:
            is_part = match[0] not in _AND
            adjoins = adjoins and not _script(phrase[-1][0][0]).startswith("LATIN")
        else:
            begins = (
                not before.strip() or before.rstrip()[-1] in '"“' or ends_sentence(before.rstrip())
            )
            after_name = last_was_name and _JOINS.search(before)
            introduced = re.search(r"\b(?:named|called) $", before)
            may_be = not is_opening if begins else is_opening or after_name or introduced
            is_place = re.search(r"\b(?:in|at|from|near) $", before)
            is_part = not is_place and _is_unknown(match[0], tokenizer, bool(may_be))
        if phrase and not (is_part and adjoins):
            found.append(phrase)
            phrase = []
        if is_part:
            phrase.append(match)
        is_known = match[0] in GIRLS or match[0] in BOYS
        last_was_name = is_part or is_known or (last_was_name and match[0] == "and")
    if phrase:
        found.append(phrase)
    if all(len(phrase) <= _LONGEST_PHRASE for phrase in found):
        for phrase in found:
            yield re.sub(r"['’]s$", "", text[phrase[0].start() : phrase[-1].end()])


def _is_unknown(word: str, tokenizer: Tokenizer, may_be: bool) -> bool:
    """Return whether a word in Latin letters is a name that the tokenizer does not know."""
    word = word.removesuffix("'s").removesuffix("’s")
    if not word[0].isupper() or word in _NOT_NAMES or word in GIRLS or word in BOYS:
        return False
    tokens = tokenizer.encode(word, bos=False)
    spelled = b"".join(map(tokenizer.piece, tokens))
    if not all(letter.encode() in spelled for letter in word):  # a letter is spelled in bytes
        return True
    return may_be and len(tokens) > _LONGEST_KNOWN


# ---- pronouns of somebody whose gender is unknown ----

_THEY = {
    "he": "they",
    "him": "them",
    "his": "their",
    "himself": "themselves",
    "he's": "they're",
    "he'd": "they'd",
    "he'll": "they'll",
}
_HE_HAS = re.compile(r"\b(he)['’]s(?= (?:been|got|gone|had|lost|made|\w+ed)\b)", re.IGNORECASE)
_HE = re.compile(r"\b(himself|he['’](?:s|d|ll)|he|him|his)\b", re.IGNORECASE)
_THEY_VERB = re.compile(
    r"\b(they )(was(?:n't)?|is(?:n't)?|has(?:n't)?|does(?:n't)?)\b", re.IGNORECASE
)
_VERBS = {"was": "were", "is": "are", "has": "have", "does": "do"}


def _with_they(text: str) -> str:
    """Return a text about a boy with "they" in place of "he"."""

    def they(match: re.Match[str]) -> str:
        pronoun = _THEY[match[0].lower().replace("’", "'")]
        return pronoun.capitalize() if match[0][0].isupper() else pronoun

    def agree(match: re.Match[str]) -> str:
        verb, negation, _ = match[2].partition("n't")
        return match[1] + _VERBS[verb] + negation

    return _THEY_VERB.sub(agree, _HE.sub(they, _HE_HAS.sub(r"\1 has", text)))

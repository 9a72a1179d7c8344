"""How a vocabulary's pattern cuts a text into words."""

from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.tokenizers.pretokenize import DIGITS, GPT2, KNOWN_PATTERNS, LLAMA3, QWEN2, words
from tests.support.trained_vocabularies import TEXTS


def test_each_pattern_cuts_as_read_by_hand() -> None:
    cut = {
        GPT2: ["we", "'ll", " see", " 1234", "  ", " é", "!?", "\n"],
        LLAMA3: ["we", "'ll", " see", " ", "123", "4", "  ", " é", "!?\n"],
        QWEN2: ["we", "'ll", " see", " ", "1", "2", "3", "4", "  ", " é", "!?\n"],
    }
    for pattern, expected in cut.items():
        assert list(words("we'll see 1234   é!?\n", [pattern])) == expected
    assert list(words("a12b", [DIGITS])) == ["a", "1", "2", "b"]
    assert list(words("", [GPT2])) == []


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(KNOWN_PATTERNS)), TEXTS)
def test_words_add_up_to_the_text(pattern: str, text: str) -> None:
    found = list(words(text, [pattern]))
    assert "".join(found) == text
    assert all(found)


def test_a_character_class_is_the_one_of_unicode() -> None:
    """A letter, and nothing else, forms one word with the letters around it. So do numbers."""
    for code in [*range(0x3000), 0x1F43B, 0x10400, 0x1D7D8]:
        character = chr(code)
        if unicodedata.category(character) == "Cs":
            continue
        is_letter = unicodedata.category(character)[0] == "L"
        assert (list(words(f"a{character}b", [GPT2])) == [f"a{character}b"]) == is_letter
        is_number = unicodedata.category(character)[0] == "N"
        assert (list(words(f"1{character}2", [GPT2])) == [f"1{character}2"]) == is_number

"""Vocabularies that the ``tokenizers`` package trains, and texts to encode with them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import MergeTokenizer
from llama2py.tokenizers.pretokenize import (
    DEEPSEEK_CODER,
    DEEPSEEK_LLM,
    DIGITS,
    GPT2,
    GPT4O,
    LLAMA3,
    LLAMACPP_DEFAULT,
    QWEN2,
    TEKKEN,
)
from llama2py.tokenizers.tokenizer import Tokenizer

Json = dict[str, Any]


ADDED = ["<|im_start|>", "<|im_end|>"]


WORDS = [
    *("the", "cat", "sat", "on", "the", "mat", "and", "the", "dog's", "bone", "isn't", "theirs"),
    *("1234", "56", "we'll", "THE", "CAT'S", "HAT"),
]


#: Parts of texts that vocabularies treat in different ways.


PARTS = st.sampled_from(
    [*WORDS, *" \t\n\r", "  ", "\n\n", " \n ", "'s", "'LL", "...", "?!\n", "é", "ß", "日本", "🐻",
     "²", "½", "\u0301", "\xa0", "\u3000", "\x1c", "\x85", "\u2028", "٣", "Ǆ", "'ſ", "<|im_end",
     "ǅ", "ʰa", "/\n", "iPhone", ADDED[1]]
)  # fmt: skip


TEXTS = st.one_of(
    st.lists(PARTS, max_size=30).map("".join),
    st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60),
)


BYTE_LEVEL = {
    "gpt2": ((GPT2,), False),
    "llama3": ((LLAMA3,), True),
    "qwen2": ((QWEN2,), False),
    "smollm": ((DIGITS, GPT2), False),
    "tekken": ((TEKKEN,), True),
    "llama.cpp": (LLAMACPP_DEFAULT, False),
    "gpt-4o": ((GPT4O,), False),
    "deepseek-llm": (DEEPSEEK_LLM, False),
    "deepseek-coder": (DEEPSEEK_CODER, False),
}


@cache
def corpus() -> list[str]:
    """Return nonsense with the letters and words of the texts above."""
    rng = random.Random(1)
    pieces = [*WORDS, "  ", "\n", "日本", "é", "12", "...", "'s"]
    return [" ".join(rng.choices(pieces, k=30)) for _ in range(200)]


@cache
def byte_level(patterns: tuple[str, ...], whole_first: bool = False) -> Json:
    """Return the tokenizer.json of a byte-level vocabulary."""
    hf = pytest.importorskip("tokenizers")
    tokenizer = hf.Tokenizer(hf.models.BPE(ignore_merges=whole_first))
    steps = []
    for pattern in patterns:
        if pattern == DIGITS:
            steps.append(hf.pre_tokenizers.Digits(individual_digits=True))
        else:
            steps.append(hf.pre_tokenizers.Split(hf.Regex(pattern), "isolated"))
    steps.append(hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    if patterns[-1] == GPT2:
        steps[-2:] = [hf.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence(steps)
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", *ADDED],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens(["cat sat"])
    found: Json = json.loads(tokenizer.to_str())
    return found


@cache
def characters(prefix: str) -> Json:
    """Return the tokenizer.json of a vocabulary of characters with byte fallback."""
    hf = pytest.importorskip("tokenizers")
    tokenizer = hf.Tokenizer(hf.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if prefix == "normalizer":
        tokenizer.normalizer = hf.normalizers.Sequence(
            [hf.normalizers.Prepend("▁"), hf.normalizers.Replace(" ", "▁")]
        )
    elif prefix == "replace":
        tokenizer.normalizer = hf.normalizers.Replace(" ", "▁")
    else:
        tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace("▁", prefix, split=False)
    trainer = hf.trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[
            "<unk>",
            "<s>",
            "</s>",
            *(f"<0x{byte:02X}>" for byte in range(256)),
            *ADDED,
        ],
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(text.split()) for text in corpus()], trainer)
    found: Json = json.loads(tokenizer.to_str())
    # The bytes are pieces, not added tokens.
    found["added_tokens"] = [t for t in found["added_tokens"] if not t["content"].startswith("<0x")]
    for token in found["added_tokens"]:
        if token["content"] in ADDED:
            token["special"] = False
    return found


def both(found: Json, folder: Path) -> tuple[Any, MergeTokenizer]:
    """Load a tokenizer.json with the tokenizers package and with llama2py."""
    hf = pytest.importorskip("tokenizers")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    return hf.Tokenizer.from_file(str(path)), load_merges(path)


def load_merges(path: Path) -> MergeTokenizer:
    """Load a vocabulary that has merges."""
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, MergeTokenizer)
    return tokenizer


def compare(theirs: Any, ours: Tokenizer, spaces_change: bool = False) -> Callable[[str], None]:
    """Return a check of one text: both encode it alike, and decoding undoes encoding."""

    def check(text: str) -> None:
        if "▁" in text and spaces_change:
            text = text.replace("▁", "_")  # tokenizers reads it as a space
        tokens = ours.encode(text, bos=False, special=True)
        assert tokens == theirs.encode(text, add_special_tokens=False).ids
        plain = ours.encode(text)
        assert ours.decode(plain) == text

    return check

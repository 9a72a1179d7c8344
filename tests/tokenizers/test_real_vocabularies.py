"""Real vocabularies, where the tests are given some: llama.cpp and tokenizers are the oracles.

``LLAMA2PY_TEST_CHAT_MODEL`` is the path of SmolLM2-135M-Instruct as a GGUF file.
``LLAMA2PY_TEST_VOCABULARIES`` is the folder ``models`` of llama.cpp's sources, which has
vocabularies, texts (``.inp``) and the tokens that llama.cpp finds in them (``.out``).
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama2py.tokenizers.export import export_tokenizer
from llama2py.tokenizers.load import load_tokenizer
from tests.conftest import ROOT
from tests.support.trained_vocabularies import load_merges

NAMES = [
    "llama-spm", "llama-bpe", "phi-3", "qwen2", "gpt-2", "mpt", "starcoder", "refact", "command-r",
    "deepseek-llm", "deepseek-coder",
]  # fmt: skip


def given(variable: str) -> Path:
    """Return the path in a variable, or skip the test."""
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} is not set")
    return Path(path)


# ---- llama.cpp's vocabularies ----


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_that_llama_cpp_has_recorded(name: str, tmp_path: Path) -> None:
    package = pytest.importorskip("tokenizers")
    path = given("LLAMA2PY_TEST_VOCABULARIES") / f"ggml-vocab-{name}.gguf"
    ours = load_tokenizer(path)
    texts = path.with_name(f"{path.name}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    recorded = path.with_name(f"{path.name}.out").read_text("utf-8").split("\n")
    wanted = [[int(token) for token in line.split()] for line in recorded][: len(texts)]
    assert [ours.encode(text, bos=False) if text else [] for text in texts] == wanted
    # What is exported is the same vocabulary, for us and for tokenizers.
    export_tokenizer(path, tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    theirs = package.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (again.bos_id, again.eos_id) == (ours.bos_id, ours.eos_id)
    for text in texts:
        expected = ours.encode(text, bos=False, special=True)
        assert again.encode(text, bos=False, special=True) == expected
        assert theirs.encode(text, add_special_tokens=False).ids == expected


# ---- SmolLM2 ----

#: What llama.cpp and tokenizers find in these texts, with special tokens.
SMOLLM2 = {
    "Hello, world!": [19556, 28, 905, 17],
    "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
    "3 + 4 = 7, isn't it?": [35, 1232, 216, 36, 446, 216, 39, 28, 3247, 982, 357, 47],
    "naïve café 日本 🐻": [3546, 46494, 37366, 17097, 241, 115, 40993, 15107, 234, 136],
    "def f(x):\n    return x*2\n": [1604, 275, 24, 104, 727, 472, 1003, 1792, 26, 34, 198],
}
#: Here the vocabulary lacks a byte: tokenizers merges its neighbours, llama.cpp does not.
LACKING, BY_LLAMA_CPP = "-\x04-", [29, 29]


def smollm2_of_tokenizers(path: Path) -> Any:
    """Build the tokenizer from the file's pieces and merges, without llama2py."""
    gguf, hf = pytest.importorskip("gguf"), pytest.importorskip("tokenizers")
    fields = gguf.GGUFReader(path).fields

    def values(name: str) -> list[Any]:
        field = fields[f"tokenizer.ggml.{name}"]
        return [field.parts[i] for i in field.data]

    pieces = [bytes(part).decode() for part in values("tokens")]
    types = [int(part[0]) for part in values("token_type")]
    merges = [tuple(bytes(part).decode().split(" ")) for part in values("merges")]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    theirs = hf.Tokenizer(hf.models.BPE(vocabulary, merges))
    theirs.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [
            hf.pre_tokenizers.Digits(individual_digits=True),
            hf.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    control = [piece for piece, kind in zip(pieces, types, strict=True) if kind == 3]
    theirs.add_special_tokens(control)
    return theirs


def varied_texts(count: int) -> Iterator[str]:
    """Prose, code, letters of many alphabets, control characters, and special tokens."""
    rng = random.Random(7)
    prose = "".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    prose += (ROOT / "llama2py" / "model.py").read_text("utf-8")
    odd = [*map(chr, range(0x180)), *"日本語中文한국어ελληνικάРусскийעבריתالعربيةहिन्दी🐻🎉½²³…—“”"]
    odd += ["'s", "'ll", " the", "1234", "  ", "\n\n", "\t", "\u3000", "\u200d", "\U00050000"]
    odd += ["<|im_start|>", "<|im_end|>", "<file_sep>", "<|im_"]
    for i in range(count):
        if i % 2:
            begin = rng.randrange(len(prose))
            yield prose[begin : begin + rng.randrange(1, 400)]
        else:
            yield "".join(rng.choices(odd, k=rng.randrange(1, 60)))


@pytest.mark.slow
def test_smollm2_has_the_tokens_of_tokenizers(tmp_path: Path) -> None:
    """From the GGUF file, and from the tokenizer.json that is exported of it."""
    path = given("LLAMA2PY_TEST_CHAT_MODEL")
    theirs, ours = smollm2_of_tokenizers(path), load_tokenizer(path)
    export_tokenizer(path, tmp_path / "tokenizer.json")
    exported = load_merges(tmp_path / "tokenizer.json")
    assert (exported.bos_id, exported.eos_id, exported.adds_bos) == (1, 2, False)
    missing = set("\x04\x06\x13\x14\x16\x1d\U00050000")
    for text in varied_texts(5000):
        wanted = theirs.encode(text, add_special_tokens=False).ids
        assert exported.encode(text, special=True) == wanted
        if missing.isdisjoint(text):
            assert ours.encode(text, special=True) == wanted
    for text, tokens in SMOLLM2.items():
        assert ours.encode(text, special=True) == exported.encode(text, special=True) == tokens
    assert ours.encode(LACKING) == BY_LLAMA_CPP
    assert exported.encode(LACKING) == theirs.encode("--").ids != BY_LLAMA_CPP


@pytest.mark.slow
def test_a_directory_of_smollm2_that_transformers_has_written_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = given("LLAMA2PY_TEST_CHAT_MODEL")
    backend = smollm2_of_tokenizers(path)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    theirs.add_tokens(["<new>"])
    theirs.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "tokenizer.json").read_bytes())["model"]["unk_token"] is None
    ours = load_merges(tmp_path / "tokenizer.json")
    assert (ours.bos_id, ours.eos_id) == (1, 2)
    for text in varied_texts(500):
        text += "<new>"
        assert ours.encode(text, special=True) == theirs(text, add_special_tokens=False).input_ids

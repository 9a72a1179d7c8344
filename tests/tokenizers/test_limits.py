"""Vocabularies as large as real ones load; hostile files take little time and memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llama2py.errors import TokenizerError
from llama2py.tokenizers.bpe import MAX_MERGES, MAX_TOKENS
from llama2py.tokenizers.export import export_tokenizer
from llama2py.tokenizers.load import load_tokenizer
from tests.support import large_vocabularies as large
from tests.support.measured import measure
from tests.support.sentencepiece_files import field, model

# What docs/formats.md promises: twice the size and 16 MB, and for a vocabulary that is loaded, 400
# bytes for each token and 200 for each merge. The allocator's pages may add a little.
ALWAYS, PER_TOKEN, PER_MERGE = 24 << 20, 400, 200
MAX_SECONDS = 2.0

REAL: dict[str, tuple[Callable[[], bytes], int, int]] = {
    "Llama 3, ranks": (large.ranks_of_llama_3, 128_256, 0),
    "Gemma, sentencepiece": (large.sentencepiece_of_gemma, 262_144, 0),
    "Qwen, json": (large.json_of_qwen, 151_899, 151_387),
}
LARGE = {
    "Llama 3, json": (large.json_of_llama_3, 128_256, 280_147),
    "Llama 3, gguf": (large.gguf_of_llama_3, 128_256, 280_147),
    "Gemma, json": (large.json_of_gemma, 262_144, 580_604),
}
CASES = [pytest.param(*case, id=name) for name, case in REAL.items()]
CASES += [pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in LARGE.items()]


@pytest.mark.parametrize(("make", "n_tokens", "n_merges"), CASES)
def test_a_vocabulary_as_large_as_a_real_one_loads(
    make: Callable[[], bytes], n_tokens: int, n_merges: int, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer"
    path.write_bytes(make())
    done = measure(path, "hello world")
    assert (done.n_tokens, done.error) == (n_tokens, "")
    assert done.ids
    bound = 2 * path.stat().st_size + ALWAYS + PER_TOKEN * n_tokens + PER_MERGE * n_merges
    assert done.memory < bound


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "ranks of every split": (large.ranks_of_every_split, ""),
    "lists in a json": (partial(large.json_array, "[]", 1_040_000), r"1040002 lists and objects"),
    "objects in a json": (partial(large.json_array, "{}", 1_040_000), r"many more than a real fi"),
    "strings in a json": (partial(large.json_array, '"ab0"', 2_000_000), r"1999999 commas, many"),
    "tokens in a json": (partial(large.json_vocabulary, 1_000_000), "more names than a vocabulary"),
    "empty pieces": (partial(large.bin_of_pieces, b"", 1_900_000), f"more than {MAX_TOKENS} token"),
    "equal pieces": (partial(large.bin_of_pieces, b"ab", 1_500_000), f"more than {MAX_TOKENS} tok"),
    "tokens in a gguf": (partial(large.gguf_of_tokens, 600_000), "<array of 600000>, expected at"),
    "merges in a gguf": (partial(large.gguf_of_merges, 1_000_000), "<array of 1000000>, expected"),
    "fields": (partial(large.sentencepiece_of_fields, lambda fields: fields), "1300000 fields"),
    "fields of a piece": (partial(large.sentencepiece_of_fields, partial(field, 1)), "1300000 f"),
    "fields of the settings": (partial(large.sentencepiece_of_fields, partial(field, 2)), "130000"),
    "long symbols": (
        partial(large.sentencepiece_of_symbols, range(2, 2502)),
        r"special token 516 has 257 characters, expected at most 256",
    ),
}


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_takes_little_time_and_memory(
    make: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer"
    path.write_bytes(make())
    done = measure(path)
    assert bool(done.error) == bool(message)
    assert re.search(message, done.error)
    assert done.seconds < MAX_SECONDS
    assert done.memory < 2 * path.stat().st_size + ALWAYS


def test_many_special_tokens_do_not_slow_an_encoding(tmp_path: Path) -> None:
    """Each of them begins at every place of the text, and none of them is found."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(large.sentencepiece_of_symbols(range(2, 257)))
    done = measure(path, "a" * 8_000)
    assert done.n_tokens == 261 + 255
    assert len(done.ids) == 8_002  # BOS and a space
    assert done.encode_seconds < MAX_SECONDS


@pytest.mark.slow
def test_the_ranks_of_every_split_have_too_many_merges_to_export(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(large.ranks_of_every_split())
    assert len(load_tokenizer(path).encode("abc" * 100)) > 100
    with pytest.raises(TokenizerError, match=f"needs more than {MAX_MERGES} merges"):
        export_tokenizer(path, tmp_path / "tokenizer.json")


def test_a_long_piece_is_exported_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model(tail=field(1, field(1, b"a" * 2_000_000) + field(2, -1.0))))
    export_tokenizer(path, tmp_path / "tokenizer.json")
    ours: Any = load_tokenizer(tmp_path / "tokenizer.json")
    assert ours.merges == []

"""Which reader a file gets, and what a tokenizer is compared with."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import llama2py
from llama2py.checkpoint import write_checkpoint
from llama2py.errors import PromptError, TokenizerError
from llama2py.tokenizers.export import export_tokenizer
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from llama2py.tokenizers.load import load_tokenizer
from tests.conftest import TINY, random_checkpoint, tiny_tokenizer
from tests.support.vocabulary_files import PIECES, TOKENIZER_BIN, tokenizer_bin


def test_a_longest_piece_of_123_bytes_does_not_look_like_json(tmp_path: Path) -> None:
    """Its first byte is an opening brace."""
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(tokenizer_bin([*PIECES, b"x" * 123], longest=123))
    assert path.read_bytes()[:1] == b"{"
    assert load_tokenizer(path).piece(262) == b"x" * 123


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:9e5d\nsize 499723\n",
            "a git-lfs pointer to a file, not the file itself (git lfs pull gets it)",
        ),
        (b"<!DOCTYPE html>\n<html>", "an HTML page, not the file it links to"),
        (b"#version: 0.2\nt h\nth e\n", "a text file"),
    ],
)
def test_an_error_names_a_file_that_is_not_a_tokenizer(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    assert str(caught.value) == (
        f"{path}: this is {kind}, expected a tokenizer.bin, .model, .json or GGUF"
    )


def test_a_path_without_a_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=f"^{tmp_path}/none: no such file, expected a "):
        load_tokenizer(tmp_path / "none")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(TokenizerError, match=f"^{path}: this is a d[a-z, ]*, expected a tok"):
            load_tokenizer(path)
    with pytest.raises(TokenizerError, match=r"\0: cannot be opened \("):
        load_tokenizer("\0")
    # The config beside a tokenizer.json counts only if it is a file.
    export_tokenizer(_tiny_file(tmp_path), tmp_path / "tokenizer.json")
    os.mkfifo(tmp_path / "tokenizer_config.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").bos_id == 1


def _tiny_file(folder: Path) -> Path:
    write_tokenizer_bin(tiny_tokenizer(), folder / "tokenizer.bin")
    return folder / "tokenizer.bin"


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.bin"
    path.write_bytes(TOKENIZER_BIN)
    assert len(load_tokenizer(path)) == len(load_tokenizer(str(path), 262)) == 262
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path, 32000)
    assert str(caught.value) == (
        f"{path}: this tokenizer has 262 tokens, the model has 32000;"
        " pass the model's own with -z FILE or tokenizer=FILE"
    )


def test_only_a_models_own_tokenizer_may_have_another_size(tmp_path: Path) -> None:
    path = _tiny_file(tmp_path)
    size = len(load_tokenizer(path))
    usual = load_tokenizer(path, size + 20, padded=True)
    assert (len(usual), usual.n_tokens, usual.warnings) == (size + 20, size, ())
    for vocab_size, warning in (
        (size + 21, f"the tokenizer has only {size} tokens and the model {size + 21}"),
        (3 * size, f"the tokenizer has only {size} tokens and the model {3 * size}"),
        (size - 1, f"the tokenizer has {size} tokens and the model {size - 1}: a text that holds"),
    ):
        ours = load_tokenizer(path, vocab_size, padded=True)
        (note,) = ours.notes
        assert ours.warnings == (note,)
        assert note.startswith(warning)
        assert len(ours) == max(size, vocab_size)
    with pytest.raises(TokenizerError, match=rf"has {size} tokens, the model has {size + 1};"):
        load_tokenizer(path, size + 1)
    with pytest.raises(TokenizerError, match="texts begin with token 1, but the model has only 1"):
        load_tokenizer(path, 1, padded=True)


def test_a_model_with_fewer_rows_than_its_tokenizer_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = random_checkpoint(replace(TINY, vocab_size=290), seed=2)
    write_checkpoint(tmp_path / "small.bin", small.config, small.tensors)
    folder = llama2py.convert(tmp_path / "small.bin", tmp_path / "small", tokenizer=False)
    export_tokenizer(_tiny_file(tmp_path), folder / "tokenizer.json")
    with llama2py.load(folder) as model:
        assert "the tokenizer has 300 tokens and the model 290" in caplog.text
        assert max(model.generate("ab", seed=1, max_tokens=30).tokens) < 290
        last = model.tokenizer.decode([1, 299])
        assert 299 in model.tokenizer.encode(last)
        with pytest.raises(PromptError, match="token 299 is out of the vocabulary"):
            model.generate(last)


def test_a_model_with_more_rows_than_its_tokenizer_converts_to_every_format(tmp_path: Path) -> None:
    """The tokenizer is padded only if it comes with the model."""
    big = random_checkpoint(replace(TINY, vocab_size=304), seed=2)
    write_checkpoint(tmp_path / "big.bin", big.config, big.tensors)
    folder = llama2py.convert(tmp_path / "big.bin", tmp_path / "big", tokenizer=False)
    write_tokenizer_bin(tiny_tokenizer(), tmp_path / "tokenizer.bin")
    export_tokenizer(tmp_path / "tokenizer.bin", folder / "tokenizer.json")
    with llama2py.load(folder) as model:
        assert len(model.tokenizer) == 304
        expected = model.generate("abc", temperature=1.0, seed=3, max_tokens=40)
    for name in ("again.gguf", "again.bin", "again"):
        llama2py.convert(folder, tmp_path / name)
        with llama2py.load(tmp_path / name) as model:
            assert len(model.tokenizer) == 304
            again = model.generate("abc", temperature=1.0, seed=3, max_tokens=40)
            assert (again.tokens, again.text) == (expected.tokens, expected.text)
    with pytest.raises(TokenizerError, match="has 300 tokens, the model has 304"):
        llama2py.load(folder, tmp_path / "tokenizer.bin")

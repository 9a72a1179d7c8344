"""Conversion: what it writes and what it refuses."""

from __future__ import annotations

import copy
import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2py
from llama2py.checkpoint import Tensor, open_checkpoint
from llama2py.checkpoint.gguf.writer import _head, write_gguf
from llama2py.checkpoint.huggingface.writer import write_huggingface
from llama2py.cli import main
from llama2py.config import ModelConfig, RopeScaling
from llama2py.conversion import convert, format_of
from llama2py.errors import CheckpointError, ParameterError, TokenizerError
from llama2py.tokenizers.export import export_tokenizer
from llama2py.tokenizers.gguf import gguf_pairs
from llama2py.tokenizers.huggingface import tokenizer_config, tokenizer_json
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.merge_tokenizer import LETTERS, Characters, MergeTokenizer
from llama2py.tokenizers.sentencepiece import sentencepiece_model
from llama2py.tokenizers.tokenizer import Specials
from tests.conftest import TINY, in_memory, random_checkpoint, tiny_tokenizer

LLAMA3 = RopeScaling("llama3", 32.0, original_seq_len=8192)


def make(path: Path, config: ModelConfig = TINY, **tensors: Tensor) -> Path:
    """Write a Hugging Face directory; some of its tensors may be replaced."""
    checkpoint = random_checkpoint(config)
    found = {name: list(layers) for name, layers in checkpoint.tensors.items()}
    for name, tensor in tensors.items():
        found[name][-1] = tensor
    model = in_memory(config, {name: tuple(layers) for name, layers in found.items()})
    path.mkdir()
    write_huggingface(path, model, "float32", "float32", (1, [2]))
    write_tokenizer_bin(tiny_tokenizer(), path / "tokenizer.bin")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "model")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- formats ----


@pytest.mark.parametrize(
    ("name", "dtype", "format"),
    [
        ("x.gguf", "int8", "gguf"),
        ("x.bin", "float32", "v0"),
        ("x.bin", "int8", "v2"),
        ("x.bin", "bfloat16", "v0"),
        ("TinyLlama-1.1B", "float32", "hf"),
        ("llama-3.2-instruct", "float32", "hf"),
        ("folder", "int8", "hf"),
    ],
)
def test_the_name_implies_the_format(name: str, dtype: str, format: str) -> None:
    assert format_of(Path(name), dtype) == format


@pytest.mark.parametrize("name", ["x.onnx", "x.safetensors", "x.pth", "x.json", "x.BIN"])
def test_an_unknown_suffix_is_an_error_that_lists_what_is_written(name: str, model: Path) -> None:
    with pytest.raises(ParameterError, match=rf"{name}: \{name[1:]} is not a format that can be"):
        convert(model, name)
    file = model / "tokenizer"
    file.touch()
    with pytest.raises(ParameterError, match="tokenizer is a file and not a directory; choose"):
        convert(model, file)


def test_a_directory_may_have_any_name(model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").mkdir()
    assert format_of(tmp_path / "x.onnx") == "hf"  # an existing directory
    convert(model, tmp_path / "y.onnx", format="hf")
    assert "config.json" in names_in(tmp_path / "y.onnx")


def test_the_builtin_model_has_a_name(tmp_path: Path) -> None:
    assert main(["convert", "builtin", "-o", str(tmp_path / "story.gguf")]) == 0
    with llama2py.load("builtin") as first, llama2py.load(tmp_path / "story.gguf") as second:
        texts = [m.generate("Once", seed=1, max_tokens=9).text for m in (first, second)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "v3"}, "format is 'v3', expected one of v0, v1, v2, hf, gguf"),
        ({"dtype": "int4"}, "dtype is 'int4', expected one of float32, float16, bfloat16, int8"),
        ({"group_size": 0, "format": "v2"}, "group_size is 0, expected a whole number from 1 up"),
        ({"threads": 0}, "threads is 0, expected a whole number from 1 up"),
        ({"group_size": 32}, "group_size is 32, but format v0 has no groups"),
        ({"group_size": 5, "format": "v2"}, "group_size is 5, expected a positive divisor of dim"),
        ({"dtype": "float16"}, "format v0 holds float32, not float16; choose another dtype, or "
         "format hf or gguf"),
        ({"dtype": "int8", "format": "hf"}, "holds float32, float16, bfloat16, not int8.* v2 or g"),
        ({"dtype": "float32", "format": "v2"}, "format v2 holds int8, not float32"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_errors(change: dict[str, Any], message: str, model: Path) -> None:
    with pytest.raises(ParameterError, match=message):
        convert(model, model.parent / "out.bin", **change)
    assert names_in(model.parent) == ["model"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rope_theta": 500000.0}, "rope_theta is 500000"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06"),
        ({"rope_scaling": LLAMA3}, "rope_scaling is RopeScaling"),
        ({"head_size": 10}, "the head size is 10"),
    ],
)
def test_llama2c_files_lack_some_parameters(
    change: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """The other formats hold them, and the model stays the same."""
    source = make(tmp_path / "model", replace(TINY, **change))
    for format in ("v0", "v1", "v2"):
        with pytest.raises(CheckpointError, match=rf"out: a llama2\.c .* {name}.* gguf or hf$"):
            convert(source, tmp_path / "out", format=format)
    assert names_in(tmp_path) == ["model"]
    convert(source, tmp_path / "out.gguf")
    convert(tmp_path / "out.gguf", tmp_path / "again")
    with open_checkpoint(source) as first, open_checkpoint(tmp_path / "again") as last:
        assert last.config == first.config
    with llama2py.load(source) as first, llama2py.load(tmp_path / "out.gguf") as last:
        tokens = [m.generate("abc", temperature=1.0, seed=5).tokens for m in (first, last)]
        assert tokens[0] == tokens[1]


def test_conversion_keeps_linear_scaling(tmp_path: Path) -> None:
    config = replace(TINY, rope_scaling=RopeScaling("linear", 2.5))
    source = make(tmp_path / "model", config)
    convert(source, tmp_path / "out.gguf")
    convert(tmp_path / "out.gguf", tmp_path / "again")
    for path in (tmp_path / "out.gguf", tmp_path / "again"):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.config == config


def test_factors_per_frequency_are_written_as_long_rope(tmp_path: Path) -> None:
    config = replace(TINY, rope_scaling=RopeScaling("factors", factors=(1.0, 1.5, 4.0)))
    write_gguf(tmp_path / "a.gguf", in_memory(config, dict(random_checkpoint(TINY).tensors)),
               "float32", {})  # fmt: skip
    convert(tmp_path / "a.gguf", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "b.gguf")
    with open_checkpoint(tmp_path / "b.gguf") as checkpoint:
        assert checkpoint.config == config


def test_a_modern_model_survives_gguf(test_data: Path, tmp_path: Path) -> None:
    """bfloat16, an unusual head size, llama3 scaling: to GGUF and back, every bit the same."""
    source = test_data / "data/formats/modern-hf"
    convert(source, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "hf")
    with open_checkpoint(source) as first, open_checkpoint(tmp_path / "hf") as last:
        assert last.config == first.config
        assert last.dtype == first.dtype == "bfloat16"
        for name, layers in first.tensors.items():
            for a, b in zip(layers, last.tensors[name], strict=True):
                np.testing.assert_array_equal(a.dequantize(), b.dequantize())
        with open_checkpoint(tmp_path / "m.gguf") as middle:
            assert middle.dtype == "bfloat16"


# ---- Hugging Face directories ----


def test_large_models_are_written_in_shards(model: Path, tmp_path: Path) -> None:
    sizes = []
    checkpoint = open_checkpoint(model)
    limit = max(t.nbytes for layers in checkpoint.tensors.values() for t in layers)
    convert(model, tmp_path / "out", shard_size=limit)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text("utf-8"))
    names = sorted(set(index["weight_map"].values()))
    count = len(names)
    assert names == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert count > 3
    for name in names:
        data = (tmp_path / "out" / name).read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        assert begin % 8 == 0
        sizes.append(len(data) - begin)
        held = set(json.loads(data[8:begin])) - {"__metadata__"}
        assert held == {n for n, file in index["weight_map"].items() if file == name}
    assert max(sizes) <= limit
    assert sum(sizes) == index["metadata"]["total_size"] == 4 * TINY.n_params
    with checkpoint, open_checkpoint(tmp_path / "out") as ours:
        assert ours.format == f"Hugging Face (safetensors, {count} files)"
        for name, layers in checkpoint.tensors.items():
            for a, b in zip(layers, ours.tensors[name], strict=True):
                np.testing.assert_array_equal(a.dequantize(), b.dequantize())


def test_a_directorys_own_tokenizer_files_are_copied(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "data/formats/stories260K-hf"
    out = convert(source, tmp_path / "out", dtype="float16")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    about = json.loads((out / "config.json").read_text("utf-8"))
    wanted = json.loads((source / "config.json").read_text("utf-8"))
    assert about["torch_dtype"] == "float16"
    same = set(about) & set(wanted)
    assert {name: about[name] for name in same} == {name: wanted[name] for name in same}
    assert len(same) > 18


# ---- vocabularies ----


def test_the_vocabulary_is_written_with_the_model(model: Path, tmp_path: Path) -> None:
    for name in ("a.bin", "a.gguf", "a"):
        convert(model, tmp_path / name)
    assert load_tokenizer(tmp_path / "a.tokenizer.bin", 300).encode("ab") == [1, 286, 261]
    for name in ("a.bin", "a.gguf", "a"):
        with llama2py.load(tmp_path / name) as loaded:
            for text in ("ab", " nab", "x<s>\u00e9"):
                assert loaded.tokenizer.encode(text) == tiny_tokenizer().encode(text)


def lacking_vocabulary(folder: Path) -> Path:
    """Write a GGUF vocabulary like SmolLM2's: bytes are missing, and there is no unknown token."""
    pieces = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS[0x20:0x7F], "Ġa", "é", "ab"]
    tokens = [*pieces, *(f"<|{i}|>" for i in range(300 - len(pieces)))]
    values: dict[str, Any] = {
        "model": b"gpt2",
        "pre": b"smollm",
        "tokens": [token.encode() for token in tokens],
        "token_type": [3 if token[:2] == "<|" else 1 for token in tokens],
        "merges": ["Ġ a".encode(), b"a b"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": False,
    }
    path = folder / "vocabulary.gguf"
    path.write_bytes(_head({f"tokenizer.ggml.{name}": value for name, value in values.items()}, []))
    return path


def test_a_vocabulary_that_lacks_bytes_survives_every_format(model: Path, tmp_path: Path) -> None:
    vocabulary = lacking_vocabulary(tmp_path)
    ours = load_tokenizer(vocabulary)
    convert(model, tmp_path / "a.gguf", tokenizer=vocabulary)
    convert(tmp_path / "a.gguf", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "b.gguf")
    (tmp_path / "exported").mkdir()
    export_tokenizer(tmp_path / "a.gguf", tmp_path / "exported" / "tokenizer.json")
    text = "<|im_start|>ab a\x04 é\n<|im_end|>"
    wanted = ours.encode(text, special=True)
    assert (wanted[0], wanted[-1]) == (1, 2)
    for path in (tmp_path / "a.gguf", tmp_path / "hf", tmp_path / "b.gguf", tmp_path / "exported"):
        found = load_tokenizer(path / "tokenizer.json" if path.is_dir() else path)
        assert (found.bos_id, found.eos_id, found.adds_bos) == (1, 2, False)
        assert found.encode(text, special=True) == wanted
        assert "the vocabulary lacks" in found.notes[0]
    assert names_in(tmp_path / "exported") == ["tokenizer.json", "tokenizer_config.json"]
    with llama2py.load(tmp_path / "hf") as loaded:
        assert loaded.generate("ab a", seed=1, max_tokens=3).tokens


@pytest.mark.parametrize("name", ["out.gguf", "out"])
def test_an_output_that_would_not_load_is_not_written(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = "gguf_pairs" if name.endswith("gguf") else "tokenizer_config"
    make: Any = gguf_pairs if name.endswith("gguf") else tokenizer_config

    def other(tokenizer: Any, *rest: Any) -> Any:
        changed = copy.copy(tokenizer)
        changed.eos_id = 7
        return make(changed, *rest)

    monkeypatch.setattr(f"llama2py.conversion.{made}", other)
    monkeypatch.setattr("llama2py.conversion._end_tokens", lambda task: [])
    with pytest.raises(TokenizerError) as caught:
        convert(model, tmp_path / name)
    assert str(caught.value) == (
        f"{tmp_path / name}: the output would not load: {tmp_path / name}: its vocabulary has"
        " another BOS or EOS"
    )
    assert names_in(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("name", "tokenizer", "warned"),
    [("out.gguf", None, True), ("out.bin", False, True), ("out.bin", None, False)],
)
def test_an_older_vocabulary_that_load_would_use_is_a_warning(
    name: str,
    tokenizer: Any,
    warned: bool,
    model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    convert(model, tmp_path / name, tokenizer=tokenizer)
    assert caplog.messages == []
    write_tokenizer_bin(tiny_tokenizer(), tmp_path / "out.tokenizer.bin")
    convert(model, tmp_path / name, tokenizer=tokenizer)
    assert ["out.tokenizer.bin already exists" in message for message in caplog.messages] == (
        [True] if warned else []
    )
    caplog.clear()
    convert(model, tmp_path / "out.bin")
    convert(tmp_path / "out.bin", tmp_path / "out.gguf")  # the same vocabulary
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["out.gguf", "out"])
def test_half_a_character_in_a_chat_template_is_replaced(
    name: str, model: Path, tmp_path: Path
) -> None:
    """JSON can express it, UTF-8 cannot."""
    (model / "tokenizer_config.json").write_text('{"chat_template": "[INST] \\ud800 <<SYS>>"}')
    with open_checkpoint(convert(model, tmp_path / name)) as checkpoint:
        assert checkpoint.chat_template == "[INST] ? <<SYS>>"


@pytest.mark.parametrize("tokenizer", [None, False])
@pytest.mark.parametrize("ways", [("gguf",), ("hf",), ("gguf", "hf"), ("hf", "gguf")])
def test_the_end_tokens_are_written_with_the_model(
    ways: tuple[Any, ...], tokenizer: Any, model: Path, tmp_path: Path
) -> None:
    """As in Llama 3.1, where an answer and a text end with different tokens."""
    about = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**about, "eos_token_id": [2, 9, 7]}))
    path = model
    for i, format in enumerate(ways):
        path = convert(path, tmp_path / f"{i}{format}", format, tokenizer=tokenizer)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.conventions.end_tokens == {2, 7, 9}
    if format == "hf":
        ends = json.loads((path / "generation_config.json").read_text())["eos_token_id"]
        assert ends == [2, 7, 9]


def test_a_model_may_be_written_without_a_vocabulary(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.bin", "a.gguf", "a"):
        convert(model, tmp_path / name, tokenizer=False)
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert checkpoint.tokenizer_path is None
    assert not (tmp_path / "a.tokenizer.bin").exists()
    assert not caplog.records
    convert(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert "a.gguf: the model has no tokenizer; the output has none either" in caplog.text
    convert(tmp_path / "a.gguf", tmp_path / "c.gguf", tokenizer=model / "tokenizer.bin")
    with llama2py.load(tmp_path / "c.gguf") as loaded:
        assert len(loaded.tokenizer) == 300


def test_a_vocabulary_that_a_format_cannot_hold_is_an_error(model: Path, tmp_path: Path) -> None:
    """It is raised before anything is written."""
    tiny = tiny_tokenizer()
    pieces = [tiny.piece(i) for i in range(299)] + [b"<|end|>"]
    specials = Specials(control={"<|end|>": 299})
    special = llama2py.Tokenizer(pieces, [-float(i) for i in range(300)], specials, 299)
    json_file = tmp_path / "tokenizer.json"
    json_file.write_bytes(tokenizer_json(special))
    message = r"out\.tokenizer\.bin: a tokenizer\.bin cannot hold .* \(--no-tokenizer, to"
    with pytest.raises(TokenizerError, match=message):
        convert(model, tmp_path / "out.bin", tokenizer=json_file)
    assert names_in(tmp_path) == ["model", "tokenizer.json"]


def test_gguf_cannot_express_the_spaces_of_newer_transformers(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They add one only at the beginning of a text, and not before a space: a warning says so."""
    tiny, path = tiny_tokenizer(), model / "tokenizer.json"
    path.write_bytes(tokenizer_json(tiny))
    merges = load_tokenizer(path)
    assert isinstance(merges, MergeTokenizer)
    pieces = [merges.piece(i).decode() for i in range(295)] + ["<|end|>"]
    kind, specials = Characters("first", prefix_once=True), Specials(control={"<|end|>": 295})
    made = [pair for pair in merges.merges if "".join(pair) in pieces]
    newer = MergeTokenizer(pieces, made, kind, 1, 2, specials, 0)
    path.write_bytes(tokenizer_json(newer))
    (model / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    (model / "tokenizer.bin").unlink()
    (model / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    convert(model, tmp_path / "out.gguf")
    changes = [message.partition(": this format puts a space ")[2] for message in caplog.messages]
    assert [change[:6] for change in changes] == ["after ", "before"]
    written = load_tokenizer(tmp_path / "out.gguf", 300)
    assert (written.specials.control, written.adds_bos) == (specials.control, False)
    for text in ("ab nab", "x<s>\u00e9", " ab", "  "):
        assert (written.encode(text) == newer.encode(text, bos=False)) == (text[:1] != " ")


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_spaces_after_symbols_differ_from_sentencepiece(
    name: str, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """sentencepiece adds no space after a symbol of a tokenizer.model: a warning says so."""
    tiny = tiny_tokenizer()
    pieces = [tiny.piece(i) for i in range(299)] + [b"MARK"]
    symbols = llama2py.Tokenizer(pieces, [-float(i) for i in range(300)], Specials({"MARK": 299}))
    file = tmp_path / "tokenizer.model"
    file.write_bytes(sentencepiece_model(symbols))
    convert(model, tmp_path / name, tokenizer=file)
    change = "this format puts a space after special tokens in a text, the source puts none"
    assert caplog.messages == [f"{tmp_path / name}: {change}"]
    export_tokenizer(file, tmp_path / "out.json")
    assert [message.split(": ")[1] for message in caplog.messages] == [change] * 2


@pytest.mark.parametrize("change", [None, "piece", "special"])
def test_scores_come_from_the_tokenizer_model_in_the_same_folder(
    change: str | None, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the vocabulary is the same and no special token is lost, a tokenizer.bin gets them."""
    tiny, path = tiny_tokenizer(), model / "tokenizer.json"
    path.write_bytes(tokenizer_json(tiny))
    merges = load_tokenizer(path)
    assert isinstance(merges, MergeTokenizer)
    texts = [merges.piece(i).decode() for i in range(300)]
    specials = Specials(control={texts[299]: 299}) if change == "special" else None
    kind = Characters("first", prefix_once=True)
    made = [pair for pair in merges.merges if not specials or texts[299] not in "".join(pair)]
    path.write_bytes(tokenizer_json(MergeTokenizer(texts, made, kind, 1, 2, specials, 0)))
    (model / "tokenizer.bin").unlink()
    raw = [tiny.piece(i) for i in range(300)]
    raw[298] += b"x" if change == "piece" else b""
    other = llama2py.Tokenizer(raw, [tiny.score(i) for i in range(300)])
    (model / "tokenizer.model").write_bytes(sentencepiece_model(other))
    if change:
        with pytest.raises(TokenizerError, match="does not put a space before every text"):
            convert(model, tmp_path / "out.bin")
        return
    convert(model, tmp_path / "out.bin")
    written = load_tokenizer(tmp_path / "out.tokenizer.bin")
    assert [written.score(i) for i in range(300)] == [tiny.score(i) for i in range(300)]
    (message,) = caplog.messages
    assert ": this format puts a space before a text that begins with one" in message


# ---- side files ----


@pytest.fixture
def with_json(model: Path) -> Path:
    """Make a directory with a tokenizer.json, so that its own files are copied."""
    (model / "tokenizer.bin").unlink()
    (model / "tokenizer.json").write_bytes(tokenizer_json(tiny_tokenizer()))
    return model


SIDE_FILES = ("special_tokens_map.json", "added_tokens.json", "tokenizer.model", "tokenizer.json")


@pytest.mark.parametrize("name", SIDE_FILES)
def test_a_side_file_that_leads_out_of_the_directory_is_not_copied(
    name: str, with_json: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"{}" if name == "added_tokens.json" else tokenizer_json(tiny_tokenizer()))
    (with_json / name).unlink(missing_ok=True)
    (with_json / name).symlink_to(outside)
    with pytest.raises(TokenizerError, match=rf"{name} is a link to .*/outside, outside the dir"):
        convert(with_json, tmp_path / "out")
    assert names_in(tmp_path) == ["model", "outside"]
    convert(with_json, tmp_path / "out", tokenizer=False)
    assert names_in(tmp_path / "out") == ["config.json", "generation_config.json",
                                          "model.safetensors"]  # fmt: skip


def test_a_link_inside_the_directory_is_followed(with_json: Path, tmp_path: Path) -> None:
    (with_json / "map").write_text("{}")
    (with_json / "special_tokens_map.json").symlink_to("map")
    out = convert(with_json, tmp_path / "out")
    assert (out / "special_tokens_map.json").read_text() == "{}"
    assert not (out / "special_tokens_map.json").is_symlink()


@pytest.mark.parametrize("shared", [False, True])
def test_the_links_of_the_hubs_cache_are_followed(
    shared: bool, with_json: Path, tmp_path: Path
) -> None:
    """The files of a snapshot are links to blobs, which may be links to a store of all models."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--a--b" / "snapshots" / ("0" * 40)
    blobs = cache / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in with_json.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    if shared:
        store = cache / "blobs" / "ab"
        store.mkdir(parents=True)
        (blobs / "tokenizer.json").rename(store / "x")
        (blobs / "tokenizer.json").symlink_to("../../blobs/ab/x")
    data = (snapshot / "tokenizer.json").read_bytes()
    out = convert(snapshot, tmp_path / "out")
    assert (out / "tokenizer.json").read_bytes() == data


def test_a_huge_side_file_is_not_read(with_json: Path, tmp_path: Path) -> None:
    with open(with_json / "added_tokens.json", "wb") as file:
        file.truncate(3 << 29)  # sparse: it takes no space
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError, match=r"added_tokens\.json: 1610612736 bytes, expected"):
            convert(with_json, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert names_in(tmp_path) == ["model"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1 "b": 2}', "root:x:0:0", "[" * 9999])
def test_a_side_file_must_be_json(text: str, with_json: Path, tmp_path: Path) -> None:
    (with_json / "special_tokens_map.json").write_text(text)
    with pytest.raises(TokenizerError, match=r"/special_tokens_map\.json: (this|the) "):
        convert(with_json, tmp_path / "out")
    assert names_in(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer.model"])
def test_a_pipe_among_the_side_files_is_refused(name: str, with_json: Path, tmp_path: Path) -> None:
    os.mkfifo(with_json / name)
    with pytest.raises(TokenizerError, match=rf"{name} is not a regular file"):
        convert(with_json, tmp_path / "out")


# ---- names ----


@pytest.mark.parametrize("format", ["v0", "v1", "v2"])
def test_all_names_are_checked_before_the_model_is_written(
    format: Any, model: Path, tmp_path: Path
) -> None:
    """The name of the model fits into 255 bytes, that of its vocabulary does not."""
    name = "a" * 246 + ".bin"
    message = r"a\.tokenizer\.bin: cannot be written \(File name too long\); choose a shorter one"
    with pytest.raises(CheckpointError, match=message):
        convert(model, tmp_path / name, format)
    assert names_in(tmp_path) == ["model"]
    convert(model, tmp_path / name, format, tokenizer=False)
    assert names_in(tmp_path) == [name, "model"]


# ---- the command ----


def test_the_convert_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.gguf"
    assert main(["convert", str(model), "-o", str(out), "--dtype", "float16"]) == 0
    assert capsys.readouterr().err == f"{out}: {out.stat().st_size / 1e6:.1f} MB\n"
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.dtype == "float16"
    folder = tmp_path / "b"
    assert main(["convert", str(out), "-o", str(folder), "--no-tokenizer"]) == 0
    assert names_in(folder) == ["config.json", "generation_config.json", "model.safetensors"]
    small = tmp_path / "c"
    line = ["convert", str(out), "-o", str(small), "--format", "v2", "--group-size", "8"]
    assert main([*line, "-z", str(model / "tokenizer.bin")]) == 0
    with open_checkpoint(small) as checkpoint:
        assert (checkpoint.format, checkpoint.group_size) == ("llama2.c v2 (int8)", 8)
    assert (tmp_path / "c.tokenizer.bin").is_file()
    capsys.readouterr()
    assert main(["convert", str(out), "-o", str(small), "--format", "v0", "--dtype", "int8"]) == 1
    assert capsys.readouterr().err.startswith("llama2py: format v0 holds float32, not int8; ")

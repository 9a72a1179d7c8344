"""The package from outside: its names, how loading fails, and which module may import which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, random_checkpoint, tiny_tokenizer

import llama2py
from llama2py import CheckpointError, Llama2pyError, ParameterError, TokenizerError
from llama2py.checkpoint import write_checkpoint
from llama2py.tokenizer_files import write_tokenizer_bin

PACKAGE = Path(llama2py.__file__).parent
CPUINFO = Path("/proc/cpuinfo")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = random_checkpoint(TINY)
    write_checkpoint(folder / "tiny.bin", TINY, dict(checkpoint.tensors))
    write_tokenizer_bin(tiny_tokenizer(), folder / "vocabulary.bin")
    return folder / "tiny.bin", folder / "vocabulary.bin"


# ---- names ----


def test_public_names() -> None:
    assert sorted(llama2py.__all__) == llama2py.__all__
    for name in llama2py.__all__:
        assert getattr(llama2py, name).__doc__, name
    assert re.fullmatch(r"\d+\.\d+\.\d+", llama2py.__version__)
    assert (PACKAGE / "py.typed").is_file()


def test_every_error_is_ours() -> None:
    errors = [value for value in vars(llama2py.errors).values() if isinstance(value, type)]
    assert len(errors) > 5
    for error in errors:
        assert issubclass(error, Llama2pyError)
        assert error.__name__ in llama2py.__all__
    assert issubclass(ParameterError, ValueError)


# ---- loading ----


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_load(files: tuple[Path, Path], backend: Any) -> None:
    """Text and str paths alike; the file may go once the model is loaded."""
    with llama2py.load(*files, backend=backend) as model:
        assert model.config == TINY
        assert model.tokenizer.vocab_size == 300
        assert model.backend.dtype == "float32"
        assert model.backend.non_finite == 0
        text = model.generate("abc", seed=1).text
        assert "float32" in repr(model)
    again = llama2py.load(str(files[0]), tokenizer=str(files[1]), backend=backend)
    assert again.generate("abc", seed=1).text == text


def test_threads(files: tuple[Path, Path]) -> None:
    assert llama2py.load(*files, threads=3).backend.threads == 3
    assert llama2py.load(*files).backend.threads >= 1


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_is_an_error(files: tuple[Path, Path], threads: int) -> None:
    with pytest.raises(ParameterError, match=f"threads is {threads}, expected"):
        llama2py.load(*files, threads=threads)


def test_an_unknown_backend_is_an_error(files: tuple[Path, Path]) -> None:
    with pytest.raises(ParameterError, match="backend is 'x', expected 'c' or 'numpy'"):
        llama2py.load(*files, backend="x")  # type: ignore[arg-type]


def test_missing_files_are_errors(files: tuple[Path, Path], tmp_path: Path) -> None:
    missing = tmp_path / "missing.bin"
    with pytest.raises(CheckpointError, match=r"missing\.bin"):
        llama2py.load(missing)
    with pytest.raises(TokenizerError, match=r"missing\.bin"):
        llama2py.load(files[0], missing)


def test_another_models_tokenizer_is_an_error(files: tuple[Path, Path]) -> None:
    """The bundled one has 32000 tokens."""
    with pytest.raises(TokenizerError, match=r"(?s)32000.*300|300.*32000"):
        llama2py.load(files[0])


def test_weights_that_are_no_numbers_are_told(
    tmp_path: Path, files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = random_checkpoint(TINY)
    for tensor in (checkpoint.tensors["wq"][0], checkpoint.tensors["rms_ffn_weight"][1]):
        tensor.dequantize().flat[3] = np.nan
    write_checkpoint(tmp_path / "nan.bin", TINY, dict(checkpoint.tensors))
    for backend in ("c", "numpy"):
        caplog.clear()
        model = llama2py.load(tmp_path / "nan.bin", files[1], backend=backend)
        assert model.backend.non_finite == 2
        assert "nan.bin: 2 weights are NaN or infinite" in caplog.text


# ---- the import graph ----


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name within it: 'model', 'checkpoint.base'."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__") or "__init__"] = ast.parse(path.read_text("utf-8"))
    return found


def imports(name: str, tree: ast.Module, known: set[str]) -> Iterator[str]:
    """The package's own modules that one imports, wherever in the file it does so."""
    is_package = any(other.startswith(f"{name}.") for other in known) or name == "__init__"
    parts = [] if name == "__init__" else name.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bases = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - (1 if is_package else 0)
                base = ".".join(["llama2py", *parts[: len(parts) - up], *filter(None, [base])])
            bases = [(base, alias.name) for alias in node.names]
        else:
            continue
        for base, item in bases:
            if base.split(".")[0] == "llama2py":
                inside = base.removeprefix("llama2py").removeprefix(".")
                full = ".".join(filter(None, [inside, item]))
                yield full if full in known | {"_engine"} else inside or "__init__"


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    trees = modules()
    return {name: set(imports(name, tree, set(trees))) for name, tree in trees.items()}


def test_the_graph_is_read_right(graph: dict[str, set[str]]) -> None:
    assert {"engine", "reference", "session", "checkpoint", "errors"} <= graph["model"]
    assert "config" in graph["checkpoint.base"]
    assert "checkpoint.base" in graph["checkpoint"]
    assert "model" in graph["__init__"]


def test_only_engine_imports_the_extension(graph: dict[str, set[str]]) -> None:
    assert [name for name, needs in graph.items() if "_engine" in needs] == ["engine", "isa"]
    users = {name.split(".")[0] for name, needs in graph.items() if "engine" in needs}
    assert users <= {"model", "bench", "cli"}


# The arrow of the design: file -> checkpoint -> model -> session -> sampler -> tokenizer -> text.
# What a module may import, itself and its own package apart.
BASE = {"closing", "errors", "config"}
MAY_IMPORT = {
    "errors": set[str](),
    "closing": set[str](),
    "amount": set[str](),
    "files": {"amount", "errors"},
    "hub": {"errors"},
    "rope": {"errors"},
    "config": {"errors", "rope"},
    "cpu": {"errors"},
    "backend": {"config"},
    "foreign": set[str](),
    "checkpoint": {*BASE, "files", "foreign", "gguf_metadata", "rope"},
    "bpe": {"errors"},
    "specials": set[str](),
    "tokenizer": {"bpe", "errors", "specials"},
    "tokenizer_files": {
        "bpe",
        "errors",
        "files",
        "foreign",
        "sentencepiece_model",
        "tokenizer",
        "tokenizer_gguf",
        "tokenizer_json",
        "tokenizer_ranks",
    },
    "tokenizer_ranks": {"errors", "merge_tokenizer", "pretokenize", "specials"},
    "tokenizer_scores": {
        "bpe",
        "errors",
        "merge_tokenizer",
        "sentencepiece_model",
        "specials",
        "tokenizer",
    },
    "tokenizer_output": {
        "bpe",
        "errors",
        "merge_tokenizer",
        "pretokenize",
        "sentencepiece_model",
        "tokenizer",
        "tokenizer_gguf",
        "tokenizer_scores",
    },
    "tokenizer_export": {
        "checkpoint",
        "errors",
        "files",
        "hub",
        "merge_tokenizer",
        "tokenizer",
        "tokenizer_files",
        "tokenizer_output",
        "tokenizer_scores",
    },
    "conversion": {
        *BASE,
        "checkpoint",
        "files",
        "hub",
        "model",
        "tokenizer",
        "tokenizer_export",
        "tokenizer_files",
        "tokenizer_output",
    },
    "sentencepiece_model": {"bpe", "errors", "specials", "tokenizer"},
    "pretokenize": set[str](),
    "merges": {"bpe"},
    "merge_tokenizer": {"errors", "merges", "pretokenize", "specials", "tokenizer"},
    "tokenizer_gguf": {
        "sentencepiece_model",
        "errors",
        "gguf_metadata",
        "merge_tokenizer",
        "pretokenize",
        "tokenizer",
    },
    "tokenizer_json": {"errors", "merge_tokenizer", "pretokenize", "specials"},
    "gguf_metadata": {"errors"},
    "adjusting": {"backend", "errors"},
    "sampling": {*BASE, "backend", "adjusting"},
    "saved_session": {*BASE, "backend", "files"},
    "session": {*BASE, "backend", "saved_session"},
    "templates": {"checkpoint", "errors", "tokenizer"},
    "prefixes": {"closing", "session"},
    "stopping": {"errors"},
    "logprobs": {"backend", "errors", "session"},
    "job": {"backend", "logprobs", "sampling", "session", "stopping", "tokenizer"},
    "generation": {*BASE, "job", "logprobs", "prefixes", "session", "tokenizer"},
    "request": {*BASE, "adjusting", "backend", "job", "sampling", "stopping"},
    "asking": {
        *BASE,
        "backend",
        "batch",
        "generation",
        "job",
        "logprobs",
        "prefixes",
        "progress",
        "request",
        "session",
        "tokenizer",
    },
    "memory": {"amount", "checkpoint", "config", "errors"},
    "isa": {"_engine", "config", "errors"},
    "engine": {*BASE, "_engine", "amount", "backend", "checkpoint", "cpu", "isa", "memory"},
    "reference_linear": {"checkpoint"},
    "reference": {*BASE, "backend", "checkpoint", "reference_linear", "rope", "sampling"},
    "builtin": {"errors"},
    "corpus": {"errors"},
    "words": set[str](),
    "tense": set[str](),
    "opening": {"tense", "words"},
    "guide": {"backend", "tokenizer", "words"},
    "session_many": {"backend", "session"},
    "batch": {*BASE, "job", "session", "session_many", "tokenizer"},
    "scoring": {*BASE, "logprobs", "model"},
    "chat": {*BASE, "generation", "job", "model", "prefixes", "sampling", "session", "templates"},
    "meta": {*BASE, "batch", "job", "logprobs", "model", "sampling", "templates"},
}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_follow_the_arrow(module: str, graph: dict[str, set[str]]) -> None:
    for name, needs in graph.items():
        if name.split(".")[0] == module:
            outside = {need.split(".")[0] for need in needs} - {module}
            assert outside <= MAY_IMPORT[module], name


def test_only_the_command_line_imports_the_trainer(graph: dict[str, set[str]]) -> None:
    users = {name for name, needs in graph.items() if any(n.startswith("training") for n in needs)}
    assert {name for name in users if not name.startswith("training")} == {
        "cli.train",
        "cli.train_tokenizer",
    }


def test_nothing_imports_the_command_line(graph: dict[str, set[str]]) -> None:
    for name, needs in graph.items():
        if not name.startswith("cli") and name != "__main__":
            assert not [need for need in needs if need.split(".")[0] == "cli"], name


def test_the_library_never_prints_nor_exits() -> None:
    """It raises and logs; the command line prints."""
    for name, tree in modules().items():
        if name.split(".")[0] in ("cli", "__main__"):
            continue
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="print" | "exit" | "quit" | "input" as function)):
                    pytest.fail(f"{name}, line {node.lineno}: {function}()")
                case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr" | "exit"):
                    pytest.fail(f"{name}, line {node.lineno}: sys.{node.attr}")


def test_a_program_that_tells_a_story_waits_for_nothing_else() -> None:
    """Readers of other formats, writers, the hub's half: each is loaded on use."""
    code = "import sys, llama2py; llama2py.load().generate(max_tokens=2); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    ours = {name.removeprefix("llama2py.") for name in done.stdout.split() if "llama2py." in name}
    assert {"engine", "checkpoint.llama2c", "tokenizer_files"} <= ours
    readers = {"gguf", "huggingface", "meta", "torch_file", "safetensors_file", "write_gguf"}
    assert ours.isdisjoint(f"checkpoint.{name}" for name in readers)
    others = {"chat", "conversion", "scoring", "story", "tokenizer_gguf", "tokenizer_json", "cli"}
    assert ours.isdisjoint(others)


def test_names_loaded_on_use_are_there() -> None:
    for name in llama2py.__all__:
        assert getattr(llama2py, name) is not None
        assert name in dir(llama2py)
    with pytest.raises(AttributeError, match="has no attribute 'Chatt'"):
        llama2py.Chatt  # type: ignore[attr-defined]  # noqa: B018

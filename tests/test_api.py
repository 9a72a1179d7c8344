"""The package from outside: its names, how loading fails, and which module may import which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2py
from llama2py import CheckpointError, Llama2pyError, ParameterError, TokenizerError
from llama2py.checkpoint import write_checkpoint
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from tests.conftest import TINY, random_checkpoint, tiny_tokenizer
from tests.test_layers import TREES

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


# ---- manners ----


def test_the_library_never_prints_nor_exits() -> None:
    """It raises and logs; the command line prints."""
    for name, tree in TREES.items():
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
    assert {"engine.native", "checkpoint.llama2c", "tokenizers.load"} <= ours
    readers = {"gguf", "huggingface", "meta", "torch"}
    assert ours.isdisjoint(f"checkpoint.{name}" for name in readers)
    others = {"chat", "conversion", "scoring", "stories", "tokenizers.gguf", "cli"}
    assert ours.isdisjoint({*others, "tokenizers.huggingface", "tokenizers.tiktoken"})


def test_names_loaded_on_use_are_there() -> None:
    for name in llama2py.__all__:
        assert getattr(llama2py, name) is not None
        assert name in dir(llama2py)
    with pytest.raises(AttributeError, match="has no attribute 'Chatt'"):
        llama2py.Chatt  # type: ignore[attr-defined]  # noqa: B018

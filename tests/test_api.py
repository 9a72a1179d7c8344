"""The package from outside: public names, loading and its errors, imports on first use."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import llama2py
from llama2py import CheckpointError, Llama2pyError, ParameterError, TokenizerError
from llama2py.checkpoint import write_checkpoint
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from tests.conftest import TINY, random_checkpoint, run_python, tiny_tokenizer
from tests.test_layers import PATHS, TREES

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


# Types for annotations, which have no docstring.
ALIASES = {"CacheDtype", "Dtype", "FinishReason", "Logits", "LogitsProcessor", "Overflow"}


def test_public_names_are_sorted_and_have_docstrings() -> None:
    assert sorted(llama2py.__all__) == llama2py.__all__
    for name in {*llama2py.__all__} - ALIASES:
        assert getattr(llama2py, name).__doc__, name
    assert (PACKAGE / "py.typed").is_file()


def test_types_for_annotations_are_public() -> None:
    assert {"Message", *ALIASES} <= {*llama2py.__all__}
    assert get_args(llama2py.Dtype) == ("float32", "bfloat16", "int8", "int4")
    assert get_args(llama2py.Overflow) == ("stop", "error", "shift")
    assert "length" in get_args(llama2py.FinishReason)
    assert llama2py.Message(role="user", content="Hi") == {"role": "user", "content": "Hi"}


def test_the_version_is_defined_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", llama2py.__version__)
    project = (PACKAGE.parent / "pyproject.toml").read_text("utf-8")
    assert llama2py.__version__ not in project
    assert 'attr = "llama2py.__version__"' in project
    # A literal, so that setuptools reads it without importing the package.
    assert f'\n__version__ = "{llama2py.__version__}"\n' in PATHS["__init__"].read_text("utf-8")


def test_every_error_is_public_and_a_llama2py_error() -> None:
    errors = [value for value in vars(llama2py.errors).values() if isinstance(value, type)]
    assert len(errors) > 5
    for error in errors:
        assert issubclass(error, Llama2pyError)
        assert error.__name__ in llama2py.__all__
    assert issubclass(ParameterError, ValueError)


# ---- loading ----


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_load_takes_str_and_path(files: tuple[Path, Path], backend: Any) -> None:
    with llama2py.load(*files, backend=backend) as model:
        assert model.config == TINY
        assert model.tokenizer.vocab_size == 300
        assert model.backend.dtype == "float32"
        assert model.backend.non_finite == 0
        text = model.generate("abc", seed=1).text
        assert "float32" in repr(model)
    again = llama2py.load(str(files[0]), tokenizer=str(files[1]), backend=backend)
    assert again.generate("abc", seed=1).text == text


def test_threads_are_a_parameter_of_load(files: tuple[Path, Path]) -> None:
    assert llama2py.load(*files, threads=3).backend.threads == 3
    assert llama2py.load(*files).backend.threads >= 1


@pytest.mark.parametrize("threads", [0, -1])
def test_less_than_one_thread_is_an_error(files: tuple[Path, Path], threads: int) -> None:
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


def test_load_warns_of_weights_that_are_nan(
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
    for name, tree in TREES.items():
        if name.split(".")[0] in ("cli", "__main__"):
            continue
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="print" | "exit" | "quit" | "input" as function)):
                    pytest.fail(f"{name}, line {node.lineno}: {function}()")
                case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr" | "exit"):
                    pytest.fail(f"{name}, line {node.lineno}: sys.{node.attr}")


def test_a_program_only_imports_what_it_uses() -> None:
    """Readers of other formats, writers, chat: each is imported on first use."""
    code = "import sys, llama2py; llama2py.load().generate(max_tokens=2); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    ours = {name.removeprefix("llama2py.") for name in done.stdout.split() if "llama2py." in name}
    assert {"engine.native", "checkpoint.llama2c", "tokenizers.load"} <= ours
    readers = {"gguf", "huggingface", "meta", "torch"}
    assert ours.isdisjoint(f"checkpoint.{name}" for name in readers)
    others = {"chat", "conversion", "generation.scoring", "stories", "tokenizers.gguf", "cli"}
    assert ours.isdisjoint({*others, "tokenizers.huggingface", "tokenizers.tiktoken"})


def test_every_public_name_is_listed_by_dir() -> None:
    for name in llama2py.__all__:
        assert getattr(llama2py, name) is not None
        assert name in dir(llama2py)
    with pytest.raises(AttributeError, match="has no attribute 'Chatt'"):
        llama2py.Chatt  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import llama2py` takes a millisecond; NumPy alone would take a hundred."""
    code = "import sys; old = {*sys.modules}; import llama2py; print(*{*sys.modules} - old)"
    done = run_python("-c", code)
    assert done.stdout.split() == ["llama2py"]


def test_errors_are_an_attribute_of_the_package() -> None:
    done = run_python("-c", "import llama2py; print(llama2py.errors.ConfigError.__name__)")
    assert done.stdout == "ConfigError\n"

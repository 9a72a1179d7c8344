"""Shared by the tests: recorded outputs, their models, and random models."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import llama2py
from llama2py import Model, ModelConfig
from llama2py.checkpoint import (
    Checkpoint,
    DenseTensor,
    Tensor,
    open_checkpoint,
    quantize,
    tensor_shapes,
    write_checkpoint,
    write_llama2c,
)
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from llama2py.tokenizers.llama2c import write_tokenizer_bin
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.support.fake_hub import TINYLLAMAS, FakeHub, serve

ROOT = Path(__file__).resolve().parent.parent


def find_test_data() -> Path | None:
    """The folder with ``golden/`` and ``data/``: ``LLAMA2PY_TEST_DATA``, or ``../shared``."""
    named = os.environ.get("LLAMA2PY_TEST_DATA")
    for folder in [Path(named)] if named else [ROOT.parent / "shared"]:
        if (folder / "golden").is_dir():
            return folder
    return None


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The recorded outputs; tests that need them skip where they are absent."""
    folder = find_test_data()
    if folder is None:
        pytest.skip("no recorded outputs here: set LLAMA2PY_TEST_DATA to their folder")
    return folder


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint and the tokenizer.bin that belongs to it (None: the bundled one)."""

    checkpoint: Path
    tokenizer: Path | None


@pytest.fixture(scope="session")
def model_files(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFiles]:
    """The models of the recorded outputs, by their recorded names."""
    folder, data = tmp_path_factory.mktemp("models"), test_data / "data"
    big, big_q80 = folder / "15M.bin", folder / "15M_q80.bin"
    tool = test_data / "tools" / "make_checkpoint.py"
    subprocess.run([sys.executable, tool, "15M", big], check=True, timeout=60)
    with open_checkpoint(big) as checkpoint:
        write_llama2c(big_q80, checkpoint, version=2, group_size=32)
    return {
        "stories260K": ModelFiles(data / "stories260K.bin", data / "tok512.bin"),
        "stories260K_q80": ModelFiles(data / "stories260K_q80.bin", data / "tok512.bin"),
        "15M": ModelFiles(big, None),
        "15M_q80": ModelFiles(big_q80, None),
    }


def random_checkpoint(
    config: ModelConfig, group_size: int | None = None, seed: int = 0
) -> Checkpoint:
    """A model in memory with random weights, of such a size that each one affects the logits."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, tuple[Tensor, ...]] = {}
    for name, (count, shape) in tensor_shapes(config).items():
        layers: list[Tensor] = []
        for _ in range(count):
            values = rng.standard_normal(shape, np.float32)
            if len(shape) == 1:
                layers.append(DenseTensor((1 + values / 4).astype(np.float32)))
                continue
            if name != "token_embedding_table":
                values /= np.sqrt(np.float32(shape[1]))
            layers.append(quantize(values, group_size) if group_size else DenseTensor(values))
        tensors[name] = tuple(layers)
    return in_memory(config, tensors, group_size)


def in_memory(
    config: ModelConfig, tensors: dict[str, tuple[Tensor, ...]], group_size: int | None = None
) -> Checkpoint:
    """A checkpoint without a file."""
    return Checkpoint(Path("in-memory"), "made in a test", config, tensors, (), group_size)


def tiny_tokenizer(vocab_size: int = 300) -> Tokenizer:
    """A vocabulary of 300 tokens or more: bytes, a space, small letters, and pieces of two."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [b" ", *(bytes([letter]) for letter in range(ord("a"), ord("z") + 1))]
    pieces += [b" " + bytes([letter]) for letter in range(ord("a"), ord("n") + 1)]
    assert len(pieces) == TINY.vocab_size
    pieces += [b"#%d" % n for n in range(len(pieces), vocab_size)]
    return Tokenizer(pieces, [-float(token) for token in range(len(pieces))])


# Of the tokenizer above: grouped-query attention, and sizes that fill no block of 16 evenly. With a
# classifier of its own random weights leave many tokens probable: stories differ.
TINY = ModelConfig(
    dim=24,
    hidden_dim=44,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=300,
    seq_len=64,
    shared_classifier=False,
)


def tiny_model(backend: Literal["c", "numpy"] = "c", threads: int | None = None) -> Model:
    """A model of random weights that needs no file."""
    checkpoint = random_checkpoint(TINY)
    weights = Engine(checkpoint, threads) if backend == "c" else Reference(checkpoint)
    return Model(weights, tiny_tokenizer())


@pytest.fixture(scope="session")
def hub_contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of karpathy/tinyllamas, with tiny models."""
    folder, config = tmp_path_factory.mktemp("hub"), replace(TINY, vocab_size=512)
    write_checkpoint(folder / "model.bin", config, dict(random_checkpoint(config).tensors))
    write_tokenizer_bin(tiny_tokenizer(512), folder / "tok.bin")
    model = (folder / "model.bin").read_bytes()
    return {
        "README.md": b"# tiny",
        "stories15M.bin": model,
        "stories260K/stories260K.bin": model,
        "stories260K/tok512.bin": (folder / "tok.bin").read_bytes(),
    }


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub's, and a working directory without models."""
    for name in ("HF_HOME", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "cache"


@pytest.fixture
def hub(
    hub_cache: Path, hub_contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """Run a server that has karpathy/tinyllamas."""
    pytest.importorskip("huggingface_hub", reason="needs llama2py[hub]")
    # Its handler writes to the standard error of the test that imported it.
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [logging.NullHandler()])
    hub = FakeHub({TINYLLAMAS: dict(hub_contents)})
    with serve(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield hub


@pytest.fixture(scope="session")
def story(test_data: Path) -> list[str]:
    """The arguments of the command line that run the real 260K model."""
    data = test_data / "data"
    return ["run", str(data / "stories260K.bin"), "-z", str(data / "tok512.bin")]


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    """Run another interpreter, which imports the same llama2py and these tests."""
    places = [str(Path(llama2py.__file__).parents[1]), str(ROOT)]
    return subprocess.run(
        [sys.executable, *args],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

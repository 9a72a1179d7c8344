"""A file that shrinks while it is in use is an error of one sentence, not the end of the process.

Each case runs in a process of its own: where a file is mapped, the system kills it (SIGBUS).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llama2py.checkpoint import write_llama2c
from tests.conftest import ROOT, TINY, random_checkpoint
from tests.support import gguf_files
from tests.support.foreign_files import CONFIG, huggingface

PROGRAM = """
import os, sys
from llama2py import CheckpointError
from llama2py.checkpoint import open_checkpoint
from llama2py.conversion import convert
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference

path, weights = sys.argv[1:]
with open(weights, "rb") as file:
    content = file.read()

def shrink(*_):
    os.truncate(weights, 64)

def use(kind):
    if kind == "load":
        with open_checkpoint(path) as checkpoint:
            Engine(checkpoint, progress=shrink)
    elif kind.startswith("convert"):
        output = os.path.dirname(weights) + "/out" + kind[7:]
        convert(path, output, tokenizer=False, progress=shrink)
    else:
        with open_checkpoint(path) as checkpoint:
            shrink()
            if kind == "reference":
                Reference(checkpoint)
            for layers in checkpoint.tensors.values():
                for tensor in layers:
                    tensor.dequantize().sum()

for kind in ("open", "reference", "load", "convert.bin", "convert.gguf", "convert"):
    with open(weights, "wb") as file:
        file.write(content)
    try:
        use(kind)
        print(kind, "raised nothing")
    except CheckpointError as error:
        print(error)
"""


def make(folder: Path, format: str) -> tuple[Path, Path]:
    """Write a tiny model; return the path to open and the file that has its weights."""
    if format in ("v0", "v2"):
        path = folder / "tiny.bin"
        write_llama2c(path, random_checkpoint(TINY), int(format[1]), 8 if format == "v2" else None)
        return path, path
    if format == "gguf":
        path = folder / "tiny.gguf"
        path.write_bytes(gguf_files.float_file())
        return path, path
    weights = huggingface(folder / "model", format, "<f2")
    (weights.parent / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": 1e-5}))
    return weights.parent, weights


@pytest.mark.parametrize("format", ["v0", "v2", "gguf", "safetensors", "torch"])
def test_a_file_that_shrinks_is_an_error(format: str, tmp_path: Path) -> None:
    """Between opening and reading, while it is loaded, and while it is converted."""
    path, weights = make(tmp_path, format)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(weights)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert (found.returncode, found.stderr) == (0, "")
    messages = found.stdout.splitlines()
    assert len(messages) == 6
    for message in messages:
        assert message.startswith(f"{weights}: the file is shorter than the ")
        assert message.endswith(" when it was opened: another program changed it")
    left = {file.name for file in weights.parent.iterdir()}
    assert not any(name.endswith(".tmp") or name.startswith("out") for name in left)


def test_a_file_that_shrinks_while_it_is_opened_is_an_error(tmp_path: Path) -> None:
    """Its headers are read after its size."""
    _, weights = make(tmp_path, "safetensors")
    header = json.dumps({"__metadata__": {}}).encode().ljust(4096)
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    program = (
        "import os, sys, llama2py.formats.input_file as f\n"
        "from llama2py.checkpoint import open_checkpoint\n"
        "read = f.InputFile.read_into\n"
        "def shrink(file, offset, out):\n"
        "    os.truncate(file.path, 16)\n"
        "    read(file, offset, out)\n"
        "f.InputFile.read_into = shrink\n"
        "try: open_checkpoint(sys.argv[1])\n"
        "except f.CheckpointError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(weights)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert found.returncode == 0
    assert found.stdout.count("safetensors: ") == 1
    assert "the file is shorter than the 4104 bytes" in found.stdout

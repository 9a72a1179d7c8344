"""Rows that the engine reads from a file while it packs them give the bits of rows in memory."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from llama2py.checkpoint import (
    Checkpoint,
    DenseTensor,
    QuantizedTensor,
    Tensor,
    open_checkpoint,
    write_llama2c,
)
from llama2py.config import Dtype
from llama2py.engine.native import Engine
from tests.conftest import TINY, random_checkpoint
from tests.support.foreign_files import huggingface


def in_memory(checkpoint: Checkpoint) -> Checkpoint:
    """Read all tensors."""

    def read(tensor: Tensor) -> Tensor:
        if isinstance(tensor, QuantizedTensor):
            return QuantizedTensor(*tensor.parts(), tensor.group_size)
        return DenseTensor(tensor.dequantize())

    tensors = {name: tuple(map(read, layers)) for name, layers in checkpoint.tensors.items()}
    config, group_size = checkpoint.config, checkpoint.group_size
    return Checkpoint(Path("memory"), "in memory", config, tensors, (), group_size)


@pytest.mark.parametrize("dtype", get_args(Dtype))
@pytest.mark.parametrize("version", [0, 2])
def test_rows_of_a_file_pack_as_rows_in_memory(version: int, dtype: Dtype, tmp_path: Path) -> None:
    """hidden_dim 44 is not a multiple of the group size 8: a group reaches into the next row."""
    path = tmp_path / "tiny.bin"
    write_llama2c(path, random_checkpoint(TINY), version, 8 if version else None)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["w2"][1].rows_in_file is not None
        want = Engine(in_memory(checkpoint), 1, dtype).digest()
        for threads in (1, 3):
            assert Engine(checkpoint, threads, dtype).digest() == want


@pytest.mark.parametrize("dtype", get_args(Dtype))
@pytest.mark.parametrize("stored", ["<f4", "<f2", "<u2"])
def test_halves_of_a_file_pack_as_what_they_widen_to(
    stored: str, dtype: Dtype, tmp_path: Path
) -> None:
    """wq and wk are in Hugging Face's order of rows, so they are permuted in memory."""
    with open_checkpoint(huggingface(tmp_path, "safetensors", stored)) as checkpoint:
        assert checkpoint.tensors["wq"][0].rows_in_file is None
        assert checkpoint.tensors["w1"][0].rows_in_file is not None
        want = Engine(in_memory(checkpoint), 1, dtype).digest()
        assert Engine(checkpoint, 2, dtype).digest() == want

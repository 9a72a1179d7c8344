"""Checkpoints: from a file to a model's numbers and its tensors, and back.

Needs NumPy and nothing else; the engine is not involved. A new format adds a module with its reader
``(InputFile) -> Checkpoint`` and its writer, its magic number in `formats.sniff`, and a case in
`open`.
"""

from __future__ import annotations

from .checkpoint import Checkpoint
from .conventions import Conventions
from .llama2c import write_checkpoint, write_llama2c
from .open import open_checkpoint
from .quantize import (
    convert_matrix,
    default_group_size,
    int8_group_size,
    own_dtype,
    round_to_bfloat16,
)
from .tensors import (
    DenseTensor,
    JoinedTensor,
    QuantizedTensor,
    StoredTensor,
    Tensor,
    quantize,
    tensor_shapes,
)

__all__ = [
    "Checkpoint",
    "Conventions",
    "DenseTensor",
    "JoinedTensor",
    "QuantizedTensor",
    "StoredTensor",
    "Tensor",
    "convert_matrix",
    "default_group_size",
    "int8_group_size",
    "open_checkpoint",
    "own_dtype",
    "quantize",
    "round_to_bfloat16",
    "tensor_shapes",
    "write_checkpoint",
    "write_llama2c",
]

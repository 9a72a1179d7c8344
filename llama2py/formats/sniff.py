"""What a file is, by its first bytes and its name. Its reader is loaded only then."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from ..checkpoint import llama2c_layout

# The first bytes to be looked at.
HEAD = 64

Kind: TypeAlias = Literal["llama2.c", "GGUF", "zip", "safetensors", "legacy"]


def kind_of(head: bytes) -> Kind:
    """The format of a file that begins with these bytes.

    llama2.c's first one, v0, has no magic number: legacy is whatever nobody else knows. zip is what
    ``torch.save`` writes. safetensors is a length, then a JSON object.
    """
    if head.startswith(llama2c_layout.MAGIC):
        return "llama2.c"
    if head.startswith(b"GGUF"):
        return "GGUF"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100 << 20:
        return "safetensors"
    return "legacy"


def is_description(path: Path) -> bool:
    """Whether a path stands for its directory: ``config.json``, ``params.json``, or an index."""
    return path.name in ("config.json", "params.json") or path.name.endswith(".index.json")

"""GGUF models in several files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from llama2py.checkpoint import open_checkpoint
from tests.support import gguf_files as made
from tests.support.gguf_files import refusal, weights_of


def split(folder: Path, n_parts: int = 3, **changes: Any) -> list[Path]:
    """The float32 model in parts, as llama.cpp's gguf-split names and marks them."""
    tensors = {n: (0, values.shape, values.tobytes()) for n, values in made.weights().items()}
    names = list(tensors)
    paths = []
    for part in range(n_parts):
        pairs = made.metadata() if part == 0 else {}
        pairs |= {
            "split.no": (2, struct.pack("<H", part)),
            "split.count": (2, struct.pack("<H", n_parts)),
            "split.tensors.count": (made.I32, struct.pack("<i", len(tensors))),
        } | changes
        mine = {name: tensors[name] for name in names[part::n_parts]}
        paths.append(folder / f"model-{part + 1:05}-of-{n_parts:05}.gguf")
        paths[-1].write_bytes(made.gguf_file(pairs, *made.lay_out(mine)))
    return paths


def test_any_part_opens_the_whole_model(tmp_path: Path) -> None:
    (tmp_path / "whole.gguf").write_bytes(made.float_file())
    with open_checkpoint(tmp_path / "whole.gguf") as checkpoint:
        wanted = weights_of(checkpoint)
    paths = split(tmp_path)
    for path in paths:
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.path == paths[0]
            assert checkpoint.file_size == sum(part.stat().st_size for part in paths)
            found = weights_of(checkpoint)
        for name, row in wanted.items():
            assert [a.tobytes() for a in row] == [a.tobytes() for a in found[name]]


def test_parts_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    first, second, third = split(tmp_path)
    good = {path: path.read_bytes() for path in (first, second, third)}
    third.unlink()
    assert refusal(first) == (
        f"{third}: no such file, expected a checkpoint ({first.name} is a part of the same model)"
    )
    third.write_bytes(good[second])
    assert refusal(first).startswith(f"{third}: split.no and split.count are (1, 3), expected (2,")
    third.write_bytes(good[third][:-1])
    assert refusal(second).startswith(f"{third}: tensor 'blk.1.ffn_up.weight' needs")
    third.write_bytes(made.float_file())
    assert refusal(first).startswith(f"{third}: split.no and split.count are (None, None)")
    renamed = tmp_path / "model.gguf"
    renamed.write_bytes(good[first])
    assert "this is part 0, counted from 0, of a model in 3 files" in refusal(renamed)
    renamed = tmp_path / "model-00002-of-00007.gguf"
    renamed.write_bytes(good[second])
    assert "expected a name that ends in -00001-of-00003.gguf" in refusal(renamed)
    for count in (b"three", 1 << 20):
        changes: dict[str, Any] = {"split.count": count}
        (first, *_) = split(tmp_path, **changes)
        assert "split.count is" in refusal(first)
    (first, *_) = split(tmp_path, **{"split.tensors.count": 99})
    assert "its 3 parts have 20 tensors together, expected 99 by split" in refusal(first)


def test_a_tensor_in_two_parts_is_an_error(tmp_path: Path) -> None:
    first, second = split(tmp_path, n_parts=2)
    pairs = {"split.no": 1, "split.count": 2}
    embedding = made.weights()["token_embd.weight"]
    tensors = {"token_embd.weight": (0, embedding.shape, embedding.tobytes())}
    second.write_bytes(made.gguf_file(pairs, *made.lay_out(tensors)))
    assert refusal(first).startswith(
        f"{second}: tensor 'token_embd.weight' is also in {first.name}"
    )

"""Directories of Meta's: how params.json stretches RoPE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2py.checkpoint import open_checkpoint
from llama2py.engine.reference import Reference
from tests.support.foreign_files import Array, refusal, torch_file, torch_state

THETA = 500000.0
# One head of 64: its 32 frequencies turn from 1304 times in 8192 positions down to once in 3e6.
PARAMS = {
    "dim": 64,
    "n_layers": 1,
    "n_heads": 1,
    "vocab_size": 5,
    "hidden_dim": 12,
    "rope_theta": THETA,
}
SHAPES = {
    "tok_embeddings.weight": (5, 64),
    "layers.0.attention_norm.weight": (64,),
    "layers.0.attention.wq.weight": (64, 64),
    "layers.0.attention.wk.weight": (64, 64),
    "layers.0.attention.wv.weight": (64, 64),
    "layers.0.attention.wo.weight": (64, 64),
    "layers.0.ffn_norm.weight": (64,),
    "layers.0.feed_forward.w1.weight": (12, 64),
    "layers.0.feed_forward.w2.weight": (64, 12),
    "layers.0.feed_forward.w3.weight": (12, 64),
    "norm.weight": (64,),
    "output.weight": (5, 64),
}


def directory(folder: Path, **params: Any) -> Path:
    tensors: dict[str, Array] = {name: np.ones(shape, "<f4") for name, shape in SHAPES.items()}
    torch_file(folder / "consolidated.00.pth", *torch_state(tensors))
    (folder / "params.json").write_text(json.dumps(PARAMS | params), "utf-8")
    return folder


def plain() -> NDArray[np.float64]:
    return THETA ** -(np.arange(0, 64, 2) / 64)


def stretched(factor: float, high: float) -> NDArray[np.float64]:
    """By each frequency's wavelength, as the model cards of Llama 3.1 describe it."""
    found = []
    for frequency in plain():
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / high:
            found.append(frequency)
        elif wavelength > 8192:
            found.append(frequency / factor)
        else:
            smooth = (8192 / wavelength - 1) / (high - 1)
            found.append((1 - smooth) * frequency / factor + smooth * frequency)
    return np.array(found)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, plain()),
        ({"use_scaled_rope": False, "rope_scaling_factor": 32}, plain()),
        ({"use_scaled_rope": True}, stretched(8, 4)),
        ({"use_scaled_rope": True, "rope_scaling_factor": None}, stretched(8, 4)),
        ({"use_scaled_rope": True, "rope_scaling_factor": 32}, stretched(32, 4)),
        (
            {
                "use_scaled_rope": True,
                "rope_scaling_factor": 16.0,
                "rope_high_freq_factor": 2.0,
            },
            stretched(16, 2),
        ),
    ],
)
def test_rope_turns_as_params_json_says(
    params: dict[str, Any], expected: NDArray[np.float64], tmp_path: Path
) -> None:
    with open_checkpoint(directory(tmp_path, **params)) as checkpoint:
        np.testing.assert_allclose(Reference(checkpoint).ropes[0][0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"use_scaled_rope": 1}, "use_scaled_rope is 1, expected true or false"),
        ({"rope_scaling_factor": "32"}, 'rope_scaling_factor is "32", expected a number'),
        (
            {"use_scaled_rope": True, "rope_high_freq_factor": 1},
            "low_freq_factor 1.0 is not below its high_freq_factor 1.0",
        ),
        (
            {"use_scaled_rope": True, "rope_scaling_factor": 0},
            "RoPE scaling's factor is 0.0, expected",
        ),
    ],
)
def test_params_json_with_wrong_scaling_is_an_error(
    params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in refusal(directory(tmp_path, **params))

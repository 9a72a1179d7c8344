"""The two small models of ``tests/golden/tiny.json``, written from NumPy's frozen random stream."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np

from llama2py.checkpoint import open_checkpoint, write_llama2c

DIM, HIDDEN_DIM, N_LAYERS, N_HEADS, N_KV_HEADS, VOCAB_SIZE, SEQ_LEN = 48, 128, 3, 4, 2, 32000, 256
SHA256 = {
    "tiny": "23406f23a93abe4f4a116e2832e4fbf8547b747c8d353837cc5cf62088fa4fab",
    "tiny_q80": "5729225f4453bd9e24339485e5a12c8804969a49c8f5b9f5c39eb7eb2462e12d",
}


def write_tiny_models(folder: Path) -> dict[str, Path]:
    """Write both models into a folder, and check that they are the recorded ones.

    The weights are random, so the text is nonsense. A final norm of 8 makes the distributions as
    sharp as a trained model's, so that a last bit seldom decides about a token.
    """
    paths = {name: folder / f"{name}.bin" for name in SHA256}
    paths["tiny"].write_bytes(_tiny())
    with open_checkpoint(paths["tiny"]) as checkpoint:
        write_llama2c(paths["tiny_q80"], checkpoint, version=2, group_size=16)
    for name, path in paths.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name], name
    return paths


def _tiny() -> bytes:
    """A llama2.c v0 checkpoint: seven int32, then float32 tensors in llama2.c's order."""
    stream = np.random.RandomState(0)
    head_dim = DIM // N_HEADS
    kv_dim = N_KV_HEADS * head_dim

    def normal(rows: int, cols: int, scale: float) -> bytes:
        return (stream.standard_normal(rows * cols) * scale).astype("<f4").tobytes()

    def constant(count: int, value: float) -> bytes:
        return np.full(count, value, "<f4").tobytes()

    narrow = DIM**-0.5
    numbers = (DIM, HIDDEN_DIM, N_LAYERS, N_HEADS, N_KV_HEADS, VOCAB_SIZE, SEQ_LEN)
    parts = [
        struct.pack("<7i", *numbers),
        normal(VOCAB_SIZE, DIM, 0.1),  # token embedding, the classifier, too
        constant(N_LAYERS * DIM, 1.0),  # attention norms
        normal(N_LAYERS * DIM, DIM, narrow),  # wq
        normal(N_LAYERS * kv_dim, DIM, narrow),  # wk
        normal(N_LAYERS * kv_dim, DIM, narrow),  # wv
        normal(N_LAYERS * DIM, DIM, 0.5 * narrow),  # wo
        constant(N_LAYERS * DIM, 1.0),  # feed-forward norms
        normal(N_LAYERS * HIDDEN_DIM, DIM, narrow),  # w1
        normal(N_LAYERS * DIM, HIDDEN_DIM, 0.5 * HIDDEN_DIM**-0.5),  # w2
        normal(N_LAYERS * HIDDEN_DIM, DIM, narrow),  # w3
        constant(DIM, 8.0),  # final norm
        constant(SEQ_LEN * head_dim, 0.0),  # v0's tables of rotary angles, which nobody reads
    ]
    return b"".join(parts)

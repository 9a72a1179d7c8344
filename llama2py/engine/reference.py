"""The whole transformer in NumPy: to learn from, to test the engine against, to run without it.

Shapes: n tokens of a batch, d = dim, H heads of h channels, K key/value heads, T positions so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import (
    Checkpoint,
    convert_matrix,
    int8_group_size,
    own_dtype,
    round_to_bfloat16,
)
from ..config import CacheDtype, Dtype, frequencies
from ..errors import ClosedError
from ..generation.sampling import draw
from .backend import Backend, Logits
from .reference_linear import Array, linear


def rmsnorm(x: Array, weight: Array, eps: float) -> Array:
    """``weight * x / sqrt(mean(x^2) + eps)``, x (n, d)."""
    return weight * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)))


def softmax(x: Array) -> Array:
    """Probabilities along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x: Array) -> Array:
    """``x * sigmoid(x)``; far below zero exp overflows to infinity, and the result is 0."""
    return x / (1 + np.exp(-x))


def rotate(x: Array, positions: NDArray[np.int64], freqs: Array) -> Array:
    """Rotary embedding: turn the pairs (x[0], x[1]), (x[2], x[3]).. of each head, x (n, H, h)."""
    angles = positions[:, None, None].astype(np.float32) * freqs  # (n, 1, h / 2)
    cos, sin, a, b = np.cos(angles), np.sin(angles), x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


class ReferenceCache:
    """Keys and values of one session, (n_layers, seq_len, K, h) each."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def copy(self, n_positions: int) -> ReferenceCache:
        return deepcopy(self)

    def read(self, n_positions: int) -> tuple[Array, Array]:
        keys, values = self.keys[:, :n_positions], self.values[:, :n_positions]
        return keys.swapaxes(1, 2), values.swapaxes(1, 2)

    def write(self, keys: Array, values: Array) -> None:
        self.keys[:, : keys.shape[2]] = keys.swapaxes(1, 2)
        self.values[:, : values.shape[2]] = values.swapaxes(1, 2)

    def close(self) -> None:
        self.keys = self.values = np.zeros(0, np.float32)


class Reference(Backend):
    """The transformer in NumPy. See `Backend` for the methods."""

    isa, threads = "numpy", 1

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: Dtype | None = None,
        cache_dtype: CacheDtype = "float32",
    ) -> None:
        c = self.config = checkpoint.config
        self.cache_dtype: CacheDtype = cache_dtype
        self.cache_bytes = c.cache_bytes  # of float32, rounded or not
        self.dtype: Dtype = dtype or own_dtype(checkpoint)
        divisors = c.rope_scaling.divisors(c.head_dim, c.rope_theta) if c.rope_scaling else 1
        self.freqs = (frequencies(c.head_dim, c.rope_theta) / np.array(divisors)).astype(np.float32)
        group_size = int8_group_size(checkpoint)
        tensors = {
            k: [t if k[:3] == "rms" else convert_matrix(t, self.dtype, group_size) for t in layers]
            for k, layers in checkpoint.tensors.items()
        }
        self.nbytes = sum(t.nbytes for kind in tensors.values() for t in kind)
        self.non_finite = sum(t.count_non_finite() for kind in tensors.values() for t in kind)
        self.embedding = np.array(tensors["token_embedding_table"][0].dequantize())
        self.norms = {
            k: [np.array(t.dequantize()) for t in tensors[k]] for k in tensors if k[:3] == "rms"
        }
        # Two letters: wq wk wv wo w1 w2 w3.
        self.linears = {k: [linear(t) for t in tensors[k]] for k in tensors if len(k) == 2}
        self.classifier = linear(tensors.get("wcls", tensors["token_embedding_table"])[0])

    def new_cache(self) -> ReferenceCache:
        c = self.config
        return ReferenceCache((c.n_layers, c.seq_len, c.n_kv_heads, c.head_dim))

    @np.errstate(all="ignore")  # NaN, infinity and 0 in weights go through, as in C
    def forward(
        self,
        tokens: Sequence[int],
        caches: Sequence[ReferenceCache],
        positions: Sequence[int],
        logits_rows: Sequence[int],
    ) -> Logits:
        if not self.linears:
            raise ClosedError("the model is closed, expected an open one")
        c, n, at = self.config, len(tokens), np.asarray(positions)
        x = self.embedding[np.asarray(tokens)]  # (n, d)
        for layer in range(c.n_layers):
            project = {name: layers[layer] for name, layers in self.linears.items()}
            y = rmsnorm(x, self.norms["rms_att_weight"][layer], c.norm_eps)
            q = rotate(project["wq"](y).reshape(n, c.n_heads, -1), at, self.freqs)  # (n, H, h)
            k = rotate(project["wk"](y).reshape(n, c.n_kv_heads, -1), at, self.freqs)
            v = project["wv"](y).reshape(n, c.n_kv_heads, -1)  # (n, K, h)
            if self.cache_dtype == "bfloat16":
                k, v = round_to_bfloat16(k), round_to_bfloat16(v)
            for i, cache in enumerate(caches):
                cache.keys[layer, at[i]], cache.values[layer, at[i]] = k[i], v[i]
            heads = [self.attend(q[i], cache, layer, at[i] + 1) for i, cache in enumerate(caches)]
            x = x + project["wo"](np.stack(heads).reshape(n, -1))
            y = rmsnorm(x, self.norms["rms_ffn_weight"][layer], c.norm_eps)
            x = x + project["w2"](silu(project["w1"](y)) * project["w3"](y))
        x = rmsnorm(x[list(logits_rows)], self.norms["rms_final_weight"][0], c.norm_eps)
        return self.classifier(x)

    def attend(self, q: Array, cache: ReferenceCache, layer: int, n_positions: int) -> Array:
        """Attention of one token's queries q (H, h) over keys and values (T, K, h)."""
        keys, values = cache.keys[layer, :n_positions], cache.values[layer, :n_positions]
        groups = q.reshape(self.config.n_kv_heads, -1, q.shape[-1])  # heads that share keys
        scores = np.einsum("kgh,tkh->kgt", groups, keys) / np.sqrt(np.float32(q.shape[-1]))
        return np.einsum("kgt,tkh->kgh", softmax(scores), values)

    def digest(self) -> bytes:
        return sha256(self.embedding.tobytes()).digest()

    def argmax(self, logits: Logits) -> int:
        return 0 if np.isnan(logits[0]) else int(np.nanargmax(logits))  # as in llama2.c

    def sample(self, logits: Logits, temperature: float, top_p: float, coin: float) -> int:
        return draw(softmax(logits / np.float32(temperature)), top_p, coin)

    def close(self) -> None:
        self.linears, self.embedding = {}, np.zeros((0, 0), np.float32)

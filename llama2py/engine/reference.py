"""The whole transformer in NumPy: to learn from, as the tests' oracle, and to run without C.

Shapes: n tokens in a batch, d = dim, H query heads of h channels each, K key/value heads, T
positions of a session so far, G groups of columns that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, QuantizedTensor, Tensor, convert_matrix, round_to_bfloat16
from ..checkpoint.quantize import INT4_GROUP, Int4Matrix, int8_group_size, own_dtype
from ..config import CacheDtype, Dtype, frequencies
from ..errors import ClosedError
from .backend import Backend, Draw, Logits, draw_rows

Array: TypeAlias = NDArray[np.float32]


def rmsnorm(x: Array, weight: Array, eps: float) -> Array:  # x (n, d), weight (d,)
    """``weight * x / sqrt(mean(x^2) + eps)``."""
    return weight * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)))


def softmax(x: Array) -> Array:
    """Probabilities along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x: Array) -> Array:
    """``x * sigmoid(x)``. Far below zero exp overflows to infinity, and the result is 0."""
    return x / (1 + np.exp(-x))


def rotate(x: Array, positions: NDArray[np.int64], freqs: Array) -> Array:  # x (n, H, h)
    """Rotary embedding: rotate the pairs (x[0], x[1]), (x[2], x[3]).. of each head."""
    angles = positions[:, None, None].astype(np.float32) * freqs  # (n, 1, h / 2)
    cos, sin, a, b = np.cos(angles), np.sin(angles), x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def quantize_activations(x: Array, group: int) -> tuple[Array, Array]:
    """Round x (n, cols) to whole numbers (n, G, group), half away from 0, with scales (n, G)."""
    groups = x.reshape(len(x), -1, group)  # (n, G, group)
    scales = abs(groups).max(axis=-1) / np.float32(127)  # (n, G)
    ratios = np.divide(groups, scales[..., None], where=scales[..., None] > 0, out=groups * 0)
    return np.sign(ratios) * np.floor(np.abs(ratios) + np.float32(0.5)), scales


def linear(matrix: Tensor | Int4Matrix) -> Callable[[Array], Array]:
    """Return ``x (n, cols) -> x @ W.T (n, rows)`` for W (rows, cols), in integers if quantized."""
    rows, cols = matrix.shape
    if isinstance(matrix, Int4Matrix):  # the last group of a row may be padded
        group, width = INT4_GROUP, matrix.values.shape[1] * INT4_GROUP
        values, scales = matrix.values, matrix.scales.astype(np.float32)
    elif isinstance(matrix, QuantizedTensor):  # a file's group may span two rows
        group, width = int(np.gcd(matrix.group_size, cols)), cols
        values = matrix.values.reshape(rows, -1, group)
        scales = np.repeat(matrix.scales, matrix.group_size // group).reshape(rows, -1)
    else:
        weight = np.array(matrix.dequantize())  # (rows, cols)
        return lambda x: x @ weight.T
    values = values.astype(np.float32)  # (rows, G, group); scales (rows, G)

    def multiply(x: Array) -> Array:
        padded = np.zeros((len(x), width), np.float32)
        padded[:, :cols] = x
        q, x_scales = quantize_activations(padded, group)  # (n, G, group), (n, G)
        sums = np.einsum("ngk,rgk->nrg", q, values, dtype=np.float64)  # exact
        return np.asarray(np.einsum("nrg,rg,ng->nr", sums.astype(np.float32), scales, x_scales))

    return multiply


class ReferenceCache:
    """The KV cache of one session: keys and values, each (n_layers, seq_len, K, h)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def copy(self, n_positions: int) -> ReferenceCache:
        return deepcopy(self)

    def read(self, n_positions: int) -> tuple[Array, Array]:
        keys, values = self.keys[:, :n_positions], self.values[:, :n_positions]
        return keys.swapaxes(1, 2), values.swapaxes(1, 2)  # (n_layers, K, T, h)

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
        # The two-letter names: wq wk wv wo w1 w2 w3.
        self.linears = {k: [linear(t) for t in tensors[k]] for k in tensors if len(k) == 2}
        self.classifier = linear(tensors.get("wcls", tensors["token_embedding_table"])[0])

    def new_cache(self) -> ReferenceCache:
        c = self.config
        return ReferenceCache((c.n_layers, c.seq_len, c.n_kv_heads, c.head_dim))

    @np.errstate(all="ignore")  # NaN, infinity and 0 propagate without a warning, as in C
    def run(
        self,
        tokens: Sequence[int],
        caches: Sequence[ReferenceCache],
        positions: Sequence[int],
        rows: Sequence[int],
        draws: Sequence[Sequence[Draw]] | None = None,
        stop_tokens: Sequence[int] = (),
    ) -> Any:
        if draws is not None:
            return draw_rows(self, tokens, caches, positions, rows, draws, stop_tokens)
        if not self.linears:
            raise ClosedError("the model is closed")
        c, n, at = self.config, len(tokens), np.asarray(positions)
        x = self.embedding[np.asarray(tokens)]  # (n, d)
        for layer in range(c.n_layers):
            w = {name: layers[layer] for name, layers in self.linears.items()}
            # Attention: each token attends to the positions up to its own.
            y = rmsnorm(x, self.norms["rms_att_weight"][layer], c.norm_eps)  # (n, d)
            q = rotate(w["wq"](y).reshape(n, c.n_heads, -1), at, self.freqs)  # (n, H, h)
            k = rotate(w["wk"](y).reshape(n, c.n_kv_heads, -1), at, self.freqs)  # (n, K, h)
            v = w["wv"](y).reshape(n, c.n_kv_heads, -1)  # (n, K, h)
            if self.cache_dtype == "bfloat16":
                k, v = round_to_bfloat16(k), round_to_bfloat16(v)
            for i, cache in enumerate(caches):
                cache.keys[layer, at[i]], cache.values[layer, at[i]] = k[i], v[i]
            heads = [self.attend(q[i], cache, layer, at[i] + 1) for i, cache in enumerate(caches)]
            x = x + w["wo"](np.stack(heads).reshape(n, -1))  # (n, d)
            # Feed-forward: each token independently.
            y = rmsnorm(x, self.norms["rms_ffn_weight"][layer], c.norm_eps)  # (n, d)
            x = x + w["w2"](silu(w["w1"](y)) * w["w3"](y))  # (n, hidden_dim) -> (n, d)
        x = rmsnorm(x[list(rows)], self.norms["rms_final_weight"][0], c.norm_eps)
        return self.classifier(x)  # (len(rows), vocab_size)

    def attend(self, q: Array, cache: ReferenceCache, layer: int, n_positions: int) -> Array:
        """Attention of one token's queries q (H, h) over T positions -> (K, H / K, h)."""
        keys, values = cache.keys[layer, :n_positions], cache.values[layer, :n_positions]
        groups = q.reshape(self.config.n_kv_heads, -1, q.shape[-1])  # (K, H / K, h)
        scores = np.einsum("kgh,tkh->kgt", groups, keys) / np.sqrt(np.float32(q.shape[-1]))
        return np.einsum("kgt,tkh->kgh", softmax(scores), values)

    def digest(self) -> bytes:
        return sha256(self.embedding.tobytes()).digest()

    def argmax(self, logits: Logits) -> int:
        return 0 if np.isnan(logits[0]) else int(np.nanargmax(logits))  # as in llama2.c

    @np.errstate(all="ignore")
    def sample(self, logits: Logits, temperature: float, top_p: float, coin: float) -> int:
        p, cut = softmax(logits / np.float32(temperature)), np.float32(top_p)  # p (vocab_size,)
        order = np.arange(len(p))
        if 0 < cut < 1:  # the fewest tokens whose sum exceeds top_p, the most probable one first
            order = np.argsort(-p, kind="stable")
            order = order[: np.searchsorted(np.cumsum(p[order]), cut, side="right") + 1]
        sums = np.cumsum(p[order])
        target = np.float32(coin) * (sums[-1] if 0 < cut < 1 else np.float32(1))
        return int(order[min(int(np.searchsorted(sums, target, side="right")), len(order) - 1)])

    def close(self) -> None:
        self.linears, self.embedding = {}, np.zeros((0, 0), np.float32)

"""The whole transformer in NumPy: to learn from, as the tests' oracle, and to run without C.

Shapes: n tokens in a batch, d = dim, H query heads of h channels each, K key/value heads, T
positions that a token sees. The steps marked "optional" are those that a LLaMA lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, QuantizedTensor, Tensor, convert_matrix, int8_group_size
from ..checkpoint.quantize import Array, Int4Matrix, integer_product, own_dtype, round_to_bfloat16
from ..config import CacheDtype, Dtype
from ..errors import ClosedError
from .backend import Backend, Draw, Logits, draw_rows


def rmsnorm(x: Array, weight: Array, eps: float) -> Array:  # x (n, d), weight (d,)
    """``weight * x / sqrt(mean(x^2) + eps)``."""
    return weight * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)))


def softmax(x: Array) -> Array:
    """Probabilities along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def activate(x: Array, activation: str) -> Array:
    """SiLU, ``x * sigmoid(x)``; or GELU, approximated. Far below zero exp is infinite: 0."""
    gelu = np.float32(1.5957691) * (x + np.float32(0.044715) * x**3)
    return x / (1 + np.exp(-(gelu if activation == "gelu" else x)))


def linear(matrix: Tensor | Int4Matrix) -> Callable[[Array], Array]:
    """Return ``x (n, cols) -> x @ W.T (n, rows)`` for W (rows, cols)."""
    if isinstance(matrix, QuantizedTensor | Int4Matrix):
        return integer_product(matrix)
    weight = np.array(matrix.dequantize())
    return lambda x: x @ weight.T


def rotate(x: Array, positions: NDArray[np.int64], freqs: Array, scale: float = 1) -> Array:
    """Rotary embedding of x (n, H, h): rotate each head's pairs (x[0], x[1]), (x[2], x[3])..."""
    angles = positions[:, None, None].astype(np.float32) * freqs  # (n, 1, pairs)
    cos, sin = np.float32(scale) * np.cos(angles), np.float32(scale) * np.sin(angles)
    # The frequencies are of all h / 2 pairs or, optionally, of the first ones.
    rotated, rest = x[..., : 2 * len(freqs)], x[..., 2 * len(freqs) :]
    a, b = rotated[..., 0::2], rotated[..., 1::2]  # (n, H, pairs)
    pairs = np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(rotated.shape)
    return np.concatenate([pairs, rest], axis=-1)


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
        self.windows = [n or c.seq_len for n in c.windows or (0,) * c.n_layers]  # optional
        turns = [c.rotation(layer) for layer in range(c.n_layers)]
        self.ropes = [(np.array(freqs, np.float32), scale) for freqs, scale in turns]
        group_size = int8_group_size(checkpoint)
        tensors = {
            k: [t if k[0] in "rb" else convert_matrix(t, self.dtype, group_size) for t in layers]
            for k, layers in checkpoint.tensors.items()
        }
        self.nbytes = sum(t.nbytes for kind in tensors.values() for t in kind)
        self.non_finite = sum(t.count_non_finite() for kind in tensors.values() for t in kind)
        self.embedding = np.array(tensors["token_embedding_table"][0].dequantize())
        # The norms' weights, rms_att_weight and so on, and optional biases: bq bk bv bo b1 b2 b3.
        self.vectors = {
            k: [np.array(t.dequantize()) for t in tensors[k]] for k in tensors if k[0] in "rb"
        }
        self.linears = {k: [linear(t) for t in tensors[k]] for k in tensors if k[0] == "w"}
        tied = tensors["token_embedding_table"]
        self.classifier = self.linears["wcls"][0] if "wcls" in tensors else linear(tied[0])

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
        x = self.embedding[np.asarray(tokens)] * np.float32(c.embedding_scale)  # (n, d)
        for layer in range(c.n_layers):
            # Attention: each token attends to the positions up to its own.
            y = self.norm(x, "rms_att_weight", layer)  # (n, d)
            q, k, v = (self.product(name, y, layer) for name in "qkv")  # (n, H * h), (n, K * h)
            q = self.norm(q, "rms_q_weight", layer).reshape(n, c.n_heads, -1)  # (n, H, h)
            k = self.norm(k, "rms_k_weight", layer).reshape(n, c.n_kv_heads, -1)  # (n, K, h)
            q, k = rotate(q, at, *self.ropes[layer]), rotate(k, at, *self.ropes[layer])
            v = v.reshape(n, c.n_kv_heads, -1)  # (n, K, h)
            if self.cache_dtype == "bfloat16":
                k, v = round_to_bfloat16(k), round_to_bfloat16(v)
            for i, cache in enumerate(caches):
                cache.keys[layer, at[i]], cache.values[layer, at[i]] = k[i], v[i]
            heads = [self.attend(q[i], cache, layer, at[i]) for i, cache in enumerate(caches)]
            y = self.product("o", np.stack(heads).reshape(n, -1), layer)  # (n, d)
            x = x + self.norm(y, "rms_att_post_weight", layer) * np.float32(c.residual_scale)
            # Feed-forward: each token independently.
            y = self.norm(x, "rms_ffn_weight", layer)  # (n, d)
            gate = activate(self.product("1", y, layer), c.activation)
            y = self.product("2", gate * self.product("3", y, layer), layer)  # (n, d)
            x = x + self.norm(y, "rms_ffn_post_weight", layer) * np.float32(c.residual_scale)
        x = self.norm(x[list(rows)], "rms_final_weight")
        return self.classifier(x) * np.float32(c.logit_scale)  # (len(rows), vocab_size)

    def product(self, name: str, x: Array, layer: int) -> Array:
        """``x @ W.T`` for the matrix wq, ... of a layer, plus its bias, which is optional."""
        y = self.linears["w" + name][layer](x)
        return y + self.vectors["b" + name][layer] if "b" + name in self.vectors else y

    def norm(self, x: Array, name: str, layer: int = 0) -> Array:
        """RMSNorm of x (n, ...) with a layer's weights; x itself if the model lacks this norm."""
        if name not in self.vectors:
            return x
        weight = self.vectors[name][layer]  # of a row, or of a part of it: one head
        parts = x.reshape(len(x), x.shape[1] // len(weight), len(weight))
        return rmsnorm(parts, weight, self.config.norm_eps).reshape(x.shape)

    def attend(self, q: Array, cache: ReferenceCache, layer: int, position: int) -> Array:
        """Attention of one token's queries q (H, h) over T positions -> (K, H / K, h)."""
        seen = slice(max(0, position + 1 - self.windows[layer]), position + 1)
        keys, values = cache.keys[layer, seen], cache.values[layer, seen]  # (T, K, h)
        groups = q.reshape(self.config.n_kv_heads, -1, q.shape[-1])  # (K, H / K, h)
        scale = self.config.attention_scale or 1 / np.sqrt(q.shape[-1])
        scores = np.einsum("kgh,tkh->kgt", groups, keys) * np.float32(scale)
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

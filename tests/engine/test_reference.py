"""The NumPy reference against a still plainer one: one token, one number at a time, in doubles.

Written from llama2.c's definition and nothing else; what it lacks in speed it has in being obvious.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from llama2py.checkpoint import Checkpoint, QuantizedTensor, Tensor, quantize
from llama2py.checkpoint.quantize import quantize_activations
from llama2py.config import ModelConfig
from llama2py.engine.reference import Reference, linear
from llama2py.errors import ClosedError
from tests.conftest import random_checkpoint

Vector = list[float]


def plain_multiply(tensor: Tensor, x: Vector) -> Vector:
    """``W x``. For int8 as runq.c: x is rounded to int8 in groups, each group summed exactly."""
    rows, cols = tensor.shape
    if not isinstance(tensor, QuantizedTensor):
        return [
            sum(float(w) * v for w, v in zip(row, x, strict=True)) for row in tensor.dequantize()
        ]
    group = math.gcd(tensor.group_size, cols)
    q, scales = plain_quantize(x, group)
    out = []
    for row in range(rows):
        total = 0.0
        for g in range(cols // group):
            ks = range(g * group, (g + 1) * group)
            whole = sum(int(tensor.values[row, k]) * q[k] for k in ks)
            weight_scale = tensor.scales[(row * cols + g * group) // tensor.group_size]
            total += whole * float(weight_scale) * scales[g]
        out.append(total)
    return out


def plain_quantize(x: Vector, group: int) -> tuple[list[int], Vector]:
    """runq.c's quantize(): in float32, rounded half away from zero."""
    q: list[int] = []
    scales: Vector = []
    for start in range(0, len(x), group):
        values = [np.float32(v) for v in x[start : start + group]]
        scale = max(abs(v) for v in values) / np.float32(127)
        scales.append(float(scale))
        for v in values:
            ratio = float(v / scale) if scale > 0 else 0.0
            q.append(int(math.copysign(math.floor(abs(ratio) + 0.5), ratio)))
    return q, scales


def plain_rmsnorm(x: Vector, weight: NDArray[np.float32], eps: float) -> Vector:
    scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + eps)
    return [float(w) * v * scale for w, v in zip(weight, x, strict=True)]


def plain_rotate(x: Vector, position: int, head_dim: int, theta: float) -> Vector:
    """RoPE on the pairs (x[i], x[i + 1])."""
    out = list(x)
    for i in range(0, len(x), 2):
        angle = position * theta ** -((i % head_dim) / head_dim)
        cos, sin = math.cos(angle), math.sin(angle)
        out[i] = x[i] * cos - x[i + 1] * sin
        out[i + 1] = x[i] * sin + x[i + 1] * cos
    return out


def plain_attention(q: Vector, keys: list[Vector], values: list[Vector], c: ModelConfig) -> Vector:
    """Each query head over the key/value head it shares with its neighbours."""
    out: Vector = []
    for head in range(c.n_heads):
        query = q[head * c.head_dim : (head + 1) * c.head_dim]
        first = head // (c.n_heads // c.n_kv_heads) * c.head_dim
        scores = [
            sum(a * b for a, b in zip(query, key[first : first + c.head_dim], strict=True))
            / math.sqrt(c.head_dim)
            for key in keys
        ]
        weights = [math.exp(score - max(scores)) for score in scores]
        for channel in range(first, first + c.head_dim):
            mixed = sum(w * v[channel] for w, v in zip(weights, values, strict=True))
            out.append(mixed / sum(weights))
    return out


def plain_forward(checkpoint: Checkpoint, tokens: Sequence[int]) -> NDArray[np.float64]:
    """Logits after each token."""
    c, tensors = checkpoint.config, checkpoint.tensors
    norms = {name: [t.dequantize() for t in tensors[name]] for name in tensors if "rms" in name}
    keys: list[list[Vector]] = [[] for _ in range(c.n_layers)]
    values: list[list[Vector]] = [[] for _ in range(c.n_layers)]
    embedding = tensors["token_embedding_table"][0]
    rows = []
    for position, token in enumerate(tokens):
        x = [float(v) for v in embedding.dequantize()[token]]
        for layer in range(c.n_layers):

            def times(name: str, y: Vector, layer: int = layer) -> Vector:
                return plain_multiply(tensors[name][layer], y)

            y = plain_rmsnorm(x, norms["rms_att_weight"][layer], c.norm_eps)
            q = plain_rotate(times("wq", y), position, c.head_dim, c.rope_theta)
            keys[layer].append(plain_rotate(times("wk", y), position, c.head_dim, c.rope_theta))
            values[layer].append(times("wv", y))
            attended = plain_attention(q, keys[layer], values[layer], c)
            x = [a + b for a, b in zip(x, times("wo", attended), strict=True)]
            y = plain_rmsnorm(x, norms["rms_ffn_weight"][layer], c.norm_eps)
            gated = [
                gate / (1 + math.exp(-gate)) * up
                for gate, up in zip(times("w1", y), times("w3", y), strict=True)
            ]
            x = [a + b for a, b in zip(x, times("w2", gated), strict=True)]
        y = plain_rmsnorm(x, norms["rms_final_weight"][0], c.norm_eps)
        rows.append(plain_multiply(tensors.get("wcls", (embedding,))[0], y))
    return np.array(rows)


def forward(checkpoint: Checkpoint, tokens: Sequence[int], at_once: bool) -> NDArray[np.float32]:
    reference = Reference(checkpoint)
    cache, n = reference.new_cache(), len(tokens)
    if at_once:
        logits: NDArray[np.float32] = reference.run(tokens, [cache] * n, range(n), range(n))
        return logits
    rows = [reference.run([t], [cache], [i], [0]) for i, t in enumerate(tokens)]
    return np.concatenate(rows)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("config", "group_size"),
    [
        (ModelConfig(16, 17, 2, 4, 2, 11, 12), None),
        (ModelConfig(12, 20, 3, 2, 1, 7, 12, shared_classifier=False), None),
        (ModelConfig(8, 9, 2, 4, 4, 5, 12, norm_eps=1e-2, rope_theta=100.0), None),
        (ModelConfig(16, 24, 2, 4, 2, 11, 12), 4),
        (ModelConfig(12, 17, 2, 2, 1, 7, 12, shared_classifier=False), 6),
    ],
)
def test_forward_equals_the_plain_one(
    config: ModelConfig, group_size: int | None, at_once: bool
) -> None:
    checkpoint = random_checkpoint(config, group_size, seed=3)
    tokens = [1, 4, 2, 0, 3, 3, 2, 4, 1, 1]
    ours, plain = forward(checkpoint, tokens, at_once), plain_forward(checkpoint, tokens)
    # For int8 the activations of doubles and of floats could round to different whole numbers;
    # with this seed none does, so that the tolerance need not allow for it.
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


def test_the_comparison_finds_a_wrong_model() -> None:
    """A wrong epsilon, a wrong RoPE base, another token: none passes for right."""
    config = ModelConfig(16, 17, 2, 4, 2, 11, 12)
    tokens = [1, 4, 2, 0, 3]
    plain = plain_forward(random_checkpoint(config), tokens)
    limit = 1e-4 * np.abs(plain).max()

    def changed(**numbers: float) -> Callable[[], NDArray[np.float32]]:
        other = ModelConfig(16, 17, 2, 4, 2, 11, 12, **numbers)  # type: ignore[arg-type]
        return lambda: forward(random_checkpoint(other), tokens, True)

    for wrong in (changed(norm_eps=1e-2), changed(rope_theta=9000.0)):
        assert np.abs(wrong() - plain).max() > limit
    assert np.abs(changed()() - plain).max() < limit
    assert np.abs(forward(random_checkpoint(config), [1, 4, 2, 5, 3], True) - plain).max() > limit


FLOATS = st.floats(-1e3, 1e3, width=32)


@given(hnp.arrays(np.float32, (1, 12), elements=FLOATS), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_activations_are_rounded_as_in_runq(x: NDArray[np.float32], group: int) -> None:
    q, scales = quantize_activations(x, group)
    plain_q, plain_scales = plain_quantize([float(v) for v in x[0]], group)
    assert scales[0].tolist() == plain_scales
    assert q.ravel().tolist() == plain_q


def test_halves_are_rounded_away_from_zero() -> None:
    """127 makes the scale 1, so these are the ratios themselves."""
    x = np.array([[127, 0.5, -0.5, 1.5, -2.5, 0.25, 2.4999998, 0]], np.float32)
    q, scales = quantize_activations(x, 8)
    assert q.ravel().tolist() == [127, 1, -1, 2, -3, 0, 2, 0]
    assert scales.tolist() == [[1.0]]


def test_a_group_of_zeros_is_zero() -> None:
    q, scales = quantize_activations(np.zeros((1, 4), np.float32), 2)
    assert not q.any()
    assert not scales.any()


@pytest.mark.parametrize("group", [1, 4, 5, 8, 20])
def test_an_int8_product_keeps_groups_that_cross_rows(group: int) -> None:
    """Rows of 10: groups of 4, 8 and 20 run on into the next row, as the file has them."""
    rng = np.random.default_rng(1)
    tensor = quantize(rng.standard_normal((8, 10), np.float32), group)
    x = rng.standard_normal((3, 10), np.float32)
    plain = [plain_multiply(tensor, [float(v) for v in row]) for row in x]
    np.testing.assert_allclose(linear(tensor)(x), plain, rtol=0, atol=1e-5)


def test_a_closed_reference_is_an_error() -> None:
    reference = Reference(random_checkpoint(ModelConfig(8, 9, 1, 2, 1, 5, 4)))
    cache = reference.new_cache()
    reference.close()
    reference.close()
    with pytest.raises(ClosedError):
        reference.run([1], [cache], [0], [0])

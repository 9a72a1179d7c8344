"""ModelConfig: what contradicts itself is an error, and equal models have equal configs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from llama2py import ConfigError, ModelConfig
from llama2py.checkpoint.tensors import tensor_shapes
from llama2py.config import RopeScaling

PLAIN = ModelConfig(48, 80, 4, 6, 2, 97, 128)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"qk_norm": "x"}, "qk_norm is 'x', expected 'head', 'all' or None"),
        ({"activation": "relu"}, "activation is 'relu', expected 'silu' or 'gelu'"),
        ({"pre_norm": False}, "expected at least one to be True"),
        ({"windows": (4, 4)}, "windows has 2 numbers, expected 4"),
        ({"windows": (4, 4, -1, 4)}, "a window is -1, expected 0 to"),
        ({"unrotated_layers": (2, 1)}, "expected different layers from 0 to 3 in order"),
        ({"unrotated_layers": (4,)}, "expected different layers from 0 to 3 in order"),
        ({"rotary_dim": 3}, "rotary_dim is 3, expected an even number from 2 to the head size 8"),
        ({"rotary_dim": 10}, "rotary_dim is 10, expected an even number"),
        ({"embedding_scale": 0.0}, "embedding_scale is 0.0, expected 1e-30 to 1e30"),
        ({"attention_scale": math.nan}, "attention_scale is nan, expected"),
        ({"window_rope_theta": 0.0, "windows": (4,) * 4}, "window_rope_theta is 0.0, expected"),
        ({"rope_scaling": RopeScaling("yarn", 2.0), "rope_theta": 1.0}, "with YaRN scaling"),
        ({"rope_scaling": RopeScaling("factors", factors=(1.0,) * 4), "rotary_dim": 6}, "has 4"),
    ],
)
def test_a_step_that_makes_no_sense_is_an_error(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        replace(PLAIN, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": (128, 0, 1000, 128)},
        {"windows": (0, 0, 0, 0), "window_rope_theta": 5e5},
        {"attention_scale": 8**-0.5},
        {"rotary_dim": 8},
        {"head_size": 8},
    ],
)
def test_a_step_that_changes_nothing_is_no_step(changes: dict[str, Any]) -> None:
    assert replace(PLAIN, **changes) == PLAIN


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared_classifier": False, "head_size": 10},
        {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
        {"qk_norm": "head", "post_norm": True},
        {"qk_norm": "all", "pre_norm": False, "post_norm": True},
    ],
)
def test_parameters_are_counted_as_tensors_have_them(changes: dict[str, Any]) -> None:
    config = replace(PLAIN, **changes)
    shapes = tensor_shapes(config).values()
    assert config.n_params == sum(count * math.prod(shape) for count, shape in shapes)


def test_yarn_gives_the_numbers_worked_out_by_hand() -> None:
    """theta 16^4, 8 channels: the frequencies are 1, 1/16, 1/256 and 1/4096 radians a position.

    Within 2 pi * 256 positions they turn 256, 16, 1 and 1/16 times. A frequency that turns 16
    times is number 1, one that turns once number 2. Between turns of 64 (number 0.5, rounded down
    to 0) and 0.25 (2.5, rounded up to 3), the frequencies of numbers 1 and 2 are a third and two
    thirds of the way to a quarter.
    """
    scaling = RopeScaling(
        "yarn", 4.0, original_seq_len=round(2 * math.pi * 256), beta_fast=64.0, beta_slow=0.25
    )
    found = [1 / divisor for divisor in scaling.divisors(8, 16.0**4)]
    wanted = [1.0, 2 / 3 + 1 / 3 / 4, 1 / 3 + 2 / 3 / 4, 0.25]
    assert found == pytest.approx(wanted)


def test_layers_rotate_as_their_steps_say() -> None:
    config = replace(
        PLAIN,
        windows=(4, 0, 4, 0),
        window_rope_theta=100.0,
        unrotated_layers=(3,),
        rotary_dim=4,
        rope_scaling=RopeScaling("linear", 2.0, attention_factor=1.5),
    )
    for layer, frequencies, scale in ((0, [1.0, 0.1], 1.0), (1, [0.5, 0.005], 1.5)):
        assert config.rotation(layer)[0] == pytest.approx(frequencies)
        assert config.rotation(layer)[1] == scale
    assert config.rotation(2) == config.rotation(0)
    assert config.rotation(3) == ([], 1.0)

"""RoPE scaling, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llama2py.config import RopeScaling
from llama2py.engine.reference import Reference
from tests.conftest import TINY, random_checkpoint


def test_linear_scaling_is_a_slower_position() -> None:
    """Position 4 n of a model stretched by 4 turns as position n of the plain one."""
    config = dataclasses.replace(TINY, rope_scaling=RopeScaling("linear", 4.0))
    plain, stretched = (Reference(random_checkpoint(c)) for c in (TINY, config))
    np.testing.assert_array_equal(plain.ropes[0][0], stretched.ropes[0][0] * 4)
    assert plain.ropes[0][0][:2].tolist() == [1.0, np.float32(10000 ** (-2 / 6))]


def test_llama3_scaling_gives_the_numbers_worked_out_by_hand() -> None:
    """Original context 8192: a pair that turns 2 times in it is a third of the way from 1 to 4."""
    theta = (8192 / (2 * np.pi * 2)) ** 2  # of the second pair of a head of 4
    fast, middle = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192).divisors(4, theta)
    assert fast == 1.0
    assert 1 / middle == pytest.approx((1 - 1 / 3) / 8 + 1 / 3)
    slow = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192).divisors(4, theta * 5)[1]
    assert slow == 8.0

"""Penalties, bias, bans, processors and cuts: exact cases, and draws against plain definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.engine.backend import Logits
from llama2py.engine.native import Engine
from llama2py.errors import ParameterError
from llama2py.generation.logits import cut
from llama2py.generation.sampling import Sampler, SamplingParams
from tests.conftest import TINY, random_checkpoint

ENGINE = Engine(random_checkpoint(TINY))
PROBABILITIES = [0.125, 0.5, 0.125, 0.25]
LOGITS = [math.log(p) for p in PROBABILITIES]


def allowed(p: Sequence[float], **cuts: Any) -> list[int]:
    """The plain definition, one token at a time, each cut on what the one before has left."""
    left = [token for token in range(len(p)) if p[token] > 0]
    left.sort(key=lambda token: -p[token])
    if k := cuts.get("top_k", 0):
        left = left[:k]
    if (mass := cuts.get("typical_p", 1.0)) < 1:
        total = math.fsum(p[t] for t in left)
        entropy = -math.fsum(p[t] / total * math.log(p[t] / total) for t in left)
        kept: set[int] = set()
        reached = 0.0
        for t in sorted(left, key=lambda t: abs(-math.log(p[t] / total) - entropy)):
            if kept and reached >= mass:
                break
            kept.add(t)
            reached += p[t] / total
        left = [t for t in left if t in kept]
    if 0 < (nucleus := cuts.get("top_p", 1.0)) < 1:
        total, reached, n = math.fsum(p[t] for t in left), 0.0, 0
        while n < len(left) and reached <= nucleus:
            reached += p[left[n]] / total
            n += 1
        left = left[:n]
    return [t for t in left if p[t] >= cuts.get("min_p", 0.0) * p[left[0]]]


@pytest.mark.parametrize(
    ("cuts", "tokens"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 0]),  # of equals the first
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"min_p": 0.5}, [1, 3]),
        ({"min_p": 0.51}, [1]),
        ({"min_p": 1.0}, [1]),
        ({"top_p": 0.5}, [1, 3]),  # a sum that is just 0.5 is not enough
        ({"top_p": 0.7}, [1, 3]),
        # entropy 1.213; surprises 0.693, 1.386, 2.079 twice: the nearest is token 3, then 1
        ({"typical_p": 0.2}, [3]),
        ({"typical_p": 0.25}, [3]),
        ({"typical_p": 0.3}, [1, 3]),
        ({"typical_p": 0.8}, [1, 3, 0]),
        ({"typical_p": 0.2, "top_k": 1}, [1]),
        ({"top_k": 2, "top_p": 0.6}, [1]),  # 0.5 of 0.75 exceeds 0.6
        ({"typical_p": 0.2, "min_p": 0.9}, [3]),  # the best one left
        ({}, [0, 1, 2, 3]),
    ],
)
def test_cuts_keep_exactly_the_expected_tokens(cuts: dict[str, Any], tokens: list[int]) -> None:
    neutral = {"top_k": 0, "typical_p": 1.0, "top_p": 1.0, "min_p": 0.0}
    assert list(cut(np.array(PROBABILITIES), **{**neutral, **cuts})) == tokens


@settings(max_examples=200, deadline=None)
@given(
    # no two alike, and no sum that is just a limit
    st.lists(st.integers(1, 10**6), min_size=1, max_size=40, unique=True),
    st.fixed_dictionaries(
        {
            "top_k": st.integers(0, 45),
            "typical_p": st.just(1.0) | st.floats(0.0123, 0.99),
            "top_p": st.just(1.0) | st.floats(0.0123, 0.99),
            "min_p": st.just(0.0) | st.floats(0.0123, 0.99),
        }
    ),
)
def test_cuts_equal_the_definition(weights: list[int], cuts: dict[str, Any]) -> None:
    p = np.array(weights) / sum(weights)
    assert sorted(cut(p, **cuts)) == sorted(allowed(list(p), **cuts))


def plain_distribution(logits: Sequence[float], temperature: float, **cuts: Any) -> list[float]:
    weights = [math.exp(x / temperature) for x in logits]
    p = [w / math.fsum(weights) for w in weights]
    kept = allowed(p, **cuts)
    total = math.fsum(p[t] for t in kept)
    return [p[t] / total if t in kept else 0.0 for t in range(len(p))]


@pytest.mark.parametrize(
    "cuts",
    [
        {"top_k": 4},
        {"min_p": 0.2},
        {"typical_p": 0.7},
        {"top_k": 7, "typical_p": 0.9, "top_p": 0.85, "min_p": 0.05},
    ],
)
def test_frequencies_fit_the_definition(cuts: dict[str, Any]) -> None:
    """Chi-square: above 27.9 in one of a thousand fair samplers of 10 tokens; the seed is fixed."""
    n = 10000
    logits = np.random.default_rng(5).standard_normal(10).astype(np.float32)
    expected = np.array(plain_distribution([float(x) for x in logits], 1.3, **{"top_p": 1, **cuts}))
    sampler = Sampler(ENGINE, SamplingParams(1.3, **{"top_p": 1.0, **cuts}), seed=77)
    counts = np.bincount([sampler.sample(logits.copy()) for _ in range(n)], minlength=10)
    assert counts[expected == 0].sum() == 0
    seen = expected > 0
    assert seen.sum() < 10
    assert ((counts - n * expected)[seen] ** 2 / (n * expected[seen])).sum() < 27.9


def adjusted(
    logits: list[float], prompt: list[int], generated: list[int], **params: Any
) -> list[float]:
    """The logits as a processor sees them, after the steps before it."""
    seen: list[list[float]] = []

    def look(tokens: Sequence[int], logits: Logits) -> Logits:
        assert list(tokens) == prompt + generated
        seen.append([float(x) for x in logits])
        return logits

    sampler = Sampler(ENGINE, SamplingParams(logits_processor=look, **params), seed=1)
    sampler.sample(np.array(logits, np.float32), prompt, generated)
    return seen[0]


def test_penalties_equal_those_computed_by_hand() -> None:
    logits, prompt, generated = [2.0, -2.0, 1.0, 3.0], [0, 1], [2, 2, 1]
    assert adjusted(logits, prompt, generated, repetition_penalty=2) == [1.0, -4.0, 0.5, 3.0]
    assert adjusted(logits, prompt, generated, frequency_penalty=0.5) == [2.0, -2.5, 0.0, 3.0]
    # an int that NumPy's own integers cannot hold
    assert adjusted(logits, prompt, generated, frequency_penalty=2**70)[2] == -(2.0**71)
    assert adjusted(logits, prompt, generated, presence_penalty=0.5) == [2.0, -2.5, 0.5, 3.0]
    # repetition first, then the two that are taken off, then the bias
    everything = {"repetition_penalty": 2, "frequency_penalty": 0.25, "presence_penalty": 0.5}
    both = adjusted(logits, prompt, generated, **everything, logit_bias={3: -1.5})
    assert both == [1.0, -4.75, -0.5, 1.5]


def test_a_ban_outweighs_a_bias() -> None:
    seen = adjusted(LOGITS, [], [], logit_bias={1: 100.0}, banned_tokens=[1])
    assert seen[1] == -math.inf
    for temperature in (0.0, 1.0, 100.0):
        params = SamplingParams(temperature, 1.0, logit_bias={1: 100.0}, banned_tokens=[1, 3])
        sampler = Sampler(ENGINE, params, seed=1)
        drawn = {sampler.sample(np.array(LOGITS, np.float32)) for _ in range(200)}
        assert drawn == ({0} if temperature == 0 else {0, 2})


def test_processors_come_in_order_and_choose() -> None:
    def only(*tokens: int) -> Any:
        def processor(_: Sequence[int], logits: Logits) -> Logits:
            kept = np.full_like(logits, -np.inf)
            kept[list(tokens)] = logits[list(tokens)]
            return kept

        return processor

    params = SamplingParams(logits_processor=[only(0, 2, 3), only(1, 2)])
    assert {Sampler(ENGINE, params, s).sample(np.array(LOGITS, np.float32)) for s in range(9)} == {
        2
    }


def test_options_that_change_nothing_draw_what_the_engine_draws() -> None:
    """But for the last bits of the probabilities: few coins in a hundred thousand can tell."""
    logits = (np.random.default_rng(3).standard_normal(500) * 2).astype(np.float32)
    for top_p in (0.9, 1.0):
        plain = Sampler(ENGINE, SamplingParams(0.8, top_p), seed=4)
        other = Sampler(ENGINE, SamplingParams(0.8, top_p, logit_bias={7: 0.0}), seed=4)
        pairs = [(plain.sample(logits.copy()), other.sample(logits.copy())) for _ in range(1000)]
        assert sum(a != b for a, b in pairs) <= 1
        assert len(set(pairs)) > 20


def test_a_nan_is_never_drawn() -> None:
    logits = np.array([1, math.nan, 0.5, math.nan], np.float32)
    sampler = Sampler(ENGINE, SamplingParams(top_k=3), seed=1)
    assert {sampler.sample(logits.copy()) for _ in range(100)} == {0, 2}


def test_no_token_left_is_an_error() -> None:
    sampler = Sampler(ENGINE, SamplingParams(banned_tokens=range(4)), seed=1)
    with pytest.raises(ParameterError, match="no token is left to draw"):
        sampler.sample(np.array(LOGITS, np.float32))


@pytest.mark.parametrize("token", [-1, 300, 1 << 70])
@pytest.mark.parametrize("name", ["logit_bias", "banned_tokens"])
def test_a_token_outside_the_vocabulary_is_an_error_at_once(name: str, token: int) -> None:
    params = SamplingParams(**{name: {token: 1.0}})  # type: ignore[arg-type]
    expected = f"token {token} of {name} is outside the vocabulary, expected 0 to 299"
    with pytest.raises(ParameterError, match=expected):
        Sampler(ENGINE, params, seed=1)
    sampler = Sampler(ENGINE, SamplingParams(), seed=1)
    with pytest.raises(ParameterError, match=expected):
        sampler.params = params
    assert sampler.params == SamplingParams()


def test_a_processor_must_return_logits() -> None:
    params = SamplingParams(logits_processor=lambda _, logits: logits[:2])
    with pytest.raises(ParameterError, match=r"shape \(2,\), expected \(4,\)"):
        Sampler(ENGINE, params, seed=1).sample(np.array(LOGITS, np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", -1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("typical_p", -0.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("presence_penalty", math.nan),
        ("logit_bias", {1: math.nan}),
    ],
)
def test_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=rf"{name}(\[1\])? is .*expected"):
        SamplingParams(**{name: value})


def test_infinite_logits_share_all_probability() -> None:
    """A bias of infinity forces a token; it must not make probabilities of NaN."""
    choices: list[dict[str, Any]] = [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}]
    for cuts in choices:
        params = SamplingParams(1.0, **{"top_p": 1.0, "logit_bias": {2: math.inf}, **cuts})
        sampler = Sampler(ENGINE, params, seed=3)
        assert {sampler.sample(np.array(LOGITS, np.float32)) for _ in range(20)} == {2}
    both = Sampler(ENGINE, SamplingParams(logit_bias={1: math.inf, 2: math.inf}, top_p=1.0), seed=3)
    assert {both.sample(np.array(LOGITS, np.float32)) for _ in range(50)} == {1, 2}


def test_logits_of_nan_alone_are_an_error() -> None:
    sampler = Sampler(ENGINE, SamplingParams(top_k=2), seed=3)
    with pytest.raises(ParameterError, match="no token is left"):
        sampler.sample(np.full(4, np.nan, np.float32))


def test_bans_may_come_as_iterators_and_arrays() -> None:
    for banned in (iter([1, 3]), np.array([1, 3]), {1, 3}):
        sampler = Sampler(ENGINE, SamplingParams(0.0, banned_tokens=banned))  # type: ignore[arg-type]
        assert [sampler.sample(np.array(LOGITS, np.float32)) for _ in range(3)] == [0, 0, 0]
    assert hash(SamplingParams()) == hash(SamplingParams())


def test_a_processor_may_return_a_view() -> None:
    """Reversed: the engine wants contiguous numbers."""
    params = SamplingParams(0.0, logits_processor=lambda tokens, logits: logits[::-1])
    assert Sampler(ENGINE, params).sample(np.array(LOGITS, np.float32)) == 2

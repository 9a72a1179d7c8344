"""Choosing a token: llama2.c's coin, argmax, and top-p against its plain definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama2py.engine.backend import Backend
from llama2py.engine.isa import isa_names
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference, softmax
from llama2py.errors import ParameterError
from llama2py.generation.sampling import Coin, Sampler, SamplingParams, random_seed
from tests.conftest import TINY, random_checkpoint

LAST_COIN = 1 - 2**-24
KERNELS = [*isa_names(), "numpy"]


def make_backends() -> dict[str, Backend]:
    """One for each set of kernels; what they sample has nothing to do with their model."""
    checkpoint = random_checkpoint(TINY)
    made: dict[str, Backend] = {"numpy": Reference(checkpoint)}
    with pytest.MonkeyPatch.context() as patch:
        for isa in isa_names():
            patch.setenv("LLAMA2PY_ISA", isa)
            made[isa] = Engine(checkpoint)
    return made


BACKENDS = make_backends()


@pytest.fixture(params=KERNELS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@lru_cache(maxsize=2)  # several coins and several sets of kernels have the same probabilities
def running_sums(p: bytes, top_p: float) -> tuple[list[int], list[np.float32]]:
    """Of the tokens that can be drawn, in float32 as in llama2.c.

    Without its sieve, p >= (1 - top_p) / (n - 1), which is there for speed: what it drops cannot be
    in the nucleus.
    """
    probabilities = np.frombuffer(p, np.float32)
    tokens, cut = list(range(len(probabilities))), 0 < top_p < 1
    if cut:
        tokens.sort(key=lambda token: -probabilities[token])  # of equals the lower index first
    sums, total = [], np.float32(0)
    for token in tokens:
        total += probabilities[token]
        sums.append(total)
        if cut and total > np.float32(top_p):
            break
    return tokens[: len(sums)], sums


def plain_draw(p: NDArray[np.float32], top_p: float, coin: float) -> int:
    """llama2.c's definition."""
    tokens, sums = running_sums(p.tobytes(), top_p)
    target = np.float32(coin) * sums[-1] if 0 < top_p < 1 else coin
    return next(
        (token for token, upto in zip(tokens, sums, strict=True) if upto > target), tokens[-1]
    )


def doubles_softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    e = np.exp(logits.astype(np.float64) / temperature)
    return np.asarray(e / e.sum())


def sample(
    backend: Backend, logits: Sequence[float], temperature: float, top_p: float, coin: float
) -> tuple[int, int]:
    """What the backend draws, and what the definition draws from the backend's probabilities."""
    values = np.array(logits, np.float32)
    if isinstance(backend, Reference):
        p = softmax(values / np.float32(temperature))
        drawn = backend.sample(values, temperature, top_p, coin)
    else:
        p = values.copy()
        backend.sample(p, temperature, 1.0, 0.0)  # without a cut it leaves the probabilities there
        drawn = backend.sample(values, temperature, top_p, coin)
    assert abs(math.fsum(p) - 1) < 1e-4
    return drawn, plain_draw(p, top_p, coin)


# ---- the coin ----


def test_coins_are_llama2cs() -> None:
    coin = Coin(1)
    assert [round(coin.flip(), 6) for _ in range(3)] == [0.280835, 0.671137, 0.725846]


def test_coins_are_24_bit_numbers_below_one() -> None:
    for seed in (1, 2**32, 2**64 - 1):
        coin = Coin(seed)
        for _ in range(100):
            flipped = coin.flip()
            assert 0 <= flipped < 1
            assert (flipped * 2**24).is_integer()


def test_seed_zero_is_a_seed_like_any_other() -> None:
    """Of the state 0 xorshift makes nothing but zeros."""
    coins = [Coin(0) for _ in range(2)]
    flips = [[coin.flip() for _ in range(20)] for coin in coins]
    assert flips[0] == flips[1]
    assert len(set(flips[0])) == 20


@pytest.mark.parametrize("seed", [-1, 2**64, -(2**70)])
def test_a_seed_out_of_range_is_an_error(seed: int) -> None:
    with pytest.raises(ParameterError, match=f"seed is {seed}, expected"):
        Coin(seed)


def test_random_seeds_differ_and_suit_llama2c() -> None:
    seeds = {random_seed() for _ in range(50)}
    assert len(seeds) > 40
    assert all(1 <= seed < 2**31 for seed in seeds)


# ---- argmax ----


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33, 500, 32000])
def test_argmax_takes_the_first_of_equals(backend: Backend, n: int) -> None:
    logits = np.zeros(n, np.float32)
    assert backend.argmax(logits) == 0
    for at in {0, n // 2, n - 1}:
        logits[:] = -1
        logits[at:] = 7
        assert backend.argmax(logits) == at
        logits[at + 1 :] = 6
        assert backend.argmax(logits) == at


def test_argmax_takes_the_first_infinity(backend: Backend) -> None:
    inf = np.float32(np.inf)
    assert backend.argmax(np.array([-inf, -3, -inf], np.float32)) == 1
    assert backend.argmax(np.array([-inf] * 20, np.float32)) == 0
    assert backend.argmax(np.array([1, inf, 2, inf], np.float32)) == 1


@pytest.mark.parametrize("isa", isa_names())
def test_argmax_of_nan_is_llama2cs(isa: str) -> None:
    """In front it wins every comparison, elsewhere it loses them; NumPy would take the NaN."""
    for n in (3, 40, 48):
        for best in (1, n // 2, n - 1):
            logits = np.zeros(n, np.float32)
            logits[best] = 1
            for at in set(range(n)) - {best}:
                spoiled = logits.copy()
                spoiled[at] = np.nan
                assert BACKENDS[isa].argmax(spoiled) == (best if at else 0)


# ---- top-p ----

LOG_HALVES = [math.log(p) for p in (0.125, 0.5, 0.125, 0.25)]


@pytest.mark.parametrize(
    ("top_p", "coin", "token"),
    [
        # All, in order of index: sums 0.125, 0.625, 0.75, 1.
        (1.0, 0.0, 0),
        (1.0, 0.124, 0),
        (1.0, 0.126, 1),
        (1.0, 0.624, 1),
        (1.0, 0.626, 2),
        (1.0, 0.751, 3),
        (0.0, 0.626, 2),
        (1.0, LAST_COIN, 3),
        # Only the best.
        (0.4, 0.0, 1),
        (0.4, LAST_COIN, 1),
        # The best two: 0.5 and 0.25 of 0.75.
        (0.7, 0.666, 1),
        (0.7, 0.668, 3),
        (0.7, LAST_COIN, 3),
        # Three: of equals the first. Sums 0.5, 0.75, 0.875.
        (0.8, 0.856, 3),
        (0.8, 0.858, 0),
        (0.8, LAST_COIN, 0),
        # All, the most probable first.
        (0.9, 0.49, 1),
        (0.9, 0.51, 3),
        (0.9, 0.76, 0),
        (0.9, 0.876, 2),
    ],
)
def test_draws_of_exact_probabilities(
    backend: Backend, top_p: float, coin: float, token: int
) -> None:
    assert sample(backend, LOG_HALVES, 1.0, top_p, coin) == (token, token)


def test_the_nucleus_exceeds_top_p(backend: Backend) -> None:
    """A sum that is just top_p is not enough: of four quarters, three for a half."""
    drawn = [backend.sample(np.zeros(4, np.float32), 1.0, 0.5, coin) for coin in (0.3, 0.6, 0.9)]
    assert drawn == [0, 1, 2]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(KERNELS),
    # few values, so that there are many ties
    st.lists(st.integers(-6, 6).map(lambda x: x / 2), min_size=1, max_size=70),
    st.sampled_from([1e-3, 0.5, 1.0, 3.0, 1e6]),
    st.sampled_from([0.0, 1.0]) | st.floats(1e-3, 0.999),
    st.integers(0, 2**24 - 1).map(lambda x: x / 2**24),
)
def test_draws_equal_the_definition(
    kernels: str, logits: list[float], temperature: float, top_p: float, coin: float
) -> None:
    """Exactly, given the same probabilities."""
    assume(top_p in (0, 1) or top_p * len(logits) > 1.01)  # the rest: the test below
    drawn, defined = sample(BACKENDS[kernels], logits, temperature, top_p, coin)
    assert drawn == defined


@pytest.mark.parametrize(("n", "top_p"), [(2, 0.25), (500, 0.001)])
def test_a_flat_distribution_with_a_tiny_top_p_takes_the_first(n: int, top_p: float) -> None:
    for backend in BACKENDS.values():
        assert backend.sample(np.zeros(n, np.float32), 1.0, top_p, 0.5) == 0


@pytest.mark.parametrize("scale", [0.0, 1.0, 12.0], ids=["flat", "usual", "peaky"])
@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999, 1.0])
def test_draws_from_large_vocabularies_equal_the_definition(
    backend: Backend, scale: float, top_p: float
) -> None:
    """32000 tokens; in a flat distribution nearly all of them are in the nucleus."""
    logits = np.random.default_rng(2).standard_normal(32000) * scale
    for coin in (0.0, 0.3, 0.77, LAST_COIN):
        drawn, defined = sample(backend, list(logits), 1.0, top_p, coin)
        assert drawn == defined


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_engine_and_numpy_draw_the_same_tokens(top_p: float) -> None:
    """Their probabilities differ in the last bits; few coins in a hundred thousand can tell."""
    logits = (np.random.default_rng(3).standard_normal(500) * 3).astype(np.float32)
    coin = Coin(11)
    differ = 0
    for _ in range(1000):
        flipped = coin.flip()
        drawn = {
            backend.sample(logits.copy(), 0.8, top_p, flipped) for backend in BACKENDS.values()
        }
        differ += len(drawn) > 1
    assert differ <= 1


def test_the_engines_kernels_agree_on_probabilities() -> None:
    """SIMD sets bit for bit."""
    logits = (np.random.default_rng(3).standard_normal(501) * 3).astype(np.float32)
    exact = doubles_softmax(logits, 0.8)
    seen = set()
    for isa in isa_names():
        p = logits.copy()
        BACKENDS[isa].sample(p, 0.8, 1.0, 0.5)
        np.testing.assert_allclose(p, exact, rtol=3e-6)
        if isa != "portable":
            seen.add(p.tobytes())
    assert len(seen) <= 1


def test_frequencies_fit_the_probabilities(backend: Backend) -> None:
    """Chi-square, 9 degrees of freedom: above 27.9 in one of a thousand fair samplers.

    The seed is fixed, so this passes always or never.
    """
    n = 10000
    logits = (np.random.default_rng(5).standard_normal(10)).astype(np.float32)
    p = doubles_softmax(logits, 1.3)
    coin = Coin(77)
    for top_p in (1.0, 0.999999):
        draws = [backend.sample(logits.copy(), 1.3, top_p, coin.flip()) for _ in range(n)]
        counts = np.bincount(draws, minlength=10)
        assert ((counts - n * p) ** 2 / (n * p)).sum() < 27.9


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-31, 1e-38, 1e-300])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_tiny_temperature_takes_the_best(temperature: float, top_p: float) -> None:
    """Below 1e-30 by decree: logits / temperature would overflow to NaN."""
    params = SamplingParams(temperature, top_p)
    for kernels in KERNELS:
        sampler = Sampler(BACKENDS[kernels], params, seed=1)
        assert sampler.sample(np.array([1, 5, 4.99, 0], np.float32)) == 1


def test_engine_and_numpy_treat_nan_alike() -> None:
    """As llama2.c does: a NaN is passed over, but for one in front."""
    nan = np.nan
    for backend in BACKENDS.values():
        assert backend.argmax(np.array([1, nan, 3, nan], np.float32)) == 2
        assert backend.argmax(np.array([nan, 1, 3], np.float32)) == 0
        assert backend.argmax(np.array([nan, nan], np.float32)) == 0


def test_a_huge_temperature_draws_all_tokens_equally(backend: Backend) -> None:
    logits = [100.0, -100.0, 0.0, 50.0]
    for token in range(4):
        assert sample(backend, logits, 1e30, 1.0, (token + 0.5) / 4) == (token, token)


def test_a_vocabulary_of_one_token_gives_that_token(backend: Backend) -> None:
    for top_p in (0.0, 0.5, 1.0):
        for coin in (0.0, LAST_COIN):
            assert backend.sample(np.array([-3], np.float32), 1.0, top_p, coin) == 0


# ---- the sampler ----


def test_temperature_zero_uses_no_coin(backend: Backend) -> None:
    logits = np.array([0, 2, 1], np.float32)
    cold, warm = SamplingParams(0.0), SamplingParams(1.0)
    sampler, fresh = Sampler(backend, cold, seed=3), Sampler(backend, warm, seed=3)
    assert [sampler.sample(logits) for _ in range(5)] == [1] * 5
    sampler.params = warm
    drawn = [[s.sample(logits.copy()) for _ in range(20)] for s in (sampler, fresh)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1


def test_defaults_are_llama2cs() -> None:
    assert SamplingParams() == SamplingParams(temperature=1.0, top_p=0.9)


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -math.inf, -0.1])
def test_a_temperature_out_of_range_is_an_error(temperature: float) -> None:
    with pytest.raises(ParameterError, match=f"temperature is {temperature}, expected"):
        SamplingParams(temperature=temperature)


@pytest.mark.parametrize("top_p", [math.nan, math.inf, -0.1, 1.5])
def test_a_top_p_out_of_range_is_an_error(top_p: float) -> None:
    with pytest.raises(ParameterError, match=f"top_p is {top_p}, expected"):
        SamplingParams(top_p=top_p)

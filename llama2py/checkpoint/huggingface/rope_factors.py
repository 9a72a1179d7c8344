"""Llama 3.1's scaling formula, recovered from the factors that it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...config import ModelConfig, RopeScaling, frequencies

_CLOSE = 1e-6  # rounding to float32 may have moved them by 6e-8

# Factors of Llama 3.1 and 3.2, and contexts that models had before they were stretched.
_FACTORS = (8.0, 32.0, 4.0, 16.0, 2.0)
_ORIGINAL = (8192, 4096, 2048)


def as_llama3(config: ModelConfig) -> RopeScaling | None:
    """Find the setting of Llama 3.1's scaling that gives a model's factors.

    Parameters
    ----------
    config : ModelConfig
        The model. Its ``rope_scaling`` is of kind ``factors``.

    Returns
    -------
    RopeScaling or None
        None where no setting with Llama 3.1's ``low_freq_factor`` and ``high_freq_factor`` gives
        these factors, as float32 numbers.
    """
    assert config.rope_scaling is not None, "a model without scaling has no factors"
    factors = config.rope_scaling.divisors(config.head_dim, config.rope_theta)
    # The slowest frequencies are divided by the whole factor.
    largest = max(factors)
    whole = round(largest)
    largest = float(whole) if math.isclose(largest, whole, rel_tol=_CLOSE) else largest
    settings = [(factor, original) for factor in (*_FACTORS, largest) for original in _ORIGINAL]
    settings += [(largest, original) for original in _originals(config, factors, largest)]
    for factor, original in settings:
        if factor <= 1:
            continue
        found = RopeScaling("llama3", factor, original_seq_len=original)
        wanted = found.divisors(config.head_dim, config.rope_theta)
        if all(math.isclose(a, b, rel_tol=_CLOSE) for a, b in zip(factors, wanted, strict=True)):
            return found
    return None


def _originals(config: ModelConfig, factors: Sequence[float], factor: float) -> list[int]:
    """Compute the original context from the first frequency that is divided in part."""
    usual = RopeScaling("llama3", 2.0)
    for each, frequency in zip(
        factors, frequencies(config.head_dim, config.rope_theta), strict=True
    ):
        if 1 < each < factor:
            part = (1 / each - 1 / factor) / (1 - 1 / factor)
            width = usual.high_freq_factor - usual.low_freq_factor
            turns = usual.low_freq_factor + part * width
            return [max(1, round(turns * 2 * math.pi / frequency))]
    return []

"""Factors of the rotary frequencies as the formula that they come from."""

from __future__ import annotations

import math

from ..config import ModelConfig
from ..rope import RopeScaling

# Contexts before they were stretched: Llama 3's, and what smaller models of the kind had.
_ORIGINAL = (8192, 4096, 2048)


def as_llama3(config: ModelConfig) -> RopeScaling | None:
    """Llama 3.1's scaling with the very factors that a model's scaling has.

    Parameters
    ----------
    config : ModelConfig
        Its ``rope_scaling`` is of kind ``factors``.

    Returns
    -------
    RopeScaling or None
        None where no setting that models use gives these factors, as float32 numbers.
    """
    assert config.rope_scaling is not None, "a model without scaling has no factors"
    factors = config.rope_scaling.divisors(config.head_dim, config.rope_theta)
    factor = max(factors)
    if factor <= 1:
        return None
    # The published factors are whole; float32 may have moved them.
    factor = float(round(factor)) if math.isclose(factor, round(factor), rel_tol=1e-6) else factor
    for original in _ORIGINAL:
        found = RopeScaling("llama3", factor, original_seq_len=original)
        wanted = found.divisors(config.head_dim, config.rope_theta)
        if all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(factors, wanted, strict=True)):
            return found
    return None

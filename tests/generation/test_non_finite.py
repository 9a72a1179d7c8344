"""Weights that are NaN, infinite or huge: a text without a warning of NumPy, or a clear error."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from llama2py import Llama2pyError, Model
from llama2py.checkpoint import DenseTensor
from llama2py.engine.backend import Backend
from llama2py.engine.native import Engine
from llama2py.engine.reference import Reference
from tests.conftest import TINY, in_memory, random_checkpoint, tiny_tokenizer

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 1e-29},
    {"temperature": 1e300, "top_k": 3},
    {"top_k": 5, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.9},
    {"typical_p": 0.0},
    {"repetition_penalty": 1e38, "frequency_penalty": 1e300, "presence_penalty": -1e300},
    {"repetition_penalty": 1e-40},
    {"logit_bias": {5: math.inf, 6: -math.inf, 7: 1e300}},
    {"logprobs": 3},
]


def broken(name: str, value: float) -> Any:
    """A checkpoint with every seventh weight of one kind of tensor replaced."""
    tensors = dict(random_checkpoint(TINY).tensors)
    layers = []
    for tensor in tensors[name]:
        weights = np.array(tensor.dequantize())
        weights.flat[::7] = value
        layers.append(DenseTensor(weights))
    return in_memory(TINY, tensors | {name: tuple(layers)})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize(
    "name", ["token_embedding_table", "wq", "wo", "w1", "rms_final_weight", "wcls"]
)
@pytest.mark.parametrize("kind", [Engine, Reference])
def test_texts_of_a_broken_model_raise_no_warning(
    kind: type[Engine | Reference], name: str, value: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend: Backend = kind(broken(name, value))
        with Model(backend, tiny_tokenizer()) as model, model.session() as session:
            session.forward([1, 5, 6, 7], all_logits=True)
            for options in OPTIONS:
                for prompt in ("a", ["a", "b"]):
                    try:
                        model.generate(prompt, 4, seed=1, stop_tokens=(), **options)
                    except Llama2pyError as error:
                        assert "no token is left to draw" in str(error)  # noqa: PT017
            assert model.score("abc").shape == (3,)
            assert not model.perplexity("abc") < 1


def test_a_perplexity_beyond_a_float_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    with Model(Engine(random_checkpoint(TINY)), tiny_tokenizer()) as model:
        monkeypatch.setattr(model, "score", lambda _: np.full(3, -1000.0))
        assert model.perplexity("abc") == math.inf

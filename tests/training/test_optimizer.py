"""The optimizers share out the parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.tiny_training import TINY

pytest.importorskip("torch", reason="needs the extra [train]")

from llama2py.training.network import Transformer
from llama2py.training.optimizer import make_optimizers


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_parameter_has_one_optimizer(name: str) -> None:
    model = Transformer(TINY.model_config(300))
    optimizers = make_optimizers(model, replace(TINY, optimizer=name))
    owned = [
        id(parameter)
        for each in optimizers
        for group in each.param_groups
        for parameter in group["params"]
    ]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())

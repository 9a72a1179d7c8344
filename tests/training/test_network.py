"""PyTorch's network computes what the engine does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2py
from llama2py.checkpoint import open_checkpoint, tensor_shapes

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from llama2py.training.network import Transformer  # noqa: E402


def network_of(path: Path) -> Transformer:
    """Return the network with the weights of a checkpoint, assigned by name."""
    with open_checkpoint(path) as checkpoint:
        network = Transformer(checkpoint.config)
        assert network.tensors().keys() == tensor_shapes(checkpoint.config).keys()
        state = network.state_dict()
        names = {
            "token_embedding_table": "tok_embeddings",
            "rms_final_weight": "norm",
            "rms_att_weight": "layers.{}.attention_norm",
            "rms_ffn_weight": "layers.{}.ffn_norm",
            **{name: f"layers.{{}}.attention.{name}" for name in ("wq", "wk", "wv", "wo")},
            **{name: f"layers.{{}}.feed_forward.{name}" for name in ("w1", "w2", "w3")},
        }
        for name, layers in checkpoint.tensors.items():
            for i, tensor in enumerate(layers):
                weights = tensor.dequantize().copy()
                state[names[name].format(i) + ".weight"] = torch.from_numpy(weights)
        network.load_state_dict(state)
    network.eval()
    return network


def logits_of(network: Transformer, tokens: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(network(torch.tensor([tokens]))[0].numpy())


def test_the_network_and_the_engine_compute_the_same_logits(trained: Path) -> None:
    network = network_of(trained)
    with llama2py.load(trained) as model, model.session() as session:
        tokens = model.tokenizer.encode("Once a dragon sang, and the kitten ran away.")[:60]
        ours = session.forward(tokens, all_logits=True)
    theirs = logits_of(network, tokens)
    assert np.abs(theirs).max() > 1  # it is trained, so there is something to compare
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    # The comparison would notice one changed weight.
    with torch.no_grad():
        network.get_parameter("layers.1.attention.wk.weight")[3, 5] += 1.0
    assert np.abs(logits_of(network, tokens) - ours).max() > 1e-4


def test_later_tokens_do_not_change_earlier_logits(trained: Path) -> None:
    network = network_of(trained)
    tokens = list(range(1, 41))
    whole = logits_of(network, tokens)
    np.testing.assert_allclose(whole[:20], logits_of(network, tokens[:20]), atol=1e-5)

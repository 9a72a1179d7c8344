"""The transformer in PyTorch, for training: the same architecture as the engine's.

Parameters are named as in llama2.c's ``model.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import DenseTensor
from ..checkpoint import Tensor as StoredTensor
from ..config import ModelConfig
from .dataset import IGNORED

# The tensors of a checkpoint by llama2.c's names, and the PyTorch parameters that hold them.
_LAYER_NAMES = {
    "rms_att_weight": "attention_norm",
    "wq": "attention.wq",
    "wk": "attention.wk",
    "wv": "attention.wv",
    "wo": "attention.wo",
    "rms_ffn_weight": "ffn_norm",
    "w1": "feed_forward.w1",
    "w2": "feed_forward.w2",
    "w3": "feed_forward.w3",
}


class RMSNorm(nn.Module):
    """Scale each row to a root mean square of 1, then multiply it by a weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:  # (..., dim) -> (..., dim)
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to interleaved pairs.

    Shapes: x (batch, time, heads, head_dim); cos and sin (time, 1, head_dim / 2).
    """
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)  # (batch, time, heads, pairs)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def soft_loss(logits: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy between a teacher's probabilities and a model's, in nats per token.

    Parameters
    ----------
    logits, teacher : Tensor, float32, shape (n, vocab_size)
        The logits of both.
    targets : Tensor, int64, shape (n,)
        Rows whose target is `IGNORED` do not count.
    temperature : float
        Both logits are divided by it. The loss is multiplied by its square, so that the size of
        the gradient does not depend on it.

    References
    ----------
    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015).
    """
    probabilities = (teacher / temperature).softmax(-1)
    losses = -(probabilities * (logits / temperature).log_softmax(-1)).sum(-1)  # (n,)
    counted = targets != IGNORED
    return temperature**2 * (losses * counted).sum() / counted.sum()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention per head. All shapes: (batch, heads, time, head_dim)."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # On a CPU, plain matrix products are 1.4 to 1.9 times as fast for short stories as the fused
    # kernel, whose blocks suit long texts and wide heads.
    time = q.shape[-2]
    future = torch.ones(time, time, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.mT) / math.sqrt(q.shape[-1])
    return scores.masked_fill(future, -math.inf).softmax(-1) @ v


class Attention(nn.Module):
    """Causal self-attention; ``n_heads / n_kv_heads`` query heads share one key/value head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (batch, time, dim)
        head_dim = self.config.head_dim
        group = self.config.n_heads // self.config.n_kv_heads
        q = rotate(self.wq(x).unflatten(-1, (-1, head_dim)), cos, sin)
        k = rotate(self.wk(x).unflatten(-1, (-1, head_dim)), cos, sin)
        v = self.wv(x).unflatten(-1, (-1, head_dim))
        y = attend(
            q.transpose(1, 2),  # (batch, heads, time, head_dim)
            k.repeat_interleave(group, dim=2).transpose(1, 2),
            v.repeat_interleave(group, dim=2).transpose(1, 2),
        )
        return self.wo(y.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """The SwiGLU feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.attention_norm(x), cos, sin))
        return x + self.drop(self.feed_forward(self.ffn_norm(x)))


class Transformer(nn.Module):
    """The whole model: tokens in, logits or the loss out.

    Parameters
    ----------
    config : ModelConfig
        The shape. The classifier is the token embedding.
    dropout : float
        Share of activations dropped in training: of the embeddings, and of the output of each
        attention and feed-forward layer. llama2.c also drops attention weights. Here they are kept,
        because drawing random numbers for all of them takes a CPU longer than the rest of the step.
    teacher_share, temperature : float
        The teacher's share of the loss, and what its logits and the model's are divided by.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        config: ModelConfig,
        dropout: float = 0.0,
        teacher_share: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.teacher_share, self.temperature = teacher_share, temperature
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        powers = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        angles = torch.outer(
            torch.arange(config.seq_len, dtype=torch.float64), config.rope_theta**-powers
        )
        tables = angles.cos()[:, None].float(), angles.sin()[:, None].float()  # (time, 1, pairs)
        self.register_buffer("cos", tables[0], persistent=False)
        self.register_buffer("sin", tables[1], persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Draw weights as llama2.c does: std 0.02, less for layers that add to the residual."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("wo.weight", "w2.weight"))
                std = 0.02 / math.sqrt(2 * self.config.n_layers) if last else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        teacher_logits: Tensor | None = None,
    ) -> Tensor:
        """Return logits, or with ``targets`` the mean loss in nats per token.

        Parameters
        ----------
        tokens : Tensor, int64, shape (batch, time)
            One text per row. Padding at the end does not affect the tokens before it.
        targets : Tensor, int64, shape (batch, time), optional
            The next token of each; `IGNORED` ones do not count.
        teacher_logits : Tensor, shape (batch, time, vocab_size), optional
            A part of the loss is then the distance to the teacher's probabilities.

        Returns
        -------
        Tensor, shape (batch, time, vocab_size) or ()
            The logits, or the loss.
        """
        time = tokens.shape[1]
        x = self.drop(self.tok_embeddings(tokens))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        cos, sin = self.cos[:time].to(x.dtype), self.sin[:time].to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.norm(x), self.tok_embeddings.weight)
        if targets is None:
            return logits
        flat, flat_targets = logits.flatten(0, 1).float(), targets.flatten()
        loss = F.cross_entropy(flat, flat_targets, ignore_index=IGNORED)
        if teacher_logits is None:
            return loss
        soft = soft_loss(flat, teacher_logits.flatten(0, 1).float(), flat_targets, self.temperature)
        return torch.lerp(loss, soft, self.teacher_share)

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Sequence[StoredTensor]]) -> None:
        """Set the weights to tensors by llama2.c's names, of this network's shape."""
        state = {
            "tok_embeddings.weight": tensors["token_embedding_table"][0],
            "norm.weight": tensors["rms_final_weight"][0],
        }
        for name, theirs in _LAYER_NAMES.items():
            for layer, tensor in enumerate(tensors[name]):
                state[f"layers.{layer}.{theirs}.weight"] = tensor
        arrays = {name: np.array(tensor.dequantize()) for name, tensor in state.items()}  # copies
        self.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def tensors(self) -> dict[str, tuple[StoredTensor, ...]]:
        """Return the weights as float32 by llama2.c's names, for `write_checkpoint`."""
        state = self.state_dict()

        def stored(name: str) -> StoredTensor:
            return DenseTensor(state[name + ".weight"].float().cpu().numpy().astype(np.float32))

        tensors: dict[str, tuple[StoredTensor, ...]] = {
            name: tuple(stored(f"layers.{layer}.{theirs}") for layer in range(self.config.n_layers))
            for name, theirs in _LAYER_NAMES.items()
        }
        tensors["token_embedding_table"] = (stored("tok_embeddings"),)
        tensors["rms_final_weight"] = (stored("norm"),)
        return tensors

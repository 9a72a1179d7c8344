"""The optimizers: Muon for the matrices inside the blocks and AdamW for the rest, or only AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .config import TrainConfig
from .network import Transformer

MUON_MOMENTUM = 0.95


def make_optimizers(model: Transformer, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return one or two optimizers that together own every parameter of the model.

    Notes
    -----
    Muon steps along the (semi-)orthogonal matrix nearest to its momentum. With
    ``match_rms_adamw`` the step has the root mean square of AdamW's step, so one learning rate
    suits both. Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural
    networks" (2024); Liu et al., "Muon is scalable for LLM training" (2025).
    """
    hidden, tables, norms = _group_parameters(model)
    adamw_groups: list[dict[str, Any]] = [{"params": norms, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        adamw_groups.insert(0, {"params": tables + hidden, "weight_decay": config.weight_decay})
    else:
        # The embedding of a rare token gets few gradients: decay would shrink it, so use less.
        adamw_groups.insert(0, {"params": tables, "weight_decay": 0.1 * config.weight_decay})
    betas = (config.beta1, config.beta2)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(adamw_groups, lr=config.learning_rate, betas=betas)
    ]
    if config.optimizer == "muon":
        optimizers.append(
            torch.optim.Muon(
                hidden,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=MUON_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def _group_parameters(
    model: Transformer,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices inside the blocks, the embedding, and the norms."""
    hidden, tables, norms = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            norms.append(parameter)
        elif name.startswith("layers."):
            hidden.append(parameter)
        else:
            tables.append(parameter)
    return hidden, tables, norms

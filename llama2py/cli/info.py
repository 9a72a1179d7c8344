"""``llama2py info``: what a checkpoint is, and what is wrong with it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..builtin import builtin_model
from ..checkpoint import Checkpoint, open_checkpoint
from ..config import ModelConfig
from ..model import own_tokenizer
from ..templates import recognise
from . import options

if TYPE_CHECKING:
    from .options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "info",
        help="show a checkpoint's shape and problems",
        description="Show a checkpoint's format, shape and size, and every problem found in it.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, nargs="?", help=options.CHECKPOINT
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what is known; a `CheckpointError` says why nothing is."""
    with open_checkpoint(args.checkpoint or builtin_model()) as checkpoint:
        facts = describe(checkpoint)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    config = facts["config"]
    shared = "the token embedding" if config["shared_classifier"] else "its own tensor"
    dtype = facts["dtype"]
    if facts["group_size"]:
        dtype += f", a scale for every {facts['group_size']} values"
    lines = {
        "file": facts["file"],
        "format": facts["format"],
        "size": f"{facts['file_size']:,} bytes",
        "weights": dtype,
        "parameters": f"{facts['parameters']:,}",
        "dim": config["dim"],
        "hidden_dim": config["hidden_dim"],
        "n_layers": config["n_layers"],
        "n_heads": f"{config['n_heads']} of size {facts['head_dim']}",
        "n_kv_heads": config["n_kv_heads"],
        "vocab_size": config["vocab_size"],
        "seq_len": f"{config['seq_len']} tokens, {facts['cache_bytes'] / 2**20:.1f} MiB a session",
        "classifier": shared,
        "norm_eps": f"{config['norm_eps']:g}",
        "rope_theta": f"{config['rope_theta']:g}",
        "rope_scaling": facts["rope_scaling"] or "none",
        "tokenizer": facts["tokenizer"] or "none of its own",
        "template": facts["chat_template"] or "none of its own",
        "memory": ", ".join(f"{n / 1e9:.3g} GB as {d}" for d, n in facts["memory"].items()),
        "notes": "; ".join(facts["notes"]) or "none",
        "problems": "; ".join(facts["problems"]) or "none found",
    }
    for name, value in lines.items():
        print(f"{name:<12} {value}")
    return 0


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts, ready for JSON. Reads every weight once."""
    config, tokenizer = checkpoint.config, own_tokenizer(checkpoint)
    return {
        "file": str(checkpoint.path),
        "format": checkpoint.format,
        "file_size": checkpoint.file_size,
        "dtype": checkpoint.dtype,
        "group_size": checkpoint.group_size,
        "parameters": config.n_params,
        "head_dim": config.head_dim,
        "cache_bytes": config.cache_bytes,
        "config": asdict(config),
        "rope_scaling": _rope_scaling(config),
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "chat_template": _template(checkpoint.chat_template),
        "memory": _memory(config),
        "notes": list(checkpoint.notes),
        "problems": _problems(checkpoint),
    }


def _template(jinja: str | None) -> str | None:
    """The name of the chat template."""
    if jinja is None:
        return None
    known = recognise(jinja)
    return known.name if known else "another one"


def _rope_scaling(config: ModelConfig) -> str | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    if scaling.kind == "factors":
        return "a factor for each frequency"
    if scaling.kind == "linear":
        return f"linear, by {scaling.factor:g}"
    return f"llama3, by {scaling.factor:g} beyond {scaling.original_seq_len} tokens"


def _memory(config: ModelConfig) -> dict[str, int]:
    """Bytes of the weights in the engine; norms are float32, of int8 every 64 share a scale."""
    norms = (2 * config.n_layers + 1) * config.dim
    matrices = config.n_params - norms
    return {
        "float32": 4 * config.n_params,
        "bfloat16": 4 * norms + 2 * matrices,
        "int8": 4 * norms + matrices + matrices // 16,
        "int4": 4 * norms + matrices // 2 + matrices // 16,
    }


def _problems(checkpoint: Checkpoint) -> list[str]:
    problems = []
    for name, tensors in checkpoint.tensors.items():
        bad = 0
        for tensor in tensors:
            bad += tensor.count_non_finite()
            checkpoint.release(tensor)
        if bad:
            problems.append(f"{name}: {bad} values are NaN or infinite")
    return problems

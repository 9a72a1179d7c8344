"""``llama2py info``: show what a checkpoint contains and what is wrong with it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from .._data import builtin_model, bundled_tokenizer
from .._util import amount, counted
from ..chat.templates import recognise
from ..checkpoint import Checkpoint, open_checkpoint, own_dtype
from ..checkpoint.export import steps_of
from ..config import ModelConfig
from ..engine.memory import free_memory, memory_by_dtype, packed_bytes, shortage
from ..errors import TokenizerError
from ..hub import find_model
from ..model import own_tokenizer, vocabulary_for
from . import options
from .options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the command; ``args.run(args)`` runs it and returns the exit code."""
    parser = subparsers.add_parser(
        "info",
        help="show a checkpoint's shape and problems",
        description="Show a checkpoint's format, shape and size, and every problem found in it.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help=options.CHECKPOINT)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a checkpoint's facts and problems."""
    path = builtin_model() if args.checkpoint is None else find_model(args.checkpoint)
    with open_checkpoint(path) as checkpoint:
        facts = describe(checkpoint)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    config = facts["config"]
    shared = "the token embedding" if config["shared_classifier"] else "its own tensor"
    dtype = facts["dtype"]
    if dtype in ("int8", "int4"):
        dtype += f", one scale per {facts['group_size']} values"
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
        "seq_len": f"{config['seq_len']} tokens, {amount(facts['cache_bytes'])} per session",
        "classifier": shared,
        "norm_eps": f"{config['norm_eps']:g}",
        "rope_theta": f"{config['rope_theta']:g}",
        "rope_scaling": facts["rope_scaling"] or "none",
        "steps": facts["steps"] or "a LLaMA's",
        "tokenizer": facts["tokenizer"] or "none of its own",
        "template": facts["chat_template"] or "none",
        "memory": ", ".join(f"{amount(n)} as {dtype}" for dtype, n in facts["memory"].items()),
        "load": facts["load"],
        "notes": "; ".join(facts["notes"]) or "none",
        "problems": "; ".join(facts["problems"]) or "none found",
    }
    for name, value in lines.items():
        print(f"{name:<12} {value}")
    return 0


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the facts as values that JSON can hold. This reads every weight once."""
    config, tokenizer = checkpoint.config, own_tokenizer(checkpoint)
    notes, problems = _tokenizer_facts(checkpoint)
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
        "steps": steps_of(config),
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "chat_template": _template(checkpoint.chat_template),
        "memory": memory_by_dtype(checkpoint),
        "free_memory": free_memory(),
        "load": _loading(checkpoint),
        "notes": [*checkpoint.notes, *notes],
        "problems": [*_weight_problems(checkpoint), *problems],
    }


def _template(jinja: str | None) -> str | None:
    """Return the name of a known chat template, or what runs it; None if there is no template."""
    if jinja is None:
        return None
    known = recognise(jinja)
    return known.name if known else "its own, run by llama2py[chat]"


def _rope_scaling(config: ModelConfig) -> str | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    if scaling.kind == "factors":
        return "one factor per frequency"
    if scaling.kind == "linear":
        return f"linear, by {scaling.factor:g}"
    return f"{scaling.kind}, by {scaling.factor:g} beyond {scaling.original_seq_len} tokens"


def _loading(checkpoint: Checkpoint) -> str:
    """Say whether the model fits into the memory that is free now."""
    dtype, free = own_dtype(checkpoint), free_memory()
    weights, session = packed_bytes(checkpoint, dtype), checkpoint.config.cache_bytes
    needs = f"{amount(weights)} as {dtype}, and {amount(session)} per full session"
    if free is None:
        return f"needs {needs}"
    problem = shortage(checkpoint, dtype, free)
    if problem is not None:
        advice = f"--dtype {problem.dtype} fits" if problem.dtype else "no other dtype fits either"
        return f"does not fit into the {amount(free)} of free memory: needs {needs}; {advice}"
    if weights + session > free:
        return f"fits into the {amount(free)} of free memory without a full session: needs {needs}"
    return f"fits into the {amount(free)} of free memory: needs {needs}"


def _weight_problems(checkpoint: Checkpoint) -> list[str]:
    problems = []
    for name, tensors in checkpoint.tensors.items():
        bad = zeros = 0
        for tensor in tensors:
            bad += tensor.count_non_finite()
            zeros += not tensor.has_values()
        if bad:
            verb = "is" if bad == 1 else "are"
            problems.append(f"{name}: {counted(bad, 'value')} {verb} NaN or infinite")
        if zeros and name[0] != "b":  # perhaps a download that did not finish; biases may be 0
            problems.append(f"{name}: {zeros} of {len(tensors)} tensors contain only zeros")
    return problems


def _tokenizer_facts(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Return the notes and the problems of a checkpoint's tokenizer."""
    own = own_tokenizer(checkpoint)
    try:
        notes = list(vocabulary_for(checkpoint, own or bundled_tokenizer()).notes)
        if own is None:
            notes.append("no tokenizer of its own: Llama 2's is used, which has as many tokens")
        return notes, []
    except TokenizerError as error:
        return [], [str(error) if own else f"no tokenizer of its own, and {error}"]

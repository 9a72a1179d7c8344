"""Checkpoints that a run begins with: weights to start from, and a teacher to learn from."""

from __future__ import annotations

from dataclasses import fields, replace

from ..checkpoint import Checkpoint, open_checkpoint
from ..config import ModelConfig
from ..errors import ConfigError, TrainingError
from ..hub import find_model
from ..model import tokenizer_for
from ..tokenizers.tokenizer import Tokenizer
from .network import Transformer


def vocabulary_of(path: str) -> Tokenizer:
    """Return the vocabulary of a checkpoint, as `load` finds it.

    Raises
    ------
    CheckpointError, TokenizerError
        If a file cannot be read, or its size does not match the model's.
    """
    with open_checkpoint(find_model(path)) as checkpoint:
        return tokenizer_for(checkpoint)


def initialize(model: Transformer, path: str) -> None:
    """Give a network the weights of a checkpoint.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be read.
    ConfigError
        If it has another shape.
    """
    with open_checkpoint(find_model(path)) as checkpoint:
        theirs = replace(checkpoint.config, seq_len=model.config.seq_len)
        if theirs != model.config:
            raise ConfigError(f"{path}: {_difference(theirs, model.config)}")
        model.load_tensors(checkpoint.tensors)


def load_teacher(path: str, tokenizer: Tokenizer, max_seq_len: int) -> Transformer:
    """Return a checkpoint as a network that is not trained.

    Raises
    ------
    CheckpointError, TokenizerError
        If a file cannot be read.
    TrainingError
        If the teacher has another vocabulary, a shorter context, or parts that this network lacks.
    """
    with open_checkpoint(find_model(path)) as checkpoint:
        own = tokenizer_for(checkpoint)
        if not _same_vocabulary(own, tokenizer):
            raise TrainingError(
                f"{path}: the teacher has another vocabulary ({len(own)} tokens) than this run"
                f" ({len(tokenizer)}); train with its vocabulary, or let it write stories to train"
                " on"
            )
        config = checkpoint.config
        if config.seq_len < max_seq_len:
            raise TrainingError(
                f"{path}: the teacher's context is {config.seq_len} tokens,"
                f" shorter than max_seq_len ({max_seq_len})"
            )
        _check_parts(checkpoint)
        model = Transformer(config)
        model.load_tensors(checkpoint.tensors)
    return model.eval().requires_grad_(False)


def _same_vocabulary(a: Tokenizer, b: Tokenizer) -> bool:
    return len(a) == len(b) and all(a.piece(token) == b.piece(token) for token in range(len(a)))


def _difference(theirs: ModelConfig, ours: ModelConfig) -> str:
    """Return a sentence about the first number that differs."""
    name = next(
        each.name
        for each in fields(ModelConfig)
        if getattr(theirs, each.name) != getattr(ours, each.name)
    )
    return (
        f"this checkpoint has {name} {getattr(theirs, name)!r}, but the run trains a model with"
        f" {getattr(ours, name)!r}"
    )


def _check_parts(checkpoint: Checkpoint) -> None:
    """Refuse a model that is more than llama2.c's transformer."""
    config = checkpoint.config
    names = "dim hidden_dim n_layers n_heads n_kv_heads vocab_size seq_len norm_eps rope_theta"
    plain = ModelConfig(**{name: getattr(config, name) for name in names.split()})
    for each in fields(ModelConfig):
        if getattr(plain, each.name) != (value := getattr(config, each.name)):
            raise TrainingError(
                f"{checkpoint.path}: the trainer does not support this teacher's"
                f" {each.name} {value!r:.60}; let it write stories to train on"
            )

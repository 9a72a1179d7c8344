"""A tiny model of each family, as a config.json with values that set the family apart."""

from __future__ import annotations

from typing import Any

_TINY: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [2.0, 4.0, 8.0],
}


def _of(model_type: str, **changes: Any) -> dict[str, Any]:
    return {**_TINY, "model_type": model_type, **changes}


# fmt: off
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _of("llama"),
    "llama-with-biases": _of("llama", attention_bias=True, mlp_bias=True),
    "llama-dynamic": _of("llama", rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
    "llama-gelu": _of("llama", hidden_act="gelu_pytorch_tanh"),
    "mistral": _of("mistral", sliding_window=11, head_dim=10),
    "mistral-no-window": _of("mistral", sliding_window=None),
    "qwen2": _of("qwen2", rope_theta=1e6),
    "qwen2-tied": _of("qwen2", tie_word_embeddings=True),
    "qwen2-windows": _of("qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=2),
    "qwen2-yarn": _of("qwen2", rope_scaling=_YARN),
    "qwen3": _of("qwen3", head_dim=16, rope_theta=1e6),
    "qwen3-yarn": _of("qwen3", head_dim=12, rope_scaling={**_YARN, "attention_factor": 1.25}),
    "smollm3": _of("smollm3", no_rope_layer_interval=2, rope_theta=5e4),
    "smollm3-windows": _of("smollm3", use_sliding_window=True, sliding_window=8,
                           no_rope_layers=[1, 0, 1, 0]),
    "olmo2": _of("olmo2", num_key_value_heads=3),
    "olmo3": _of("olmo3", sliding_window=8, rope_scaling=_YARN, rope_theta=2e4),
    "granite": _of("granite", embedding_multiplier=12.0, logits_scaling=8.0,
                   residual_multiplier=0.22, attention_multiplier=0.3),
    "phi3": _of("phi3", sliding_window=20),
    "phi3-partial": _of("phi3", partial_rotary_factor=0.75, sliding_window=None,
                        rope_scaling=_LONGROPE, original_max_position_embeddings=64),
    "gemma": _of("gemma", head_dim=20, hidden_act="gelu_pytorch_tanh"),
    "gemma3": _of("gemma3_text", head_dim=20, sliding_window=9, query_pre_attn_scalar=32,
                  hidden_activation="gelu_pytorch_tanh", num_hidden_layers=6,
                  rope_scaling={"rope_type": "linear", "factor": 8.0}),
}
# fmt: on

"""``config.json`` as a ModelConfig: what each family of models computes, and what cannot be run.

Source: the ``configuration_*.py`` and ``modeling_*.py`` of each family, and
``modeling_rope_utils.py``, of huggingface/transformers; InternLM's and MiniCPM's own code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ...config import ModelConfig, RopeScaling
from ...errors import CheckpointError, ConfigError
from ...formats.bounded_json import JsonObject

# From config.json to values of ModelConfig.
Steps: TypeAlias = Callable[[JsonObject], dict[str, Any]]

MAX_FACTORS = 1 << 12  # pairs of a head; real heads have 32 to 128


@dataclass(frozen=True, slots=True)
class Family:
    """The models of one ``model_type``.

    Attributes
    ----------
    steps : callable
        Returns the optional steps.
    defaults : dict
        What transformers takes for values that config.json lacks, where it is not the usual.
    tensors : {'separate', 'fused', 'internlm2'}
        Whether the matrices of queries, keys and values, and of gate and up, are separate tensors;
        or how they are joined.
    norms_less_one : bool
        Whether the files have the norms' weights minus 1.
    """

    steps: Steps
    defaults: dict[str, Any] = field(default_factory=dict)
    tensors: str = "separate"
    norms_less_one: bool = False


# ---- the families ----


def _biases(about: JsonObject) -> dict[str, Any]:
    """The biases of LLaMA and most others: all of attention's, all of the feed-forward layer's."""
    bias = about.flag("attention_bias")
    return {"qkv_bias": bias, "output_bias": bias, "mlp_bias": about.flag("mlp_bias")}


def _windows(about: JsonObject, types: list[str]) -> tuple[int, ...]:
    """The window of each layer, from the type of each; ``layer_types`` takes precedence."""
    layers = about.integer("num_hidden_layers")
    found = about.values.get("layer_types")
    if found is not None:
        if not isinstance(found, list) or len(found) != layers:
            raise about.error("layer_types", f"a list of {layers} types")
        types = found
    if not set(map(str, types)) <= {"full_attention", "sliding_attention"}:
        raise about.error("layer_types", "full_attention and sliding_attention only")
    if "sliding_attention" not in types:
        return ()
    window = about.integer("sliding_window")
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


def _layers(about: JsonObject, kind: Callable[[int], bool]) -> list[str]:
    """The type of each layer, from whether the layer of a number has a window."""
    numbers = range(_n_layers(about))
    return ["sliding_attention" if kind(i) else "full_attention" for i in numbers]


def _n_layers(about: JsonObject) -> int:
    """The number of layers, not above the number that `ModelConfig` allows."""
    return min(about.integer("num_hidden_layers"), 1 << 12)


def _mistral(about: JsonObject) -> dict[str, Any]:
    window = about.values.get("sliding_window", 4096)
    window = 0 if window is None else about.integer("sliding_window", 4096)
    return {"windows": (window,) * _n_layers(about)}


def _qwen2_windows(about: JsonObject) -> tuple[int, ...]:
    if not about.flag("use_sliding_window") or about.values.get("sliding_window", 0) is None:
        return ()
    first = about.integer("max_window_layers", 28)
    return _windows(about, _layers(about, lambda i: i >= first))


def _qwen2(about: JsonObject) -> dict[str, Any]:
    return {"qkv_bias": True, "windows": _qwen2_windows(about)}


def _qwen3(about: JsonObject) -> dict[str, Any]:
    return {**_biases(about), "qk_norm": "head", "windows": _qwen2_windows(about)}


def _smollm3(about: JsonObject) -> dict[str, Any]:
    every, rotated = about.integer("no_rope_layer_interval", 4), about.values.get("no_rope_layers")
    if every < 1:
        raise about.error("no_rope_layer_interval", "a whole number from 1 up")
    numbers = range(_n_layers(about))
    if rotated is None:
        rotated = [(i + 1) % every != 0 for i in numbers]
    if not isinstance(rotated, list) or len(rotated) < len(numbers):
        raise about.error("no_rope_layers", f"a list of {len(numbers)} numbers")
    unrotated = tuple(i for i in numbers if not rotated[i])
    windows: tuple[int, ...] = ()
    if about.flag("use_sliding_window") and about.values.get("sliding_window") is not None:
        windows = _windows(about, _layers(about, lambda i: i in unrotated))
    return {**_biases(about), "unrotated_layers": unrotated, "windows": windows}


def _olmo2(about: JsonObject) -> dict[str, Any]:
    bias = about.flag("attention_bias")
    norms = {"qk_norm": "all", "pre_norm": False, "post_norm": True}
    return {"qkv_bias": bias, "output_bias": bias, **norms}


def _olmo3(about: JsonObject) -> dict[str, Any]:
    windows = _windows(about, _layers(about, lambda i: (i + 1) % 4 != 0))
    return {**_olmo2(about), "windows": windows}


def _granite(about: JsonObject) -> dict[str, Any]:
    return {
        **_biases(about),
        "embedding_scale": about.number("embedding_multiplier", 1.0),
        "residual_scale": about.number("residual_multiplier", 1.0),
        "attention_scale": about.number("attention_multiplier", 1.0),
        "logit_scale": _inverse(about, "logits_scaling", 1.0),
    }


def _inverse(about: JsonObject, name: str, default: float) -> float:
    value = about.number(name, default)
    if not value:
        raise about.error(name, "a number other than 0")
    return 1 / value


def _minicpm(about: JsonObject) -> dict[str, Any]:
    layers, base = about.integer("num_hidden_layers"), about.number("dim_model_base", 1.0)
    depth = about.number("scale_depth", 1.0)
    return {
        **_biases(about),
        "embedding_scale": about.number("scale_emb", 1.0),
        "residual_scale": depth / math.sqrt(max(layers, 1)),
        "logit_scale": base / max(about.integer("hidden_size"), 1),
    }


def _phi3(about: JsonObject) -> dict[str, Any]:
    window = about.integer("sliding_window", 0)
    return {"windows": (window,) * _n_layers(about)}


def _internlm(about: JsonObject) -> dict[str, Any]:
    bias = about.flag("bias")
    return {"qkv_bias": bias, "output_bias": bias}


def _internlm3(about: JsonObject) -> dict[str, Any]:
    bias = about.flag("bias")
    return {"qkv_bias": about.flag("qkv_bias"), "output_bias": bias, "mlp_bias": bias}


def _gemma(about: JsonObject) -> dict[str, Any]:
    bias = about.flag("attention_bias")
    scale = math.sqrt(max(about.integer("hidden_size"), 1))
    return {"qkv_bias": bias, "output_bias": bias, "embedding_scale": scale}


def _gemma3(about: JsonObject) -> dict[str, Any]:
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if about.values.get(name) is not None:
            raise about.error(name, "null: soft caps are not supported")
    if about.flag("use_bidirectional_attention"):
        raise about.error("use_bidirectional_attention", "false")
    every = about.integer("sliding_window_pattern", 6)
    if every < 1:
        raise about.error("sliding_window_pattern", "a whole number from 1 up")
    scalar = about.number("query_pre_attn_scalar", 256.0)
    if scalar <= 0:
        raise about.error("query_pre_attn_scalar", "a number above 0")
    return {
        **_gemma(about),
        "qk_norm": "head",
        "post_norm": True,
        "attention_scale": scalar**-0.5,
        "windows": _windows(about, _layers(about, lambda i: (i + 1) % every != 0)),
    }


_GEMMA = {"tie_word_embeddings": True, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh"}
FAMILIES = {
    "llama": Family(_biases),
    "mistral": Family(_mistral, {"num_key_value_heads": 8}),
    "qwen2": Family(_qwen2, {"max_position_embeddings": 32768}),
    "qwen3": Family(_qwen3, {"max_position_embeddings": 32768, "head_dim": 128}),
    "smollm3": Family(
        _smollm3,
        {"max_position_embeddings": 32768, "rope_theta": 2e6, "tie_word_embeddings": True},
    ),
    "olmo2": Family(_olmo2, {"rms_norm_eps": 1e-5}),
    "olmo3": Family(_olmo3, {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": 4096}),
    "granite": Family(_granite),
    "minicpm": Family(_minicpm, {"tie_word_embeddings": True}),
    "phi3": Family(_phi3, {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}, tensors="fused"),
    "internlm": Family(_internlm),
    "internlm2": Family(_internlm, {"rms_norm_eps": 1e-6}, tensors="internlm2"),
    "internlm3": Family(
        _internlm3, {"rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "head_dim": 128}
    ),
    "gemma": Family(_gemma, {**_GEMMA, "max_position_embeddings": 8192}, norms_less_one=True),
    "gemma3_text": Family(
        _gemma3,
        {
            **_GEMMA,
            "max_position_embeddings": 131072,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "sliding_window": 4096,
        },
        norms_less_one=True,
    ),
}

# Keys of config.json that other families have, and what they mean.
_MISSING = {
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "kv_lora_rank": "multi-head latent attention",
    "ssm_cfg": "a state space",
    "state_size": "a state space",
    "final_logit_softcapping": "a soft cap of the logits",
    "vision_config": "vision",
    "layer_norm_eps": "LayerNorm",
    "layer_norm_epsilon": "LayerNorm",
    "norm_epsilon": "LayerNorm",
}
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu",
}


# ---- all of them ----


def read_config(about: JsonObject) -> tuple[ModelConfig, Family, list[str]]:
    """Read a model's numbers.

    Parameters
    ----------
    about : JsonObject
        A ``config.json``.

    Returns
    -------
    ModelConfig
        The numbers.
    Family
        How the files have the tensors.
    list of str
        What a user should know about the numbers.

    Raises
    ------
    CheckpointError
        A number is missing or impossible, or the model is one that the engine does not run; the
        message says what is missing.
    """
    family = _family(about)
    about = JsonObject(about.path, {**family.defaults, **about.values}, about.error_class)
    if about.values.get("quantization_config") is not None:
        raise about.error("quantization_config", "null: weights of other quantizers are not read")
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if about.values.get(name):
            raise about.error(name, "0: a mixture of experts is not supported")
    heads, head_dim = about.integer("num_attention_heads"), about.values.get("head_dim")
    try:
        steps = family.steps(about)
        rope = _rope(about, bool(steps.get("windows")))
        config = ModelConfig(
            dim=about.integer("hidden_size"),
            hidden_dim=about.integer("intermediate_size"),
            n_layers=about.integer("num_hidden_layers"),
            n_heads=heads,
            n_kv_heads=about.integer("num_key_value_heads", heads),
            vocab_size=about.integer("vocab_size"),
            seq_len=rope.seq_len,
            shared_classifier=about.flag("tie_word_embeddings"),
            norm_eps=about.number("rms_norm_eps", 1e-6),
            rope_theta=rope.theta,
            head_size=None if head_dim is None else about.integer("head_dim"),
            rope_scaling=rope.scaling,
            rotary_dim=rope.rotary_dim,
            window_rope_theta=rope.window_theta,
            activation=_activation(about),  # type: ignore[arg-type]
            **steps,
        )
    except ConfigError as error:
        raise CheckpointError(f"{about.path}: {error}") from None
    return config, family, rope.notes


def _model_type(about: JsonObject) -> str:
    return about.text("model_type", "llama")


def _family(about: JsonObject) -> Family:
    model_type = _model_type(about)
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    *others, last = FAMILIES
    expected = f"{', '.join(others)} or {last}"
    for name, meaning in _MISSING.items():
        if about.values.get(name):
            raise about.error("model_type", f"{expected}: {meaning} ({name}) is not supported")
    raise about.error("model_type", expected)


def _activation(about: JsonObject) -> str:
    """The function of the gate. Gemma's has two names in config.json."""
    own_name = about.values.get("hidden_activation") is not None
    name = "hidden_activation" if own_name else "hidden_act"
    function = about.text(name, "silu")
    if function == "gelu" and _model_type(about) == "gemma":
        function = "gelu_pytorch_tanh"  # which is what its first releases meant
    if function not in _ACTIVATIONS:
        raise about.error(name, "silu or gelu_pytorch_tanh")
    return _ACTIVATIONS[function]


# ---- rotary embeddings ----


@dataclass(slots=True)
class _Rope:
    """The numbers of rotary embeddings, and the context that depends on them."""

    theta: float
    seq_len: int
    scaling: RopeScaling | None = None
    rotary_dim: int | None = None
    window_theta: float | None = None
    notes: list[str] = field(default_factory=list)


def _rope(about: JsonObject, has_windows: bool) -> _Rope:
    # As in transformers 5, rope_scaling takes precedence, which older versions have with rope_theta
    # beside it; newer ones have both in rope_parameters.
    scaling, parameters = about.object("rope_scaling"), about.object("rope_parameters")
    local = JsonObject(about.path, {})
    nested = parameters is not None and "full_attention" in parameters.values
    if parameters is not None and nested:
        local = parameters.object("sliding_attention") or local
        parameters = parameters.object("full_attention")
    rope = scaling if scaling is not None and scaling.values else parameters
    rope = rope if rope is not None else JsonObject(about.path, {})
    theta = about.number("rope_theta", 10000.0)
    found = _Rope(rope.number("rope_theta", theta), about.integer("max_position_embeddings", 2048))
    family = _model_type(about)
    if family in ("gemma3_text", "olmo3") and has_windows:
        if _kind(local) != "default":
            raise about.error("rope_parameters", "layers with a window without scaling")
        own = theta if family == "olmo3" else about.number("rope_local_base_freq", 1e4)
        found.window_theta = local.number("rope_theta", own)
    elif nested:
        raise about.error("rope_parameters", "the same for all layers")
    part = rope.number("partial_rotary_factor", about.number("partial_rotary_factor", 1.0))
    if part != 1:
        if family != "phi3":
            raise about.error("partial_rotary_factor", "1")
        heads = max(about.integer("num_attention_heads"), 1)
        head_dim = about.integer("head_dim", about.integer("hidden_size") // heads)
        found.rotary_dim = int(head_dim * part) if 0 < part < 1 else 0
    _read_scaling(rope, about, found)
    return found


def _kind(rope: JsonObject) -> str:
    """The kind of scaling, under its new name or its old one."""
    return rope.text("rope_type" if "rope_type" in rope.values else "type", "default")


def _read_scaling(rope: JsonObject, about: JsonObject, found: _Rope) -> None:
    kind = _kind(rope)
    if kind == "linear":
        found.scaling = RopeScaling("linear", rope.number("factor"))
    elif kind == "llama3":
        found.scaling = RopeScaling(
            "llama3",
            rope.number("factor"),
            rope.number("low_freq_factor"),
            rope.number("high_freq_factor"),
            rope.integer("original_max_position_embeddings"),
        )
    elif kind == "dynamic" and rope.values.get("alpha") is None:
        # Frequencies would change with the length of the text, and with them the rotated keys of
        # every earlier position.
        found.notes.append(
            f"its dynamic RoPE scaling begins after {found.seq_len} tokens, where its context ends"
        )
    elif kind == "longrope" or (kind in ("su", "yarn") and _model_type(about) == "phi3"):
        _read_longrope(rope, about, found)
    elif kind == "yarn":
        _read_yarn(rope, about, found)
    elif kind != "default":
        raise about.error("rope_scaling", "default, linear, llama3, dynamic, yarn or longrope")


def _original(rope: JsonObject, about: JsonObject, default: int) -> int:
    """The context before the model was stretched."""
    name = "original_max_position_embeddings"
    return about.integer(name) if name in about.values else rope.integer(name, default)


def _read_yarn(rope: JsonObject, about: JsonObject, found: _Rope) -> None:
    original = _original(rope, about, found.seq_len)
    factor = rope.number("factor", found.seq_len / max(original, 1))

    def growth(part: float) -> float:
        return 0.1 * part * math.log(factor) + 1 if factor > 1 else 1.0

    attention, parts = growth(1), (rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0))
    if all(parts):
        attention = growth(parts[0]) / growth(parts[1])
    found.scaling = RopeScaling(
        "yarn",
        factor,
        original_seq_len=original,
        beta_fast=rope.number("beta_fast", 0.0) or 32.0,
        beta_slow=rope.number("beta_slow", 0.0) or 1.0,
        truncate=rope.flag("truncate", True),
        attention_factor=rope.number("attention_factor", attention),
    )
    # Qwen's documents add the scaling and leave the context as it was.
    found.seq_len = max(found.seq_len, int(original * factor))


def _read_longrope(rope: JsonObject, about: JsonObject, found: _Rope) -> None:
    usual = 4096 if _model_type(about) == "phi3" else found.seq_len
    original = _original(rope, about, usual)
    factor = rope.number("factor", found.seq_len / max(original, 1))
    attention = 1.0
    if factor > 1 and original > 1:
        attention = math.sqrt(1 + math.log(factor) / math.log(original))
    factors = rope.values.get("short_factor")
    if not isinstance(factors, list) or len(factors) > MAX_FACTORS:
        raise rope.error("short_factor", "a list of numbers")
    if not all(type(each) in (int, float) and abs(each) < 1e30 for each in factors):
        raise rope.error("short_factor", "numbers only")
    found.scaling = RopeScaling(
        "factors",
        factors=tuple(map(float, factors)),
        attention_factor=rope.number("attention_factor", attention),
    )
    if found.seq_len > original:
        # Longer texts need other factors from their first token on.
        found.notes.append(
            f"its context of {found.seq_len} is cut to {original}, for which its short RoPE factors"
            " are made"
        )
        found.seq_len = original

"""A tiny model of each family, as a directory whose weights NumPy makes, and transformers' logits.

`tests/golden/families.json` has the names and shapes of each model's tensors and the logits of its
last token, both from transformers: run `python -m tests.support.families` with PyTorch to write it.
Nothing here uses the code under test.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.foreign_files import safetensors, safetensors_file

GOLDEN = Path(__file__).parents[1] / "golden" / "families.json"
TOKENS = [(7 * i * i + 3 * i) % 97 for i in range(50)]

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

_GEMMA3: dict[str, Any] = {
    "head_dim": 20,
    "sliding_window": 9,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 6,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
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
    "smollm3-every-fourth": _of("smollm3", rope_theta=5e4),
    "smollm3-windows": _of("smollm3", use_sliding_window=True, sliding_window=8,
                           no_rope_layers=[1, 0, 1, 0]),
    "olmo2": _of("olmo2", num_key_value_heads=3),
    "olmo3": _of("olmo3", sliding_window=8, rope_scaling=_YARN, rope_theta=5e5),
    "granite": _of("granite", embedding_multiplier=12.0, logits_scaling=8.0,
                   residual_multiplier=0.22, attention_multiplier=0.3),
    "phi3": _of("phi3", sliding_window=20),
    "phi3-partial": _of("phi3", partial_rotary_factor=0.75, sliding_window=None,
                        rope_scaling=_LONGROPE, original_max_position_embeddings=64),
    "granite-with-usual-attention": _of("granite", embedding_multiplier=12.0, logits_scaling=3.0,
                                        residual_multiplier=0.7, attention_multiplier=8**-0.5),
    "internlm3": _of("internlm3", head_dim=8, qkv_bias=True, bias=True),
    "gemma": _of("gemma", head_dim=20, tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh"),
    "gemma3": _of("gemma3_text", query_pre_attn_scalar=32, **_GEMMA3),
    "gemma3-usual-attention": _of("gemma3_text", query_pre_attn_scalar=20, **_GEMMA3),
}
# fmt: on


def write_directory(folder: Path, name: str, shapes: dict[str, list[int]]) -> Path:
    """Write the model of a name; ``{}`` in the name of a tensor stands for every layer."""
    about = FAMILIES[name]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(about), "utf-8")
    random = np.random.RandomState(5)  # whose numbers are the same in every NumPy
    tensors: dict[str, NDArray[np.float32]] = {}
    for pattern, shape in shapes.items():
        for layer in range(about["num_hidden_layers"] if "{}" in pattern else 1):
            values = random.standard_normal(shape)
            if len(shape) == 2:
                values *= 1.5 / shape[1] ** 0.5
            elif pattern.endswith("bias"):
                values *= 0.5
            else:  # Gemma's files have norms minus 1
                values = 0.3 * values + (0 if about["model_type"].startswith("gemma") else 1)
            tensors[pattern.format(layer)] = values.astype("<f4")
    (folder / "model.safetensors").write_bytes(safetensors_file(*safetensors(tensors)))
    return folder


def golden() -> dict[str, Any]:
    """What was recorded for each family: ``shapes``, and ``logits`` (97,)."""
    found: dict[str, Any] = json.loads(GOLDEN.read_text("utf-8"))
    return found


def logits_of_transformers(folder: Path) -> NDArray[np.float32]:
    """The logits of TOKENS, (50, 97)."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    with torch.inference_mode():
        return np.asarray(model(torch.tensor([TOKENS])).logits[0].numpy(), np.float32)


def main() -> None:
    """Write the golden file."""
    import re

    import transformers

    found = {}
    for name, about in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(about), "utf-8")
            config = transformers.AutoConfig.from_pretrained(folder)
            model = transformers.AutoModelForCausalLM.from_config(config)
            layer = re.compile(r"(?<=layers\.)\d+")
            shapes = {layer.sub("{}", n): list(w.shape) for n, w in model.named_parameters()}
            path = write_directory(Path(folder) / "model", name, shapes)
            logits = logits_of_transformers(path)[-1]
        found[name] = {"shapes": shapes, "logits": [round(float(x), 5) for x in logits]}
    lines = [f"{json.dumps(name)}: {json.dumps(about)}" for name, about in found.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()

"""Measure a Python library once, in a process of its own. `compare.py` runs this script.

    python benchmarks/peers.py transformers DIRECTORY THREADS PROMPT_TOKENS TOKENS BATCH
    python benchmarks/peers.py llama-cpp-python MODEL.gguf THREADS PROMPT_TOKENS TOKENS BATCH

It prints JSON: tokens per second of 'generate' (one text, greedy), 'prompt', and 'batch' if the
library has batches. Each phase runs once to warm up and then three times. The best run counts, so
that a slow moment of the machine is not held against a peer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

Speeds = dict[str, float]


def best_speed(tokens: int, run: Callable[[], Any]) -> float:
    """Return tokens per second of the fastest of three runs, after a warm-up run."""
    run()
    seconds = []
    for _ in range(3):
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return tokens / min(seconds)


def transformers(path: str, threads: int, n_prompt: int, n_tokens: int, batch: int) -> Speeds:
    """Measure Hugging Face's generate, in float32 with PyTorch's CPU kernels."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompt = torch.arange(3, 3 + n_prompt)[None] % model.config.vocab_size

    def generate(texts: int) -> None:
        beginning = torch.full((texts, 1), 1)
        # min_new_tokens keeps EOS from ending a text early.
        model.generate(
            beginning,
            attention_mask=torch.ones_like(beginning),
            do_sample=False,
            min_new_tokens=n_tokens,
            max_new_tokens=n_tokens,
            pad_token_id=0,
        )

    with torch.inference_mode():
        speeds = {
            "prompt": best_speed(n_prompt, lambda: model(prompt, logits_to_keep=1)),
            "generate": best_speed(n_tokens, lambda: generate(1)),
        }
        if batch > 1:
            speeds["batch"] = best_speed(batch * n_tokens, lambda: generate(batch))
    return speeds


def llama_cpp_python(path: str, threads: int, n_prompt: int, n_tokens: int, batch: int) -> Speeds:
    """Measure llama-cpp-python's high-level class, which has no batches of texts."""
    from llama_cpp import Llama

    model = Llama(
        path,
        n_ctx=n_prompt + n_tokens + 8,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    prompt = [3 + i % (model.n_vocab() - 3) for i in range(n_prompt)]

    def run_prompt() -> None:
        model.reset()
        model.eval(prompt)

    def generate() -> None:
        model.reset()
        tokens = model.generate([1], temp=0.0, reset=False)
        for _ in range(n_tokens):
            next(tokens)

    return {
        "prompt": best_speed(n_prompt, run_prompt),
        "generate": best_speed(n_tokens, generate),
    }


def main() -> None:
    library, path, *numbers = sys.argv[1:]
    measure = {"transformers": transformers, "llama-cpp-python": llama_cpp_python}[library]
    threads, n_prompt, n_tokens, batch = map(int, numbers)
    print(json.dumps(measure(path, threads, n_prompt, n_tokens, batch)))


if __name__ == "__main__":
    main()

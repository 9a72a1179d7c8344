"""Recorded runs of llama2.c's programs, and the same runs with this package."""

from __future__ import annotations

from dataclasses import dataclass

import llama2py

BOS = 1


@dataclass(frozen=True)
class Case:
    """One run of the reference program; ``stdout`` is empty where it was not recorded."""

    checkpoint: str
    temperature: float
    topp: float
    seed: int
    steps: int
    prompt: str
    tokens: list[int]
    stdout: str = ""


def run(model: llama2py.Model, case: Case) -> tuple[list[int], str]:
    """The case's tokens as the reference counts them, and the text after the prompt.

    ``steps`` counts forward passes; of those over the prompt, only the last one samples. The
    reference cuts a longer prompt and shows its first tokens.
    """
    prompt = model.tokenizer.encode(case.prompt, bos=True)
    steps = case.steps or model.config.seq_len
    if len(prompt) > steps:
        return prompt[: steps + 1], ""
    generation = model.generate(
        case.prompt,
        max_tokens=steps + 1 - len(prompt),
        temperature=case.temperature,
        top_p=case.topp,
        seed=case.seed,
    )
    ended = [BOS] if generation.finish_reason == "stop" else []
    return prompt + generation.tokens + ended, generation.text

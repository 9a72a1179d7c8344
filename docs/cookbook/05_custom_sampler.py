"""A custom sampler: functions that change the logits before a token is drawn.

A `logits_processor` receives all tokens so far, prompt included, and the logits of the next token.
It returns the logits to draw from. Here, one processor writes a lipogram (a text without the letter
"k"), and another prevents any three tokens in a row from occurring twice. Temperature, top-p and
the seed then work as usual on the remaining logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import llama2py

model = llama2py.load()
pieces = [model.tokenizer.piece(token) for token in range(model.tokenizer.vocab_size)]
with_k = np.array([b"k" in piece.lower() for piece in pieces])


def without_k(tokens: Sequence[int], logits: llama2py.Logits) -> llama2py.Logits:
    """Ban every token that contains the letter."""
    logits[with_k] = -np.inf
    return logits


def nothing_twice(tokens: Sequence[int], logits: llama2py.Logits) -> llama2py.Logits:
    """Ban every token that would repeat a sequence of three."""
    last = tuple(tokens[-2:])
    for at in range(len(tokens) - 2):
        if tuple(tokens[at : at + 2]) == last:
            logits[tokens[at + 2]] = -np.inf
    return logits


PROMPT = "Once upon a time, there was a big"
story = model.generate(
    PROMPT, 150, temperature=0.8, seed=3, logits_processor=[without_k, nothing_twice]
)
print(PROMPT + story.text)
tokens = story.prompt_tokens + story.tokens
threes = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
print(f"{story.text.count('k')} times k; {len(threes) - len(set(threes))} repeated sequences")

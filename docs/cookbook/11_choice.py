"""A constrained choice: the model has to choose one of a few words.

Two ways. A `logits_processor` allows only tokens that continue one of the words, and the model
draws among these, token by token. Or every word is scored after the prompt, which gives the
probability of each word if nothing else could follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import llama2py

PROMPT = "Tom wanted a pet. So his dad went to the shop and came back with a little"
WORDS = ["dog", "cat", "puppy", "elephant"]

model = llama2py.load()
prompt = model.tokenizer.encode(PROMPT)
words = [model.tokenizer.encode(word, bos=False) for word in WORDS]  # each with its leading space


def one_of_them(tokens: Sequence[int], logits: llama2py.Logits) -> llama2py.Logits:
    """Allow tokens that continue a word, and after a whole word only BOS, which ends the text."""
    so_far = list(tokens[len(prompt) :])
    n = len(so_far)
    allowed = [[*word, model.tokenizer.bos_id][n] for word in words if word[:n] == so_far]
    choice = np.full_like(logits, -np.inf)
    choice[allowed] = logits[allowed]
    return choice


drawn = [
    model.generate(prompt, temperature=1.0, top_p=1.0, seed=seed, logits_processor=one_of_them)
    for seed in range(20)
]
for word in WORDS:
    print(f"{word}: drawn {sum(g.text.strip() == word for g in drawn)} times of {len(drawn)}")

scores = np.array([model.score(prompt + word)[len(prompt) - 1 :].sum() for word in words])
probabilities = np.exp(scores - scores.max())
probabilities /= probabilities.sum()
for word, probability in zip(WORDS, probabilities.tolist(), strict=True):
    print(f"{word}: {probability:.3f}")
print(f"most probable: {WORDS[int(probabilities.argmax())]}")

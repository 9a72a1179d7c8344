"""A constrained choice among words: the model must take one of them, and says how sure it is.

Two ways. A `logits_processor` that lets only the tokens through which go on with one of the words:
the model draws among them, token by token. And all words scored behind the prompt: their
probabilities, if nothing else could follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import llama2py
from llama2py.engine.backend import Logits

PROMPT = "Tom wanted a pet. So his dad went to the shop and came back with a little"
WORDS = ["dog", "cat", "puppy", "elephant"]

model = llama2py.load()
prompt = model.tokenizer.encode(PROMPT)
words = [model.tokenizer.encode(word, bos=False) for word in WORDS]  # each with its space


def one_of_them(tokens: Sequence[int], logits: Logits) -> Logits:
    """Only what goes on with a word; behind a whole word only BOS, which ends the text."""
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
print(f"the likeliest: {WORDS[int(probabilities.argmax())]}")

"""Scoring texts: which of them would the model have written, and which word surprises it most?

`score` gives the log-probability of every token, `perplexity` sums a text up, and `score_texts`
gives bits per byte, by which models of different vocabularies can be compared.
"""

from __future__ import annotations

import llama2py

TEXTS = [
    "Once upon a time, there was a little girl named Lily. She loved to play in the park.",
    "Once upon a time, there was a little girl named Lily. She loved to play in the parliament.",
    "Park the in play to loved she. Lily named girl little a was there, time a upon once.",
]

with llama2py.load() as model:
    print("perplexity  text, the likeliest first")
    for text in sorted(TEXTS, key=model.perplexity):
        print(f"{model.perplexity(text):10.1f}  {text}")

    text = TEXTS[1]
    tokens = model.tokenizer.encode(text)  # BOS first, which is only context
    logprobs = model.score(text)  # of all tokens but BOS
    worst = int(logprobs.argmin()) + 1
    before = model.tokenizer.decode(tokens[:worst])
    surprise = model.tokenizer.decode(tokens[: worst + 1]).removeprefix(before)
    print(f"most surprising: {surprise!r} ({logprobs[worst - 1]:.1f}) behind {before!r}")

    print(f"all together: {llama2py.score_texts(model, TEXTS).bits_per_byte:.2f} bits per byte")

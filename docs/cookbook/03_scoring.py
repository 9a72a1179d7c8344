"""Score texts: which text is the most probable, and which word surprises the model most?

`score` returns the log-probability of every token, `perplexity` one number for a text, and
`score_texts` bits per byte, which can be compared between models with different vocabularies.
"""

from __future__ import annotations

import llama2py

TEXTS = [
    "Once upon a time, there was a little girl named Lily. She loved to play in the park.",
    "Once upon a time, there was a little girl named Lily. She loved to play in the parliament.",
    "Park the in play to loved she. Lily named girl little a was there, time a upon once.",
]

with llama2py.load() as model:
    print("perplexity  text, most probable first")
    for text in sorted(TEXTS, key=model.perplexity):
        print(f"{model.perplexity(text):10.1f}  {text}")

    text = TEXTS[1]
    tokens = model.tokenizer.encode(text)  # the first is BOS
    logprobs = model.score(text)  # of all tokens except BOS
    worst = int(logprobs.argmin()) + 1
    before = model.tokenizer.decode(tokens[:worst])
    surprise = model.tokenizer.decode(tokens[: worst + 1]).removeprefix(before)
    print(f"most surprising: {surprise!r} ({logprobs[worst - 1]:.1f}) after {before!r}")

    print(f"all texts: {llama2py.score_texts(model, TEXTS).bits_per_byte:.2f} bits per byte")

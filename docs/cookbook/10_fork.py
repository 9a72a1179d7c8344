"""Fork a story: run its beginning once, and continue it in several ways.

A session holds the KV cache of the tokens so far. `fork` copies it, so each branch computes only
its own tokens. If you need one branch at a time, `rewind` is enough.
"""

from __future__ import annotations

import numpy as np

import llama2py

BEGINNING = "Once upon a time, there was a little boy named Tim. Tim opened the old box and found a"
BRANCHES, TOKENS = 3, 40

with llama2py.load() as model, model.session() as trunk:
    tokens = model.tokenizer.encode(BEGINNING)
    logits = trunk.forward(tokens)  # (vocab_size,): of the next token
    print(BEGINNING)
    for token in np.argsort(-logits)[:BRANCHES].tolist():  # the most probable next tokens
        branch_tokens = [token]
        with trunk.fork() as branch:
            while len(branch_tokens) < TOKENS:
                token = int(branch.forward([token]).argmax())
                if token == model.tokenizer.bos_id:  # the end of a story
                    break
                branch_tokens.append(token)
            text = model.tokenizer.decode([*tokens, *branch_tokens])
            print(f"  ..{text.removeprefix(BEGINNING)}")
            assert branch.position > trunk.position == len(tokens)

"""Threads: share one model, and cancel a text from another thread.

A model is immutable, so threads share it without a lock. The engine runs without the GIL. Each text
is the same as without other threads. (To generate a list of texts, `generate` with a list is
faster: it runs them as one batch.)
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import llama2py

with llama2py.load() as model:

    def tell(seed: int) -> str:
        return model.generate("Once upon a time", 60, seed=seed).text

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(tell, range(1, 17)))
    alone = [tell(seed) for seed in range(1, 17)]
    print(f"{len(together)} texts from 8 threads, {len(set(together))} different texts")
    print("same texts as one thread" if together == alone else "not the texts of one thread!")

    # Texts without end, until another thread cancels them.
    enough = threading.Event()
    threading.Timer(0.2, enough.set).start()
    words = model.generate_many(iter(lambda: "Once", None), max_tokens=20, cancel=enough)
    for n, text in enumerate(words):
        if text.finish_reason == "cancelled":
            print(f"cancelled after {n} texts")
            break

"""A benchmark: tokens per second of a prompt, of one text, and of many texts at once.

    python 12_benchmark.py stories15M.bin

``python -m llama2py bench`` prints a table with the machine's limits, memory and interleaved runs.
This program shows how to measure inside your own program: every result has its timings.
"""

from __future__ import annotations

import sys
from statistics import median
from time import perf_counter
from typing import get_args

import llama2py

path = sys.argv[1] if len(sys.argv) > 1 else None
RUNS, TOKENS, BATCH = 3, 100, 16

print("tokens per second:")
print(f"{'dtype':10}{'MB':>8}{'prompt':>10}{'one text':>10}{f'{BATCH} texts':>10}")
for dtype in get_args(llama2py.Dtype):
    with llama2py.load(path, dtype=dtype) as model:
        model.reuse_prefixes(0)  # otherwise the prompt would be computed only once
        model.generate(max_tokens=8)  # warm up
        prompt = [model.tokenizer.bos_id] * 128
        reading, one, many = [], [], []
        for _ in range(RUNS):  # in turns, so that a slow moment of the machine affects all alike
            reading.append(model.generate(prompt, 1).timings.prompt_tokens_per_second)
            g = model.generate("Once", TOKENS, 0.0, stop_tokens=())
            one.append(g.timings.tokens_per_second)
            start = perf_counter()
            texts = model.generate(["Once"] * BATCH, TOKENS, 0.0, stop_tokens=())
            many.append(sum(len(g.tokens) for g in texts) / (perf_counter() - start))
        speeds = "".join(f"{median(speed):10,.0f}" for speed in (reading, one, many))
        print(f"{dtype:10}{model.backend.nbytes / 1e6:8.1f}{speeds}")

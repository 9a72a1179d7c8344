"""How much sooner the first token comes if a prompt shares a prefix with an earlier one.

    python benchmarks/prefix_reuse.py MODEL [DTYPE [N_SHARED [N_NEW]]]

Measures in turns, 40 times: a new prompt of N_SHARED + N_NEW random tokens (195 and 5); one that
differs from it only in the last N_NEW tokens; and that one with one more token, the least that any
prompt can cost, since the weights must be read once. Prints the medians of the seconds to the first
token and of the rounds' ratios.
"""

from __future__ import annotations

import sys
from random import Random
from statistics import median

import llama2py

ROUNDS = 40


def main(path: str, dtype: str = "float32", n_shared: str = "195", n_new: str = "5") -> None:
    """Measure and print."""
    random = Random(1)
    with llama2py.load(path, dtype=dtype) as model:  # type: ignore[arg-type]  # load checks it

        def tokens(n: int) -> list[int]:
            return [random.randrange(3, model.config.vocab_size) for _ in range(n)]

        def seconds(prompt: list[int]) -> float:
            return model.generate(prompt, max_tokens=1, seed=1).timings.first_token_seconds

        whole, second, least = [], [], []
        for _ in range(ROUNDS):
            shared = [model.tokenizer.bos_id, *tokens(int(n_shared) - 1)]
            whole.append(seconds(shared + tokens(int(n_new))))
            prompt = shared + tokens(int(n_new))
            second.append(seconds(prompt))
            least.append(seconds([*prompt, *tokens(1)]))
    ratio, bound = (
        median(a / b for a, b in zip(whole, times, strict=True)) for times in (second, least)
    )
    print(
        f"{dtype}: whole {median(whole) * 1e3:.2f} ms, second {median(second) * 1e3:.2f} ms,"
        f" {ratio:.1f} times sooner; one token more {median(least) * 1e3:.2f} ms, {bound:.1f} times"
    )


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 5:
        sys.exit("usage: prefix_reuse.py MODEL [DTYPE [N_SHARED [N_NEW]]]")
    main(*sys.argv[1:])

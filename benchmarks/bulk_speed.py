"""The speed of ``llama2py batch`` against `Model.generate_many` for the same rows, in turns.

Each round runs the same rows both ways, in one process; the text of each row is compared, too. The
batch's time has everything: checking the input, parsing, seeds, writing, fsync and the manifest.

    python benchmarks/bulk_speed.py --rows 20000 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from llama2py.bulk.identity import ModelSpec, load_identified
from llama2py.bulk.output import OutputFolder
from llama2py.bulk.rows import row_seed
from llama2py.bulk.sources import open_source
from llama2py.bulk.texts import Settings, ShardMaker


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="default: the built-in model")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shard-rows", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8", "int4"))
    args = parser.parse_args()
    spec = ModelSpec(args.model, None, args.threads, args.dtype)
    model, identity = load_identified(spec)
    parameters = {"max_tokens": args.max_tokens}
    ratios, cpu_ratios, speeds, n_tokens = [], [], [], 0
    with model, tempfile.TemporaryDirectory() as name:
        for round_ in range(args.rounds):
            each = args.rows // args.rounds
            ids = [str(number) for number in range(round_ * each, (round_ + 1) * each)]
            path, out = Path(name, f"{round_}.jsonl"), Path(name, str(round_))
            prompt = "Once upon a time"
            lines = (json.dumps({"id": row, "prompt": prompt}) + "\n" for row in ids)
            path.write_text("".join(lines))
            begun, cpu = perf_counter(), process_time()
            seeds = [row_seed(0, row, prompt, parameters) for row in ids]
            texts = list(model.generate_many([prompt] * each, args.max_tokens, seed=seeds))
            plain, plain_cpu = perf_counter() - begun, process_time() - cpu
            begun, cpu = perf_counter(), process_time()
            source = open_source(path, None, args.shard_rows)
            maker = ShardMaker(model, identity, Settings(parameters=parameters))
            with OutputFolder(out, "jsonl") as folder:
                folder.begin({})
                for shard in maker.shards(source.shards(range(source.n_shards))):
                    folder.write(shard)
                folder.finish()
            batch, batch_cpu = perf_counter() - begun, process_time() - cpu
            shards = sorted(out.glob("shard-*"))
            found = [json.loads(line) for shard in shards for line in shard.open(encoding="utf-8")]
            if [row["text"] for row in found] != [text.text for text in texts]:
                raise SystemExit("the texts differ")
            tokens = sum(len(text.tokens) for text in texts)
            n_tokens += tokens
            ratios.append(plain / batch)
            cpu_ratios.append(plain_cpu / batch_cpu)
            speeds.append(tokens / batch)
            print(
                f"round {round_ + 1}: {tokens:,} tokens; generate_many {tokens / plain:,.0f}"
                f" tokens/s, batch {tokens / batch:,.0f}: {100 * plain / batch:.1f}%"
                f" (of CPU time: {100 * plain_cpu / batch_cpu:.1f}%)",
                flush=True,
            )
    print(
        f"median: batch {median(speeds):,.0f} tokens/s, {100 * median(ratios):.1f}% of"
        f" generate_many (of CPU time: {100 * median(cpu_ratios):.1f}%);"
        f" {n_tokens / args.rows:.0f} tokens per text"
    )


if __name__ == "__main__":
    main()

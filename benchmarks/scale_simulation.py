"""How long a batch takes on 1 to 1,000 nodes, and where the time goes: a simulation of events.

The numbers that it starts from are measured with ``llama2py batch`` on one machine (docs/scale.md
says how), and are parameters here. Simulated are: actors that load a model and then take one shard
after the other; texts of random length; nodes of different speed; one process that hands out shards
and writes them, one after the other; nodes that fail at random, lose their shards in work, and are
replaced after a while.

    python benchmarks/scale_simulation.py --rows 1000000 --tokens-per-second 6300
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

SHARD_ROWS = (50, 100, 200, 500, 1000, 2000, 5000)
NODES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Job:
    """A batch, and the machines that it runs on.

    Attributes
    ----------
    rows : int
        Rows of the batch.
    shard_rows : int
        Rows of a shard.
    tokens, tokens_deviation : float
        Mean and standard deviation of the tokens of a text.
    tokens_per_second : float
        Of one actor.
    actors : int
        Actors of a node.
    start_seconds : float
        From the start of a node to its first token: the process, the imports, the model.
    write_seconds : float
        That the writing process takes for one shard, to disk.
    spread : float
        Standard deviation of the nodes' speeds, as a share of the mean.
    hours_to_failure : float
        Mean time until a node fails; 0: nodes do not fail.
    replace_seconds : float
        From a failure to the start of another node in its place.
    shard_tail_seconds : float
        Time at the end of a shard in which the batch of an actor is not full, lost once per shard.
    """

    rows: int = 1_000_000
    shard_rows: int = 1000
    tokens: float = 185.0
    tokens_deviation: float = 60.0
    tokens_per_second: float = 6300.0
    actors: int = 2
    start_seconds: float = 3.0
    write_seconds: float = 0.01
    spread: float = 0.1
    hours_to_failure: float = 24.0
    replace_seconds: float = 180.0
    shard_tail_seconds: float = 0.4


@dataclass
class Outcome:
    """What a simulated run took.

    Attributes
    ----------
    seconds : float
        From the start to the manifest.
    linear : float
        What it would take if all actors generated tokens all the time, with full batches.
    starting, lost, idle : float
        Seconds of actors that went into starting, into shards that were lost, and into waiting.
    """

    seconds: float = 0.0
    linear: float = 0.0
    starting: float = 0.0
    lost: float = 0.0
    idle: float = 0.0


@dataclass
class Node:
    """A node in the simulation; ``life`` counts its replacements, so that old events do nothing."""

    speed: float
    life: int = 0
    up_since: float = 0.0
    running: dict[int, tuple[float, float]] = field(default_factory=dict)  # shard: (start, end)


def simulate(job: Job, nodes: int, seed: int = 0) -> Outcome:
    """Simulate one run of a job on some nodes."""
    rng = np.random.default_rng(seed)
    n_shards = -(-job.rows // job.shard_rows)
    # The sum of the tokens of a shard's rows, by the central limit theorem.
    deviation = job.tokens_deviation * job.shard_rows**0.5
    shard_tokens = rng.normal(job.tokens * job.shard_rows, deviation, n_shards)
    waiting = deque(range(n_shards))
    everyone = [Node(max(0.3, rng.normal(1.0, job.spread))) for _ in range(nodes)]
    events: list[tuple[float, int, str, int, int, int]] = []
    order = 0
    outcome = Outcome()
    idle_actors: deque[tuple[int, int]] = deque()
    written_at = 0.0  # when the writing process is free again
    unwritten = n_shards
    busy = 0.0

    def push(when: float, kind: str, node: int, shard: int = -1) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (when, order, kind, node, everyone[node].life, shard))

    def boot(when: float, node: int) -> None:
        everyone[node].up_since = when
        for _ in range(job.actors):
            push(when + job.start_seconds, "ready", node)
        if job.hours_to_failure:
            push(when + rng.exponential(job.hours_to_failure * 3600), "fail", node)

    def give(when: float, node: int) -> None:
        """Give an actor that is free the next shard."""
        if not waiting:
            idle_actors.append((node, everyone[node].life))
            return
        shard = waiting.popleft()
        speed = job.tokens_per_second * everyone[node].speed
        end = when + shard_tokens[shard] / speed + job.shard_tail_seconds
        everyone[node].running[shard] = (when, end)
        push(end, "done", node, shard)

    for number in range(nodes):
        boot(0.0, number)
    while unwritten:
        now, _, kind, number, life, shard = heapq.heappop(events)
        node = everyone[number]
        if life != node.life:
            continue
        if kind == "ready":
            outcome.starting += job.start_seconds
            give(now, number)
        elif kind == "done":
            begun, _ = node.running.pop(shard)
            busy += now - begun
            written_at = max(written_at, now) + job.write_seconds
            unwritten -= 1
            give(now, number)
        elif kind == "fail":
            outcome.lost += sum(now - begun for begun, _ in node.running.values())
            waiting.extendleft(node.running)
            node.running.clear()
            node.life += 1
            push(now + job.replace_seconds, "boot", number)
            for idle_number, idle_life in list(idle_actors):
                idle_actors.popleft()
                if everyone[idle_number].life == idle_life:
                    give(now, idle_number)
        else:
            boot(now, number)
    outcome.seconds = written_at
    speed = job.tokens_per_second * job.actors * sum(node.speed for node in everyone)
    outcome.linear = float(shard_tokens.sum()) / speed
    total = written_at * nodes * job.actors
    outcome.idle = total - busy - outcome.starting - outcome.lost
    return outcome


def average(job: Job, nodes: int, runs: int) -> tuple[Outcome, float]:
    """Return the mean of some runs, and the longest time."""
    outcomes = [simulate(job, nodes, seed) for seed in range(runs)]
    names = ("seconds", "linear", "starting", "lost", "idle")
    values = {name: float(np.mean([getattr(o, name) for o in outcomes])) for name in names}
    return Outcome(**values), max(outcome.seconds for outcome in outcomes)


def best(job: Job, nodes: int) -> Job:
    """Return the job with the size of shards that takes the least time on some nodes."""
    jobs = [replace(job, shard_rows=rows) for rows in SHARD_ROWS if rows * nodes <= job.rows]
    return min(jobs, key=lambda job: simulate(job, nodes).seconds)


def duration(seconds: float) -> str:
    """Format a time."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"


def table(job: Job, runs: int, price: float) -> str:
    """Return a Markdown table: a line for each number of nodes."""
    lines = [
        "| nodes | shards of | time | worst | of linear | starting | lost | waiting | dollars |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for nodes in NODES:
        chosen = best(job, nodes)
        outcome, worst = average(chosen, nodes, runs)
        total = outcome.seconds * nodes * job.actors
        parts = (outcome.starting, outcome.lost, outcome.idle)
        cells = [f"{nodes:,}", f"{chosen.shard_rows:,}"]
        cells += [duration(outcome.seconds), duration(worst)]
        cells += [f"{100 * outcome.linear / outcome.seconds:.0f}%"]
        cells += [f"{100 * part / total:.1f}%" for part in parts]
        lines.append(f"| {' | '.join(cells)} | {total / 3600 * price:,.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Job()
    for name in Job.__dataclass_fields__:
        value = getattr(default, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(value), default=value)
    parser.add_argument("--runs", type=int, default=10, help="simulated runs of each line")
    parser.add_argument("--price", type=float, default=0.04, help="dollars per actor and hour")
    args = parser.parse_args()
    job = Job(**{name: getattr(args, name) for name in Job.__dataclass_fields__})
    print(table(job, args.runs, args.price))


if __name__ == "__main__":
    main()

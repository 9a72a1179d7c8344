"""How fast a model runs here: load, prompt, generation, memory, for several thread counts."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from .backend import Backend
from .builtin import builtin_model
from .checkpoint import open_checkpoint
from .config import ModelConfig
from .cpu import default_threads
from .errors import ParameterError
from .sampling import Sampler, SamplingParams
from .session import Session

GREEDY = SamplingParams(temperature=0.0)
DEFAULT_SAMPLING = SamplingParams()


@dataclass(frozen=True, slots=True)
class Figure:
    """The runs of one measurement: their median, and how far they spread."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of at least one run."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Row:
    """What one thread count does. Seconds, and tokens per second."""

    threads: int
    load_seconds: Figure
    prompt_tokens_per_second: Figure
    greedy_tokens_per_second: Figure
    sampled_tokens_per_second: Figure


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark: the machine, the model, what was done, one row for each thread count."""

    cpu: str
    cores: int
    isa: str
    checkpoint: str
    parameters: int
    dtype: str
    weight_bytes: int
    session_bytes: int
    prompt_tokens: int
    generated_tokens: int
    repeats: int
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def benchmark(
    path: str | os.PathLike[str] | None = None,
    threads: Sequence[int] | None = None,
    repeats: int = 5,
    prompt_tokens: int = 128,
    generated_tokens: int = 128,
) -> Report:
    """Measure a checkpoint with the C engine.

    Thread counts take turns, so that a change of the machine's pace meets all of them. The first
    round of each is a warm-up and does not count.

    Parameters
    ----------
    path : str or path-like, optional
        The checkpoint. Default: the built-in one.
    threads : sequence of int, optional
        Thread counts. Default: 1, 2, 4.. up to the physical cores.
    repeats : int
        Runs that count.
    prompt_tokens, generated_tokens : int
        Length of the two phases, cut to what the context holds. Generation starts at position 0;
        prompt speed is that of one prefill without sampling.

    Returns
    -------
    Report
        Medians, minima and maxima.

    Raises
    ------
    CheckpointError, EngineError
        As in `load`.
    ParameterError
        If a number is below 1.
    """
    for value in (repeats, prompt_tokens, generated_tokens, *(threads or ())):
        if value < 1:
            raise ParameterError(f"a benchmark of {value}, expected whole numbers from 1 up")
    path = builtin_model() if path is None else path
    counts = list(threads or _thread_counts())
    results: dict[int, list[tuple[float, float, float, float]]] = {n: [] for n in counts}
    for round_ in range(repeats + 1):
        for n in counts:
            seconds, backend = _load(path, n)
            prompt_tokens = min(prompt_tokens, backend.config.seq_len)
            generated_tokens = min(generated_tokens, backend.config.seq_len)
            speeds = (
                seconds,
                _prompt_speed(backend, prompt_tokens),
                _generation_speed(backend, GREEDY, generated_tokens),
                _generation_speed(backend, DEFAULT_SAMPLING, generated_tokens),
            )
            if round_:
                results[n].append(speeds)
            backend.close()
    config = backend.config
    return Report(
        cpu=cpu_name(),
        cores=default_threads(),
        isa=backend.isa,
        checkpoint=os.path.basename(path),
        parameters=config.n_params,
        dtype=backend.dtype,
        weight_bytes=backend.nbytes,
        session_bytes=config.cache_bytes,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        repeats=repeats,
        rows=[
            Row(n, *(Figure.of(column) for column in zip(*results[n], strict=True))) for n in counts
        ],
    )


def cpu_name() -> str:
    """The processor, as the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            for line in cpuinfo:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _thread_counts() -> list[int]:
    most = default_threads()
    counts = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*counts, most]


def _load(path: str | os.PathLike[str], threads: int) -> tuple[float, Backend]:
    from .engine import Engine  # whoever only reads reports needs no C extension

    start = perf_counter()
    with open_checkpoint(path) as checkpoint:
        backend = Engine(checkpoint, threads)
    return perf_counter() - start, backend


def _some_tokens(config: ModelConfig, n: int) -> list[int]:
    """Token ids spread over the vocabulary: text would do the same work."""
    return [i * 7919 % config.vocab_size for i in range(1, n + 1)]


def _prompt_speed(backend: Backend, n: int) -> float:
    tokens = _some_tokens(backend.config, n)
    with Session(backend) as session:
        start = perf_counter()
        session.forward(tokens)
        return n / (perf_counter() - start)


def _generation_speed(backend: Backend, params: SamplingParams, n: int) -> float:
    sampler = Sampler(backend, params, seed=1)
    token = 1  # BOS; stories that end go on here, so that every run does the same work
    with Session(backend) as session:
        start = perf_counter()
        for _ in range(n):
            token = sampler.sample(session.forward([token]))
        return n / (perf_counter() - start)

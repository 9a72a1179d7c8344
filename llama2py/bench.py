"""How fast a model runs here, and how fast this machine would let anyone go."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ._data import builtin_model
from .checkpoint import open_checkpoint, own_dtype
from .config import CacheDtype, Dtype, ModelConfig
from .engine.backend import Backend
from .engine.cpu import default_threads
from .engine.session import Session, run_sessions
from .errors import ParameterError
from .generation.sampling import Sampler, SamplingParams
from .hub import find_model

if TYPE_CHECKING:  # who only reads reports needs no C extension
    from .engine.native import Engine

GREEDY = SamplingParams(temperature=0.0)
DEFAULT_SAMPLING = SamplingParams()
BATCHES = (1, 4, 16, 64)
# Tokens of each text of a batch.
_BATCH_TOKENS = 16


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
    """What one weight type and thread count does.

    Attributes
    ----------
    dtype, threads, weight_bytes
        Of the row; the bytes that its packed weights take.
    load_seconds, first_token_seconds : Figure
        From opening the checkpoint to a packed model, and on to the first token.
    read_bytes_per_second : Figure
        What the threads read from these weights when they do nothing else: no token can come
        sooner than all that it needs is read.
    products_per_second : Figure
        Multiply-adds of the kind that the weights need, when nothing else is done.
    prompt_tokens_per_second, greedy_tokens_per_second, sampled_tokens_per_second : Figure
        Speeds.
    read_share : Figure
        Of what could be read, what greedy generation reads, 0 to 1.
    product_share : Figure
        Of the products that could be done, what the prompt's matrix products are, 0 to 1.
    batches : dict of int to Figure
        Tokens per second of all texts together, by how many are generated at once.
    """

    dtype: Dtype
    threads: int
    weight_bytes: int
    load_seconds: Figure
    first_token_seconds: Figure
    read_bytes_per_second: Figure
    products_per_second: Figure
    prompt_tokens_per_second: Figure
    greedy_tokens_per_second: Figure
    sampled_tokens_per_second: Figure
    read_share: Figure
    product_share: Figure
    batches: dict[int, Figure]


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark: the machine, the model, what was done, a row for each way to run it."""

    cpu: str
    cores: int
    isa: str
    checkpoint: str
    parameters: int
    dtype: str
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
    dtypes: Sequence[Dtype] | None = None,
    batches: Sequence[int] = BATCHES,
    progress: Callable[[int, int], object] = lambda done, total: None,
    cache_dtype: CacheDtype = "float32",
) -> Report:
    """Measure a checkpoint with the C engine.

    All ways to run it take turns, so that a change of the machine's pace meets all of them. The
    first round of each is a warm-up and does not count.

    Parameters
    ----------
    path : str or path-like, optional
        The checkpoint, or the name of one that was downloaded. Default: the built-in one.
    threads : sequence of int, optional
        Thread counts. Default: 1, 2, 4.. up to the physical cores.
    repeats : int
        Runs that count.
    prompt_tokens, generated_tokens : int
        Length of the two phases, cut to what the context holds. Generation starts at position 0;
        prompt speed is that of one prefill without sampling.
    dtypes : sequence of {'float32', 'bfloat16', 'int8', 'int4'}, optional
        Weight types. Default: the checkpoint's own.
    batches : sequence of int
        How many texts to generate at once.
    progress : callable, optional
        Told how many of how many measurements are done.
    cache_dtype : {'float32', 'bfloat16'}
        What sessions keep keys and values in.

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
    for value in (repeats, prompt_tokens, generated_tokens, *(threads or ()), *batches):
        if value < 1:
            raise ParameterError(f"a benchmark of {value}, expected whole numbers from 1 up")
    path = builtin_model() if path is None else find_model(path)
    with open_checkpoint(path) as checkpoint:
        config, own = checkpoint.config, own_dtype(checkpoint)
    prompt_tokens = min(prompt_tokens, config.seq_len)
    generated_tokens = min(generated_tokens, config.seq_len)
    ways = [(dtype, n) for dtype in dtypes or [own] for n in threads or _thread_counts()]
    runs: dict[tuple[Dtype, int], list[dict[str, float]]] = {way: [] for way in ways}
    facts: dict[tuple[Dtype, int], tuple[int, str]] = {}
    for round_ in range(repeats + 1):
        for at, (dtype, n) in enumerate(ways):
            start = perf_counter()
            engine = _load(path, n, dtype, cache_dtype)
            measured = {"load_seconds": perf_counter() - start}
            with Session(engine) as session:
                run_sessions([session], [[1]], [Sampler(engine, GREEDY).draws(1)])
            measured["first_token_seconds"] = perf_counter() - start
            facts[dtype, n] = engine.nbytes, engine.isa
            session_bytes = engine.cache_bytes
            measured |= _speeds(engine, prompt_tokens, generated_tokens, batches)
            engine.close()
            if round_:
                runs[dtype, n].append(measured)
            progress(round_ * len(ways) + at + 1, (repeats + 1) * len(ways))
    return Report(
        cpu=cpu_name(),
        cores=default_threads(),
        isa=facts[ways[0]][1],
        checkpoint=os.path.basename(path),
        parameters=config.n_params,
        dtype=own,
        session_bytes=session_bytes,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        repeats=repeats,
        rows=[_row(way, facts[way][0], runs[way], batches) for way in ways],
    )


def _row(
    way: tuple[Dtype, int], nbytes: int, runs: list[dict[str, float]], batches: Sequence[int]
) -> Row:
    figures = {name: Figure.of([run[name] for run in runs]) for name in runs[0]}
    by_batch = {n: figures.pop(f"batch {n}") for n in dict.fromkeys(batches)}
    dtype, threads = way
    return Row(dtype=dtype, threads=threads, weight_bytes=nbytes, batches=by_batch, **figures)


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


def _load(
    path: str | os.PathLike[str], threads: int, dtype: Dtype, cache_dtype: CacheDtype = "float32"
) -> Engine:
    from .engine.native import Engine

    with open_checkpoint(path) as checkpoint:
        return Engine(checkpoint, threads, dtype, cache_dtype)


def _speeds(
    engine: Engine, prompt_tokens: int, generated_tokens: int, batches: Sequence[int]
) -> dict[str, float]:
    """One round: the machine's limits, and the speeds, in tokens per second."""
    from .engine.isa import products_per_second

    prompt = _prompt_speed(engine, prompt_tokens)
    products = products_per_second(engine.threads, engine.dtype)
    # The machine's pace changes: what could be read is asked right before and after.
    before = engine.read_seconds()
    greedy = _generation_speed(engine, GREEDY, generated_tokens)
    reading = engine.nbytes / min(before, engine.read_seconds(), engine.read_seconds())
    needed = engine.nbytes * _share_of_a_token(engine.config)
    speeds = {
        "read_bytes_per_second": reading,
        "products_per_second": products,
        "prompt_tokens_per_second": prompt,
        "greedy_tokens_per_second": greedy,
        "sampled_tokens_per_second": _generation_speed(engine, DEFAULT_SAMPLING, generated_tokens),
        "read_share": greedy * needed / reading,
        "product_share": prompt * _products_of_a_prompt_token(engine.config) / products,
    }
    return speeds | {f"batch {n}": _batch_speed(engine, n) for n in batches}


def _share_of_a_token(config: ModelConfig) -> float:
    """Of all weights, those read for a token: of an embedding beside a classifier it is one row."""
    unread = 0 if config.shared_classifier else config.vocab_size * config.dim
    return (config.n_params - unread) / config.n_params


def _products_of_a_prompt_token(config: ModelConfig) -> int:
    """Multiply-adds of the layers' matrices, but of the last layer's only for its q, k and v.

    The rest of that, and the classifier, are for the last token only.
    """
    qkv = config.dim * (config.q_dim + 2 * config.kv_dim)
    rest = config.dim * (config.q_dim + 3 * config.hidden_dim)
    return config.n_layers * qkv + (config.n_layers - 1) * rest


def _some_tokens(config: ModelConfig, n: int) -> list[int]:
    """Token ids spread over the vocabulary: text would do the same work."""
    return [i * 7919 % config.vocab_size for i in range(1, n + 1)]


def _warm_up(session: Session, n: int) -> None:
    """Use n positions once: the system gives memory on first use only."""
    session.forward([1] * n)
    session.rewind(0)


def _prompt_speed(backend: Backend, n: int) -> float:
    tokens = _some_tokens(backend.config, n)
    with Session(backend) as session:
        _warm_up(session, n)
        start = perf_counter()
        session.forward(tokens)
        return n / (perf_counter() - start)


def _generation_speed(backend: Backend, params: SamplingParams, n: int) -> float:
    sampler = Sampler(backend, params, seed=1)
    token = 1  # BOS; stories that end go on here, so that every run does the same work
    with Session(backend) as session:
        _warm_up(session, n)
        start = perf_counter()
        left = n
        while left:
            draws = sampler.draws(min(left, session.ahead))
            drawn = list(run_sessions([session], [[token]], [draws])[0])
            token, left = drawn[-1], left - len(drawn)
            for _ in drawn:
                sampler.use_draw()
        return n / (perf_counter() - start)


def _batch_speed(backend: Backend, batch: int) -> float:
    """Tokens of all texts together, each chosen greedily."""
    steps = min(_BATCH_TOKENS, backend.config.seq_len)
    sessions = [Session(backend) for _ in range(batch)]
    for session in sessions:
        _warm_up(session, steps)
    tokens = _some_tokens(backend.config, batch)
    draws = [Sampler(backend, GREEDY).draws(1)] * len(sessions)
    start = perf_counter()
    for _ in range(steps):
        drawn = run_sessions(sessions, [[token] for token in tokens], draws)
        tokens = [next(text) for text in drawn]
    seconds = perf_counter() - start
    for session in sessions:
        session.close()
    return batch * steps / seconds

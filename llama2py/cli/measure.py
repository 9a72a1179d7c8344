"""Measure how fast a model runs on this machine, and the machine's own limits."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..checkpoint import open_checkpoint, own_dtype
from ..config import CacheDtype, Dtype, ModelConfig
from ..engine.backend import Backend
from ..engine.cpu import default_threads
from ..engine.session import Session, run_sessions
from ..errors import ParameterError
from ..generation.sampling import Sampler, SamplingParams
from ..hub import find_model

if TYPE_CHECKING:  # a program that only reads reports needs no C extension
    from ..engine.native import Engine

GREEDY = SamplingParams(temperature=0.0)
DEFAULT_SAMPLING = SamplingParams()
BATCHES = (1, 4, 16, 64)
# Tokens to generate for each text of a batch.
_BATCH_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Figure:
    """The median, minimum and maximum of the runs of one measurement."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Summarize at least one run."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Row:
    """The measurements of one weight type and thread count.

    Attributes
    ----------
    dtype, threads
        The weight type and the number of threads.
    weight_bytes : int
        The size of the packed weights.
    load_seconds, first_token_seconds : Figure
        The time from opening the checkpoint to a packed model, and to the first token.
    read_bytes_per_second : Figure
        The speed at which the threads read the packed weights when they do nothing else. A token
        cannot take less time than reading all weights that it needs.
    products_per_second : Figure
        The multiply-adds per second, of the kind that the weights need, when nothing else is done.
    prompt_tokens_per_second, greedy_tokens_per_second, sampled_tokens_per_second : Figure
        Speeds of prefill, greedy decoding, and decoding with the default sampling.
    read_share : Figure
        The speed at which greedy decoding reads weights, as a share of ``read_bytes_per_second``.
        Above 1 for a model so small that starting the threads takes longer than reading it.
    product_share : Figure
        The multiply-adds per second of prefill, as a share of ``products_per_second``.
    batches : dict of int to Figure
        Tokens per second of all texts together, by the number of texts in the batch.
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
    """The result of a benchmark: the machine, the model, the plan, and one row for each way to run.

    ``session_bytes`` is the memory of one session with a full context.
    """

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
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes
    ----------
    dtypes : sequence of {'float32', 'bfloat16', 'int8', 'int4'}, optional
        Weight types. Default: the checkpoint's own.
    cache_dtype : {'float32', 'bfloat16'}
        The type of the KV cache.
    threads : sequence of int, optional
        Thread counts. Default: 1, 2, 4, ... up to the physical cores.
    batches : sequence of int
        Batch sizes: how many texts to generate at the same time.
    prompt_tokens, generated_tokens : int
        The length of the two phases, at most the model's context. Decoding starts at position 0.
        Prompt speed is that of one prefill without sampling.
    repeats : int
        How many runs count.
    """

    dtypes: Sequence[Dtype] | None = None
    cache_dtype: CacheDtype = "float32"
    threads: Sequence[int] | None = None
    batches: Sequence[int] = BATCHES
    prompt_tokens: int = 128
    generated_tokens: int = 128
    repeats: int = 5

    def __post_init__(self) -> None:
        for name, values in (
            ("threads", self.threads or ()),
            ("batches", self.batches),
            ("prompt_tokens", [self.prompt_tokens]),
            ("generated_tokens", [self.generated_tokens]),
            ("repeats", [self.repeats]),
        ):
            for value in values:
                if value < 1:
                    raise ParameterError(f"{name} is {value}, expected a whole number from 1 up")


def benchmark(
    path: str | os.PathLike[str] | None = None,
    plan: Plan | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Measure a checkpoint with the C engine.

    All ways to run the model take turns, so that a change of the machine's speed affects all of
    them. The first round of each is a warm-up and does not count.

    Parameters
    ----------
    path : str or path-like, optional
        The checkpoint, by its path or its name. Default: the built-in model.
    plan : Plan, optional
        What to measure. Default: ``Plan()``.
    progress : callable, optional
        Called with the number of measurements done so far and their total.

    Returns
    -------
    Report
        Medians, minima and maxima.

    Raises
    ------
    CheckpointError, EngineError
        As in `load`.
    """
    plan = plan or Plan()
    path = find_model(path)
    with open_checkpoint(path) as checkpoint:
        config, own = checkpoint.config, own_dtype(checkpoint)
    prompt_tokens = min(plan.prompt_tokens, config.seq_len)
    generated_tokens = min(plan.generated_tokens, config.seq_len)
    counts = plan.threads or _thread_counts()
    ways = [(dtype, n) for dtype in plan.dtypes or [own] for n in counts]
    runs: dict[tuple[Dtype, int], list[dict[str, float]]] = {way: [] for way in ways}
    facts: dict[tuple[Dtype, int], tuple[int, str]] = {}
    for round_ in range(plan.repeats + 1):
        for at, (dtype, n) in enumerate(ways):
            start = perf_counter()
            engine = _load(path, n, dtype, plan.cache_dtype)
            measured = {"load_seconds": perf_counter() - start}
            with Session(engine) as session:
                run_sessions([session], [[1]], [Sampler(engine, GREEDY).draws(1)])
            measured["first_token_seconds"] = perf_counter() - start
            facts[dtype, n] = engine.nbytes, engine.isa
            session_bytes = engine.cache_bytes
            measured |= _speeds(engine, prompt_tokens, generated_tokens, plan.batches)
            engine.close()
            if round_:
                runs[dtype, n].append(measured)
            if progress is not None:
                progress(round_ * len(ways) + at + 1, (plan.repeats + 1) * len(ways))
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
        repeats=plan.repeats,
        rows=[_row(way, facts[way][0], runs[way], plan.batches) for way in ways],
    )


def _row(
    way: tuple[Dtype, int], nbytes: int, runs: list[dict[str, float]], batches: Sequence[int]
) -> Row:
    figures = {name: Figure.of([run[name] for run in runs]) for name in runs[0]}
    by_batch = {n: figures.pop(f"batch {n}") for n in dict.fromkeys(batches)}
    dtype, threads = way
    return Row(dtype=dtype, threads=threads, weight_bytes=nbytes, batches=by_batch, **figures)


def cpu_name() -> str:
    """Return the name of the processor."""
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
    from ..engine.native import Engine

    with open_checkpoint(path) as checkpoint:
        return Engine(checkpoint, threads, dtype, cache_dtype)


def _speeds(
    engine: Engine, prompt_tokens: int, generated_tokens: int, batches: Sequence[int]
) -> dict[str, float]:
    """Measure one round: the machine's limits, and the speeds in tokens per second."""
    from ..engine.isa import products_per_second

    prompt = _prompt_speed(engine, prompt_tokens)
    products = products_per_second(engine.threads, engine.dtype)
    # The machine's speed changes: measure reading right before and after decoding.
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
    """Return the share of the weights that a token reads.

    All of them, but only one row of the embedding if the classifier is a matrix of its own.
    """
    unread = 0 if config.shared_classifier else config.vocab_size * config.dim
    return (config.n_params - unread) / config.n_params


def _products_of_a_prompt_token(config: ModelConfig) -> int:
    """Count the multiply-adds of every token of a prompt but the last.

    It needs all matrices of all layers but the last, and q, k and v of the last layer. The rest of
    the last layer and the classifier run only for the last token.
    """
    qkv = config.dim * (config.q_dim + 2 * config.kv_dim)
    rest = config.dim * (config.q_dim + 3 * config.hidden_dim)
    return config.n_layers * qkv + (config.n_layers - 1) * rest


def _some_tokens(config: ModelConfig, n: int) -> list[int]:
    """Return token ids spread over the vocabulary; a text would cause the same work."""
    return [i * 7919 % config.vocab_size for i in range(1, n + 1)]


def _warm_up(session: Session, n: int) -> None:
    """Use n positions once, because the system only provides memory on first use."""
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
    token = 1  # BOS; stop tokens are ignored, so that every run does the same work
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
    """Return tokens per second of all texts together, decoded greedily."""
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

"""Bulk generation on a Ray cluster. Needs Ray (the extra ``llama2py[ray]``).

`Generator` and `generate` are for data sets of Ray Data. `RayRunner` makes the shards of
``llama2py batch --ray``.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .._util import Closing, counted
from ..errors import BatchError, Llama2pyError, ParameterError
from .generator import RowGenerator
from .identity import Identity, ModelSpec, difference
from .processes import OnRows
from .shards import ShardResult
from .sources import ShardInput
from .texts import Settings, ShardMaker

if TYPE_CHECKING:
    import pyarrow
    import ray

_log = logging.getLogger(__name__)

_MOST_LOST = 8  # actors in a row, without one finished shard
_WAIT = 30.0  # seconds until a warning that no actor has started


def _ray() -> Any:
    """Import Ray."""
    try:
        import ray
    except ImportError as error:
        raise BatchError(f"this needs Ray: pip install 'llama2py[ray]' ({error})") from None
    return ray


# ---- Ray Data ----


class Generator:
    """A callable class for ``Dataset.map_batches``: each actor holds a model.

    The rows need a column ``id``, and ``prompt``, ``messages`` or the template's fields. The result
    has the input's columns and ``text``, ``finish_reason``, ``prompt_tokens``, ``tokens``, ``seed``
    and ``error`` (null for a text). The texts do not depend on how the rows are grouped, or on
    which actor makes them.

    Parameters
    ----------
    model : str, optional
        As in `load`; a path must be valid on each node. Default: the built-in model.
    threads : int
        Threads of each actor. Give the actor as many CPUs: ``num_cpus=threads``.
    tokenizer, dtype, cache_dtype
        As in `load`.
    **options
        As in `RowGenerator`: ``seed``, ``prompt``, ``max_tokens``, ``temperature`` and others.

    Examples
    --------
    >>> import ray  # doctest: +SKIP
    >>> dataset = ray.data.read_json("prompts.jsonl")  # doctest: +SKIP
    >>> stories = dataset.map_batches(  # doctest: +SKIP
    ...     Generator,
    ...     fn_constructor_kwargs={"seed": 1, "max_tokens": 200},
    ...     compute=ray.data.ActorPoolStrategy(size=3),
    ...     num_cpus=1,
    ... )
    """

    def __init__(
        self,
        model: str | None = None,
        threads: int = 1,
        tokenizer: str | None = None,
        dtype: Any = None,
        cache_dtype: Any = "float32",
        **options: Any,
    ) -> None:
        spec = ModelSpec(model, tokenizer, threads, dtype, cache_dtype)
        self._generate = RowGenerator(spec, **options)

    def __call__(self, batch: dict[str, Any]) -> pyarrow.Table:
        """Return the batch with its texts."""
        import pyarrow

        table = pyarrow.table({name: pyarrow.array(column) for name, column in batch.items()})
        results = self._generate(table.to_pylist())
        for name, kind in (
            ("text", pyarrow.string()),
            ("finish_reason", pyarrow.string()),
            ("prompt_tokens", pyarrow.int32()),
            ("tokens", pyarrow.int32()),
            ("seed", pyarrow.uint64()),
            ("error", pyarrow.string()),
        ):
            column = pyarrow.array([result.get(name) for result in results], kind)
            if name in table.column_names:
                table = table.drop_columns([name])
            table = table.append_column(name, column)
        return table


def generate(
    dataset: ray.data.Dataset,
    actors: int | None = None,
    threads: int = 1,
    batch_rows: int = 512,
    **options: Any,
) -> ray.data.Dataset:
    """Generate a text for each row of a data set, on a pool of actors.

    Parameters
    ----------
    dataset : Dataset
        The rows: see `Generator`.
    actors : int, optional
        How many actors. Default: as many as the cluster's CPUs allow, with one CPU left for the
        tasks that read the data.
    threads : int
        Threads, and so CPUs, of each actor.
    batch_rows : int
        Rows that an actor gets at once. Changes only the speed.
    **options
        As in `Generator`.

    Returns
    -------
    Dataset
        The input with the columns of `Generator`.

    Raises
    ------
    ParameterError
        If the actors would take every CPU of the cluster. The tasks that read the data set would
        then never run, and the actors would wait for them forever.
    """
    ray = _ray()
    if not ray.is_initialized():
        ray.init()
    cpus = int(ray.cluster_resources().get("CPU", 0))
    most = (cpus - 1) // threads
    if actors is None:
        actors = most
    if actors < 1 or actors > most:
        wanted = counted(actors, "actor") if actors > 0 else "an actor"
        raise ParameterError(
            f"{wanted} with {counted(threads, 'thread')} each leaves no CPU of the cluster's {cpus}"
            " for the tasks that read the data; use fewer actors or threads, or a larger cluster"
        )
    return dataset.map_batches(
        Generator,
        fn_constructor_kwargs={"threads": threads, **options},
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=threads,
        batch_size=batch_rows,
    )


# ---- shards ----


class _Actor:
    """A model on some node, which makes shards."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        self._error: str | None = None
        try:
            self._maker = ShardMaker.load(spec, settings)
        except Llama2pyError as error:
            # An exception here would look like a lost node.
            self._error = str(error)

    def identity(self) -> tuple[Identity, str | None]:
        """Return which model this actor has loaded, or why it has none."""
        return ({}, self._error) if self._error else (self._maker.identity, None)

    def shard(self, given: ShardInput) -> ShardResult:
        """Make a shard."""
        (result,) = self._maker.shards([given])
        return result


class RayRunner(Closing):
    """Make the shards of a batch with the actors of a Ray cluster. A context manager.

    The shards come back to this process, which writes them: the nodes need no common disk. A shard
    whose actor or node is lost is made by another actor. Ray chooses the nodes, and its autoscaler
    sees the actors that wait for CPUs.

    Parameters
    ----------
    address : str or None
        The cluster, as in ``ray.init``. None: the one that ``RAY_ADDRESS`` names or that runs on
        this machine, or else a new one on this machine.
    actors : int or None
        How many actors. None: as many as the cluster's CPUs allow.
    spec : ModelSpec
        The model; ``threads`` (default 1) are the threads and the CPUs of each actor.
    settings : Settings
        What to do.
    on_rows : callable
        Called as ``on_rows(rows, tokens)`` for progress.

    Attributes
    ----------
    identity : dict
        As in `Runner`.

    Raises
    ------
    BatchError
        If Ray is missing, the cluster cannot be reached, or an actor cannot load the model.
    """

    def __init__(
        self,
        address: str | None,
        actors: int | None,
        spec: ModelSpec,
        settings: Settings,
        on_rows: OnRows,
    ) -> None:
        self._ray = ray = _ray()
        self._spec, self._settings, self._on_rows = spec, settings, on_rows
        self._threads = spec.threads or 1
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise BatchError(f"the Ray cluster cannot be reached ({reason})") from None
        cpus = int(ray.cluster_resources().get("CPU", 0))
        self._count = actors or max(1, cpus // self._threads)
        self._actor_class = ray.remote(num_cpus=self._threads, max_restarts=0)(_Actor)
        # Each actor's shards in work; a call without a shard asks for the actor's identity.
        self._running: dict[Any, dict[int, ShardInput]] = {}
        self._ready: set[Any] = set()
        self._calls: dict[Any, tuple[Any, ShardInput | None]] = {}
        self._retry: deque[ShardInput] = deque()
        self._lost = 0
        self._identity: Identity | None = None
        try:
            while self._identity is None:
                self._start_actors()
                for _ in self._received():
                    pass
        except BaseException:
            self.close()
            raise
        self.identity = self._identity

    def shards(self, given: Iterable[ShardInput]) -> Iterator[ShardResult]:
        """Yield the shards in the order in which they are finished."""
        waiting = iter(given)
        while True:
            self._start_actors()
            more = self._fill(waiting)
            if not more and not any(self._running.values()):
                return
            yield from self._received()

    def _start_actors(self) -> None:
        while len(self._running) < self._count:
            actor = self._actor_class.remote(self._spec, self._settings)
            self._running[actor] = {}
            self._calls[actor.identity.remote()] = (actor, None)

    def _fill(self, waiting: Iterator[ShardInput]) -> bool:
        """Give each actor that has started a shard, then a second one that waits at the actor.

        Returns whether there may be more shards.
        """
        for depth in (1, 2):
            for actor in list(self._ready):
                if len(self._running[actor]) >= depth:
                    continue
                shard = self._retry.popleft() if self._retry else next(waiting, None)
                if shard is None:
                    return False
                self._running[actor][shard.number] = shard
                self._calls[actor.shard.remote(shard)] = (actor, shard)
        return True

    def _received(self) -> Iterator[ShardResult]:
        """Wait for results and yield the shards among them; replace actors that are lost."""
        done, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=_WAIT)
        if not done and not self._ready:
            _log.warning(
                "no actor has started yet: %s with %s each, and the cluster has %d CPUs",
                *(counted(self._count, "actor"), counted(self._threads, "CPU")),
                int(self._ray.cluster_resources().get("CPU", 0)),
            )
        for call in done:
            if call not in self._calls:  # its actor was lost a moment ago
                continue
            actor, shard = self._calls.pop(call)
            try:
                value = self._ray.get(call)
            except self._ray.exceptions.RayTaskError:
                raise  # an error of this program
            except self._ray.exceptions.RayError as error:
                self._replace(actor, error)
                continue
            if shard is None:
                self._check(actor, *value)
                continue
            del self._running[actor][shard.number]
            self._lost = 0
            self._on_rows(value.rows, value.tokens)
            yield value

    def _check(self, actor: Any, identity: Identity, error: str | None) -> None:
        if error is not None:
            raise BatchError(f"an actor cannot load the model: {error}")
        if self._identity is None:
            self._identity = identity
        if found := difference(self._identity, identity):
            raise BatchError(
                f"an actor has loaded another model ({found}); finished shards are kept: make the"
                " model the same on every node, and run the same command again"
            )
        self._ready.add(actor)

    def _replace(self, actor: Any, error: Exception) -> None:
        self._lost += 1
        shards = self._running.pop(actor)
        self._ready.discard(actor)
        self._calls = {call: c for call, c in self._calls.items() if c[0] is not actor}
        self._retry.extend(shard for _, shard in sorted(shards.items()))
        if self._lost >= max(_MOST_LOST, 2 * self._count):
            reason = " ".join(str(error).split())[:200]
            raise BatchError(
                f"{counted(self._lost, 'actor')} ended without a result ({reason}); finished shards"
                " are kept"
            )

    def close(self) -> None:
        """End the actors, and leave the cluster if this runner has joined it."""
        for actor in self._running:
            self._ray.kill(actor)
        self._running, self._calls, self._ready = {}, {}, set()
        if self._owns_ray and self._ray.is_initialized():
            self._ray.shutdown()

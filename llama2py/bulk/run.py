"""Run a batch: read the input, make the shards that are not there yet, and write them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from .output import OutputFolder
from .parquet import pyarrow_version
from .processes import OnRows, Runner
from .shards import ShardResult
from .sources import Source
from .texts import Settings

Start = Callable[[OnRows], Runner]
Show = Callable[["Progress"], object]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    total : int
        Rows of the batch.
    earlier : int
        Rows that earlier runs have finished.
    new_rows, new_tokens : int
        Rows of this run, and the tokens of their texts.
    seconds : float
        Since this run began.
    """

    total: int
    earlier: int
    new_rows: int
    new_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did.

    Attributes
    ----------
    rows, errors, tokens : int
        Of the whole batch, with the shards of earlier runs: its rows, how many of them have an
        error instead of a text, and the tokens of the texts.
    shards : int
        How many shards there are.
    new_rows, new_tokens : int
        Of this run.
    seconds : float
        How long this run took, without loading the model.
    """

    rows: int
    errors: int
    tokens: int
    shards: int
    new_rows: int
    new_tokens: int
    seconds: float


def run_batch(
    source: Source,
    settings: Settings,
    output: Path,
    start: Start,
    show: Show = lambda progress: None,
) -> Summary:
    """Make the shards that a folder does not have yet, then its manifest.

    Parameters
    ----------
    source : Source
        The input.
    settings : Settings
        What to do with each row.
    output : Path
        The folder for the shards: new, empty, or of an earlier run with the same settings.
    start : callable
        Called as ``start(on_rows)`` after the folder has been checked; loads the model or starts
        the processes.
    show : callable
        Called with a `Progress` after each row or a few rows.

    Returns
    -------
    Summary
        What was done.

    Raises
    ------
    BatchError
        If the folder holds another batch or cannot be written, the input or the model has changed,
        or processes end again and again. Shards that were finished stay finished.
    Llama2pyError
        As `load` does.
    """
    described: dict[str, Any] = {
        "input": {"format": source.format, "rows": source.n_rows, "sha256": source.sha256},
        "output": {"format": settings.format, "shard_rows": source.shard_rows},
        "parameters": {k: v for k, v in settings.described().items() if v is not None},
    }
    # Before anything is made: it may be missing.
    pyarrow = {"pyarrow": pyarrow_version()} if settings.format == "parquet" else {}
    with ExitStack() as stack:
        folder = stack.enter_context(OutputFolder(output, settings.format))
        folder.check(described)
        counter = _Counter(source.n_rows, show)
        runner = stack.enter_context(closing(start(counter.on_rows)))
        described |= runner.identity
        described["versions"] = described["versions"] | pyarrow
        folder.begin(described)
        counter.begin(sum(shard.rows for shard in folder.done.values()))
        wanted = [number for number in range(source.n_shards) if number not in folder.done]
        for result in runner.shards(source.shards(wanted)):
            folder.write(result)
            counter.written(result)
        folder.finish()
        shards = folder.done.values()
        return Summary(
            rows=sum(shard.rows for shard in shards),
            errors=sum(shard.errors for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            shards=len(shards),
            new_rows=counter.rows,
            new_tokens=counter.tokens,
            seconds=counter.seconds,
        )


class _Counter:
    """Counts rows and tokens, and shows them."""

    def __init__(self, total: int, show: Show) -> None:
        self.rows = self.tokens = 0  # written by this run
        self._live_rows = self._live_tokens = 0  # in shards that are not written yet
        self._total, self._earlier, self._show = total, 0, show
        self._begun = perf_counter()

    def begin(self, earlier: int) -> None:
        """Start the clock; ``earlier`` rows are from earlier runs."""
        self._earlier = earlier
        self._begun = perf_counter()

    @property
    def seconds(self) -> float:
        return perf_counter() - self._begun

    def on_rows(self, rows: int, tokens: int) -> None:
        """Count rows of shards in work."""
        self._live_rows += rows
        self._live_tokens += tokens
        self._report()

    def written(self, result: ShardResult) -> None:
        """Count the rows of a shard that is written."""
        self.rows += result.rows
        self.tokens += result.tokens
        # A worker that died has counted rows that another one counts again.
        self._live_rows = max(0, self._live_rows - result.rows)
        self._live_tokens = max(0, self._live_tokens - result.tokens)
        self._report()

    def _report(self) -> None:
        new_rows = min(self.rows + self._live_rows, self._total - self._earlier)
        tokens = self.tokens + self._live_tokens
        self._show(Progress(self._total, self._earlier, new_rows, tokens, self.seconds))

"""Run a batch: read the input, make the shards that are not there yet, and write them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._util import counted, progress_bar
from .output import OutputFolder
from .parquet import pyarrow_version
from .processes import OnRows, Runner
from .shards import ShardResult
from .sources import Source
from .texts import Settings

if TYPE_CHECKING:
    from tqdm import tqdm

Start = Callable[[OnRows], Runner]
_LINE_EVERY = 30.0  # seconds between two lines of progress where there is no terminal


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
    source: Source, settings: Settings, output: Path, start: Start, quiet: bool = False
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
    quiet : bool
        Show no progress on standard error.

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
        progress = stack.enter_context(_Progress(source.n_rows, quiet))
        runner = stack.enter_context(closing(start(progress.on_rows)))
        described |= runner.identity
        described["versions"] = described["versions"] | pyarrow
        folder.begin(described)
        progress.begin(sum(shard.rows for shard in folder.done.values()))
        begun = perf_counter()
        wanted = [number for number in range(source.n_shards) if number not in folder.done]
        for result in runner.shards(source.shards(wanted)):
            folder.write(result)
            progress.written(result)
        folder.finish()
        seconds = perf_counter() - begun
        shards = folder.done.values()
        return Summary(
            rows=sum(shard.rows for shard in shards),
            errors=sum(shard.errors for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            shards=len(shards),
            new_rows=progress.rows,
            new_tokens=progress.tokens,
            seconds=seconds,
        )


class _Progress(ExitStack):
    """A bar on a terminal, or else a line now and then: rows, tokens, speed, time left."""

    def __init__(self, total: int, quiet: bool) -> None:
        super().__init__()
        self.rows = self.tokens = 0  # written by this run
        self._live_rows = self._live_tokens = 0  # in shards that are not written yet
        self._total, self._earlier, self._quiet = total, 0, quiet
        self._bar: tqdm[Any] | None = None
        self._begun = self._shown = perf_counter()

    def begin(self, earlier: int) -> None:
        """Show the first state; ``earlier`` rows are from earlier runs."""
        self._earlier = earlier
        self._begun = self._shown = perf_counter()
        if not self._quiet and sys.stderr.isatty():
            made: tqdm[Any] = progress_bar(total=self._total, initial=earlier, unit="row")
            self._bar = self.enter_context(made)

    def on_rows(self, rows: int, tokens: int) -> None:
        """Count rows of shards in work."""
        self._live_rows += rows
        self._live_tokens += tokens
        self._show()

    def written(self, result: ShardResult) -> None:
        """Count the rows of a shard that is written."""
        self.rows += result.rows
        self.tokens += result.tokens
        # A worker that died has counted rows that another one counts again.
        self._live_rows = max(0, self._live_rows - result.rows)
        self._live_tokens = max(0, self._live_tokens - result.tokens)
        self._show()

    def _show(self) -> None:
        if self._quiet:
            return
        now = perf_counter()
        every = 0.2 if self._bar is not None else _LINE_EVERY
        if now - self._shown < every:
            return
        self._shown = now
        rows, tokens = self.rows + self._live_rows, self.tokens + self._live_tokens
        seconds = now - self._begun
        speed = f"{counted(tokens, 'token')}, {tokens / seconds:,.0f} tokens/s"
        at = min(self._earlier + rows, self._total)
        if self._bar is not None:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(at - self._bar.n)
            return
        left = (self._total - at) * seconds / rows if rows else 0.0
        line = f"{at:,} of {counted(self._total, 'row')}, {speed}, {left / 60:,.0f} minutes left"
        print(line, file=sys.stderr, flush=True)

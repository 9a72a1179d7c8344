"""Show the result of a benchmark: as a table, as Markdown, or as a picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Dtype
from ..errors import EngineError, ParameterError
from ..formats.atomic_write import check_name, replacing

if TYPE_CHECKING:
    from .measure import Figure, Report, Row

PICTURES = (".svg", ".png", ".pdf")
_MIB = 2**20
# From dark to light, so that a print without colors shows them, too.
_COLORS = {"float32": "#31347f", "bfloat16": "#3f7fb5", "int8": "#74c4a8", "int4": "#f3e79b"}
_PAGE_WIDTH = 7.5  # inches: printed on a page, the text keeps its size
# The highest share to print. Noise makes a share a little more than 1, but not this much more.
_MAX_SHARE = 1.1


def _heading(report: Report) -> list[str]:
    return [
        f"{report.checkpoint}: {report.parameters / 1e6:.1f}M parameters, {report.dtype}",
        f"{report.cpu}, {_count(report.cores, 'core')}, {report.isa}",
        f"prompt of {_count(report.prompt_tokens, 'token')},"
        f" {_count(report.generated_tokens, 'token')} generated;"
        f" median (min to max) of {_count(report.repeats, 'run')}",
    ]


def table(report: Report, peak: int) -> str:
    """Format a report for a terminal: medians and ranges."""
    lines = [*_heading(report), ""]
    for row in report.rows:
        threads = _count(row.threads, "thread")
        lines.append(f"{row.dtype}, {threads}, weights {row.weight_bytes / _MIB:.1f} MiB")
        entries = {
            "load": _spread(row.load_seconds, 1e3, "ms", 1),
            "first token after": _spread(row.first_token_seconds, 1e3, "ms", 1),
            "prompt": _spread(row.prompt_tokens_per_second, 1, "tok/s"),
            "greedy": _spread(row.greedy_tokens_per_second, 1, "tok/s"),
            "t=1.0 p=0.9": _spread(row.sampled_tokens_per_second, 1, "tok/s"),
        }
        entries |= {f"{n} at once": _spread(f, 1, "tok/s") for n, f in row.batches.items()}
        entries |= {
            "reading": _spread(row.read_bytes_per_second, 1e-9, "GB/s", 1)
            + _used("greedy", row.read_share),
            "products": _spread(row.products_per_second, 1e-9, "G/s")
            + _used("the prompt", row.product_share),
        }
        lines += [f"  {name:<18}{text}" for name, text in entries.items()]
        lines.append("")
    lines.append(
        f"memory: a session up to {report.session_bytes / _MIB:.1f} MiB,"
        f" peak of the process {peak / _MIB:.1f} MiB"
    )
    return "\n".join(lines)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _used(phase: str, share: Figure) -> str:
    """Say which share of the machine's limit a phase uses."""
    if share.median > _MAX_SHARE:
        return "; the model is too small to compare with it"
    return f", of which {phase} uses {share.median:.0%}"


def _share(share: Figure) -> str:
    return "n/a" if share.median > _MAX_SHARE else f"{share.median:.0%}"


def _spread(figure: Figure, scale: float, unit: str, digits: int = 0) -> str:
    median, low, high = (value * scale for value in (figure.median, figure.min, figure.max))
    return f"{median:>9.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


def markdown(report: Report) -> str:
    """Format a report as a Markdown table of medians."""
    batches = list(report.rows[0].batches)
    heads = ["weights", "threads", "load, ms", "first token, ms", "prompt", "greedy"]
    heads += ["t=1.0 p=0.9", *(f"{n} at once" for n in batches), "of reading", "of products"]
    lines = [
        f"{report.checkpoint}, {report.parameters / 1e6:.1f}M parameters; {report.cpu}, "
        f"{report.isa}. Tokens per second, median of {_count(report.repeats, 'run')}; prompt of "
        f"{_count(report.prompt_tokens, 'token')}, "
        f"{_count(report.generated_tokens, 'token')} generated.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
    ]
    for row in report.rows:
        cells = [
            row.dtype,
            str(row.threads),
            f"{row.load_seconds.median * 1e3:.1f}",
            f"{row.first_token_seconds.median * 1e3:.1f}",
            f"{row.prompt_tokens_per_second.median:,.0f}",
            f"{row.greedy_tokens_per_second.median:,.0f}",
            f"{row.sampled_tokens_per_second.median:,.0f}",
            *(f"{row.batches[n].median:,.0f}" for n in batches),
            _share(row.read_share),
            _share(row.product_share),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def check_picture(path: Path) -> None:
    """Raise an error if `plot` could not write a picture. Call it before a long measurement.

    Raises
    ------
    ParameterError
        If matplotlib is missing.
    EngineError
        If the folder does not exist or is not writable.
    """
    _picture_class()
    check_name(path, EngineError)
    if not os.access(path.parent, os.W_OK):
        raise EngineError(f"{path}: cannot be written (no such folder, or no permission)")


def plot(report: Report, path: Path) -> None:
    """Draw the speeds: one panel for each metric, one group of bars for each thread count.

    Parameters
    ----------
    report : Report
        The result of a benchmark.
    path : Path
        The file to write. Its suffix is one of `PICTURES`.

    Raises
    ------
    ParameterError
        If matplotlib is missing.
    EngineError
        If the file cannot be written.
    """
    metrics: dict[str, Callable[[Row], Figure]] = {
        "Greedy decoding": lambda row: row.greedy_tokens_per_second,
        "Sampled decoding (t=1.0, p=0.9)": lambda row: row.sampled_tokens_per_second,
        f"Prompt of {report.prompt_tokens} tokens": lambda row: row.prompt_tokens_per_second,
    }
    for n in report.rows[0].batches:
        if n > 1:
            metrics[f"Batch of {n} texts"] = partial(_of_batch, n)
    dtypes = list(dict.fromkeys(row.dtype for row in report.rows))
    n_bars = len(report.rows)
    n_columns = 1 if n_bars > 16 else 2 if n_bars > 6 or len(metrics) == 4 else 3
    n_lines = -(-len(metrics) // n_columns)
    size = (_PAGE_WIDTH, 0.9 + 2.1 * n_lines)
    picture = _picture_class()(figsize=size, layout="constrained")
    panels = picture.subplots(n_lines, n_columns, squeeze=False)
    for at, axes in enumerate(panels.flat):
        if at >= len(metrics):
            axes.set_axis_off()
            continue
        title, metric = list(metrics.items())[at]
        _draw_panel(axes, report, dtypes, metric)
        axes.set_title(title, fontsize=9)
        if at % n_columns == 0:
            axes.set_ylabel("tokens per second", fontsize=8)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    title = f"{report.checkpoint}, {report.parameters / 1e6:.1f}M parameters\n{report.cpu}"
    picture.suptitle(f"{title}, {report.isa}", fontsize=9)
    picture.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    format = path.suffix[1:].lower()
    without_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
    with replacing(path, EngineError) as file:
        picture.savefig(file, format=format, metadata=without_date, dpi=200)


def _of_batch(n: int, row: Row) -> Figure:
    return row.batches[n]


def _draw_panel(
    axes: Any, report: Report, dtypes: list[Dtype], metric: Callable[[Row], Figure]
) -> None:
    """Draw one metric: the dtypes side by side for each thread count, from zero."""
    counts = list(dict.fromkeys(row.threads for row in report.rows))
    angle = 90 if len(report.rows) > 8 else 0
    width = 0.84 / len(dtypes)
    for i, dtype in enumerate(dtypes):
        figures = [metric(row) for row in report.rows if row.dtype == dtype]
        heights = [figure.median for figure in figures]
        errors = [
            [figure.median - figure.min for figure in figures],
            [figure.max - figure.median for figure in figures],
        ]
        places = [group + (i - (len(dtypes) - 1) / 2) * width for group in range(len(counts))]
        axes.bar(
            places,
            heights,
            0.92 * width,
            yerr=errors,
            label=dtype,
            color=_COLORS[dtype],
            edgecolor="black",
            linewidth=0.5,
            error_kw={"elinewidth": 0.7, "capsize": 1.5},
        )
        for place, figure in zip(places, figures, strict=True):
            axes.annotate(
                _short(figure.median),
                (place, figure.max),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                rotation=angle,
            )
    names = [f"{n} thread{'s' if n > 1 else ''}" for n in counts]
    axes.set_xticks(range(len(counts)), names, fontsize=8)
    axes.set_ylim(0, max(metric(row).max for row in report.rows) * (1.3 if angle else 1.15))
    beside = max(0, 3 - len(report.rows)) / 2  # a bar alone is not as wide as the panel
    axes.set_xlim(-0.5 - beside, len(counts) - 0.5 + beside)
    axes.tick_params(axis="y", labelsize=7)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)


def _short(speed: float) -> str:
    """Format a speed in at most five characters: 61, 2.3k, 14.4k."""
    if speed < 1000:
        return f"{speed:.0f}"
    return f"{speed / 1000:.1f}k" if speed < 99_950 else f"{speed / 1000:.0f}k"


def _picture_class() -> Any:
    try:
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise ParameterError(
            f"a picture needs matplotlib: pip install 'llama2py[plot]' ({error})"
        ) from None
    return Picture

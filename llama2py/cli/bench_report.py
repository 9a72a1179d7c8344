"""A benchmark's report for people: a table, Markdown, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EngineError, ParameterError
from ..formats.atomic_write import replacing

if TYPE_CHECKING:
    from ..bench import Figure, Report

_MIB = 2**20


def _heading(report: Report) -> list[str]:
    return [
        f"{report.checkpoint}: {report.parameters / 1e6:.1f}M parameters, {report.dtype}",
        f"{report.cpu}, {report.cores} cores, {report.isa}",
        f"prompt of {report.prompt_tokens}, {report.generated_tokens} generated; "
        f"median (min to max) of {report.repeats} runs",
    ]


def table(report: Report, peak: int) -> str:
    """For a terminal: medians, and the range of the runs behind them."""
    lines = [*_heading(report), ""]
    for row in report.rows:
        threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
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
            + f", of which greedy uses {row.read_share.median:.0%}",
            "products": _spread(row.products_per_second, 1e-9, "G/s")
            + f", of which the prompt uses {row.product_share.median:.0%}",
        }
        lines += [f"  {name:<18}{text}" for name, text in entries.items()]
        lines.append("")
    lines.append(
        f"memory: a session up to {report.session_bytes / _MIB:.1f} MiB,"
        f" peak of the process {peak / _MIB:.1f} MiB"
    )
    return "\n".join(lines)


def _spread(figure: Figure, scale: float, unit: str, digits: int = 0) -> str:
    median, low, high = (value * scale for value in (figure.median, figure.min, figure.max))
    return f"{median:>9.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


def markdown(report: Report) -> str:
    """For a README: medians."""
    batches = list(report.rows[0].batches)
    heads = ["weights", "threads", "load, ms", "first token, ms", "prompt", "greedy"]
    heads += ["t=1.0 p=0.9", *(f"{n} at once" for n in batches), "of reading", "of products"]
    lines = [
        f"{report.checkpoint}, {report.parameters / 1e6:.1f}M parameters; {report.cpu}, "
        f"{report.isa}. Tokens per second, medians of {report.repeats} runs; prompt of "
        f"{report.prompt_tokens}, {report.generated_tokens} generated.",
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
            f"{row.read_share.median:.0%}",
            f"{row.product_share.median:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(report: Report, path: Path) -> None:
    """Draw the speeds as bars, a group for each weight type and thread count.

    Raises
    ------
    ParameterError
        If matplotlib is missing.
    EngineError
        If the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise ParameterError(
            f"a picture needs matplotlib: pip install 'llama2py[plot]' ({error})"
        ) from None
    names = [f"{row.dtype}\n{row.threads} thr." for row in report.rows]
    series = {
        "greedy": [row.greedy_tokens_per_second for row in report.rows],
        "t=1.0 p=0.9": [row.sampled_tokens_per_second for row in report.rows],
        "prompt": [row.prompt_tokens_per_second for row in report.rows],
    }
    series |= {
        f"{n} at once": [row.batches[n] for row in report.rows]
        for n in report.rows[0].batches
        if n > 1
    }
    picture = Picture(figsize=(max(6, 1.6 * len(names)), 4), layout="constrained")
    axes = picture.subplots()
    width = 0.8 / len(series)
    for at, (label, figures) in enumerate(series.items()):
        xs = [x + (at - (len(series) - 1) / 2) * width for x in range(len(names))]
        spread = [[f.median - f.min for f in figures], [f.max - f.median for f in figures]]
        axes.bar(xs, [f.median for f in figures], width, yerr=spread, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_yscale("log")
    axes.set_ylabel("tokens per second")
    axes.set_title(f"{report.checkpoint}: {report.cpu}", fontsize="medium")
    axes.legend(fontsize="small", ncols=len(series), loc="upper center")
    axes.margins(y=0.25)
    with replacing(path, EngineError) as file:
        picture.savefig(file, format="svg", metadata={"Date": None})

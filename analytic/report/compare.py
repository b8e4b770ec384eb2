"""Estimate beside measurement for people and programs: the summary, then the worst rows; and the scoreboard."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from analytic.compare import Comparison, Row, Summary
from analytic.measurement import SCHEMA_VERSION, Measurement
from analytic.quantity import GiB
from analytic.writing import write_text

_WORST_ROWS = 12
"""Rows that a terminal shows; the document has all."""

_PHRASES = {"oom": "out of memory", "error": "failed"}


def document(comparison: Comparison) -> dict[str, Any]:
    """``ullage compare --json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "comparison",
        "summary": [asdict(summary) for summary in comparison.summaries],
        "rows": [_row(row) for row in comparison.rows],
        "not_compared": [{"id": m.id, "status": m.status} for m in comparison.without_figures],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "id": row.measurement.id,
        "model": row.measurement.model.id,
        "figure": row.figure,
        "measured_bytes": row.measured_bytes,
        "estimated": asdict(row.estimated),
        "error_bytes": row.error_bytes,
        "error_fraction": row.error_fraction,
        "inside_bounds": row.is_inside,
    }


def text(comparison: Comparison, console: Console) -> None:
    """How well the estimate does a figure, then where it does worst."""
    measured = {row.measurement.id for row in comparison.rows}
    console.print(f"{len(measured)} measurements compared with the estimate of their own request.")
    if comparison.without_figures:
        told = Counter(_PHRASES.get(m.status, "without figures") for m in comparison.without_figures)
        console.print(f"Not compared: {', '.join(f'{count} {why}' for why, count in told.items())}.")
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("", "n", "median", "95 %", "maximum", "largest GiB", "inside bounds"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for summary in comparison.summaries:
        table.add_row(*_cells(summary))
    console.print(table)
    _print_worst(comparison, console)


def _cells(summary: Summary) -> tuple[str, ...]:
    return (
        summary.figure.replace("_", " "),
        str(summary.measurements),
        percent(summary.median_fraction),
        percent(summary.p95_fraction),
        percent(summary.max_fraction),
        f"{summary.max_bytes / GiB:,.3f}",
        f"{summary.inside_fraction:.0%}".replace("%", " %"),
    )


def percent(fraction: float) -> str:
    """A relative error; "–" where nothing was measured and something estimated."""
    return "–" if fraction == float("inf") else "0 %" if fraction == 0 else f"{fraction:.2%}".replace("%", " %")


def _print_worst(comparison: Comparison, console: Console) -> None:
    wrong = [row for row in comparison.rows if row.error_bytes]
    if not wrong:
        console.print("\nNo figure is off by a byte.")
        return
    console.print("\n[dim]worst first[/]")
    for row in wrong[:_WORST_ROWS]:
        error = "" if row.error_fraction is None else f" ({row.error_fraction:+.2%})".replace("%", " %")
        outside = "" if row.is_inside else ", outside its bounds"
        console.print(
            f"{row.figure.replace('_', ' ')}: measured {row.measured_bytes:,}, "
            f"estimated {row.estimated.bytes:,}{error}{outside}"
        )
        console.print(f"  [dim]{row.measurement.id}[/]", soft_wrap=True)
    if len(wrong) > _WORST_ROWS:
        console.print(f"[dim]… and {len(wrong) - _WORST_ROWS} more: --json has all.[/]")


def write_scoreboard(comparison: Comparison, file: Path) -> None:
    """Write the scoreboard.

    Raises:
        UllageError: the file cannot be written.
    """
    write_text(file, scoreboard(comparison), make_folder=True)


def scoreboard(comparison: Comparison) -> str:
    """The summary a device and figure, as Markdown: the same records always give the same text."""
    lines = [
        "# Scoreboard",
        "",
        "The estimate beside every measurement in this folder, written by",
        "`ullage compare results --scoreboard results/SCOREBOARD.md`. Errors are relative to what was measured.",
    ]
    for device in sorted({_device(row.measurement) for row in comparison.rows}):
        rows = tuple(row for row in comparison.rows if _device(row.measurement) == device)
        lines += ["", f"## {device}", "", _measured(rows), "", *_markdown(Comparison(rows=rows, without_figures=()))]
    failed = sorted(f"- `{m.id}`: {_PHRASES.get(m.status, m.status)}" for m in comparison.without_figures)
    lines += ["", "## Not compared", "", *failed] if failed else []
    return "\n".join(lines) + "\n"


def _device(measurement: Measurement) -> str:
    software = measurement.software
    versions = (f"{name} {software[name]}" for name in ("torch", "transformers", "bitsandbytes") if software.get(name))
    return f"{measurement.device.name} ({', '.join(versions)})"


def _measured(rows: tuple[Row, ...]) -> str:
    runs = {row.measurement.id: row.measurement for row in rows}
    architectures = {run.model.architecture for run in runs.values()}
    formats = {run.request.weight_format or run.request.dtype for run in runs.values()}
    return f"{len(runs)} runs of {len(architectures)} architectures in {len(formats)} formats."


def _markdown(comparison: Comparison) -> list[str]:
    heading = "| figure | runs | median | 95 % | maximum | largest GiB | inside bounds |"
    rows = (f"| {' | '.join(_cells(summary))} |" for summary in comparison.summaries)
    return [heading, "|---|---:|---:|---:|---:|---:|---:|", *rows]

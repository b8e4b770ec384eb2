"""Estimate beside measurement for people and programs: the summary, then the worst rows; and the scoreboard."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from analytic.compare import Comparison, Row
from analytic.measurement import SCHEMA_VERSION, Measurement
from analytic.report.observed import signed
from analytic.report.parts import Block, Lines, Report, Table
from analytic.report.residuals import COLUMNS, WORST_ROWS, blocks_of_device, figure_name, summary_cells
from analytic.report.terminal import print_table
from analytic.writing import write_text

_LISTED = 40
"""Runs without figures in a report."""

_KINDS = ("cuda", "virtual", "cpu", "meta")
"""Of devices, in the order of a report."""

_PHRASES = {"oom": "out of memory", "error": "failed"}


def document(comparison: Comparison) -> dict[str, Any]:
    """``ullage compare --json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "comparison",
        "calibration": comparison.calibrated_with,
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


def report(comparison: Comparison) -> Report:
    """How many figures lie within their bounds; then the errors of each device, GPUs first."""
    constants = f", with the constants of {comparison.calibrated_with}" if comparison.calibrated_with else ""
    estimated = f"Each is estimated from its own request{constants}."
    devices = sorted(_by_device(comparison).items(), key=lambda item: _KINDS.index(item[1][0].measurement.device.kind))
    blocks: list[Block] = []
    for place, (device, rows) in enumerate(devices, 1):
        suffix = f"-{place}" if len(devices) > 1 else ""
        blocks += blocks_of_device(rows, f"{_measured(rows)} On {device}. {estimated}", suffix)
    return Report(
        title="Estimates beside measurements",
        assumptions=f"{_measured(comparison.rows)} {estimated}",
        headline=_headline(comparison),
        status=None,
        blocks=(*blocks, *_without(comparison)),
    )


def _headline(comparison: Comparison) -> str:
    rows = comparison.rows
    if not rows:
        return "No measurement has a figure to compare."
    said = f"{comparison.inside:,} of {len(rows):,} figures lie within the bounds of their estimate"
    return f"{said}; {_worst_words(rows[0])}." if rows[0].error_bytes else f"{said}; none is off by a byte."


def _worst_words(row: Row) -> str:
    size = "something for nothing" if row.error_fraction is None else signed(row.error_fraction)
    return f"furthest off are the {figure_name(row.figure)} of {row.measurement.id}, by {size}"


def _without(comparison: Comparison) -> Iterator[Block]:
    failed = comparison.without_figures
    if failed:
        more = len(failed) - _LISTED
        lines = [f"{m.id} on {m.device.name}: {_PHRASES.get(m.status, 'without figures')}" for m in failed[:_LISTED]]
        lines += [f"… and {more:,} more: the JSON has all."] * (more > 0)
        yield Lines(title="Not compared", lines=tuple(lines))


def text(comparison: Comparison, console: Console) -> None:
    """How well the estimate does a figure, then where it does worst."""
    measured = {row.measurement.id for row in comparison.rows}
    console.print(f"{len(measured)} measurements compared with the estimate of their own request.")
    if comparison.without_figures:
        told = Counter(_PHRASES.get(m.status, "without figures") for m in comparison.without_figures)
        console.print(f"Not compared: {', '.join(f'{count} {why}' for why, count in told.items())}.")
    console.print()
    print_table(Table(title="", columns=COLUMNS, rows=tuple(map(summary_cells, comparison.summaries))), console)
    _print_worst(comparison, console)


def _print_worst(comparison: Comparison, console: Console) -> None:
    wrong = [row for row in comparison.rows if row.error_bytes]
    if not wrong:
        console.print("\nNo figure is off by a byte.")
        return
    console.print("\n[dim]worst first[/]")
    for row in wrong[:WORST_ROWS]:
        error = "" if row.error_fraction is None else f" ({signed(row.error_fraction)})"
        outside = "" if row.is_inside else ", outside its bounds"
        console.print(
            f"{figure_name(row.figure)}: measured {row.measured_bytes:,}, "
            f"estimated {row.estimated.bytes:,}{error}{outside}"
        )
        console.print(f"  [dim]{row.measurement.id}[/]", soft_wrap=True)
    if len(wrong) > WORST_ROWS:
        console.print(f"[dim]… and {len(wrong) - WORST_ROWS} more: --json has all.[/]")


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
    for device, rows in _by_device(comparison).items():
        lines += ["", f"## {device}", "", _measured(rows), "", *_markdown(Comparison(rows=rows, without_figures=()))]
    failed = sorted(f"- `{m.id}`: {_PHRASES.get(m.status, m.status)}" for m in comparison.without_figures)
    lines += ["", "## Not compared", "", *failed] if failed else []
    return "\n".join(lines) + "\n"


def _by_device(comparison: Comparison) -> dict[str, tuple[Row, ...]]:
    devices = sorted({_device(row.measurement) for row in comparison.rows})
    return {name: tuple(row for row in comparison.rows if _device(row.measurement) == name) for name in devices}


def _device(measurement: Measurement) -> str:
    software = measurement.software
    versions = (f"{name} {software[name]}" for name in ("torch", "transformers", "bitsandbytes") if software.get(name))
    return f"{measurement.device.name} ({', '.join(versions)})"


def _measured(rows: tuple[Row, ...]) -> str:
    runs = {row.measurement.id: row.measurement for row in rows}
    architectures = {run.model.architecture for run in runs.values()}
    formats = {run.request.weight_format or run.request.dtype for run in runs.values()}
    counts = ((runs, "run"), (architectures, "architecture"), (formats, "format"))
    named = (f"{len(found)} {name}{'s' * (len(found) != 1)}" for found, name in counts)
    return "{} of {} in {}.".format(*named)


def _markdown(comparison: Comparison) -> list[str]:
    heading = f"| {' | '.join(('figure', 'runs', *COLUMNS[2:]))} |"
    rows = (f"| {' | '.join(summary_cells(summary))} |" for summary in comparison.summaries)
    return [heading, "|---|---:|---:|---:|---:|---:|---:|", *rows]

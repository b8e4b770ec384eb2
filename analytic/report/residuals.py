"""A device's estimates beside its measurements: the errors of each figure, the residuals, and the worst rows."""

from collections.abc import Iterator

from analytic.compare import Comparison, Row, Summary
from analytic.ledger import COMPONENTS
from analytic.quantity import Basis, GiB
from analytic.report.observed import ground, signed, verb
from analytic.report.parts import Block, Point, Predicted, Table

WORST_ROWS = 12
"""Rows that are shown; the document has all."""

COLUMNS = ("", "n", "median", "95 %", "maximum", "largest GiB", "inside bounds")
"""Of a summary."""

_GROUPS: dict[str, tuple[str, ...]] = {
    "totals": ("device", "reserved", "allocated", "load_peak"),
    "components": COMPONENTS,
}
"""What is drawn together, what matters most first."""


def blocks_of_device(rows: tuple[Row, ...], assumptions: str, suffix: str) -> Iterator[Block]:
    """The summary of one device's ``rows``, worst first, then totals and components; names of figures end in
    ``suffix``.
    """
    device = rows[0].measurement.device.name
    summaries = Comparison(rows=rows, without_figures=()).summaries
    yield Table(
        title=f"Errors on {device}", columns=COLUMNS, rows=tuple(map(summary_cells, summaries)), note=assumptions
    )
    for group, figures in _GROUPS.items():
        if own := tuple(row for row in rows if row.figure in figures):
            yield _predicted(group, sorted(own, key=lambda row: figures.index(row.figure)), assumptions, suffix)
            yield _worst(group, own)


def _predicted(group: str, rows: list[Row], assumptions: str, suffix: str) -> Predicted:
    device, said = rows[0].measurement.device.name, verb(rows[0].measurement)
    grounds: dict[tuple[str, Basis], None] = {(f"what was {said}", ground(rows[0].measurement)): None}
    grounds |= {(f"estimated {figure_name(row.figure)}", row.estimated.basis): None for row in rows}
    inside = sum(row.is_inside for row in rows)
    return Predicted(
        name=f"predicted-{group}{suffix}",
        title=f"{group.capitalize()} as estimated against what was {said} on {device}",
        assumptions=assumptions,
        basis=tuple(grounds),
        description=(
            f"{len(rows):,} figures, {inside:,} of them within the bounds of their estimate; the residuals beside. "
            "The worst are in the table below, the quantiles in the table above."
        ),
        points=tuple(map(_point, rows)),
    )


def _point(row: Row) -> Point:
    return Point(
        series=figure_name(row.figure),
        label=row.measurement.id,
        measured_bytes=row.measured_bytes,
        predicted_bytes=row.estimated.bytes,
        low_bytes=row.estimated.low_bytes,
        high_bytes=row.estimated.high_bytes,
    )


def _worst(group: str, rows: tuple[Row, ...]) -> Table:
    said, more = verb(rows[0].measurement), len(rows) - WORST_ROWS
    return Table(
        title=f"{group.capitalize()} on {rows[0].measurement.device.name}, worst first",
        columns=("run", "figure", "error", "inside bounds", f"{said} bytes", "estimated bytes", "low", "high"),
        rows=tuple(map(_worst_cells, rows[:WORST_ROWS])),
        words=2,
        note=f"… and {more:,} more: the JSON has all." if more > 0 else "",
    )


def _worst_cells(row: Row) -> tuple[str, ...]:
    quantity = row.estimated
    sizes = (row.measured_bytes, quantity.bytes, quantity.low_bytes, quantity.high_bytes)
    error = "–" if row.error_fraction is None else signed(row.error_fraction) if row.error_bytes else "0 %"
    is_inside = "yes" if row.is_inside else "no"
    return row.measurement.id, figure_name(row.figure), error, is_inside, *(f"{size:,}" for size in sizes)


def figure_name(figure: str) -> str:
    """As it is read."""
    return figure.replace("_", " ")


def summary_cells(summary: Summary) -> tuple[str, ...]:
    """Below `COLUMNS`."""
    return (
        figure_name(summary.figure),
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

"""Engines' logs beside their estimates, and what was fitted to them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil, floor
from typing import Any

from rich.console import Console
from rich.markup import escape

from analytic.engine_constants import EngineCalibration, Scale, engine_calibration_document
from analytic.quantity import GiB
from analytic.report import SCHEMA_VERSION
from analytic.report.parts import Block, Interval, Intervals, Lines, Point, Predicted, Report, Table
from analytic.report.terminal import print_table
from analytic.starts.beside import Beside, Row

_NAMED = 4
"""Models or versions that a line names."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All logs, and the constants where they were fitted."""

    besides: tuple[Beside, ...]
    fitted: EngineCalibration | None = None


def document(found: Compared) -> dict[str, Any]:
    """``ullage calibrate --engine-log … --json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [_beside(row) for row in found.besides],
        "calibration": None if found.fitted is None else engine_calibration_document(found.fitted),
    }


def record(found: Compared) -> dict[str, Any]:
    """The constants, for ``estimate --calibration``."""
    assert found.fitted is not None
    return engine_calibration_document(found.fitted)


def _beside(found: Beside) -> dict[str, Any]:
    run = found.run
    return {
        "source": found.source,
        "engine": run.engine,
        "version": run.version,
        "model": found.model.id,
        "settings": dict(run.settings),
        "rows": [asdict(row) | {"error_fraction": row.error, "within": row.is_within} for row in found.rows],
        "notes": list(found.notes),
    }


def report(found: Compared) -> Report:
    """How many figures lie within their bounds; all of them as a figure, the constants, then a table a log."""
    rows = [row for beside in found.besides for row in beside.rows]
    inside = sum(row.is_within for row in rows)
    blocks: list[Block] = [*_predicted(found), *_fitted(found)]
    for beside in found.besides:
        blocks += _of_log(beside)
    return Report(
        title="Engines' logs beside their estimates",
        assumptions=_assumptions(found),
        headline=f"{inside:,} of {len(rows):,} printed figures lie within the bounds of their estimate.",
        status=None,
        blocks=tuple(blocks),
    )


def _assumptions(found: Compared) -> str:
    engines = tuple(f"{b.run.engine} {b.run.version or 'of an unknown version'}" for b in found.besides)
    models = _listed(tuple(beside.model.id for beside in found.besides), "models")
    said = f"{len(found.besides)} start{'s' * (len(found.besides) != 1)} of {_listed(engines, 'versions')}, of {models}"
    return f"{said}. Each is estimated from the settings that its log prints; its notes say what is assumed."


def _listed(names: tuple[str, ...], what: str) -> str:
    """A few by name, of more the number."""
    once = tuple(dict.fromkeys(names))
    return ", ".join(once) if len(once) <= _NAMED else f"{len(once)} {what}"


def _predicted(found: Compared) -> Iterator[Predicted]:
    """Sizes; counts of blocks and tokens follow from one of them and are in the tables alone."""
    shown = [(b, row) for b in found.besides for row in b.rows if not row.is_count and row.printed > 0]
    if shown:
        inside = sum(row.is_within for _, row in shown)
        yield Predicted(
            name="printed",
            title="What engines printed when they started, against the estimate",
            assumptions=_assumptions(found),
            basis=(
                ("printed", "measured"),
                *dict.fromkeys((f"estimated {row.component}", row.basis) for _, row in shown),
            ),
            description=(
                f"{len(shown):,} sizes, {inside:,} of them within the bounds of their estimate; the residuals beside. "
                "The bounds have what the printed digits leave open. Each is in the table of its log."
            ),
            points=tuple(_point(beside, row) for beside, row in shown),
        )


def _point(beside: Beside, row: Row) -> Point:
    low, high = row.bounds
    return Point(
        series=row.component,
        label=" ".join(part for part in (beside.source, row.place) if part),
        measured_bytes=round(row.printed),
        predicted_bytes=round(row.estimated),
        low_bytes=floor(low),
        high_bytes=ceil(high),
    )


def _fitted(found: Compared) -> Iterator[Block]:
    made = found.fitted
    if made is None:
        return
    if made.scales:
        yield Intervals(
            name="scales",
            title="Constants that were fitted: printed over estimated",
            assumptions=_assumptions(found),
            basis=(("median of the logs and its 95 % bootstrap interval", "fitted"),),
            description="At 1 the estimate says what is printed. The constants are in the table below.",
            unit="ratio",
            intervals=tuple(_interval(scale) for scale in made.scales),
            reference=1.0,
        )
        yield _scales(made)
    if made.lacking:
        yield Lines(title="Not fitted", lines=made.lacking, kind="warnings")


def _interval(scale: Scale) -> Interval:
    text = f"{scale.value:.2f} ({_span(scale)})"
    return Interval(label=scale.constant, value=scale.value, low=scale.low, high=scale.high, text=text)


def _span(scale: Scale) -> str:
    return f"{scale.low:.2f}–{scale.high:.2f}" if scale.runs > 1 else "one run"


def _scales(made: EngineCalibration) -> Table:
    return Table(
        title="Printed over estimated",
        columns=("constant", "value", "95 % interval", "least", "most", "runs"),
        rows=tuple(
            (s.constant, f"{s.value:.2f}", _span(s), f"{s.least:.2f}", f"{s.most:.2f}", str(s.runs))
            for s in made.scales
        ),
    )


def _of_log(beside: Beside) -> Iterator[Block]:
    yield _table(beside, title=_named(beside))
    if beside.notes:
        yield Lines(title="Notes", lines=beside.notes)


def _named(beside: Beside) -> str:
    run = beside.run
    return f"{beside.source}: {run.engine} {run.version or 'of an unknown version'}, {beside.model.id}"


def _table(beside: Beside, *, title: str = "") -> Table:
    return Table(
        title=title,
        columns=("component", "rank", "printed", "estimated", "bounds", "error", "within"),
        rows=tuple(map(_cells, beside.rows)),
        words=2,
    )


_WITHIN = {True: "yes", False: "no"}


def _cells(row: Row) -> tuple[str, ...]:
    bounds = "" if row.low == row.high else f"{_size(row, row.low)}–{_size(row, row.high)}"
    error = "" if row.error is None else f"{row.error:+.2%}"
    return (
        row.component,
        row.place,
        _size(row, row.printed),
        _size(row, row.estimated),
        bounds,
        error,
        _WITHIN[row.is_within],
    )


def _size(row: Row, value: float) -> str:
    return f"{value:,.0f}" if row.is_count else f"{value / GiB:,.2f}"


def text(found: Compared, console: Console) -> None:
    """A table a run, what is partial, then the constants."""
    for beside in found.besides:
        console.print(f"[bold]{escape(_named(beside))}[/]")
        print_table(_table(beside), console, styles=["" if row.is_within else "yellow" for row in beside.rows])
        for note in beside.notes:
            console.print(f"[dim]  {escape(note)}[/]", highlight=False)
        console.print()
    if found.fitted is not None:
        print_table(_scales(found.fitted), console)
        for missing in found.fitted.lacking:
            console.print(f"[dim]{escape(missing)}[/]", highlight=False)

"""Engines' logs beside their estimates, and what was fitted to them."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analytic.engine_constants import EngineCalibration, engine_calibration_document
from analytic.quantity import GiB
from analytic.report import SCHEMA_VERSION
from analytic.starts.beside import Beside, Row


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


def text(found: Compared, console: Console) -> None:
    """A table a run, what is partial, then the constants."""
    for beside in found.besides:
        run = beside.run
        version = run.version or "of an unknown version"
        console.print(f"[bold]{escape(beside.source)}[/]: {escape(run.engine)} {escape(version)}, {beside.model.id}")
        console.print(_table(beside))
        for note in beside.notes:
            console.print(f"[dim]  {escape(note)}[/]", highlight=False)
        console.print()
    if found.fitted is not None:
        _print_fitted(found.fitted, console)


def _table(beside: Beside) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("component", "rank", "printed", "estimated", "bounds", "error"):
        table.add_column(name, justify="left" if name in ("component", "rank") else "right", no_wrap=True)
    for row in beside.rows:
        bounds = "" if row.low == row.high else f"{_size(row, row.low)}–{_size(row, row.high)}"
        error = "" if row.error is None else f"{row.error:+.2%}"
        cells = (row.component, row.place, _size(row, row.printed), _size(row, row.estimated), bounds, error)
        table.add_row(*map(escape, cells), style="" if row.is_within else "yellow")
    return table


def _size(row: Row, value: float) -> str:
    return f"{value:,.0f}" if row.is_count else f"{value / GiB:,.2f}"


def _print_fitted(fitted: EngineCalibration, console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title="printed over estimated", title_justify="left")
    for name in ("constant", "value", "95 % interval", "least", "most", "runs"):
        table.add_column(name, justify="left" if name == "constant" else "right", no_wrap=True)
    for scale in fitted.scales:
        interval = f"{scale.low:.2f}–{scale.high:.2f}" if scale.runs > 1 else "one run"
        table.add_row(
            scale.constant, f"{scale.value:.2f}", interval, f"{scale.least:.2f}", f"{scale.most:.2f}", str(scale.runs)
        )
    console.print(table)
    for missing in fitted.lacking:
        console.print(f"[dim]{escape(missing)}[/]", highlight=False)

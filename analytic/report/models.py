"""The catalogue of models, as text and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from analytic.models.catalog import Entry
from analytic.report import SCHEMA_VERSION


def document(rows: Iterable[Entry]) -> dict[str, Any]:
    """``ullage models --json``."""
    return {"schema_version": SCHEMA_VERSION, "models": [asdict(row) for row in rows]}


def text(rows: Iterable[Entry], console: Console) -> None:
    """The catalogue."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("model", "parameters", "Hub id"):
        right = name == "parameters"
        table.add_column(name, justify="right" if right else "left", no_wrap=True, min_width=10 if right else None)
    for row in rows:
        table.add_row(row.name, f"{row.parameters / 1e9:,.2f} B", row.id)
    console.print(table)

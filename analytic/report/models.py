"""The catalogue of models, as text and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console

from analytic.models.catalog import Entry
from analytic.report import SCHEMA_VERSION
from analytic.report.table import Table
from analytic.report.terminal import print_table


def document(rows: Iterable[Entry]) -> dict[str, Any]:
    """``ullage models --json``."""
    return {"schema_version": SCHEMA_VERSION, "models": [asdict(row) for row in rows]}


def text(rows: Iterable[Entry], console: Console) -> None:
    """The catalogue."""
    told = tuple((row.name, row.id, f"{row.parameters / 1e9:,.2f} B") for row in rows)
    print_table(Table(title="", columns=("model", "Hub id", "parameters"), rows=told, words=2), console)

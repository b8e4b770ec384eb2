"""The GPU table, as text and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from analytic.hardware import Gpu
from analytic.report import SCHEMA_VERSION


def document(rows: Iterable[Gpu]) -> dict[str, Any]:
    """``ullage gpus --json``."""
    return {"schema_version": SCHEMA_VERSION, "gpus": [asdict(row) for row in rows]}


def text(rows: Iterable[Gpu], console: Console) -> None:
    """The GPU table."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("GPU", "kind", "MiB", "capability", "SMs", "GB/s"):
        table.add_column(name, justify="left" if name in ("GPU", "kind") else "right", no_wrap=True)
    for gpu in rows:
        capability = ".".join(map(str, gpu.capability)) if gpu.capability else "?"
        speed = f"{gpu.bandwidth_bytes_per_s / 1e9:,.0f}" if gpu.bandwidth_bytes_per_s else "?"
        table.add_row(gpu.name, gpu.kind, f"{gpu.total_bytes >> 20:,}", capability, str(gpu.sms or "?"), speed)
    console.print(table)

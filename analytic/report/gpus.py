"""The GPU table, as text and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console

from analytic.hardware import Gpu
from analytic.report import SCHEMA_VERSION
from analytic.report.table import Table
from analytic.report.terminal import print_table


def document(rows: Iterable[Gpu]) -> dict[str, Any]:
    """``ullage gpus --json``."""
    return {"schema_version": SCHEMA_VERSION, "gpus": [asdict(row) for row in rows]}


def text(rows: Iterable[Gpu], console: Console) -> None:
    """The GPU table."""
    columns = ("GPU", "kind", "MiB", "capability", "SMs", "GB/s")
    print_table(Table(title="", columns=columns, rows=tuple(map(_cells, rows)), words=2), console)


def _cells(gpu: Gpu) -> tuple[str, ...]:
    capability = ".".join(map(str, gpu.capability)) if gpu.capability else "–"
    speed = f"{gpu.bandwidth_bytes_per_s / 1e9:,.0f}" if gpu.bandwidth_bytes_per_s else "–"
    return gpu.name, gpu.kind, f"{gpu.total_bytes >> 20:,}", capability, str(gpu.sms or "–"), speed

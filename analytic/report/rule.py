"""The rule of thumb, as text and as JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analytic.report import SCHEMA_VERSION
from analytic.rule import Rule, published_misprint


def document(rule: Rule) -> dict[str, Any]:
    """``ullage rule --json``."""
    return {"schema_version": SCHEMA_VERSION} | asdict(rule)


def text(rule: Rule, console: Console) -> None:
    """The six steps, and what the published guide makes of step 4."""
    gb = 10**9
    wrong = published_misprint(rule.parameters, bits=rule.bits)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = (
        ("1. parameters", f"{rule.parameters / 1e9:g} B", ""),
        ("2. precision", f"{rule.bits} bits", ""),
        ("3. base", f"{rule.base_bytes / gb:,.1f} GB", "parameters × 4 bytes"),
        ("4. quantised", f"{rule.quantized_bytes / gb:,.1f} GB", f"base × {rule.bits} / 32"),
        ("5. total", f"{rule.total_bytes / gb:,.1f} GB", f"+ {rule.overhead_fraction:.0%} overhead, assumed"),
        ("6. GPUs", f"{rule.gpus_needed}", f"of {rule.gpu_memory_bytes / gb:g} GB each, decimal as in the guide"),
    )
    for name, value, note in rows:
        table.add_row(name, Text(value, justify="right"), Text(note, style="dim"))
    console.print(table)
    if wrong != rule.quantized_bytes:
        console.print(f"[dim]The published guide prints step 4 as base × 32 / bits: {wrong / gb:,.0f} GB.[/]")

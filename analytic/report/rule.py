"""The rule of thumb, as text and as JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Console

from analytic.report import SCHEMA_VERSION
from analytic.report.table import Table
from analytic.report.terminal import print_table
from analytic.rule import Rule, published_misprint


def document(rule: Rule) -> dict[str, Any]:
    """``ullage rule --json``."""
    return {"schema_version": SCHEMA_VERSION} | asdict(rule)


def text(rule: Rule, console: Console) -> None:
    """The six steps, and what the published guide makes of step 4."""
    gb = 10**9
    wrong = published_misprint(rule.parameters, bits=rule.bits)
    rows = (
        ("1. parameters", "", f"{rule.parameters / 1e9:g} B"),
        ("2. precision", "", f"{rule.bits} bits"),
        ("3. base", "parameters × 4 bytes", f"{rule.base_bytes / gb:,.1f} GB"),
        ("4. quantised", f"base × {rule.bits} / 32", f"{rule.quantized_bytes / gb:,.1f} GB"),
        ("5. total", f"+ {rule.overhead_fraction:.0%} overhead, assumed", f"{rule.total_bytes / gb:,.1f} GB"),
        ("6. GPUs", f"of {rule.gpu_memory_bytes / gb:g} GB each, decimal as in the guide", f"{rule.gpus_needed}"),
    )
    print_table(Table(title="", columns=("step", "how", "result"), rows=rows, words=2), console)
    if wrong != rule.quantized_bytes:
        console.print(f"[dim]The published guide prints step 4 as base × 32 / bits: {wrong / gb:,.0f} GB.[/]")

"""What a sweep has measured, as text and as JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Console

from analytic.measurement import SCHEMA_VERSION
from profiler.sweep import SweepResult


def document(done: SweepResult) -> dict[str, Any]:
    """``ullage sweep --json``."""
    return {"schema_version": SCHEMA_VERSION, "kind": "sweep", **asdict(done)}


def text(done: SweepResult, console: Console) -> None:
    """Where the records are, and what to do with them."""
    console.print(f"{len(done.done)} measured, {len(done.skipped)} recorded before, in {done.out}.", soft_wrap=True)
    if done.done or done.skipped:
        console.print(f"Compare them with the estimate: ullage compare {done.out}", soft_wrap=True)

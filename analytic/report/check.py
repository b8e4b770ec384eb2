"""A check as one line, and as JSON."""

from typing import Any

from rich.console import Console

from analytic.checking import Check
from analytic.report import SCHEMA_VERSION


def document(found: Check) -> dict[str, Any]:
    """``ullage check --json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "fits": found.fits,
        "certain": found.answer.is_certain,
        "needed_bytes": found.needed_bytes,
        "available_bytes": found.available_bytes,
        "gpus": found.answer.gpus,
        "gpu": found.answer.gpu.name if found.answer.gpu else None,
        "line": found.line,
    }


def text(found: Check, console: Console) -> None:
    """The line."""
    console.print(found.line, markup=False, soft_wrap=True)

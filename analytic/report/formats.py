"""The table of weight formats, as text and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from analytic.formats.catalog import Row, read_methods
from analytic.report import SCHEMA_VERSION


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """``ullage formats --json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "quantization": [asdict(row) for row in rows],
        "checkpoints": list(read_methods()),
    }


def text(rows: Sequence[Row], console: Console) -> None:
    """What `--quantization` takes, and which checkpoints are read."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name, justify in (("--quantization", "left"), ("bits", "right"), ("packs", "left"), ("made", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(row.name, f"{row.bits_per_weight:.3f}", row.packs, row.made)
    console.print(table)
    console.print("\nbits: of a weight in a 4,096 x 4,096 matrix, with scales and all that stands beside it.")
    console.print("a mixture: llama-quantize gives some tensors more bits, some fewer; the figure is the base type's.")
    console.print(f"Published checkpoints that are read: {', '.join(read_methods())}; safetensors in any dtype.")

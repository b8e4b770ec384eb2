"""The table of weight formats, as text and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from analytic.formats.catalog import Row, read_methods
from analytic.report import SCHEMA_VERSION
from analytic.report.table import Table
from analytic.report.terminal import print_table


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """``ullage formats --json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "quantization": [asdict(row) for row in rows],
        "checkpoints": list(read_methods()),
    }


def text(rows: Sequence[Row], console: Console) -> None:
    """What `--quantization` takes, and which checkpoints are read."""
    told = tuple((row.name, row.packs, row.made, f"{row.bits_per_weight:.3f}") for row in rows)
    print_table(Table(title="", columns=("--quantization", "packs", "made", "bits"), rows=told, words=3), console)
    console.print("\nbits: of a weight in a 4,096 x 4,096 matrix, with scales and all that stands beside it.")
    console.print("a mixture: llama-quantize gives some tensors more bits, some fewer; the figure is the base type's.")
    console.print(f"Published checkpoints that are read: {', '.join(read_methods())}; safetensors in any dtype.")

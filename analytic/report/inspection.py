"""A look into a model, as text and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analytic.holding import Loading
from analytic.inspection import Inspection, is_packed
from analytic.loaded import Loaded
from analytic.models.inventory import TensorGroup
from analytic.quantity import GiB
from analytic.report import SCHEMA_VERSION
from analytic.weights import ServedGroup


def document(found: Inspection) -> dict[str, Any]:
    """``ullage inspect --json``."""
    model = found.model
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "id": model.id,
            "source": model.source,
            "revision": model.revision,
            "architecture": model.architecture,
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
            "stored_bytes": model.stored_bytes,
            "quantization": model.native_format,
        },
        "request": {
            "dtype": found.dtype,
            "quantization": found.quantization,
            "tokens": found.tokens,
            "sequences": found.sequences,
        },
        "weights_bytes": found.weights.bytes,
        "by_role": found.weights.by_role,
        "by_format": found.weights.by_format,
        "by_layer": dict(found.by_layer),
        "tensors": [_tensor(served) for served in found.tensors],
        "unquantized": [asdict(row) for row in found.left],
        "loaded": [asdict(loading) for loading in found.loadings],
        "sequence_state": {
            "bytes_per_token": sum(row.bytes_per_token for row in found.cache),
            "kinds": [asdict(row) for row in found.cache],
            "holders": [asdict(holding) | {"bytes": holding.bytes} for holding in found.holders],
        },
        "notes": list(model.notes),
    }


def _tensor(served: ServedGroup) -> dict[str, Any]:
    group = served.group
    return {
        "name": group.name,
        "role": group.role,
        "format": served.format,
        "shape": list(group.shape),
        "layers": None if group.layers is None else list(group.layers),
        "count": group.count,
        "parameters": group.elements * group.count,
        "bytes": served.bytes,
        "quantized": is_packed(served),
        "parts": [asdict(piece) for piece in group.pieces],
    }


def text(found: Inspection, console: Console, *, tensors: bool = False, layers: bool = False) -> None:
    """The inventory by role and format, what is not packed, and what a token of context costs."""
    model = found.model
    active = "" if model.active_parameters == model.parameters else f" ({_many(model.active_parameters)} active)"
    packed = f", published in {model.native_format}" if model.native_format else ""
    console.print(
        f"[bold]{model.id}[/]: {model.architecture}, {_many(model.parameters)} parameters{active}, "
        f"{len(model.geometry.layers)} layers{packed}; weights as served by transformers in "
        f"{found.quantization or found.dtype}: [bold]{_size(found.weights.bytes)}[/]."
    )
    if model.stored_bytes not in (None, found.weights.bytes):
        console.print(f"The checkpoint's files hold {_size(model.stored_bytes or 0)} of tensors.")
    console.print()
    console.print(_roles(found))
    if tensors:
        console.print(_tensors(found.tensors))
    if layers:
        console.print(_rows("layer", found.by_layer))
    if found.left:
        console.print(_left(found))
    console.print()
    console.print(_loadings(found.loadings))
    _print_cache(found, console)
    for note in model.notes:
        console.print(f"note: {note}", style="dim")


def _size(count: int) -> str:
    return f"{count / GiB:,.3f} GiB" if count >= GiB // 20 else f"{count / 2**20:,.3f} MiB"


def _many(count: int) -> str:
    return f"{count / 1e9:,.2f} B" if count >= 10**8 else f"{count / 1e6:,.2f} M"


def _grid(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name, justify in columns:
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _roles(found: Inspection) -> Table:
    table = _grid(
        ("role", "left"), ("format", "left"), ("tensors", "right"), ("parameters", "right"), ("size", "right")
    )
    sums: dict[tuple[str, str], list[int]] = {}
    for served in found.tensors:
        row = sums.setdefault((served.group.role, served.format), [0, 0, 0])
        for index, value in enumerate(_figures(served)):
            row[index] += value
    for (role, name), (count, parameters, size) in sorted(sums.items(), key=lambda item: -item[1][2]):
        table.add_row(role, name, f"{count:,}", f"{parameters:,}", _size(size))
    return table


def _figures(served: ServedGroup) -> tuple[int, int, int]:
    return served.group.count, served.group.elements * served.group.count, served.bytes


def _tensors(tensors: Iterable[ServedGroup]) -> Table:
    table = _grid(("tensor", "left"), ("shape", "left"), ("format", "left"), ("layers", "left"), ("size", "right"))
    for served in tensors:
        shape = " x ".join(map(str, served.group.shape)) or "scalar"
        table.add_row(served.group.name, shape, served.format, _span(served.group), _size(served.bytes))
    return table


def _span(group: TensorGroup) -> str:
    """Layer indices in words: ``0-31``, or how many."""
    if group.layers is None:
        return ""
    first, last = group.layers[0], group.layers[-1]
    span = f"{first}-{last}" if len(group.layers) == last - first + 1 else f"{len(group.layers)} of {first}-{last}"
    return span if group.copies == 1 else f"{span}, {group.copies} each"


def _rows(name: str, rows: Iterable[tuple[str, int]]) -> Table:
    table = _grid((name, "left"), ("size", "right"))
    for label, size in rows:
        table.add_row(label, _size(size))
    return table


def _left(found: Inspection) -> Table:
    table = _grid(("not quantised", "left"), ("size", "right"), ("why", "left"))
    for row in found.left:
        table.add_row(row.name.removesuffix(".weight"), _size(row.bytes), row.why)
    return table


def _loadings(loadings: Iterable[Loading]) -> Table:
    table = _grid(("weights as loaded by", "left"), ("on", "left"), ("size", "right"), ("more or less", "left"))
    for loading in loadings:
        engine = f"{loading.engine} {loading.version}"
        if loading.refused:
            hint = f" ({loading.hint})" if 0 < len(loading.hint) <= _LONGEST_HINT else ""
            table.add_row(engine, "", "", Text(loading.refused + hint, style="dim"))
        for row in loading.rows:
            table.add_row(engine, row.place, _size(row.bytes), Text(_changes(row), style="dim"))
    return table


def _changes(row: Loaded) -> str:
    """Those that can be seen in the size, and how many are smaller."""
    large = [change for change in row.changes if abs(change.bytes) >= row.bytes * _SMALLEST_CHANGE]
    said = [f"{change.what} {_signed(change.bytes)}" for change in large]
    small = len(row.changes) - len(large)
    return "; ".join([*said, *([f"{small} of less than {_SMALLEST_CHANGE:.2%}"] if small else [])])


_SMALLEST_CHANGE = 0.0001
_LONGEST_HINT = 80


def _signed(count: int) -> str:
    return f"{'+' if count > 0 else '-'}{_size(abs(count))}"


def _print_cache(found: Inspection, console: Console) -> None:
    per_token = sum(row.bytes_per_token for row in found.cache)
    sequences = f"{found.sequences:,} sequence{'s' * (found.sequences > 1)}"
    console.print()
    said = f"One more token of a sequence of {found.tokens:,} takes {per_token:,} bytes ({found.dtype})."
    console.print(Text(said, style="bold"))
    table = _grid(("layers", "right"), ("kind", "left"), ("keeps", "left"), ("bytes a token", "right"))
    for row in found.cache:
        table.add_row(str(row.layers), row.kind, row.heads, f"{row.bytes_per_token:,}")
    console.print(table)
    console.print()
    held = _grid((f"{sequences} of {found.tokens:,} tokens in", "left"), ("MiB", "right"), ("", "left"))
    for holding in found.holders:
        size = "" if holding.bytes is None else f"{holding.bytes / 2**20:,.2f}"
        notes = holding.refused or "; ".join(dict.fromkeys(row.note for row in holding.rows if row.note))
        held.add_row(holding.holder, size, Text(notes, style="dim"))
    console.print(held)

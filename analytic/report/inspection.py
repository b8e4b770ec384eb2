"""A look into a model, as text and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from analytic.holding import Holding, Loading
from analytic.inspection import Inspection, is_packed
from analytic.loaded import Loaded
from analytic.models.inventory import TensorGroup
from analytic.quantity import GiB
from analytic.report import SCHEMA_VERSION
from analytic.report.table import Table
from analytic.report.terminal import print_table
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
    tables = {
        _roles: True,
        _tensors: tensors,
        _layers: layers,
        _left: bool(found.left),
        _loadings: True,
    }
    for table, is_shown in tables.items():
        if is_shown:
            print_table(table(found), console)
            console.print()
    _print_cache(found, console)
    for note in model.notes:
        console.print(f"note: {note}", style="dim")


def _size(count: int) -> str:
    return f"{count / GiB:,.3f} GiB" if count >= GiB // 20 else f"{count / 2**20:,.3f} MiB"


def _many(count: int) -> str:
    return f"{count / 1e9:,.2f} B" if count >= 10**8 else f"{count / 1e6:,.2f} M"


def _roles(found: Inspection) -> Table:
    sums: dict[tuple[str, str], list[int]] = {}
    for served in found.tensors:
        row = sums.setdefault((served.group.role, served.format), [0, 0, 0])
        for index, value in enumerate(_figures(served)):
            row[index] += value
    largest = sorted(sums.items(), key=lambda item: -item[1][2])
    return Table(
        title="",
        columns=("role", "format", "tensors", "parameters", "size"),
        rows=tuple(
            (*names, f"{count:,}", f"{parameters:,}", _size(size)) for names, (count, parameters, size) in largest
        ),
        words=2,
    )


def _figures(served: ServedGroup) -> tuple[int, int, int]:
    return served.group.count, served.group.elements * served.group.count, served.bytes


def _tensors(found: Inspection) -> Table:
    return Table(
        title="",
        columns=("tensor", "shape", "format", "layers", "size"),
        rows=tuple((t.group.name, _shape(t.group), t.format, _span(t.group), _size(t.bytes)) for t in found.tensors),
        words=4,
    )


def _shape(group: TensorGroup) -> str:
    return " x ".join(map(str, group.shape)) or "scalar"


def _span(group: TensorGroup) -> str:
    """Layer indices in words: ``0-31``, or how many."""
    if group.layers is None:
        return ""
    first, last = group.layers[0], group.layers[-1]
    span = f"{first}-{last}" if len(group.layers) == last - first + 1 else f"{len(group.layers)} of {first}-{last}"
    return span if group.copies == 1 else f"{span}, {group.copies} each"


def _layers(found: Inspection) -> Table:
    return Table(title="", columns=("layer", "size"), rows=tuple((name, _size(size)) for name, size in found.by_layer))


def _left(found: Inspection) -> Table:
    rows = tuple((row.name.removesuffix(".weight"), row.why, _size(row.bytes)) for row in found.left)
    return Table(title="", columns=("not quantised", "why", "size"), rows=rows, words=2)


def _loadings(found: Inspection) -> Table:
    rows = tuple(cells for loading in found.loadings for cells in _loading_cells(loading))
    return Table(title="", columns=("weights as loaded by", "on", "more or less", "size"), rows=rows, words=3)


def _loading_cells(loading: Loading) -> Iterator[tuple[str, str, str, str]]:
    engine = f"{loading.engine} {loading.version}"
    if loading.refused:
        hint = f" ({loading.hint})" if 0 < len(loading.hint) <= _LONGEST_HINT else ""
        yield engine, "", loading.refused + hint, ""
    for row in loading.rows:
        yield engine, row.place, _changes(row), _size(row.bytes)


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
    said = f"One more token of a sequence of {found.tokens:,} takes {per_token:,} bytes ({found.dtype})."
    console.print(Text(said, style="bold"))
    rows = tuple((row.kind, row.heads, str(row.layers), f"{row.bytes_per_token:,}") for row in found.cache)
    print_table(Table(title="", columns=("kind", "keeps", "layers", "bytes a token"), rows=rows, words=2), console)
    console.print()
    held = tuple(map(_holding_cells, found.holders))
    heading = f"{sequences} of {found.tokens:,} tokens in"
    print_table(Table(title="", columns=(heading, "how", "MiB"), rows=held, words=2), console)


def _holding_cells(holding: Holding) -> tuple[str, str, str]:
    notes = holding.refused or "; ".join(dict.fromkeys(row.note for row in holding.rows if row.note))
    size = "" if holding.bytes is None else f"{holding.bytes / 2**20:,.2f}"
    return holding.holder, notes, size

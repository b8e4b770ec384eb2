"""Answers for people: the verdict first, then where the bytes go. Fits 80 columns, with or without colour."""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analytic.estimator import Estimate
from analytic.hardware import Gpu
from analytic.ledger import COMPONENTS
from analytic.models.catalog import Entry
from analytic.quantity import GiB, Quantity
from analytic.rule import Rule, published_misprint

_BAR_COLUMNS = 22

_BAR_WIDTH = 72
"""Columns of a terminal from which bars are shown."""

_LEDGER_COLUMNS = {"": 0, "GiB": 0, "low": 48, "high": 48, "basis": 0, " ": _BAR_WIDTH}
"""Columns of the ledger, and the width of the terminal from which they are shown; the last holds the bar."""


def print_rule(rule: Rule, console: Console) -> None:
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


def print_estimate(answer: Estimate, console: Console) -> None:
    """Assumptions and verdict, the ledger of the fullest GPU, then what would help and what to know."""
    console.print(Text.assemble(_assumptions(answer), (_verdict(answer), _colour(answer))), soft_wrap=False)
    console.print()
    _print_ledger(answer, console)
    if answer.gpus > 1:
        _print_split(answer, console)
    _print_notes(answer, console)


def _assumptions(answer: Estimate) -> str:
    request, model = answer.request, answer.model
    quantized = request.weight_format not in (None, "none")
    precision = f"{request.weight_format} and {answer.dtype}" if quantized else answer.dtype
    if model.native_format and request.weight_format is None:
        precision = f"{model.native_format} as published, {answer.dtype}"
    return (
        f"{model.id} ({model.parameters / 1e9:,.2f} B) in {precision}, {answer.engine.setting(answer.asked)}, "
        f"{request.batch_size:,} sequence{'s' * (request.batch_size > 1)} of "
        f"{request.prompt_tokens:,} + {request.output_tokens:,} tokens: "
    )


def _verdict(answer: Estimate) -> str:
    device = _gib(answer.fullest.device.bytes)
    if answer.gpu is None:
        return f"needs {device} GiB on {'one GPU' if answer.gpus == 1 else f'each of {answer.gpus} GPUs at most'}."
    where = f"{answer.gpus} × {answer.gpu.name} ({_gib(answer.capacity_bytes or 0)} GiB usable each)"
    certain = "" if answer.is_certain else ", within the bounds of error"
    if answer.fits:
        spare = (answer.capacity_bytes or 0) - answer.fullest.charged.bytes
        return f"fits on {where} with {_gib(spare)} GiB to spare{certain}."
    needed = f"{answer.gpus_needed} of them hold it" if answer.gpus_needed else "no number of them holds it"
    return f"does not fit on {where}: {_gib(answer.short_by_bytes or 0)} GiB short{certain}; {needed}."


def _colour(answer: Estimate) -> str:
    if answer.fits is None:
        return "bold"
    return "bold yellow" if not answer.is_certain else "bold green" if answer.fits else "bold red"


def _print_ledger(answer: Estimate, console: Console) -> None:
    row = answer.fullest
    several = f"fullest of {answer.gpus} GPUs, " if answer.gpus > 1 else ""
    title = f"{several}peak in {row.peak.name} ({row.peak.moment})"
    table = Table(box=None, padding=(0, 1, 0, 0), title=title, title_justify="left", title_style="dim")
    columns = [column for column, width in _LEDGER_COLUMNS.items() if console.width >= width]
    for name in columns:
        table.add_column(name, justify="right" if name in ("GiB", "low", "high") else "left", no_wrap=True)
    scale = max(answer.capacity_bytes or 0, row.device.bytes)

    def add(name: str, quantity: Quantity, start: int, style: str = "") -> None:
        cells = (name, *_cells(quantity), _bar(start, quantity.bytes, scale, console))
        table.add_row(*(c for c, shown in zip(cells, _LEDGER_COLUMNS, strict=True) if shown in columns), style=style)

    start = 0
    for component in COMPONENTS:
        add(component.replace("_", " "), row.components[component], start)
        start += row.components[component].bytes
    for total in ("allocated", "reserved", "device"):
        add(f"= {total}", getattr(row, total), 0, "bold")
    add("load peak", row.load_peak, 0, "dim")
    console.print(table)


def _cells(quantity: Quantity) -> tuple[str, str, str, str]:
    exact = quantity.low_bytes == quantity.high_bytes
    low, high = ("", "") if exact else (_gib(quantity.low_bytes), _gib(quantity.high_bytes))
    return _gib(quantity.bytes), low, high, quantity.basis


def _bar(start: int, size: int, scale: int, console: Console) -> str:
    """A bar from ``start``, ``size`` long, of ``scale`` in all."""
    full, empty = ("█", "·") if console.encoding.lower().startswith("utf") else ("#", ".")
    first = round(_BAR_COLUMNS * start / scale)
    length = max(round(_BAR_COLUMNS * (start + size) / scale) - first, 1 if size else 0)
    first = min(first, _BAR_COLUMNS - length)
    return empty * first + full * length + empty * (_BAR_COLUMNS - first - length)


def _print_split(answer: Estimate, console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title="by GPU", title_justify="left", title_style="dim")
    table.add_column("GPU")
    for name in ("layers", "weights", "device GiB"):
        table.add_column(name, justify="right", no_wrap=True)
    scale = max(answer.capacity_bytes or 0, answer.fullest.device.bytes)
    for index, row in enumerate(answer.ledgers):
        layers = "all" if row.layers is None else f"{row.layers[0]}–{row.layers[1] - 1}"
        sizes = (row.components["weights"].bytes, row.device.bytes)
        bar = (_bar(0, row.device.bytes, scale, console),) if console.width >= _BAR_WIDTH else ()
        table.add_row(str(index), layers, *map(_gib, sizes), *bar)
    console.print(table)


def _print_notes(answer: Estimate, console: Console) -> None:
    console.print()
    for line in answer.engine.lines(answer.asked, answer.ledgers):
        console.print(escape(line), highlight=False)
    if answer.fits is False:
        for lever in answer.levers:
            outcome = "fits" if lever.fits else "still too much"
            console.print(f"  {escape(lever.change)}: {_gib(lever.device_bytes)} GiB, {outcome}")
    elif answer.gpu is not None:
        console.print(
            f"At most {answer.max_sequences:,} such sequences, or {answer.max_tokens:,} tokens in each of "
            f"{answer.request.batch_size:,}."
        )
    rule = answer.rule_of_thumb
    console.print(f"[dim]The rule of thumb says {rule.total_bytes / 1e9:,.1f} GB ({_gib(rule.total_bytes)} GiB).[/]")
    if answer.calibrated_with is not None:
        console.print(f"[dim]Calibrated with {escape(answer.calibrated_with)}.[/]", soft_wrap=True)
    if answer.ignored:
        console.print(f"[dim]Without effect on memory: {escape(' '.join(answer.ignored))}[/]", highlight=False)
    for warning in answer.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def print_gpus(rows: Iterable[Gpu], console: Console) -> None:
    """The GPU table."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("GPU", "kind", "MiB", "capability", "SMs", "GB/s"):
        table.add_column(name, justify="left" if name in ("GPU", "kind") else "right", no_wrap=True)
    for gpu in rows:
        capability = ".".join(map(str, gpu.capability)) if gpu.capability else "?"
        speed = f"{gpu.bandwidth_bytes_per_s / 1e9:,.0f}" if gpu.bandwidth_bytes_per_s else "?"
        table.add_row(gpu.name, gpu.kind, f"{gpu.total_bytes >> 20:,}", capability, str(gpu.sms or "?"), speed)
    console.print(table)


def print_models(rows: Iterable[Entry], console: Console) -> None:
    """The catalogue."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("model", "parameters", "Hub id"):
        right = name == "parameters"
        table.add_column(name, justify="right" if right else "left", no_wrap=True, min_width=10 if right else None)
    for row in rows:
        table.add_row(row.name, f"{row.parameters / 1e9:,.2f} B", row.id)
    console.print(table)


def _gib(count: int) -> str:
    return f"{count / GiB:,.2f}"

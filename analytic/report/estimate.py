"""An estimate as text, as JSON and as a report: the verdict first, then where the bytes go."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import accumulate
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from analytic.estimator import NOT_MODELED, Estimate
from analytic.ledger import COMPONENTS, Ledger
from analytic.quantity import Quantity
from analytic.report import SCHEMA_VERSION
from analytic.report.blocks import budget, ledger_bars, way_from_the_rule
from analytic.report.command import command_of
from analytic.report.parts import Lines, Report, Table
from analytic.report.sentences import assumptions, cells, gib, lever_words, most, sentence, status_of, verdict
from analytic.report.terminal import print_table

_BAR_COLUMNS = 22

_BAR_WIDTH = 72
"""Columns of a terminal from which bars are shown."""


def document(answer: Estimate) -> dict[str, Any]:
    """``ullage estimate --json``."""
    model = answer.model
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "id": model.id,
            "source": model.source,
            "revision": model.revision,
            "architecture": model.architecture,
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
        },
        "request": _request(answer),
        "per_gpu": [_gpu(answer, row) for row in answer.ledgers],
        "sequence_state_bytes_per_token": answer.sequence_state_bytes_per_token,
        "weights": {
            "by_format": answer.weights.by_format,
            "by_role": answer.weights.by_role,
            "unconverted": answer.weights.unconverted,
        },
        "verdict": {
            "fits": answer.fits,
            "certain": answer.is_certain,
            "gpus_needed": answer.gpus_needed,
            "short_by_bytes": answer.short_by_bytes,
        },
        "engine": {"name": answer.engine.NAME, "version": answer.engine.VERSION, "ignored": list(answer.ignored)}
        | answer.details,
        "capacity": {"max_sequences": answer.max_sequences, "max_tokens": answer.max_tokens},
        "levers": [asdict(lever) for lever in answer.levers] if answer.fits is False else [],
        "rule_of_thumb": asdict(answer.rule_of_thumb),
        "warnings": list(answer.warnings),
        "not_modeled": [*NOT_MODELED, *answer.engine.NOT_MODELED],
        "calibration": answer.calibrated_with,
    }


def _request(answer: Estimate) -> dict[str, Any]:
    degrees = answer.asked.degrees
    resolved = {
        "dtype": answer.dtype,
        "compute_dtype": answer.request.compute_dtype or answer.dtype,
        "tensor_parallel_size": degrees.tensor,
        "pipeline_parallel_size": degrees.pipeline,
        "data_parallel_size": degrees.data,
        "gpu": answer.gpu.name if answer.gpu else None,
    }
    if answer.request.engine == "transformers":
        resolved |= {
            "kv_cache_dtype": answer.dtype,
            "gpu_memory_utilization": answer.request.gpu_memory_utilization or 1.0,
        }
    return asdict(answer.request) | asdict(answer.asked.flags) | resolved


def _gpu(answer: Estimate, row: Ledger) -> dict[str, Any]:
    capacity = answer.capacity_bytes
    return {
        "rank": row.rank,
        "layers": None if row.layers is None else list(row.layers),
        "peak": {"phase": row.peak.name, "moment": row.peak.moment},
        "components": {name: _quantity(quantity) for name, quantity in row.components.items()},
        "parts": [asdict(part) for part in row.parts],
        "totals": {
            "allocated": _quantity(row.allocated),
            "reserved": _quantity(row.reserved),
            "device": _quantity(row.device),
        },
        "load_peak": _quantity(row.load_peak),
        "uncounted": _quantity(row.uncounted),
        "capacity_bytes": capacity,
        "fits": None if capacity is None else row.charged.bytes <= capacity,
        "headroom_bytes": None if capacity is None else capacity - row.charged.bytes,
    }


def _quantity(quantity: Quantity) -> dict[str, Any]:
    return {
        "bytes": quantity.bytes,
        "low_bytes": quantity.low_bytes,
        "high_bytes": quantity.high_bytes,
        "basis": quantity.basis,
    }


def report(answer: Estimate) -> Report:
    """The verdict, the ledger against the capacity, what else would fit, and the way from the rule of thumb."""
    blocks = (
        ledger_bars(answer),
        *_tables(answer),
        *((fitting,) if (fitting := budget(answer)) else ()),
        *_help(answer),
        way_from_the_rule(answer),
        Lines(title="Not modelled", lines=(*NOT_MODELED, *answer.engine.NOT_MODELED)),
    )
    return Report(
        title=f"{answer.model.id}: GPU memory",
        assumptions=f"{assumptions(answer)}.",
        headline=sentence(verdict(answer)),
        status=None if answer.fits is None else status_of(answer),
        blocks=blocks,
        command=command_of(answer),
    )


def _tables(answer: Estimate) -> Iterator[Table]:
    row = answer.fullest
    yield Table(
        title="Bytes of the GPU that decides" if answer.gpus > 1 else "Bytes",
        columns=("", "GiB", "low", "high", "bytes", "basis"),
        rows=tuple(_ledger_rows(row)),
        note=f"Peak in {row.peak.name} ({row.peak.moment}).",
    )
    if answer.gpus > 1:
        yield Table(
            title="By GPU",
            columns=("GPU", "layers", "weights GiB", "device GiB"),
            rows=tuple((str(index), *_splitcells(row)) for index, row in enumerate(answer.ledgers)),
        )
    if row.parts:
        yield Table(
            title="Named parts",
            columns=("component", "part", "why", "MiB"),
            rows=tuple(
                (p.component.replace("_", " "), p.name, p.note, f"{p.bytes / 2**20:,.2f}") for p in row.parts if p.bytes
            ),
            words=3,
        )
    yield Table(
        title="Weights by format",
        columns=("format", "GiB"),
        rows=tuple((name, gib(size)) for name, size in answer.weights.by_format.items()),
    )


def _ledger_rows(row: Ledger) -> Iterator[tuple[str, ...]]:
    named = {name.replace("_", " "): row.components[name] for name in COMPONENTS}
    named |= {"= allocated": row.allocated, "= reserved": row.reserved, "= device": row.device}
    for name, quantity in (named | {"load peak": row.load_peak}).items():
        middle, low, high, basis = cells(quantity)
        yield name, middle, low, high, f"{quantity.bytes:,}", basis


def _splitcells(row: Ledger) -> tuple[str, str, str]:
    layers = "all" if row.layers is None else f"{row.layers[0]}–{row.layers[1] - 1}"
    return layers, gib(row.components["weights"].bytes), gib(row.device.bytes)


def _help(answer: Estimate) -> Iterator[Lines]:
    if engine := tuple(answer.engine.lines(answer.asked, answer.ledgers)):
        yield Lines(title=f"In the terms of {answer.engine.NAME}", lines=engine)
    if answer.fits is False:
        yield Lines(title="What would help", lines=tuple(map(lever_words, answer.levers)))
    elif answer.gpu is not None:
        yield Lines(title="How far it goes", lines=(most(answer),))
    if answer.warnings:
        yield Lines(title="Warnings", lines=answer.warnings, kind="warnings")


def text(answer: Estimate, console: Console) -> None:
    """Assumptions and verdict, the ledger of the fullest GPU, then what would help and what to know."""
    console.print(Text.assemble(f"{assumptions(answer)}: ", (verdict(answer), _colour(answer))), soft_wrap=False)
    console.print()
    _print_ledger(answer, console)
    if answer.gpus > 1:
        _print_split(answer, console)
    _print_notes(answer, console)


def _colour(answer: Estimate) -> str:
    if answer.fits is None:
        return "bold"
    return "bold yellow" if not answer.is_certain else "bold green" if answer.fits else "bold red"


def _print_ledger(answer: Estimate, console: Console) -> None:
    row = answer.fullest
    several = f"fullest of {answer.gpus} GPUs, " if answer.gpus > 1 else ""
    parts = {name.replace("_", " "): (row.components[name], "") for name in COMPONENTS}
    sums = {f"= {name}": (getattr(row, name), "bold") for name in ("allocated", "reserved", "device")}
    shown = parts | sums | {"load peak": (row.load_peak, "dim")}
    starts = [*accumulate((row.components[name].bytes for name in COMPONENTS[:-1]), initial=0), 0, 0, 0, 0]
    rows = []
    for (name, (quantity, _)), start in zip(shown.items(), starts, strict=True):
        middle, low, high, basis = cells(quantity)
        rows.append((name, basis, middle, low, high, *_bar(start, quantity.bytes, answer, console)))
    table = Table(
        title=f"{several}peak in {row.peak.name} ({row.peak.moment})",
        columns=("", "basis", "GiB", "low", "high", *_bar_heading(console)),
        rows=tuple(rows),
        words=2,
    )
    print_table(table, console, styles=[style for _, style in shown.values()])


def _bar_heading(console: Console) -> tuple[str, ...]:
    """None on a narrow terminal."""
    return ("",) if console.width >= _BAR_WIDTH else ()


def _bar(start: int, size: int, answer: Estimate, console: Console) -> tuple[str, ...]:
    """A bar from ``start``, ``size`` long, of what a GPU has; none on a narrow terminal."""
    scale = max(answer.capacity_bytes or 0, answer.fullest.device.bytes)
    first = round(_BAR_COLUMNS * start / scale)
    length = max(round(_BAR_COLUMNS * (start + size) / scale) - first, 1 if size else 0)
    first = min(first, _BAR_COLUMNS - length)
    bar = "·" * first + "█" * length + "·" * (_BAR_COLUMNS - first - length)
    return (bar,) * len(_bar_heading(console))


def _print_split(answer: Estimate, console: Console) -> None:
    rows = tuple(
        (str(index), *_splitcells(row), *_bar(0, row.device.bytes, answer, console))
        for index, row in enumerate(answer.ledgers)
    )
    columns = ("GPU", "layers", "weights", "device GiB", *_bar_heading(console))
    print_table(Table(title="by GPU", columns=columns, rows=rows), console)


def _print_notes(answer: Estimate, console: Console) -> None:
    console.print()
    for line in answer.engine.lines(answer.asked, answer.ledgers):
        console.print(escape(line), highlight=False)
    if answer.fits is False:
        for lever in answer.levers:
            console.print(f"  {escape(lever_words(lever))}")
    elif answer.gpu is not None:
        console.print(most(answer))
    rule = answer.rule_of_thumb
    console.print(f"[dim]The rule of thumb says {rule.total_bytes / 1e9:,.1f} GB ({gib(rule.total_bytes)} GiB).[/]")
    if answer.calibrated_with is not None:
        console.print(f"[dim]Calibrated with {escape(answer.calibrated_with)}.[/]", soft_wrap=True)
    if answer.ignored:
        console.print(f"[dim]Without effect on memory: {escape(' '.join(answer.ignored))}[/]", highlight=False)
    for warning in answer.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)

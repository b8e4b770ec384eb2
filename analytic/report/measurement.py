"""A measurement for people: how it ended, its phases, and the ledger that was observed."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analytic.measurement import Measurement, Phase
from analytic.measurement import measurement_document as document
from analytic.quantity import GiB

__all__ = ("document", "text")

MIB = 2**20

_PHASE_COLUMNS = {
    "allocated": "allocated_bytes",
    "peak": "max_allocated_bytes",
    "reserved": "reserved_bytes",
    "peak ": "max_reserved_bytes",
    "device": "device_used_bytes",
    "process": "max_rss_bytes",
}
"""Headings, and the figures of a phase below them; a column without figures is left out."""

_BASES = {
    "nvml-process": "the driver's figure for this process",
    "nvml-device-delta": "the growth of the driver's figure for the GPU",
    "mem-get-info": "total less free: other processes and the driver included",
    "assumed-context": "what the allocator reserved, and a context as assumed from reports",
    "calibrated-context": "what the allocator reserved, and a context as calibrated",
}


def text(measurement: Measurement, console: Console) -> None:
    """What was run and how it ended, then what it took."""
    if measurement.tried:
        tried = ", ".join(f"{t.value:,} {'fits' if t.status == 'ok' else 'does not'}" for t in measurement.tried)
        console.print(f"[dim]tried {tried}[/]")
    console.print(Text.assemble(_what(measurement), (_outcome(measurement), _colour(measurement))))
    console.print()
    if len(measurement.phases) > 1:
        _print_phases(measurement, console)
    _print_ledger(measurement, console)
    _print_timeline(measurement, console)
    _print_peaks(measurement, console)
    _print_advice(measurement, console)
    _print_notes(measurement, console)


def _what(measurement: Measurement) -> str:
    request, model = measurement.request, measurement.model
    twin = f", a twin of {model.twin_layers} layers" * (model.twin_layers is not None)
    precision = f"{request.weight_format} and {request.dtype}" if request.weight_format else request.dtype
    values = {"real": "", "sparse": ", sparse checkpoint", "none": ", no weights"}[model.weights]
    return (
        f"{model.id}{twin} in {precision}{values}, {request.engine} with {request.attention}, "
        f"{request.batch_size:,} sequence{'s' * (request.batch_size > 1)} of "
        f"{request.prompt_tokens:,} + {request.output_tokens:,} tokens on {measurement.device.name}: "
    )


def _outcome(measurement: Measurement) -> str:
    failure = measurement.failure
    if failure is None:
        seconds = sum(phase.seconds for phase in measurement.phases)
        verb = "simulated" if measurement.device.kind == "virtual" else "measured"
        return f"{verb} in {seconds:.1f} s."
    if measurement.status == "error":
        return f"failed in {failure.phase}: {failure.message}"
    asked = "" if failure.asked_bytes is None else f", asked for {_gib(failure.asked_bytes)} GiB"
    free = "" if failure.free_bytes is None else f" with {_gib(failure.free_bytes)} GiB free"
    where = f", {failure.module}" if failure.module else ""
    token = f", output token {failure.token + 1:,}" if failure.token is not None else ""
    return f"out of memory in {failure.phase}{token}{where}{asked}{free}."


def _colour(measurement: Measurement) -> str:
    return {"ok": "bold green", "oom": "bold red", "error": "bold red"}[measurement.status]


def _print_phases(measurement: Measurement, console: Console) -> None:
    shown = {
        heading: name
        for heading, name in _PHASE_COLUMNS.items()
        if any(getattr(phase, name) is not None for phase in measurement.phases)
    }
    table = Table(box=None, padding=(0, 2, 0, 0), title="GiB a phase", title_justify="left", title_style="dim")
    table.add_column("")
    for heading in (*shown, "seconds"):
        table.add_column(heading.strip(), justify="right", no_wrap=True)
    for phase in measurement.phases:
        table.add_row(phase.name, *(_cell(phase, name) for name in shown.values()), f"{phase.seconds:.1f}")
    console.print(table)
    console.print()


def _cell(phase: Phase, name: str) -> str:
    value = getattr(phase, name)
    return "–" if value is None else _gib(value)


def _print_ledger(measurement: Measurement, console: Console) -> None:
    figures = {**vars(measurement.components), **{f"= {k}": v for k, v in vars(measurement.totals).items()}}
    known = {name: value for name, value in figures.items() if value is not None}
    if not known:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), title="observed", title_justify="left", title_style="dim")
    table.add_column("")
    table.add_column("GiB", justify="right")
    table.add_column("bytes", justify="right")
    for name, value in known.items():
        plain = name.replace("_", " ").replace("= load peak", "load peak")
        table.add_row(plain, _gib(value), f"{value:,}", style="bold" if name.startswith("=") else "")
    console.print(table)
    for kind, size in measurement.weights_by_format.items():
        console.print(f"  [dim]{escape(kind)}: {size:,} bytes[/]")


_LEVELS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


def _print_timeline(measurement: Measurement, console: Console) -> None:
    """The most that was allocated and reserved in each part of serving, between the weights and the highest of it."""
    weights = measurement.components.weights
    told = [(at, held, kept) for at, held, kept, _ in measurement.timeline if held is not None and kept is not None]
    loaded = next((at for at, sample in enumerate(told) if weights and sample[1] >= weights), len(told))
    serving = told[loaded:]
    if len(serving) < _WIDTH:
        return
    low, high = min(s[1] for s in serving), max(s[2] for s in serving)
    first, last = serving[0][0], serving[-1][0]
    if low == high or first == last:
        return
    console.print()
    console.print(f"serving, from {_gib(low)} to {_gib(high)} GiB")
    for place, name in ((1, "allocated"), (2, "reserved")):
        parts = [low] * _WIDTH
        for sample in serving:
            part = int((sample[0] - first) / (last - first) * (_WIDTH - 1))
            parts[part] = max(parts[part], int(sample[place]))
        line = "".join(_LEVELS[(part - low) * (len(_LEVELS) - 1) // (high - low)] for part in parts)
        console.print(f"{name:10}{line}", highlight=False)


def _print_peaks(measurement: Measurement, console: Console) -> None:
    """What set each peak, and the largest tensors at the highest one of serving."""
    if not measurement.peaks:
        return
    console.print()
    for peak in measurement.peaks:
        console.print(
            f"{peak.phase} peak: {_gib(peak.requested_bytes)} GiB asked for, "
            f"by {escape(peak.op or '–')} in {escape(peak.module or 'generate')}",
            soft_wrap=True,
        )
    highest = max(measurement.peaks, key=lambda peak: (bool(peak.tensors), peak.requested_bytes))
    table = Table(box=None, padding=(0, 2, 0, 0), title=f"largest at the {highest.phase} peak", title_justify="left")
    for heading in ("MiB", "tensors", "shape", "of"):
        table.add_column(heading, justify="right" if heading in ("MiB", "tensors") else "left", overflow="fold")
    for row in highest.tensors:
        shape = f"{row.dtype} {list(row.shape)}"
        table.add_row(f"{row.bytes / MIB:,.1f}", str(row.count), escape(shape), escape(f"{row.op}, {row.module}"))
    console.print(table)


def _print_advice(measurement: Measurement, console: Console) -> None:
    if not measurement.advice:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), title="under other allocator settings", title_justify="left")
    for heading in ("PYTORCH_ALLOC_CONF", "reserved GiB", "saves GiB"):
        table.add_column(heading, justify="left" if heading.startswith("PY") else "right", overflow="fold")
    for row in measurement.advice:
        saved = "out of memory" if row.status == "oom" else f"{row.saved_bytes / GiB:,.2f}"
        table.add_row(row.alloc_conf, _gib(row.max_reserved_bytes), saved)
    console.print()
    console.print(table)


def _print_notes(measurement: Measurement, console: Console) -> None:
    if basis := measurement.device.used_basis:
        console.print(f"[dim]device: {_BASES[basis]}.[/]")
    if measurement.model.weights == "sparse":
        console.print("[dim]The weights had no values: int8 outliers and expert routing depend on them.[/]")
    for note in measurement.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")


def _gib(count: int) -> str:
    return f"{count / GiB:,.2f}"

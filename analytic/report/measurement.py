"""A measurement as JSON, as text and as a report: how it ended, its phases, and the ledger that was observed."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from analytic.course import course_of
from analytic.measurement import Measurement, Phase
from analytic.measurement import measurement_document as document
from analytic.report.command import profile_command
from analytic.report.observed import beside_estimate, course, observed, verb, way
from analytic.report.parts import Block, Lines, Report, Status, Table
from analytic.report.sentences import gib, sentence
from analytic.report.spark import sparks
from analytic.report.terminal import print_table

__all__ = ("document", "report", "text")

_MIB = 2**20

_PHASE_COLUMNS = {
    "allocated": "allocated_bytes",
    "allocated peak": "max_allocated_bytes",
    "reserved": "reserved_bytes",
    "reserved peak": "max_reserved_bytes",
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

_STATUSES: dict[str, Status | None] = {"ok": "fits", "oom": "no", "error": None}

_LISTED = 20
"""Kinds of modules in a report."""


def report(measurement: Measurement) -> Report:
    """The ledger beside the estimate's, memory over the run with its peak, and the way from the rule of thumb."""
    assumptions = f"{_what(measurement)}."
    blocks: tuple[Block, ...] = (
        *beside_estimate(measurement, assumptions),
        *course(measurement, assumptions),
        _phases(measurement),
        *_at_peaks(measurement),
        *_weights(measurement),
        *_advice(measurement),
        *way(measurement),
        *_notes(measurement),
    )
    return Report(
        title=f"{measurement.model.id} on {measurement.device.name}: memory as {verb(measurement)}",
        assumptions=assumptions,
        headline=_headline(measurement),
        status=_STATUSES[measurement.status],
        blocks=blocks,
        command=profile_command(measurement),
    )


def _headline(measurement: Measurement) -> str:
    most = next((f"{gib(v)} GiB {name}" for name, v in _totals(measurement)), "")
    return sentence(f"{most} at most; {_outcome(measurement)}" if most else _outcome(measurement))


def _totals(measurement: Measurement) -> Iterator[tuple[str, int]]:
    """The widest first."""
    totals, whole = measurement.totals, measurement.device.total_bytes
    of = f"of the device's {gib(whole)}" if whole else "of the device"
    for name, size in ((of, totals.device), ("reserved", totals.reserved), ("allocated", totals.allocated)):
        if size is not None:
            yield name, size


def _phases(measurement: Measurement) -> Table:
    shown = {
        heading: name
        for heading, name in _PHASE_COLUMNS.items()
        if any(getattr(phase, name) is not None for phase in measurement.phases)
    }
    return Table(
        title="GiB a phase",
        columns=("", *shown, "seconds"),
        rows=tuple(
            (phase.name, *(_cell(phase, name) for name in shown.values()), f"{phase.seconds:.1f}")
            for phase in measurement.phases
        ),
    )


def _cell(phase: Phase, name: str) -> str:
    value = getattr(phase, name)
    return "–" if value is None else gib(value)


def _at_peaks(measurement: Measurement) -> Iterator[Block]:
    """What set each peak, and the largest tensors at the highest one of serving."""
    if not measurement.peaks:
        return
    enough = " with memory enough" * (measurement.status == "oom")
    lines = tuple(
        f"{peak.phase} peak{enough}: {gib(peak.requested_bytes)} GiB asked for, by {peak.op or '–'} in "
        f"{peak.module or 'generate'}"
        for peak in measurement.peaks
    )
    yield Lines(title="What set each peak", lines=lines)
    highest = max(measurement.peaks, key=lambda peak: (bool(peak.tensors), peak.requested_bytes))
    yield Table(
        title=f"Largest at the {highest.phase} peak{enough}",
        columns=("shape", "of", "tensors", "MiB"),
        rows=tuple(
            (
                f"{row.dtype} {list(row.shape)}",
                f"{row.op}, {row.module or 'generate'}",
                f"{row.count:,}",
                f"{row.bytes / _MIB:,.1f}",
            )
            for row in highest.tensors
        ),
        words=2,
    )


def _weights(measurement: Measurement) -> Iterator[Table]:
    if measurement.weights_by_format:
        yield Table(
            title="Weights by format",
            columns=("format", "GiB", "bytes"),
            rows=tuple((kind, gib(size), f"{size:,}") for kind, size in measurement.weights_by_format.items()),
        )
    rows = sorted(measurement.modules, key=lambda row: -row.bytes)
    if rows:
        more = len(rows) - _LISTED
        yield Table(
            title="Modules that hold most",
            columns=("module", "class", "count", "MiB"),
            rows=tuple((row.name, row.kind, f"{row.count:,}", f"{row.bytes / _MIB:,.1f}") for row in rows[:_LISTED]),
            words=2,
            note=f"… and {more} more: the JSON has all." if more > 0 else "{} stands for the number of the layer.",
        )


def _advice(measurement: Measurement) -> Iterator[Table]:
    if measurement.advice:
        yield Table(
            title="Under other allocator settings",
            columns=("PYTORCH_ALLOC_CONF", "reserved GiB", "saves GiB"),
            rows=tuple(
                (row.alloc_conf, gib(row.max_reserved_bytes), _saved(row.status, row.saved_bytes))
                for row in measurement.advice
            ),
        )


def _saved(status: str, saved_bytes: int) -> str:
    return "out of memory" if status == "oom" else gib(saved_bytes)


def _notes(measurement: Measurement) -> Iterator[Lines]:
    lines = [f"device: {_BASES[basis]}."] if (basis := measurement.device.used_basis) else []
    if measurement.model.weights == "sparse":
        lines.append("The weights had no values: int8 outliers and expert routing depend on them.")
    if measurement.failure is not None:
        lines.append(f"{measurement.failure.phase} failed: {measurement.failure.message}")
    if lines or measurement.notes:
        yield Lines(title="Notes", lines=(*lines, *measurement.notes))


def text(measurement: Measurement, console: Console) -> None:
    """What was run and how it ended, then what it took."""
    if measurement.tried:
        tried = ", ".join(f"{t.value:,} {'fits' if t.status == 'ok' else 'does not'}" for t in measurement.tried)
        console.print(f"[dim]tried {tried}[/]")
    console.print(Text.assemble(f"{_what(measurement)}: ", (_outcome(measurement), _colour(measurement))))
    console.print()
    if len(measurement.phases) > 1:
        print_table(_phases(measurement), console)
        console.print()
    _print_ledger(measurement, console)
    _print_timeline(measurement, console)
    for block in _at_peaks(measurement):
        _print(block, console)
    for table in _advice(measurement):
        console.print()
        print_table(table, console)
    _print_notes(measurement, console)


def _print(block: Block, console: Console) -> None:
    if isinstance(block, Table):
        print_table(block, console)
    elif isinstance(block, Lines):
        console.print()
        for line in block.lines:
            console.print(escape(line))


def _what(measurement: Measurement) -> str:
    request, model = measurement.request, measurement.model
    twin = f", a twin of {model.twin_layers} layers" * (model.twin_layers is not None)
    precision = f"{request.weight_format} and {request.dtype}" if request.weight_format else request.dtype
    values = {"real": "", "sparse": ", sparse checkpoint", "none": ", no weights"}[model.weights]
    return (
        f"{model.id}{twin} in {precision}{values}, {request.engine} with {request.attention}, "
        f"{request.batch_size:,} sequence{'s' * (request.batch_size > 1)} of "
        f"{request.prompt_tokens:,} + {request.output_tokens:,} tokens on {measurement.device.name}"
    )


def _outcome(measurement: Measurement) -> str:
    failure = measurement.failure
    if failure is None:
        seconds = sum(phase.seconds for phase in measurement.phases)
        verb = "simulated" if measurement.device.kind == "virtual" else "measured"
        return f"{verb} in {seconds:.1f} s."
    if measurement.status == "error":
        return f"failed in {failure.phase}: {failure.message}"
    asked = "" if failure.asked_bytes is None else f", asked for {gib(failure.asked_bytes)} GiB"
    free = "" if failure.free_bytes is None else f" with {gib(failure.free_bytes)} GiB free"
    where = f", {failure.module}" if failure.module else ""
    token = f", output token {failure.token + 1:,}" if failure.token is not None else ""
    return f"out of memory in {failure.phase}{token}{where}{asked}{free}."


def _colour(measurement: Measurement) -> str:
    return {"ok": "bold green", "oom": "bold red", "error": "bold red"}[measurement.status]


def _print_ledger(measurement: Measurement, console: Console) -> None:
    rows = tuple((name, gib(size), f"{size:,}") for name, size in observed(measurement).items())
    if not rows:
        return
    styles = ["bold" if name.startswith("=") else "" for name, *_ in rows]
    print_table(Table(title="Observed", columns=("", "GiB", "bytes"), rows=rows), console, styles=styles)
    for kind, size in measurement.weights_by_format.items():
        console.print(f"  [dim]{escape(kind)}: {size:,} bytes[/]")


def _print_timeline(measurement: Measurement, console: Console) -> None:
    found = course_of(measurement)
    lines = [] if found is None else list(sparks(found, room=console.width))
    if lines:
        console.print()
    for line in lines:
        console.print(line, highlight=False)


def _print_notes(measurement: Measurement, console: Console) -> None:
    if basis := measurement.device.used_basis:
        console.print(f"[dim]device: {_BASES[basis]}.[/]")
    if measurement.model.weights == "sparse":
        console.print("[dim]The weights had no values: int8 outliers and expert routing depend on them.[/]")
    for note in measurement.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")

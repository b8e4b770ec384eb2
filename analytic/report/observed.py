"""Figures of a measurement: its ledger beside the estimate's, its course, and the way there from the rule of thumb."""

from collections.abc import Container, Iterable, Iterator, Mapping

from analytic.compare import FIGURES, estimate_of, estimated_figures, rows_of
from analytic.course import Course, course_of, highest
from analytic.errors import UllageError
from analytic.ledger import ALLOCATED, COMPONENTS
from analytic.measurement import Measurement
from analytic.quantity import Basis, GiB, Quantity, total
from analytic.report.blocks import way_from_the_rule
from analytic.report.parts import Bar, Block, Line, Lines, Segment, Span, StackedBars, Table, Timeline
from analytic.report.sentences import gib, sentence

_MIB = 2**20

_SIMULATED = {"virtual": "simulated", "meta": "traced"}

_CONTEXTS: dict[str, Basis] = {"assumed-context": "assumed", "calibrated-context": "fitted"}

_LINES = ("allocated", "reserved", "device")
"""Of a sample."""


def signed(fraction: float) -> str:
    """A relative error."""
    return f"{fraction:+.2%}".replace("%", " %")


def size_words(count: int) -> str:
    """In GiB, or MiB where that would show nothing."""
    return f"{gib(count)} GiB" if count >= GiB // 20 else f"{count / _MIB:,.2f} MiB"


def verb(measurement: Measurement) -> str:
    """How the figures came about."""
    return _SIMULATED.get(measurement.device.kind, "measured")


def ground(measurement: Measurement) -> Basis:
    """Of figures that came from no device: traced."""
    return "traced" if measurement.device.kind in _SIMULATED else "measured"


def beside_estimate(measurement: Measurement, assumptions: str) -> Iterator[Block]:
    """The ledger as observed and as estimated, as a figure and as a table; or why there is no estimate."""
    try:
        estimate, rows = estimate_of(measurement), tuple(rows_of(measurement))
    except UllageError as error:
        yield from _ledger(measurement, assumptions, {})
        yield Lines(title="Beside the estimate", lines=(f"Not estimated: {error.message}.",), kind="warnings")
        return
    if measurement.status == "ok":
        estimated = {row.figure: row.estimated for row in rows}
    else:
        estimated = estimated_figures(estimate.fullest, phase=estimate.fullest.peak.name)
    yield from _ledger(measurement, assumptions, estimated)


def way(measurement: Measurement) -> Iterator[Block]:
    """From the rule of thumb to what the device was charged; nothing where that is not known, or not estimated."""
    try:
        if measurement.totals.device is not None:
            answer, seen = estimate_of(measurement), measurement.totals.device
            yield way_from_the_rule(answer, seen, label=verb(measurement), basis=ground(measurement))
    except UllageError:
        return


def course(measurement: Measurement, assumptions: str) -> Iterator[Timeline]:
    """Memory over the run; nothing where it was not sampled."""
    found = course_of(measurement)
    if found is not None:
        yield _timeline(measurement, found, assumptions)


def _ledger(measurement: Measurement, assumptions: str, estimated: Mapping[str, Quantity]) -> Iterator[Block]:
    bars = (*_observed_bar(measurement), *_estimated_bar(estimated))
    if bars:
        yield _bars(measurement, assumptions, bars)
    yield _table(measurement, estimated)


def _observed_bar(measurement: Measurement) -> Iterator[Bar]:
    if measurement.status != "ok":
        return
    seen = {name: size for name in COMPONENTS if (size := getattr(measurement.components, name))}
    whole = sum(seen.values())
    segments = (
        Segment(label=name.replace("_", " "), bytes=size, basis=_basis(name, measurement))
        for name, size in seen.items()
    )
    yield Bar(label=verb(measurement), segments=tuple(segments), low_bytes=whole, high_bytes=whole)


def _basis(component: str, measurement: Measurement) -> Basis:
    here = ground(measurement)
    return _CONTEXTS.get(measurement.device.used_basis or "", here) if component == "context" else here


def _estimated_bar(estimated: Mapping[str, Quantity]) -> Iterator[Bar]:
    parts = {name: estimated[name] for name in COMPONENTS if name in estimated}
    if parts:
        whole = total(tuple(parts.values()))
        segments = (Segment(label=n.replace("_", " "), bytes=q.bytes, basis=q.basis) for n, q in parts.items())
        yield Bar(label="estimated", segments=tuple(segments), low_bytes=whole.low_bytes, high_bytes=whole.high_bytes)


def _bars(measurement: Measurement, assumptions: str, bars: tuple[Bar, ...]) -> StackedBars:
    return StackedBars(
        name="ledger",
        title=f"The ledger as {' and as '.join(bar.label for bar in bars)}",
        assumptions=assumptions,
        basis=tuple(_grounds(bars)),
        description=f"{sentence(_sums(bars))}. The parts are in the table below.",
        bars=bars,
        capacity_bytes=_capacity(measurement),
        capacity_label=measurement.device.name,
    )


def _capacity(measurement: Measurement) -> int | None:
    """Of a GPU; a processor's memory is not what is looked at."""
    return measurement.device.total_bytes if measurement.device.kind in ("cuda", "virtual") else None


def _grounds(bars: Iterable[Bar]) -> Iterator[tuple[str, Basis]]:
    for bar in bars:
        yield from ((f"{bar.label} {part.label}", part.basis) for part in bar.segments)


def _sums(bars: Iterable[Bar]) -> str:
    return ", ".join(f"{bar.label} {gib(sum(part.bytes for part in bar.segments))} GiB" for bar in bars)


def observed(measurement: Measurement) -> dict[str, int]:
    """Components, totals and the peak of loading, as far as the device tells."""
    totals = vars(measurement.totals)
    found = {**vars(measurement.components), **totals}
    return {_label(name, totals): size for name, size in found.items() if size is not None}


def _table(measurement: Measurement, estimated: Mapping[str, Quantity]) -> Table:
    seen, said = observed(measurement), verb(measurement)
    totals = vars(measurement.totals)
    shown = {name: _label(name, totals) for name in FIGURES if name in estimated or _label(name, totals) in seen}
    unit, scale = ("GiB", GiB) if max(seen.values(), default=0) >= GiB else ("MiB", _MIB)
    return Table(
        title=f"The ledger as {said}{', and as estimated' if estimated else ''}",
        columns=("", f"{said} {unit}", f"estimated {unit}", "low", "high", "error", f"{said} bytes"),
        rows=tuple((label, *_cells(seen.get(label), estimated.get(name), scale)) for name, label in shown.items()),
    )


def _label(name: str, totals: Container[str]) -> str:
    sums = name in totals and name != "load_peak"
    return f"{'= ' if sums else ''}{name.replace('_', ' ')}"


def _cells(size: int | None, estimated: Quantity | None, scale: int) -> tuple[str, ...]:
    told = [] if estimated is None else [estimated.bytes, estimated.low_bytes, estimated.high_bytes]
    sizes = ["" if count is None else f"{count / scale:,.2f}" for count in (size, *(told or (None, None, None)))]
    if estimated is not None and estimated.low_bytes == estimated.high_bytes:
        sizes[2:] = ["", ""]
    return *sizes, _error(size, estimated), "" if size is None else f"{size:,}"


def _error(size: int | None, estimated: Quantity | None) -> str:
    if size is None or estimated is None:
        return ""
    if estimated.bytes == size:
        return "0 %"
    return signed(estimated.bytes / size - 1) if size else "–"


def _timeline(measurement: Measurement, found: Course, assumptions: str) -> Timeline:
    lines = tuple(_lines(found))
    phases = ", ".join(part.name for part in found.parts)
    return Timeline(
        name="timeline",
        title="Memory over the run",
        assumptions=assumptions,
        basis=tuple((line.label, _line_basis(line.label, measurement)) for line in lines),
        description=(
            f"Bytes over {phases or 'the run'}; the peak fell into {_held_at_peak(measurement)}. {_axis(found)} "
            "The phases are in the table below."
        ),
        unit="seconds" if found.is_in_seconds else "samples",
        lines=lines,
        spans=tuple(Span(label=part.name, start=part.start, end=part.end) for part in found.parts),
        peak=found.peak,
        peak_label=_held_at_peak(measurement),
        capacity_bytes=_capacity(measurement),
    )


def _line_basis(label: str, measurement: Measurement) -> Basis:
    return _basis("context", measurement) if label == "device" else ground(measurement)


def _lines(found: Course) -> Iterator[Line]:
    for label in _LINES:
        sizes = ((sample.place, getattr(sample, f"{label}_bytes")) for sample in found.samples)
        points = tuple((place, size) for place, size in sizes if size is not None)
        if points:
            yield Line(label=label, points=points)


def _axis(found: Course) -> str:
    if found.is_in_seconds:
        return "Phases are drawn by their length, one after the other."
    return "Samples lie evenly over the events that were traced, then one a step of decoding."


def _held_at_peak(measurement: Measurement) -> str:
    """The phase in which most was allocated, and what held it: the operation that asked last, or the components."""
    phase, failure = highest(measurement), measurement.failure
    if phase is None:
        return "not told by the device"
    if failure is not None:
        where = f" in {failure.module}" if failure.module else ""
        return f"{phase.name}, then {'out of memory' if measurement.status == 'oom' else 'an error'}{where}"
    last = next((peak for peak in measurement.peaks if peak.phase == phase.name), None)
    if last is not None:
        return f"{phase.name}, {last.op or 'an operation'} in {last.module or 'generate'}"
    parts = ((name, getattr(measurement.components, name)) for name in ALLOCATED)
    return ", ".join([phase.name, *(f"{name.replace('_', ' ')} {size_words(size)}" for name, size in parts if size)])

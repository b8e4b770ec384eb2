"""The course of a run: the samples of its memory, the phases they fall into, and its peak."""

from collections.abc import Iterator
from dataclasses import dataclass

from analytic.measurement import Measurement, Phase, PhaseName


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Memory at one place of the axis; None where the device cannot tell."""

    place: float
    allocated_bytes: int | None
    reserved_bytes: int | None
    device_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A phase on the axis."""

    name: PhaseName
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Course:
    """Memory over a run."""

    is_in_seconds: bool
    """Else in samples: of a virtual GPU they lie evenly over what was traced, then once a step."""
    samples: tuple[Sample, ...]
    parts: tuple[Part, ...]
    peak: tuple[float, int] | None
    """Where the samples are highest in the phase of the peak, and its bytes; they can fall between two samples."""


def course_of(measurement: Measurement) -> Course | None:
    """None of a run with fewer than two samples."""
    if len(measurement.timeline) < 2:
        return None
    is_virtual = measurement.device.kind == "virtual"
    samples = tuple(
        Sample(
            place=number if is_virtual else place,
            allocated_bytes=allocated,
            reserved_bytes=reserved,
            device_bytes=device,
        )
        for number, (place, allocated, reserved, device) in enumerate(measurement.timeline)
    )
    parts = tuple(_between_ends(measurement, samples) if is_virtual else _by_seconds(measurement))
    return Course(is_in_seconds=not is_virtual, samples=samples, parts=parts, peak=_peak(measurement, samples, parts))


def highest(measurement: Measurement) -> Phase | None:
    """The phase that allocated most, loading included."""
    known = [phase for phase in measurement.phases if phase.max_allocated_bytes is not None]
    return max(known, key=lambda phase: phase.max_allocated_bytes or 0, default=None)


def _by_seconds(measurement: Measurement) -> Iterator[Part]:
    """One after the other: sampling begins with loading."""
    start = 0.0
    for phase in measurement.phases:
        if phase.name != "context":
            yield Part(name=phase.name, start=start, end=start + phase.seconds)
            start += phase.seconds


def _between_ends(measurement: Measurement, samples: tuple[Sample, ...]) -> Iterator[Part]:
    """A virtual GPU samples when a phase ends: there stands what the phase left, to the byte."""
    phases = [phase for phase in measurement.phases if phase.name != "context"]
    start = 0
    for phase in phases:
        ends = (place for place in range(start, len(samples)) if _stands(samples[place], phase))
        end = len(samples) - 1 if phase is phases[-1] else next(ends, None)
        if end is None:
            return
        yield Part(name=phase.name, start=float(start), end=float(end))
        start = end


def _stands(sample: Sample, phase: Phase) -> bool:
    return (sample.allocated_bytes, sample.reserved_bytes) == (phase.allocated_bytes, phase.reserved_bytes)


def _peak(measurement: Measurement, samples: tuple[Sample, ...], parts: tuple[Part, ...]) -> tuple[float, int] | None:
    phase = highest(measurement)
    if phase is None or phase.max_allocated_bytes is None:
        return None
    here = next((part for part in parts if part.name == phase.name), None)
    inside = [sample for sample in samples if here and here.start <= sample.place <= here.end]
    if not inside:
        return None
    return max(inside, key=lambda sample: sample.allocated_bytes or 0).place, phase.max_allocated_bytes

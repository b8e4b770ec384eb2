"""The estimate beside the measurement, component by component. The estimator sees the request, never the figures."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from analytic.calibration import Calibration, require_gpu
from analytic.errors import UllageError, UsageError
from analytic.estimator import Estimate, run
from analytic.hardware import Gpu, find_gpu
from analytic.ledger import Ledger
from analytic.measurement import Device, Measurement
from analytic.models import catalog
from analytic.models.meta import from_config
from analytic.models.model import Model
from analytic.models.twin import twin
from analytic.progress import showing
from analytic.quantity import Quantity

FIGURES = (
    "weights",
    "sequence_state",
    "activations",
    "workspace",
    "allocator_slack",
    "context",
    "allocated",
    "reserved",
    "device",
    "load_peak",
)
"""What is compared: the components, the totals, and the peak of loading."""

_CPU_FIGURES = ("weights", "sequence_state", "activations")
"""What a processor shares with a GPU; of activations only those of unquantised models, whose kernels are alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure of one measurement beside its estimate."""

    measurement: Measurement
    figure: str
    """One of FIGURES."""
    measured_bytes: int
    estimated: Quantity

    @property
    def error_bytes(self) -> int:
        """Estimated less measured."""
        return self.estimated.bytes - self.measured_bytes

    @property
    def error_fraction(self) -> float | None:
        """Of what was measured; None where that is nothing and the estimate is not."""
        if self.measured_bytes == 0:
            return 0.0 if self.error_bytes == 0 else None
        return self.error_bytes / self.measured_bytes

    @property
    def is_inside(self) -> bool:
        """Whether the measured figure lies within the estimate's bounds."""
        return self.estimated.low_bytes <= self.measured_bytes <= self.estimated.high_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The errors of one figure over all measurements."""

    figure: str
    measurements: int
    median_fraction: float
    """Median of the absolute relative errors; p95 and maximum likewise."""
    p95_fraction: float
    max_fraction: float
    max_bytes: int
    """Largest absolute error."""
    inside_fraction: float
    """Share of measurements within the bounds."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, worst first, and what did not yield any."""

    rows: tuple[Row, ...]
    without_figures: tuple[Measurement, ...]
    """Runs that did not end (out of memory, error): recorded, not compared."""
    calibrated_with: str | None = None
    """The calibration that they were estimated with."""

    @property
    def inside(self) -> int:
        """Rows within the bounds of their estimate."""
        return sum(row.is_inside for row in self.rows)

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """A summary a figure, in the order of FIGURES."""
        return tuple(_summary(f, rows) for f in FIGURES if (rows := [r for r in self.rows if r.figure == f]))

    def beyond(self, tolerance_fraction: float) -> tuple[Row, ...]:
        """Rows whose error is more than the tolerance."""
        return tuple(row for row in self.rows if _size(row) > tolerance_fraction)


def compare(
    measurements: Iterable[Measurement], *, figures: Iterable[str] = (), calibration: Calibration | None = None
) -> Comparison:
    """Estimate each measurement's own request and lay the two side by side.

    Args:
        measurements: what was measured.
        figures: those of FIGURES to compare; none means all.
        calibration: constants to estimate with, of the GPU that was measured; they must not be fitted to these.

    Raises:
        UllageError: a measurement's model, request or GPU cannot be estimated, or a figure is unknown.
    """
    asked = tuple(figures)
    if unknown := sorted({*asked} - {*FIGURES}):
        raise UsageError(f"--figure: {unknown[0]!r} is not known", hint=f"one of {', '.join(FIGURES)}")
    whole = tuple(measurements)
    with showing("compare", unit="measurements") as task:
        found = [row for measurement in task.over(whole) for row in rows_of(measurement, calibration)]
    rows = [row for row in found if row.figure in (asked or FIGURES)]
    compared = {id(row.measurement) for row in rows}
    return Comparison(
        rows=tuple(sorted(rows, key=_size, reverse=True)),
        without_figures=tuple(m for m in whole if id(m) not in compared),
        calibrated_with=None if calibration is None else calibration.id,
    )


def estimate_of(measurement: Measurement, calibration: Calibration | None = None) -> Estimate:
    """The estimate of a measurement's request, on its device.

    Raises:
        UllageError: it cannot be estimated; the message names the measurement.
    """
    try:
        gpu = gpu_of(measurement.device)
        if calibration is not None:
            require_gpu(calibration, gpu)
        return run(model_of(measurement), measurement.request, gpu=gpu, calibration=calibration)
    except UllageError as error:
        raise type(error)(f"{measurement.id}: {error.message}", hint=error.hint) from error


def model_of(measurement: Measurement) -> Model:
    """The model that was measured: the catalogue's where its config is the same, else built from the config."""
    measured = measurement.model
    whole = _model(json.dumps(measured.config, sort_keys=True), measured.id)
    return whole if measured.twin_layers is None else _twin(whole, measured.twin_layers)


_twin = lru_cache(maxsize=64)(lambda model, layers: twin(model, layers=layers))


@lru_cache(maxsize=64)
def _model(config: str, name: str) -> Model:
    known = catalog.find(name)
    if known is not None and json.dumps(catalog.load(known).config, sort_keys=True) == config:
        return catalog.load(known)
    return from_config(json.loads(config), id=name)


def gpu_of(device: Device) -> Gpu | None:
    """The GPU of the table that a device is, with what the device itself tells; None for a processor.

    A product name that comes in several sizes, or is not in the table, is a GPU of which only that is known.
    """
    if device.kind not in ("cuda", "virtual") or device.total_bytes is None:
        return None
    told = {"total_bytes": device.total_bytes, "capability": device.capability, "sms": device.sms}
    try:
        row = find_gpu(device.name)
    except UsageError:
        return Gpu(name=device.name, kind="custom", source="the measurement", **told)  # type: ignore[arg-type]
    return Gpu(name=row.name, product=row.product, kind=row.kind, source="the measurement", **told)  # type: ignore[arg-type]


def estimated_figures(row: Ledger, *, phase: str) -> dict[str, Quantity]:
    """An estimate's figures as a measurement whose peak fell into ``phase`` shows them.

    What quantised matrices need for a moment cannot be told from activations on a device, so it is counted there.
    """
    at = next((p for p in row.phases if p.name == phase), row.peak)
    return {
        "weights": row.components["weights"],
        "sequence_state": at.sequence_state,
        "activations": at.transient,
        "workspace": row.retained,
        "allocator_slack": row.components["allocator_slack"],
        "context": row.components["context"],
        "allocated": row.allocated,
        "reserved": row.reserved,
        "device": row.device,
        "load_peak": row.load_peak,
    }


def rows_of(measurement: Measurement, calibration: Calibration | None = None) -> Iterator[Row]:
    """One measurement's figures beside their estimates.

    Raises:
        UllageError: it cannot be estimated; the message names the measurement.
    """
    measured = {**vars(measurement.components), **vars(measurement.totals)}
    figures = [name for name in FIGURES if measured[name] is not None and _is_comparable(name, measurement)]
    if not figures:
        return
    phase = measurement.peak.name if measurement.peak else "decode"
    estimated = estimated_figures(estimate_of(measurement, calibration).fullest, phase=phase)
    for name in figures:
        yield Row(measurement=measurement, figure=name, measured_bytes=measured[name], estimated=estimated[name])


def _is_comparable(figure: str, measurement: Measurement) -> bool:
    if measurement.device.kind not in ("cpu", "meta"):
        return True
    plain = measurement.request.weight_format in (None, "none")
    return figure in _CPU_FIGURES and (plain or figure != "activations")


def _size(row: Row) -> float:
    return float("inf") if row.error_fraction is None else abs(row.error_fraction)


def _summary(figure: str, rows: list[Row]) -> Summary:
    sizes = sorted(map(_size, rows))
    return Summary(
        figure=figure,
        measurements=len(rows),
        median_fraction=_quantile(sizes, 0.5),
        p95_fraction=_quantile(sizes, 0.95),
        max_fraction=sizes[-1],
        max_bytes=max(abs(row.error_bytes) for row in rows),
        inside_fraction=sum(row.is_inside for row in rows) / len(rows),
    )


def _quantile(ordered: list[float], share: float) -> float:
    """With linear interpolation, as NumPy's default."""
    place = share * (len(ordered) - 1)
    low = int(place)
    return ordered[low] if place == low else ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])

"""A measurement: what one device returned for one request, raw, and the ledger that is observed in it.

No figure here is computed by the estimator. What a device cannot give is None.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from analytic.errors import UllageError
from analytic.request import Request
from analytic.writing import write_text

SCHEMA_VERSION = "1"

Record = TypeVar("Record")

Status = Literal["ok", "oom", "error"]
PhaseName = Literal["context", "load", "prefill", "decode"]
PHASES: tuple[PhaseName, ...] = ("context", "load", "prefill", "decode")


UsedBasis = Literal["nvml-process", "nvml-device-delta", "mem-get-info", "assumed-context", "calibrated-context"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase: what was there when it ended, and its peaks (reset when it began)."""

    name: PhaseName
    seconds: float
    allocated_bytes: int | None = None
    """`torch.cuda.memory_allocated`; on the CPU the live tensor storages."""
    max_allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    max_reserved_bytes: int | None = None
    requested_bytes: int | None = None
    """Allocated before rounding, as the caching allocator was asked."""
    max_requested_bytes: int | None = None
    device_used_bytes: int | None = None
    """What the driver charges the process; `Device.used_basis` says how it was read."""
    sequence_state_bytes: int | None = None
    """Storages of the cache's tensors."""
    num_alloc_retries: int | None = None
    """Allocations that succeeded only after cached blocks were given back."""
    num_segments: int | None = None
    max_rss_bytes: int | None = None
    """Peak resident set of the process so far, host memory."""

    def __post_init__(self) -> None:
        """Refuse what no device returns."""
        for name, value in vars(self).items():
            if isinstance(value, int | float) and value < 0:
                raise ValueError(f"{name} is negative: {value}")


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where it was measured."""

    kind: Literal["cuda", "virtual", "cpu", "meta"]
    name: str
    """As the driver reports it; the processor's name on the CPU."""
    capability: tuple[int, int] | None = None
    total_bytes: int | None = None
    """GPU memory that the driver reports (NVML, else the CUDA runtime)."""
    sms: int | None = None
    driver: str | None = None
    cuda: str | None = None
    used_basis: UsedBasis | None = None
    """How `device_used_bytes` was read: NVML's figure for this process; the growth of NVML's figure for the GPU since
    before the context; total less free as CUDA tells, which includes what others and the driver hold; or, on a virtual
    GPU, what its allocator reserved, and a context as assumed or calibrated."""


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """Which model, enough to estimate it again without a network."""

    id: str
    source: str
    revision: str | None = None
    architecture: str
    parameters: int | None = None
    """Parameters and persistent buffers of the model as loaded, before quantisation."""
    config: Mapping[str, Any]
    """The published config.json (before `twin_layers` cut it)."""
    weights: Literal["real", "sparse", "none"]
    """Real values; a sparse checkpoint of the same shapes (int8 outliers and routing depend on values); or none."""
    twin_layers: int | None = None
    """Layers that were kept of it; None is all."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Where and why a run ended early."""

    phase: PhaseName
    message: str
    asked_bytes: int | None = None
    """What the last allocation asked for."""
    free_bytes: int | None = None
    """What the device had free then."""
    frames: tuple[str, ...] = ()
    """Where it failed, innermost call last: ``file.py:12 function``."""
    module: str | None = None
    """The module that ran, or the parameter that was loaded; only a virtual GPU tells."""
    token: int | None = None
    """Tokens that each sequence had generated; only a virtual GPU tells."""


@dataclass(frozen=True, kw_only=True)
class ModuleRow:
    """Modules that differ only in their layer index, and the bytes they hold themselves."""

    name: str
    """Name in the model; ``{}`` stands for the layer index."""
    kind: str
    """Class."""
    count: int
    bytes: int
    """Storages of all of them, with their quantisation state."""


@dataclass(frozen=True, kw_only=True)
class LiveTensors:
    """Tensors that differ only in their layer."""

    bytes: int
    """Of all of them."""
    count: int
    shape: tuple[int, ...]
    dtype: str
    op: str
    """The operation whose results they are."""
    module: str
    """The module that ran; ``{}`` stands for the layer index."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What set the peak of a phase; only a virtual GPU tells."""

    phase: PhaseName
    requested_bytes: int
    """Asked for at that moment, before the allocator's rounding."""
    op: str | None
    module: str | None
    tensors: tuple[LiveTensors, ...] = ()
    """The largest tensors of the request that were live."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The same run under other settings of the allocator; only a virtual GPU tells."""

    alloc_conf: str
    status: Status
    max_reserved_bytes: int
    saved_bytes: int
    """Less reserved at most than under the settings that were measured."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A step of a search for the largest that survives."""

    value: int
    status: Status


@dataclass(frozen=True, kw_only=True)
class Meter:
    """What measuring cost."""

    device_bytes: int | None
    """Device memory that the meter's own reading allocated; None where it was not looked at."""
    host_bytes: int
    """Host memory of the meter's records."""
    seconds: float
    """Time spent reading."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """The ledger's components as observed at the peak of serving. None where the device cannot tell."""

    weights: int | None = None
    """Storages of parameters and persistent buffers with their quantisation state."""
    sequence_state: int | None = None
    activations: int | None = None
    """Peak less everything that stays: transient tensors and library temporaries together."""
    workspace: int | None = None
    """What stays allocated after a request beside the weights: library workspaces, rounding, rotary tables."""
    allocator_slack: int | None = None
    context: int | None = None


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Peaks of serving, and of loading."""

    allocated: int | None = None
    reserved: int | None = None
    device: int | None = None
    load_peak: int | None = None
    """Most that was allocated while loading."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run on one device."""

    id: str
    """Names the case: equal cases have equal ids on every device."""
    created_at: str
    """ISO 8601, UTC."""
    status: Status
    model: MeasuredModel
    request: Request
    """``dtype`` as resolved."""
    device: Device
    software: Mapping[str, str | None]
    """Versions: python, torch, transformers, accelerate, bitsandbytes, alloc_conf, …"""
    phases: tuple[Phase, ...]
    retained_bytes: int | None = None
    """Allocated after the request's tensors were released."""
    weights_by_format: Mapping[str, int] = field(default_factory=dict)
    """Storages of the weights by dtype, quantised ones by format."""
    modules: tuple[ModuleRow, ...] = ()
    timeline: tuple[tuple[float, int | None, int | None, int | None], ...] = ()
    """Samples: seconds (on a virtual GPU: allocator events), allocated, reserved, device bytes."""
    peaks: tuple[Peak, ...] = ()
    advice: tuple[Advice, ...] = ()
    """The most saving first."""
    tried: tuple[Tried, ...] = ()
    """What a search tried before ``request``, which is the largest that survived."""
    meter: Meter | None = None
    failure: Failure | None = None
    notes: tuple[str, ...] = ()

    def phase(self, name: PhaseName) -> Phase | None:
        """The phase of that name, if it ended."""
        return next((phase for phase in self.phases if phase.name == name), None)

    @cached_property
    def peak(self) -> Phase | None:
        """The phase of serving that allocated most."""
        serving = [p for p in (self.phase("prefill"), self.phase("decode")) if p and p.max_allocated_bytes is not None]
        return max(serving, key=lambda p: p.max_allocated_bytes or 0, default=None)

    @cached_property
    def components(self) -> Components:
        """The observed ledger; only weights of a run that did not end."""
        weights = sum(self.weights_by_format.values()) if self.weights_by_format else None
        if self.status != "ok" or self.peak is None or weights is None or self.retained_bytes is None:
            return Components(weights=weights)
        state, last = self.peak.sequence_state_bytes or 0, self.phases[-1]
        transient = _less(self.peak.max_allocated_bytes, self.retained_bytes)
        return Components(
            weights=weights,
            sequence_state=self.peak.sequence_state_bytes,
            activations=_less(transient, state),
            workspace=self.retained_bytes - weights,
            allocator_slack=_less(self.totals.reserved, self.totals.allocated),
            context=_less(last.device_used_bytes, last.reserved_bytes),
        )

    @cached_property
    def totals(self) -> Totals:
        """Peaks over prefill and decode."""
        load = None if self.failure and self.failure.phase == "load" else self.phase("load")
        peaks = {"load_peak": load.max_allocated_bytes if load else None}
        serving = [p for p in (self.phase("prefill"), self.phase("decode")) if p]
        if self.status != "ok" or not serving:
            return Totals(**peaks)
        return Totals(
            allocated=_most(p.max_allocated_bytes for p in serving),
            reserved=_most(p.max_reserved_bytes for p in serving),
            device=_most(p.device_used_bytes for p in serving),
            **peaks,
        )


def _less(whole: int | None, part: int | None) -> int | None:
    return None if whole is None or part is None else whole - part


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def measurement_document(measurement: Measurement) -> dict[str, Any]:
    """The measurement as JSON, with the ledger that is observed in it."""
    observed = {"components": asdict(measurement.components), "totals": asdict(measurement.totals)}
    return {"schema_version": SCHEMA_VERSION, "kind": "measurement"} | asdict(measurement) | observed


def write_measurement(measurement: Measurement, file: Path) -> None:
    """Write atomically: a reader sees the old file or the whole new one.

    Raises:
        UllageError: the folder or file cannot be written.
    """
    write_record(measurement_document(measurement), file)


def write_record(document: Mapping[str, Any], file: Path) -> None:
    """Write any record atomically.

    Raises:
        UllageError: the folder or file cannot be written.
    """
    write_text(file, json.dumps(document, indent=1) + "\n", make_folder=True)


def read_measurement(file: Path) -> Measurement:
    """The measurement in a file.

    Raises:
        UllageError: not a measurement, of a newer schema, or damaged; the message names the file and the field.
    """
    return read_record(file, Measurement)


def read_record(file: Path, record: type[Record]) -> Record:
    """The ``record`` in a file, every field checked.

    Raises:
        UllageError: cannot be read, no JSON object, another kind, of a newer schema, or a field that is amiss.
    """
    from pydantic import TypeAdapter, ValidationError

    raw, kind = _bytes(file), record.__name__.lower()
    document = _json(raw, file)
    if not isinstance(document, dict) or document.get("kind") != kind:
        raise UllageError(f"{file}: not a {kind} of ullage", hint=f"give files that hold a {kind}")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise UllageError(
            f"{file}: schema version {document.get('schema_version')!r}, this ullage reads {SCHEMA_VERSION!r}",
            hint="upgrade ullage",
        )
    try:
        return TypeAdapter(record).validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UllageError(f"{file}: {where}: {first['msg']}", hint="the file was changed or is damaged") from error
    except UllageError as error:
        raise UllageError(f"{file}: {error.message}", hint="the file was changed or is damaged") from error


def _bytes(file: Path) -> bytes:
    if file.exists() and not file.is_file():
        raise UllageError(f"{file}: not a file")
    try:
        return file.read_bytes()
    except OSError as error:
        raise UllageError(f"{file}: cannot be read: {error.strerror}") from error


def _json(raw: bytes, file: Path) -> Any:
    try:
        return json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UllageError(f"{file}: not JSON: {error}", hint="remove the file, or measure again") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def read_measurements(paths: Iterable[Path]) -> tuple[Measurement, ...]:
    """Every measurement in files and folders (folders recursively; other JSON records in them are passed over).

    Raises:
        UllageError: nothing is there, or a file cannot be read.
    """
    found = [measurement for path in paths for measurement in _read(path)]
    if not found:
        raise UllageError("no measurements", hint="make some with ullage profile or ullage sweep")
    return tuple(found)


def _read(path: Path) -> Iterable[Measurement]:
    if not path.is_dir():
        return (read_measurement(path),)
    files = (file for file in sorted(path.rglob("*.json")) if not file.name.startswith("."))
    return (read_measurement(file) for file in files if _kind(file) not in _OTHER_KINDS)


_OTHER_KINDS = ("calibration", "comparison")
"""Records of this project that lie beside measurements."""


def _kind(file: Path) -> Any:
    document = _json(_bytes(file), file)
    return document.get("kind") if isinstance(document, dict) else None

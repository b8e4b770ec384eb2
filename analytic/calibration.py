"""A calibration: constants that no arithmetic gives, fitted to measurements of one environment."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from analytic.errors import UllageError, UsageError
from analytic.hardware import Gpu, find_gpu
from analytic.measurement import SCHEMA_VERSION, read_record, write_record
from analytic.quantity import Quantity, bounded


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a calibration holds: all its measurements agree on this."""

    gpu: str
    """Product name that the driver reports."""
    kind: str
    """``cuda`` or ``virtual``."""
    driver: str | None
    cuda: str | None
    torch: str | None
    transformers: str | None
    bitsandbytes: str | None
    alloc_conf: str | None


@dataclass(frozen=True, kw_only=True)
class Term:
    """A coefficient: so many bytes for each unit of a feature of the request (`overhead_features`)."""

    component: str
    feature: str
    value: float
    low: float
    """Lower end of the 95 % bootstrap interval."""
    high: float
    measurements: int
    """Measurements in which the feature is not zero."""


@dataclass(frozen=True, kw_only=True)
class Residual:
    """What a component's prediction missed, for models that the fit had not seen."""

    component: str
    low_bytes: int
    """Least of measured less predicted; the bounds of an estimate are its prediction with these added."""
    high_bytes: int


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Relative errors of a figure over measurements that the fit had not seen."""

    figure: str
    """A total: allocated, reserved or device."""
    median_fraction: float
    max_fraction: float
    held_out: bool
    """Whether these are measurements that were held out of every fit, not one model at a time."""


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """The guide's overhead percentage, as measured: device bytes over parameters x bits / 8, less one."""

    precision: str
    measurements: int
    median_fraction: float
    low_fraction: float
    """95 % bootstrap interval of the median."""
    high_fraction: float
    min_fraction: float
    min_at: str
    """The measurement with the least."""
    max_fraction: float
    max_at: str


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Constants of one environment."""

    id: str
    created_at: str
    environment: Environment
    attention: tuple[str, ...]
    """Attention implementations that were measured; it says nothing of others."""
    terms: tuple[Term, ...]
    residuals: tuple[Residual, ...]
    left_out: tuple[LeftOut, ...]
    overheads: tuple[Overhead, ...]
    lacking: tuple[str, ...]
    """What could not be fitted, and why."""
    measurements: tuple[str, ...]
    """Ids of those that were fitted."""

    @cached_property
    def _coefficients(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for term in self.terms:
            found.setdefault(term.component, {})[term.feature] = term.value
        return found

    def coefficient(self, component: str, feature: str) -> float:
        """A fitted coefficient; 0 where it was not fitted."""
        return self._coefficients.get(component, {}).get(feature, 0.0)

    def predict(self, component: str, features: Mapping[str, float]) -> Quantity | None:
        """A component's bytes for a request of these ``features``; None where it was not fitted."""
        fitted = self._coefficients.get(component)
        if fitted is None:
            return None
        middle = round(sum(value * features.get(name, 0.0) for name, value in fitted.items()))
        missed = next((r for r in self.residuals if r.component == component), None)
        low, high = (missed.low_bytes, missed.high_bytes) if missed else (0, 0)
        return bounded(max(0, middle + min(0, low)), middle, middle + max(0, high), "fitted")

    def holds_for(self, gpu: Gpu) -> bool:
        """Whether ``gpu`` is the one it was made on."""
        try:
            return find_gpu(self.environment.gpu).name == gpu.name
        except UsageError:
            return self.environment.gpu == gpu.name


def calibration_document(calibration: Calibration) -> dict[str, Any]:
    """The calibration as JSON."""
    return {"schema_version": SCHEMA_VERSION, "kind": "calibration", **asdict(calibration)}


def write_calibration(calibration: Calibration, file: Path) -> None:
    """Write atomically.

    Raises:
        UllageError: the file cannot be written.
    """
    write_record(calibration_document(calibration), file)


def read_calibration(file: Path) -> Calibration:
    """The calibration in a file.

    Raises:
        UllageError: no calibration, of a newer schema, or damaged.
    """
    return read_record(file, Calibration)


def require_gpu(calibration: Calibration, gpu: Gpu | None) -> None:
    """Raise where a calibration is of another GPU.

    Raises:
        UllageError: names both.
    """
    if gpu is None:
        raise UsageError(f"a calibration of {calibration.environment.gpu} needs the GPU", hint="add --gpu")
    if not calibration.holds_for(gpu):
        raise UllageError(
            f"the calibration {calibration.id} is of {calibration.environment.gpu}, not of {gpu.name}",
            hint="calibrate on that GPU, or leave --calibration out",
        )


def shipped(gpu: Gpu | None) -> Calibration | None:
    """A calibration that came with ullage for this GPU and the libraries installed here, if there is one.

    Libraries that are not installed here do not count: whoever asks from a laptop has not chosen them yet.
    """
    if gpu is None:
        return None
    return next((c for c in _shipped() if c.holds_for(gpu) and _is_installed(c.environment)), None)


@lru_cache(maxsize=1)
def _shipped() -> tuple[Calibration, ...]:
    folder = files("analytic") / "calibrations"
    return tuple(read_calibration(Path(str(f))) for f in folder.iterdir() if f.name.endswith(".json"))


def _is_installed(environment: Environment) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("torch", "transformers", "bitsandbytes"):
        fitted = getattr(environment, name)
        try:
            here = version(name)
        except PackageNotFoundError:
            continue
        if fitted is None or here.split(".")[:2] != fitted.split(".")[:2]:
            return False
    return True

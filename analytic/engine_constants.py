"""Constants of an engine, fitted to what it printed when it started: what no arithmetic tells of it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from analytic.measurement import read_record, write_record
from analytic.quantity import Quantity, bounded

SCHEMA_VERSION = "1"

Constant = Literal["activations", "graphs", "libraries", "libraries-several"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much more (or less) of something there was than the estimate said."""

    constant: Constant
    """Of vLLM: ``activations`` (the profiling pass), ``graphs``, ``libraries`` outside of PyTorch, on one GPU or, with
    tensor parallelism, on several."""
    value: float
    """Printed over estimated: the median of the runs."""
    low: float
    """Lower end of the 95 % bootstrap interval of ``value``; its own value for a single run."""
    high: float
    least: float
    """Of any run."""
    most: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class EngineCalibration:
    """What logs of one engine tell of its constants."""

    id: str
    created_at: str
    engine: str
    versions: tuple[str, ...]
    """That were seen."""
    gpus: tuple[str, ...]
    """Likewise; they are not told apart."""
    scales: tuple[Scale, ...]
    lacking: tuple[str, ...]
    """What could not be fitted, and why."""
    runs: tuple[str, ...]
    """File and model of each."""

    def applied(self, constant: Constant, estimated: Quantity) -> Quantity:
        """``estimated`` with the fitted constant, between the runs' extremes; of few runs within the old bounds too."""
        scale = next((scale for scale in self.scales if scale.constant == constant), None)
        if scale is None or not estimated.bytes:
            return estimated
        value, least, most = (round(estimated.bytes * factor) for factor in (scale.value, scale.least, scale.most))
        if scale.runs < FEW_RUNS:
            least, most = min(least, estimated.low_bytes), max(most, estimated.high_bytes)
        return bounded(min(least, value), value, max(most, value), "fitted")


FEW_RUNS = 5
"""Fewer do not narrow the bounds of an estimate."""


def engine_calibration_document(made: EngineCalibration) -> dict[str, Any]:
    """The calibration as JSON."""
    return {"schema_version": SCHEMA_VERSION, "kind": "enginecalibration", **asdict(made)}


def write_engine_calibration(made: EngineCalibration, file: Path) -> None:
    """Write it atomically.

    Raises:
        UllageError: the file cannot be written.
    """
    write_record(engine_calibration_document(made), file)


def read_engine_calibration(file: Path) -> EngineCalibration:
    """The constants in a file.

    Raises:
        UllageError: not such a file, of a newer schema, or damaged; the message names the file and the field.
    """
    return read_record(file, EngineCalibration)

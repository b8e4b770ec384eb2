"""What an engine printed when it started, beside the estimate of the same start."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analytic.deployment import Deployment
from analytic.engine_constants import EngineCalibration
from analytic.errors import UllageError
from analytic.hardware import Gpu
from analytic.logs import EngineRun
from analytic.models.model import Model
from analytic.starts.names import model_of
from analytic.starts.others import read_llamacpp, read_sglang
from analytic.starts.rows import Row as Row
from analytic.starts.vllm import read_vllm


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A start, laid beside its estimate."""

    source: str
    """File."""
    run: EngineRun
    model: Model
    asked: Deployment | None
    """What was estimated; None of an engine that ullage does not model."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """What is partial, and what was assumed."""


def beside(
    run: EngineRun,
    *,
    source: str,
    model: str | None = None,
    gpu: Gpu | None = None,
    given: Mapping[str, Any],
    constants: EngineCalibration | None = None,
) -> Beside:
    """Estimate the start that a log tells of.

    Args:
        run: read from a log.
        source: the file, for messages.
        model: what the log calls otherwise, or not at all.
        gpu: on which it ran, where the log does not say.
        given: flags as fields of `Request` and `Flags`, which stand in for what the log does not say.
        constants: fitted to other logs, to estimate with.

    Raises:
        UllageError: the model or its format is not known from the log alone, or not estimated.
    """
    resolved, said = model_of(run, model, source)
    try:
        asked, rows, notes = _READERS[run.engine](run, resolved, gpu, given, constants)
    except UllageError as error:
        raise UllageError(f"{source}: {resolved.id}: {error.message}", hint=error.hint) from error
    return Beside(
        source=source, run=run, model=resolved, asked=asked, rows=tuple(rows), notes=(*run.notes, *said, *notes)
    )


_Reader = Callable[
    [EngineRun, Model, Gpu | None, Mapping[str, Any], EngineCalibration | None],
    tuple[Deployment | None, list[Row], list[str]],
]

_READERS: Mapping[str, _Reader] = {"vllm": read_vllm, "llamacpp": read_llamacpp, "sglang": read_sglang}

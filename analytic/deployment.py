"""One way to serve one model on some GPUs: everything that an engine's ledger follows from."""

from dataclasses import dataclass, field, replace
from typing import Any

from analytic.calibration import Calibration
from analytic.engine_constants import EngineCalibration
from analytic.flags import Flags
from analytic.hardware import Gpu, precision_warnings
from analytic.models.model import Model
from analytic.parallel import Degrees
from analytic.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """A model, a request, and where it runs."""

    model: Model
    request: Request
    flags: Flags = field(default_factory=Flags)
    dtype: str
    """The dtype that ``auto`` became."""
    gpu: Gpu | None = None
    degrees: Degrees = field(default_factory=Degrees)
    calibration: Calibration | None = None
    """The constants that were fitted, where they are used."""
    constants: EngineCalibration | None = None
    """Likewise, of an engine's own logs."""

    @property
    def gpus(self) -> int:
        """How many GPUs there are."""
        return self.degrees.gpus

    def asking(self, **changes: Any) -> "Deployment":
        """The same with another request."""
        return replace(self, request=replace(self.request, **changes))


def precision_notes(asked: Deployment) -> list[str]:
    """What happens to a precision that the GPU lacks; llama.cpp's kernels convert whatever they are given."""
    if asked.gpu is None or asked.request.engine == "llamacpp":
        return []
    native = {"fp8": "fp8-128x128"}.get(asked.model.native_format or "", asked.model.native_format)
    quantization = asked.request.quantization
    return precision_warnings(
        asked.gpu,
        dtype=asked.dtype,
        weight_format=native if quantization in (None, "none") else quantization,
        kv_cache_dtype=asked.request.kv_cache_dtype,
    )

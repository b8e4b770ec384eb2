"""A yes or a no for scripts: does it fit on a named GPU, or on those of this machine as they are now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from analytic.asking import ask
from analytic.engines.engine import find_engine
from analytic.errors import UllageError
from analytic.estimator import Estimate, run, split_flags
from analytic.hardware import Gpu, custom_gpu, find_gpu
from analytic.parallel import degrees
from analytic.quantity import GiB


@dataclass(frozen=True, kw_only=True, slots=True)
class Present:
    """A GPU of this machine."""

    product: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Check:
    """The answer."""

    answer: Estimate
    available_bytes: int
    """Of the GPU that has least: what may be used, and is free."""
    is_strict: bool
    """Whether the high bound has to fit."""

    @property
    def needed_bytes(self) -> int:
        """Of the fullest GPU."""
        charged = self.answer.fullest.charged
        return charged.high_bytes if self.is_strict else charged.bytes

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.needed_bytes <= self.available_bytes

    @property
    def line(self) -> str:
        """Everything, in one line."""
        gpu, gpus = self.answer.gpu, self.answer.gpus
        where = f"{gpus} × {gpu.name}" if gpu else f"{gpus} GPUs"
        verdict, more = ("fits", "to spare") if self.fits else ("does not fit", "short")
        certain = "" if self.is_strict or self.answer.is_certain else ", within the bounds of error"
        needed, available = (f"{count / GiB:.2f}" for count in (self.needed_bytes, self.available_bytes))
        left = abs(self.available_bytes - self.needed_bytes) / GiB
        return (
            f"{self.answer.model.id} {verdict} on {where}: needs {needed} of {available} GiB, {left:.2f} GiB {more}"
            f"{certain}"
        )


def check(
    model: str,
    *,
    gpu: str | Gpu | None,
    gpus: int | None = None,
    strict: bool = False,
    revision: str | None = None,
    flags: Mapping[str, Any],
) -> Check:
    """Whether ``model`` fits.

    Args:
        model: a catalogue name, Hub id or path.
        gpu: one of the table; None for those of this machine, with the memory that is free now.
        gpus: how many of them.
        strict: whether the high bound has to fit.
        revision: of a Hub model.
        flags: fields of `Request` and `Flags`.

    Raises:
        UllageError: what is unknown, or no GPU can be seen here.
    """
    asked = ask(model, flags, revision=revision)
    request, own = split_flags(asked.flags)
    free: Sequence[Present] = ()
    if gpu is None:
        wanted = degrees(
            gpus,
            tensor=own.tensor_parallel_size,
            pipeline=own.pipeline_parallel_size,
            data=own.data_parallel_size,
            rest=find_engine(request.engine).REST,
        ).gpus
        free = _present(wanted)
        gpu, gpus = _same(free), wanted
    answer = run(asked.model, request, flags=own, gpu=find_gpu(gpu) if isinstance(gpu, str) else gpu, gpus=gpus)
    usable = answer.capacity_bytes or 0
    return Check(
        answer=answer,
        available_bytes=min([usable, *(row.free_bytes for row in free)]),
        is_strict=strict,
    )


def _present(count: int) -> Sequence[Present]:
    """The first ``count`` GPUs that CUDA would show.

    Raises:
        UllageError: there are fewer.
    """
    nvml = import_module("profiler.nvml")
    opened = nvml.open_nvml()
    found = () if opened is None else nvml.visible(opened)
    if len(found) < count:
        raise UllageError(
            f"{len(found)} NVIDIA GPU{'s' * (len(found) != 1)} to be seen here, and {count} are needed",
            hint="name the GPU that is meant with --gpu, or install nvidia-ml-py (pip install 'ullage[profiler]')",
        )
    rows = []
    for uuid in found[:count]:
        memory = opened.memory(uuid)
        taken = memory.used_bytes + (memory.reserved_bytes or 0)
        product = opened.name(uuid)
        rows.append(Present(product=product, total_bytes=memory.total_bytes, free_bytes=memory.total_bytes - taken))
    return rows


def _same(present: Sequence[Present]) -> Gpu:
    """What those GPUs are; of different ones the smallest counts."""
    least = min(present, key=lambda row: row.total_bytes)
    try:
        known = find_gpu(least.product)
    except UllageError:
        return custom_gpu(least.total_bytes)
    return (
        known
        if abs(known.total_bytes - least.total_bytes) < known.total_bytes // 100
        else custom_gpu(least.total_bytes)
    )

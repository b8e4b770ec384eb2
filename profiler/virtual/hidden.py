"""What CUDA kernels allocate beside their results, which fake kernels do not show: rules, each with its source."""

from dataclasses import dataclass, field
from typing import Any

from profiler.virtual.target import Target

CUBLAS_WORKSPACE_BYTES = 8_519_680
CUBLAS_WORKSPACE_HOPPER_BYTES = 33_554_432
"""A handle and stream, from the first product on (aten/src/ATen/cuda/CUDABlas.cpp, parseChosenWorkspaceSize)."""

_PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})


@dataclass(slots=True)
class Hidden:
    """Allocations of one operation."""

    once: tuple[tuple[str, int], ...] = ()
    """Library and bytes: taken at its first use and kept."""
    before: tuple[int, ...] = ()
    """Bytes taken before the result and given back after it."""
    taken: list[int] = field(default_factory=list)


def hidden_allocations(func: Any, args: Any, kwargs: Any, target: Target) -> Hidden | None:
    """The allocations that ``func`` makes on ``target`` beside its result; None without any."""
    if func._schema.name in _PRODUCTS:
        return Hidden(once=(("cublas", cublas_workspace_bytes(target)),))
    return None


def cublas_workspace_bytes(target: Target) -> int:
    """Bytes of the workspace of the default handle."""
    return CUBLAS_WORKSPACE_HOPPER_BYTES if target.capability[0] == 9 else CUBLAS_WORKSPACE_BYTES

"""What CUDA kernels allocate beside their results, which fake kernels do not show: rules, each with its source."""

from typing import Any, NamedTuple

from profiler.virtual.target import Target

CUBLAS_WORKSPACE_BYTES = 8_519_680
CUBLAS_WORKSPACE_HOPPER_BYTES = 33_554_432
"""A handle and stream, from the first product on (aten/src/ATen/cuda/CUDABlas.cpp, parseChosenWorkspaceSize)."""

CUBLASLT_WORKSPACE_BYTES = 1_048_576
"""The same of cublasLt in torch 2.11 (parseCUDABlasLtWorkspaceSize); later ones use cuBLAS's."""

_PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm"})


class Hidden(NamedTuple):
    """Allocations of one operation, after its result."""

    kept: tuple[tuple[str, int], ...] = ()
    """Library and bytes: taken at its first use, and never given back."""
    scratch: tuple[int, ...] = ()
    """Bytes taken together, and given back at once."""


def hidden_allocations(func: Any, args: Any, kwargs: Any, target: Target) -> Hidden | None:
    """The allocations that ``func`` makes on ``target`` beside its result; None without any."""
    name = func._schema.name
    if name in _PRODUCTS:
        kept = [("cublas", cublas_workspace_bytes(target))]
        if name == "aten::addmm" and args[0].dim() == 1 and target.torch < (2, 12):
            kept.append(("cublaslt", CUBLASLT_WORKSPACE_BYTES))
        return Hidden(kept=tuple(kept))
    return None


def cublas_workspace_bytes(target: Target) -> int:
    """Bytes of the workspace of the default handle."""
    return CUBLAS_WORKSPACE_HOPPER_BYTES if target.capability[0] == 9 else CUBLAS_WORKSPACE_BYTES

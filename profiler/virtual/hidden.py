"""What CUDA kernels allocate beside their results, which fake kernels do not show: rules, each with its source.

Paths are in PyTorch's aten/src/ATen, or in CUB of CUDA 13. cuDNN's workspaces are not among them: only cuDNN knows
them. It serves attention on Hopper, and convolutions but for depthwise ones in bfloat16 or float32.
"""

from collections.abc import Callable
from itertools import zip_longest
from math import ceil, prod
from typing import Any, NamedTuple

import torch

from profiler.virtual.target import Target

CUBLAS_WORKSPACE_BYTES = 8_519_680
CUBLAS_WORKSPACE_HOPPER_BYTES = 33_554_432
"""A handle and stream, from the first product on (cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize)."""

CUBLASLT_WORKSPACE_BYTES = 1_048_576
"""The same of cublasLt in torch 2.11 (parseCUDABlasLtWorkspaceSize); later ones use cuBLAS's."""


class Hidden(NamedTuple):
    """Allocations of one operation beside its result."""

    kept: tuple[tuple[str, int], ...] = ()
    """Library and bytes: taken at its first use, and never given back."""
    scratch: tuple[int, ...] = ()
    """Bytes taken together after the result, and given back at once."""
    around: tuple[int, ...] = ()
    """Bytes taken before the result, and given back after it."""
    unknown: str | None = None
    """What it takes besides, of which no size is known."""


Rule = Callable[[Any, Any, Target], Hidden | None]


_NOTHING = Hidden()


def hidden_allocations(func: Any, args: Any, kwargs: Any, target: Target) -> Hidden:
    """The allocations that ``func`` makes on ``target`` beside its result."""
    rule = RULES.get(func._schema.name)
    return (rule(args, kwargs, target) if rule is not None else None) or _NOTHING


def cublas_workspace_bytes(target: Target) -> int:
    """Bytes of the workspace of the default handle."""
    return CUBLAS_WORKSPACE_HOPPER_BYTES if target.capability[0] == 9 else CUBLAS_WORKSPACE_BYTES


def _product(args: Any, kwargs: Any, target: Target) -> Hidden:
    return Hidden(kept=(("cublas", cublas_workspace_bytes(target)),))


def _biased_product(args: Any, kwargs: Any, target: Target) -> Hidden:
    """A bias of one dimension is added by cublasLt (native/cuda/Blas.cpp: isInputCompliesAddmmCudaLt)."""
    hidden = _product(args, kwargs, target)
    if args[0].dim() == 1 and target.torch < (2, 12):
        return Hidden(kept=(*hidden.kept, ("cublaslt", CUBLASLT_WORKSPACE_BYTES)))
    return hidden


_GROUPED_WORKSPACE_BYTES = {9: 512, 10: 5376}
"""Of CUTLASS's kernels for groups, a multiprocessor, by major compute capability (seen for 9.0, 10.0, 10.3)."""


def _grouped_product(args: Any, kwargs: Any, target: Target) -> Hidden:
    """A problem's size, pointers and strides for each group, and CUTLASS's workspace (native/cuda/GroupMM.cu).

    Other GPUs and dtypes multiply one group after another.
    """
    workspace = _GROUPED_WORKSPACE_BYTES.get(target.capability[0])
    if workspace is None or args[0].dtype != torch.bfloat16:
        return _product(args, kwargs, target)
    groups = max(tensor.size(0) for tensor in args[:2] if tensor.dim() == 3)
    return Hidden(scratch=(60 * groups, workspace * target.sms))


def _solve(args: Any, kwargs: Any, target: Target) -> Hidden:
    """Pointers to the matrices of a batch (native/cuda/linalg/BatchLinearAlgebraLib.cpp: get_device_pointers)."""
    matrices, vectors = args[:2]
    batches = prod(
        max(pair) for pair in zip_longest(reversed(matrices.shape[:-2]), reversed(vectors.shape[:-2]), fillvalue=1)
    )
    is_loop = batches <= 8 and matrices.size(-1) >= 64  # BatchLinearAlgebra.cpp: triangular_solve_kernel
    hidden = _product(args, kwargs, target)
    return hidden if is_loop else hidden._replace(scratch=(8 * batches, 8 * batches))


def _convolution(args: Any, kwargs: Any, target: Target) -> Hidden | None:
    """The input as one piece (native/Convolution.cpp: _convolution, CudaDepthwise2d)."""
    given = args[0]
    return None if given.is_contiguous() else Hidden(around=(_bytes(given),))


def _cudnn_attention(args: Any, kwargs: Any, target: Target) -> Hidden:
    return Hidden(unknown="the workspace of cuDNN's attention")


def _cumsum(args: Any, kwargs: Any, target: Target) -> Hidden | None:
    """The input in the result's dtype, as one piece (native/ReduceOps.cpp: impl_func_cum_ops; cuda/ScanUtils.cuh).

    A single row is CUB's (scan_dim), with its state of each tile (device_scan.cuh).
    """
    given, dim = args[:2]
    dtype = _summed_dtype(given, kwargs)
    scratch = []
    if given.dtype != dtype:
        scratch.append(given.numel() * dtype.itemsize)
    if not given.is_contiguous():
        scratch.append(given.numel() * dtype.itemsize)
    if given.dim() and given.numel() == given.size(dim):
        scratch.append(scan_bytes(given.numel(), dtype.itemsize))
    return Hidden(scratch=tuple(scratch)) if scratch else None


def scan_bytes(items: int, item_bytes: int) -> int:
    """CUB's storage for a sum up to each item (dispatch_scan.cuh; single_pass_scan_operators.cuh: ScanTileState).

    A thread of 128 takes 15 items of up to 4 bytes (tuning_scan.cuh). Each tile, and 32 more, has a word of a
    status and a sum: of 8 or 16 bytes; for 2-byte floats three arrays instead.
    """
    tile = 128 * 15 * 4 // max(item_bytes, 4) // 128 * 128
    tiles = ceil(items / tile) + 32
    if item_bytes < 4:
        return _aliased(4 * tiles // 4, tiles * item_bytes, tiles * item_bytes, 1)
    return _aliased(2 * item_bytes * tiles, 1)


def _sort(args: Any, kwargs: Any, target: Target) -> Hidden | None:
    """Indices before they are sorted, and CUB's buffers for rows of over 4096 (native/cuda/Sort.cpp, SortStable.cu).

    Of several such rows no rule is known here: no model sorts them.
    """
    given = args[0]
    dim = next((arg for arg in (*args[1:], kwargs.get("dim")) if type(arg) is int), -1)
    length = given.size(dim) if given.dim() else 1
    if length <= _SMALL_SORT:
        return Hidden(scratch=(8 * length,))
    if given.numel() == length:
        return Hidden(scratch=(8 * length, radix_sort_bytes(length, given.itemsize, target)))
    return None


_SMALL_SORT = 4096
"""Longest rows that are sorted in place (native/cuda/Sort.cpp: should_use_small_sort)."""


def radix_sort_bytes(items: int, key_bytes: int, target: Target) -> int:
    """CUB's storage to sort keys with their 8-byte places (dispatch_radix_sort.cuh: InvokeOnesweep).

    Counts of 256 digits in each byte of a key, the tiles' own, a second buffer of keys and places, a counter a byte.
    """
    tile = _sort_tile(target) * (8 // key_bytes if key_bytes > 4 else 1)
    return _aliased(key_bytes * 256 * 8, ceil(items / tile) * 256 * 4, items * key_bytes, items * 8, key_bytes * 4)


def _sort_tile(target: Target) -> int:
    """Items that a block sorts at once, of 8 bytes with 8 bytes (tuning_radix_sort.cuh; seen for sm75, 80 and 90)."""
    if target.capability >= (9, 0):
        return 4608
    return 3840 if target.capability >= (8, 0) else 2816


def _aliased(*sizes: int) -> int:
    """Parts of one storage, each of whole 256 bytes, wherever it begins (util_device.cuh: AliasTemporaries)."""
    return 255 + sum(ceil(size / 256) * 256 for size in sizes)


def _index(args: Any, kwargs: Any, target: Target) -> Hidden | None:
    """Indices of unlike strides are made alike (native/TensorAdvancedIndexing.cpp: AdvancedIndex)."""
    indices = args[1]
    told = [index for index in indices if index is not None and index.dtype != torch.bool]
    if len(told) < 2 or len(told) < sum(index is not None for index in indices):
        return None
    spread: list[torch.Tensor] = list(torch.ops.aten.broadcast_tensors(told))
    if all(index.stride() == spread[0].stride() for index in spread):
        return None
    return Hidden(scratch=tuple(8 * index.numel() for index in spread if not index.is_contiguous()))


def _sum(args: Any, kwargs: Any, target: Target) -> Hidden | None:
    """Integers of other dtypes than the result's are converted first (native/ReduceOpsUtils.h: make_reduction)."""
    given = args[0]
    if given.dtype == _summed_dtype(given, kwargs) or given.is_floating_point():
        return None
    return Hidden(scratch=(8 * given.numel(),))


def _argmax(args: Any, kwargs: Any, target: Target) -> Hidden | None:
    """A value and its place of each part of a row that has a block of its own, and a semaphore a row (Reduce.cuh)."""
    given = args[0]
    dim = args[1] if len(args) > 1 else None
    if given.is_contiguous() and given.dim() and dim in (-1, given.dim() - 1):
        length = given.size(-1)
        parts = argmax_parts(given.numel() // length, length, target)
        if parts > 1:
            rows = given.numel() // length
            return Hidden(scratch=(16 * rows * parts, 4 * rows))
    return None


def argmax_parts(rows: int, length: int, target: Target) -> int:
    """Blocks that share a row (native/cuda/Reduce.cuh: setReduceConfig, for rows of one piece each)."""
    width = length // 4 if rows == 1 else length  # one row is read in vectors of 4
    across = min(_power_of_two(width), 32)
    height = min(_power_of_two(rows), 512 // across)
    across = min(_power_of_two(width), 512 // height)
    values = ceil(length / across)
    blocks = ceil(rows / height)
    if values >= min(16 * height, 256):
        values, blocks = ceil(length / across / height), rows
    target_blocks = target.sms * (_threads(target) // (across * height))
    if values < 256 or blocks != rows or blocks > target_blocks:
        return 1
    return max(min(ceil(target_blocks / blocks), ceil(values / 16)), ceil(values / 256))


def _power_of_two(number: int) -> int:
    """The last one up to ``number``, and to the 512 threads of a block."""
    return min(1 << number.bit_length() - 1, 512) if number else 1


def _threads(target: Target) -> int:
    """Threads of a multiprocessor (CUDA C++ Programming Guide, Compute Capabilities)."""
    major, minor = target.capability
    if (major, minor) == (7, 5):
        return 1024
    return 1536 if (major == 8 and minor) or major == 12 else 2048


def _summed_dtype(given: torch.Tensor, kwargs: Any) -> torch.dtype:
    dtype: torch.dtype | None = kwargs.get("dtype")
    if dtype is not None:
        return dtype
    return given.dtype if given.is_floating_point() or given.is_complex() else torch.int64


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize


RULES: dict[str, Rule] = {
    "aten::mm": _product,
    "aten::addmm": _biased_product,
    "aten::bmm": _product,
    "aten::baddbmm": _product,
    "aten::_grouped_mm": _grouped_product,
    "aten::linalg_solve_triangular": _solve,
    "aten::convolution": _convolution,
    "aten::_scaled_dot_product_cudnn_attention": _cudnn_attention,
    "aten::cumsum": _cumsum,
    "aten::sort": _sort,
    "aten::index": _index,
    "aten::sum": _sum,
    "aten::argmax": _argmax,
}
"""By the name of the operation."""

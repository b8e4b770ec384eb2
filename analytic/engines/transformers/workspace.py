"""What libraries allocate through PyTorch's caching allocator beside the model's own tensors."""

from typing import NamedTuple

CUBLAS_WORKSPACE_BYTES = 8_519_680
"""One handle and stream, from the first matrix product on (aten/src/ATen/cuda/CUDABlas.cpp)."""

CUBLAS_WORKSPACE_HOPPER_BYTES = 33_554_432
"""The same from compute capability 9.0 on; whether 10.0 and 12.0 take it depends on the torch version."""

FUSED_ROWS = (4, 1536)
"""Up to the first number of rows bitsandbytes never dequantises, above the second always; between them it depends on
the GPU and the matrix (bitsandbytes 0.50 backends/cuda/ops.py, _gemm_4bit_use_custom_cuda)."""

OUTLIER_SHARE_HIGH = 0.01
"""Most of the input columns that int8 is taken to treat as outliers; which do depends on the data."""


class Bounds(NamedTuple):
    """Low, middle and high bytes."""

    low_bytes: int
    bytes: int
    high_bytes: int


def cublas_workspace_bytes(capability: tuple[int, int] | None) -> Bounds:
    """The cuBLAS workspace of a GPU; an unknown GPU may have either."""
    small, large = CUBLAS_WORKSPACE_BYTES, CUBLAS_WORKSPACE_HOPPER_BYTES
    if capability is None:
        return Bounds(small, small, large)
    if capability[0] == 9:
        return Bounds(large, large, large)
    return Bounds(small, large, large) if capability > (9, 0) else Bounds(small, small, small)


def bnb_4bit_forward_bytes(
    out_features: int, in_features: int, *, tokens: int, itemsize: int, compute_itemsize: int, double_quant: bool
) -> Bounds:
    """A 4-bit matrix product: the dequantised weight [out, in], recast where the compute dtype is another.

    Args:
        out_features: rows of the weight.
        in_features: columns of the weight.
        tokens: rows of the input.
        itemsize: bytes of the dtype that the weight had before (bitsandbytes autograd/_functions.py, MatMul4Bit).
        compute_itemsize: bytes of bnb_4bit_compute_dtype.
        double_quant: whether absmax is first dequantised into a float32 tensor.
    """
    elements = out_features * in_features
    recast = elements + tokens * (in_features + out_features)
    recast_bytes = 0 if compute_itemsize == itemsize else recast * compute_itemsize
    scales = 4 * -(-elements // 64) if double_quant else 0
    whole = elements * itemsize + recast_bytes + scales
    fused, dequantized = FUSED_ROWS
    if tokens <= fused:
        return Bounds(0, 0, 0)
    return Bounds(whole if tokens > dequantized else 0, whole, whole)


def bnb_int8_forward_bytes(
    out_features: int, in_features: int, *, tokens: int, is_float16: bool, outlier_share: float = 0.0
) -> Bounds:
    """An int8 matrix product beside its input [tokens, in] and output [tokens, out].

    Quantising the input takes a float16 copy (unless it is one), its absolute values, their mask and the int8 result;
    multiplying takes that result, int32 sums and their float16 form (the output itself in float16).
    """
    quantizing = tokens * in_features * ((0 if is_float16 else 2) + 2 + 1 + 1)
    multiplying = tokens * (in_features + out_features * (4 if is_float16 else 6))
    whole = bnb_int8_outlier_bytes(out_features, in_features, tokens=tokens)
    middle = max(quantizing, multiplying) + int(outlier_share * whole)
    return Bounds(multiplying, middle, middle + int(OUTLIER_SHARE_HIGH * whole))


def bnb_int8_outlier_bytes(out_features: int, in_features: int, *, tokens: int) -> int:
    """The float16 columns of input and weight that int8 keeps apart, if all of them were outliers."""
    return in_features * (tokens + out_features) * 2

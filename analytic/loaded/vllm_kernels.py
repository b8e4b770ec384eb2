"""How vLLM's kernels hold a packed matrix: a row a format and a compute capability, from vLLM 0.33.

Which kernel vLLM chooses depends on the GPU. Six capabilities were recorded; no other has a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from analytic.quantity import round_up

SERVING = 0
"""In place of bytes: those of an element in the serving dtype."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """How a matrix is held after loading."""

    bits: int
    """Of one element."""
    scale_bytes: int | None = SERVING
    """Of one scale; None where there is but a scalar."""
    group: int = 0
    """Inputs that share a scale, where the format's name does not say; 0 for all."""
    rows: int = 1
    """Output channels that share a scale."""
    zero_bits: int = 0
    """Of one zero point; 0 without any."""
    layer_bytes: int = 0
    """Scalars of one linear layer, fused as vLLM fuses it."""
    expert_bytes: tuple[int, int] = (0, 0)
    """Scalars of one expert: of its gate and up, and of its down."""
    stack_bytes: int = 0
    """Scalars of a layer's experts: of all gates and ups, and as many of all downs."""
    shape_elements: int = 0
    """Elements in the serving dtype that tell an expert's shape."""
    tiles: bool = True
    """Whether it is Marlin, whose threads take tiles of 64 x 128 or 128 x 64."""
    multiples: tuple[int, int] = (1, 1)
    """What output and input are a multiple of, or another kernel would be chosen: refused."""
    aligns: int = 1
    """What output and input of a linear layer are padded to a multiple of, as it is fused."""
    groups: tuple[int, ...] = (0, 32, 64, 128)
    """Sizes of groups that it takes, 0 for a scale a column, where the format leaves it open."""
    pads: tuple[int, int] = (1, 1)
    """What the hidden and the intermediate size of experts are padded to a multiple of."""
    scale_pads: tuple[int, int] = (1, 1)
    """What outputs and groups are padded to for the scales."""
    bias_bytes: int = 4
    """Of an element of the experts' biases, which are padded with them."""
    uneven: "Kernel | None" = None
    """What holds experts of an intermediate size that groups, or 64, do not divide; None pads or refuses them."""
    source: str
    """Under vllm/model_executor."""

    def bytes(self, shape: tuple[int, int], *, group: int, serving: int) -> int:
        """Of one matrix of (out, in) with a scale for ``group`` inputs (0 for all), the scalars apart."""
        out, into = shape
        groups = round_up(-(-into // group) if group else 1, self.scale_pads[1])
        scales = groups * round_up(-(-out // self.rows), self.scale_pads[0])
        each = 0 if self.scale_bytes is None else self.scale_bytes or serving
        return out * into * self.bits // 8 + scales * each + groups * out * self.zero_bits // 8


_Key = tuple[str, str]
_Rows = Mapping[int, Kernel]

_GPTQ4, _GPTQ8 = (Kernel(bits=bits, source="kernels/linear/mixed_precision/marlin.py") for bits in (4, 8))
_TRITON = "layers/quantization/moe_wna16.py"
_GPTQ4Z, _GPTQ8Z = (
    replace(kernel, zero_bits=kernel.bits, pads=(1, 64), uneven=replace(kernel, tiles=False, source=_TRITON))
    for kernel in (_GPTQ4, _GPTQ8)
)
_AWQ = Kernel(bits=4, zero_bits=4, source="layers/quantization/auto_awq.py")
_AWQ = replace(_AWQ, uneven=replace(_AWQ, tiles=False, source=_TRITON))
_WNA16 = "layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py"
_CT4, _CT8 = (Kernel(bits=bits, layer_bytes=16, shape_elements=2, source=_WNA16) for bits in (4, 8))
_CT4Z = replace(_CT4, zero_bits=4)
_HUMMING = "layers/quantization/utils/humming.py"
_W8A8 = Kernel(bits=8, scale_bytes=4, tiles=False, source="kernels/linear/scaled_mm/cutlass.py")
_FP8_MARLIN = Kernel(bits=8, pads=(1, 64), source="kernels/linear/scaled_mm/marlin.py")
_W8A8_FP8 = replace(_W8A8, aligns=16)
_FP8 = Kernel(bits=8, scale_bytes=None, layer_bytes=4, tiles=False, aligns=16, source=_W8A8.source)
_FP8_STATIC, _FP8_MARLIN_STATIC = replace(_FP8, layer_bytes=8), replace(_FP8_MARLIN, stack_bytes=4)
_NVFP4 = Kernel(bits=4, scale_bytes=1, group=16, layer_bytes=16, pads=(1, 64), source="kernels/linear/nvfp4")
_NVFP4_TILES = replace(_NVFP4, tiles=False, multiples=(128, 64))
_BLOCKS = Kernel(bits=8, scale_bytes=4, group=128, rows=128, tiles=False, source="kernels/linear/scaled_mm")
_BLOCKS_MARLIN = replace(_FP8_MARLIN, group=128, pads=(1, 1))
_BLOCKS_E8M0 = replace(_BLOCKS, group=512, rows=1, multiples=(64, 128), source="kernels/linear/scaled_mm/deep_gemm.py")
"""Four exponents in an int32."""
_BLOCKS_STACKED = replace(_BLOCKS, uneven=_BLOCKS)
_MXFP4 = Kernel(bits=4, scale_bytes=1, group=32, tiles=False, source="layers/fused_moe/oracle/mxfp4.py")
_MXFP4_TRITON = replace(_MXFP4, pads=(64, 64), scale_pads=(256, 4))
_MXFP4_MARLIN = replace(_MXFP4, pads=(256, 128), bias_bytes=SERVING)
_STACKED = replace(_FP8, layer_bytes=0, expert_bytes=(4, 4))
"""A scale an expert."""
_STACKED_INPUT = replace(_STACKED, stack_bytes=4)
_STACKED_PRODUCT = replace(_STACKED, expert_bytes=(8, 8), stack_bytes=8)
"""With the scale's product with the input's, and the input's reciprocal (fused_moe/oracle/fp8.py)."""
_HOPPER: Mapping[str, Any] = {
    **{"tiles": False, "multiples": (128, 64), "groups": (0, 128)},
    "source": "kernels/linear/mixed_precision/machete.py",
}
_MACHETE4, _MACHETE8, _MACHETE4Z = (
    replace(kernel, zero_bits=zero_bits, **_HOPPER) for kernel, zero_bits in ((_GPTQ4, 4), (_GPTQ8, 8), (_AWQ, 16))
)
"""Zero points that GPTQ does not use stay, and those of AWQ become products with the scales, in the serving dtype."""
_HUMMING4, _HUMMING8, _HUMMING4Z = (
    replace(kernel, tiles=False, multiples=(128, 128), groups=(128,), stack_bytes=2112, source=_HUMMING)
    for kernel in (_GPTQ4, _GPTQ8, replace(_AWQ, uneven=None))
)
"""Half of its locks, 32 bytes a multiprocessor: 132 have the H100 and the H200."""
_PADDED4, _PADDED8, _PADDED4Z = (
    replace(kernel, uneven=replace(kernel, pads=(128, 128), groups=(0, 16, 32, 64, 128)))
    for kernel in (_HUMMING4, _HUMMING8, _HUMMING4Z)
)
"""Compressed-tensors' experts must be of whole groups."""
_STRIDES = replace(_W8A8, expert_bytes=(16, 8), source="layers/fused_moe/experts/cutlass_moe.py")


CAPABILITIES = (80, 86, 89, 90, 100, 120)
"""That were recorded: Ampere (A100; A10, RTX 3090), Ada, Hopper, and Blackwell (B200; RTX 5090)."""


def _rows(*kernels: Kernel | None) -> _Rows:
    """One for each of `CAPABILITIES`, or for each of the four generations where all of one have the same."""
    if len(kernels) == 4:
        ampere, ada, hopper, blackwell = kernels
        kernels = (ampere, ampere, ada, hopper, blackwell, blackwell)
    return {number: kernel for number, kernel in zip(CAPABILITIES, kernels, strict=True) if kernel is not None}


def _both(name: str, linear: tuple[Kernel | None, ...], experts: tuple[Kernel | None, ...]) -> dict[_Key, _Rows]:
    return {(name, "linear"): _rows(*linear), (name, "experts"): _rows(*experts)}


KERNELS: Mapping[_Key, _Rows] = {
    **_both("gptq-int4", (_GPTQ4, _GPTQ4, _MACHETE4, _GPTQ4), (_GPTQ4Z, _GPTQ4Z, _PADDED4, _GPTQ4Z)),
    **_both("gptq-int8", (_GPTQ8, _GPTQ8, _MACHETE8, _GPTQ8), (_GPTQ8Z, _GPTQ8Z, _PADDED8, _GPTQ8Z)),
    **_both("awq-int4", (_AWQ, _AWQ, _MACHETE4Z, _AWQ), (_AWQ, _AWQ, _PADDED4Z, _AWQ)),
    **_both("ct-int4-packed", (_CT4, _CT4, replace(_CT4, **_HOPPER), _CT4), (_CT4, _CT4, _HUMMING4, _CT4)),
    **_both("ct-int4-asym-packed", (_CT4Z, _CT4Z, replace(_CT4Z, zero_bits=16, **_HOPPER), _CT4Z), (_CT4Z,) * 4),
    **_both("ct-int8-packed", (_CT8, _CT8, replace(_CT8, **_HOPPER), _CT8), (_CT8, _CT8, _HUMMING8, _CT8)),
    **_both("ct-int8-channel", (_W8A8,) * 4, (_W8A8,) * 4),
    **_both(
        "ct-fp8-channel",
        (None, _W8A8_FP8, _W8A8_FP8, _W8A8_FP8),
        (None, None, _W8A8, _STRIDES, _STRIDES, _W8A8),
    ),
    **_both("nvfp4", (_NVFP4, None, None, _NVFP4_TILES), (replace(_NVFP4, expert_bytes=(4, 4)), None, None, None)),
    **_both(
        "ct-nvfp4-packed",
        (_NVFP4, None, None, _NVFP4_TILES),
        (replace(_NVFP4, expert_bytes=(20, 12)), None, None, None),
    ),
    **_both("fp8-tensor", (_FP8_MARLIN, _FP8, _FP8, _FP8), (_FP8_MARLIN, _STACKED, _STACKED, _STACKED)),
    **_both(
        "fp8-tensor-static",
        (_FP8_MARLIN, *(_FP8_STATIC,) * 3),
        (_FP8_MARLIN_STATIC, _STACKED_INPUT, _STACKED_PRODUCT, None),
    ),
    **_both(
        "modelopt-fp8",
        (_FP8_MARLIN, None, _FP8_STATIC, _FP8_STATIC),
        (_FP8_MARLIN_STATIC, None, _STACKED_PRODUCT, None),
    ),
    **_both(
        "fp8-128x128",
        (_BLOCKS_MARLIN, _BLOCKS_MARLIN, _BLOCKS, _BLOCKS_E8M0),
        (_BLOCKS_MARLIN, _BLOCKS_MARLIN, *(_BLOCKS_STACKED,) * 3, None),
    ),
    ("mxfp4", "experts"): _rows(*(_MXFP4_MARLIN,) * 3, _MXFP4_TRITON, None, _MXFP4_MARLIN),
}
"""By format and kind of module, then by compute capability."""

"""Weight formats as rows: how elements are packed into blocks, and the tensors that go beside them.

A format is (elements per block, bytes per block) with side tensors, never "bytes per parameter".
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal

from analytic.errors import UllageError
from analytic.formats.ggml import TYPES, row_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A tensor that quantisation keeps beside each weight."""

    name: str
    entry_bytes: int
    per: Literal["elements", "row", "tile", "tensor"] = "elements"
    """One entry for ``group`` elements, for a row of the matrix, for a ``group`` × ``group`` tile, or one in all."""
    group: int = 1

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes beside one weight of ``shape``."""
        return self.entry_bytes * _ENTRIES[self.per](shape, self.group)


_ENTRIES: dict[str, Callable[[tuple[int, ...], int], int]] = {
    "elements": lambda shape, group: _ceil(prod(shape), group),
    "row": lambda shape, group: shape[0],
    "tile": lambda shape, group: prod(shape[:-2]) * _ceil(shape[-2], group) * _ceil(shape[-1], group),
    "tensor": lambda shape, group: 1,
}


def _ceil(count: int, group: int) -> int:
    return -(-count // group)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How the elements of one tensor are stored."""

    name: str
    block_elements: int
    block_bytes: int
    sides: tuple[Side, ...] = ()
    source: str

    @property
    def is_packed(self) -> bool:
        """Whether several elements share bytes, or scales."""
        return self.block_elements > 1 or bool(self.sides)

    def allocations(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Bytes of each tensor that holds one weight of ``shape``: the packed data, then the sides."""
        data = _ceil(prod(shape), self.block_elements) * self.block_bytes
        return (data, *(side.bytes(shape) for side in self.sides))

    def bytes(self, shape: tuple[int, ...]) -> int:
        """All bytes of one weight of ``shape``."""
        return sum(self.allocations(shape))


_CODE = Side(name="code", entry_bytes=16 * 4, per="tensor")
_BNB_4BIT = (Side(name="absmax", entry_bytes=4, group=64), _CODE)
_BNB_4BIT_DOUBLE = (
    Side(name="absmax", entry_bytes=1, group=64),
    Side(name="nested_absmax", entry_bytes=4, group=64 * 256),
    Side(name="offset", entry_bytes=4, per="tensor"),
    _CODE,
    Side(name="nested_code", entry_bytes=256 * 4, per="tensor"),
)
_BNB_SOURCE = "bitsandbytes 0.50 functional.py, quantize_4bit"
_TORCH = "torch.dtype.itemsize"
_DTYPE = "safetensors/src/tensor.rs, enum Dtype, 0.8"

_GGML = tuple(
    Format(
        name=row_of(kind),
        block_elements=kind.block_elements,
        block_bytes=kind.block_bytes,
        source="ggml/src/ggml-common.h",
    )
    for kind in TYPES.values()
    if kind.block_elements > 1
)

FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        *_GGML,
        Format(name="float64", block_elements=1, block_bytes=8, source=_TORCH),
        Format(name="float32", block_elements=1, block_bytes=4, source=_TORCH),
        Format(name="float16", block_elements=1, block_bytes=2, source=_TORCH),
        Format(name="bfloat16", block_elements=1, block_bytes=2, source=_TORCH),
        Format(name="float8", block_elements=1, block_bytes=1, source=_TORCH),
        Format(name="float6", block_elements=4, block_bytes=3, source=_DTYPE),
        Format(name="float4", block_elements=2, block_bytes=1, source=_DTYPE),
        Format(name="int8", block_elements=1, block_bytes=1, source=_TORCH),
        Format(name="int16", block_elements=1, block_bytes=2, source=_TORCH),
        Format(name="int32", block_elements=1, block_bytes=4, source=_TORCH),
        Format(name="int64", block_elements=1, block_bytes=8, source=_TORCH),
        Format(name="bool", block_elements=1, block_bytes=1, source=_TORCH),
        Format(name="complex64", block_elements=1, block_bytes=8, source=_TORCH),
        Format(
            name="bnb-int8",
            block_elements=1,
            block_bytes=1,
            sides=(Side(name="SCB", entry_bytes=4, per="row"),),
            source="bitsandbytes 0.50 nn/modules.py, Int8Params",
        ),
        Format(name="bnb-nf4", block_elements=2, block_bytes=1, sides=_BNB_4BIT, source=_BNB_SOURCE),
        Format(name="bnb-fp4", block_elements=2, block_bytes=1, sides=_BNB_4BIT, source=_BNB_SOURCE),
        Format(name="bnb-nf4-dq", block_elements=2, block_bytes=1, sides=_BNB_4BIT_DOUBLE, source=_BNB_SOURCE),
        Format(name="bnb-fp4-dq", block_elements=2, block_bytes=1, sides=_BNB_4BIT_DOUBLE, source=_BNB_SOURCE),
        Format(
            name="fp8-128x128",
            block_elements=1,
            block_bytes=1,
            sides=(Side(name="weight_scale_inv", entry_bytes=4, per="tile", group=128),),
            source="transformers 5.23 integrations/finegrained_fp8.py, FP8Linear and FP8Experts",
        ),
        Format(
            name="mxfp4",
            block_elements=2,
            block_bytes=1,
            sides=(Side(name="scales", entry_bytes=1, group=32),),
            source="OCP Microscaling Formats v1.0 §5.2: 32 elements share one E8M0 scale",
        ),
    )
}

NATIVE_FORMATS = ("fp8-128x128", "mxfp4")
"""Formats that published checkpoints hold and transformers serves as they are."""


def find_format(name: str) -> Format:
    """The row of format ``name``.

    Raises:
        UllageError: no such row.
    """
    if name not in FORMATS:
        raise UllageError(f"format {name!r} is not known", hint=f"known: {', '.join(FORMATS)}")
    return FORMATS[name]


def itemsize(dtype: str) -> int:
    """Bytes of one element of an unpacked ``dtype``."""
    return find_format(dtype).block_bytes

"""bitsandbytes checkpoints: what `quantize_4bit` and `Int8Params` made, with the state that loading unpacks.

Layout: bitsandbytes 0.50 ``functional.py`` (QuantState.as_dict), ``nn/modules.py`` (Linear8bitLt).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from analytic.formats.reading import choice, flag
from analytic.formats.scheme import Held, Method, Part, Rules, Scheme, ceil

_BLOCK, _NESTED = 64, 256
"""Elements that share an absmax, and absmax that share a second one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bnb4(Scheme):
    """``weight`` [elements / 2, 1], ``absmax`` and ``quant_map`` (code); the matrix's shape is inside a tensor."""

    marker = ""
    packed_dtypes = ("U8",)

    kind: str
    double: bool

    @property
    def name(self) -> str:
        """``bnb-nf4``, ``bnb-fp4-dq``."""
        return f"bnb-{self.kind}{'-dq' if self.double else ''}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(elements,)."""
        return (2 * prod(held[""].shape),)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Packed elements, absmax, code, and with double quantisation those of the absmax."""
        elements = prod(shape)
        blocks = ceil(elements, _BLOCK)
        nested = (
            Part(suffix=".nested_absmax", dtypes=("F32",), shape=(ceil(blocks, _NESTED),)),
            Part(suffix=".nested_quant_map", dtypes=("F32",), shape=(256,)),
        )
        return (
            Part(suffix="", dtypes=("U8",), shape=(ceil(elements, 2), 1)),
            Part(suffix=".absmax", dtypes=("U8",) if self.double else ("F32",), shape=(blocks,)),
            Part(suffix=".quant_map", dtypes=("F32",), shape=(16,)),
            *(nested if self.double else ()),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Bnb8(Scheme):
    """``weight`` int8 [out, in] and ``SCB`` [out]."""

    marker = ".weight"
    packed_dtypes = ("I8",)

    @property
    def name(self) -> str:
        """``bnb-int8``."""
        return "bnb-int8"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 8

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """As stored."""
        return held[self.marker].shape

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Elements, and the absmax of each row."""
        return (
            Part(suffix=".weight", dtypes=("I8",), shape=shape),
            Part(suffix=".SCB", dtypes=("F32",), shape=shape[:1]),
        )


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of a bitsandbytes config: whatever is packed, wherever it is.

    Raises:
        UllageError: a 4-bit type that is not known.
    """
    if not flag(native, "load_in_4bit", default=False):
        return Rules(default=Bnb8(), strict=False)
    kind = choice(native, "bnb_4bit_quant_type", {"nf4": "nf4", "fp4": "fp4"}, default="fp4")
    return Rules(default=Bnb4(kind=kind, double=flag(native, "bnb_4bit_use_double_quant", default=False)), strict=False)


METHOD = Method(
    names=("bitsandbytes",),
    read=read,
    dropped=r"\.quant_state\.bitsandbytes__\w+$|\.weight_format$",
)

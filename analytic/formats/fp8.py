"""FP8 as DeepSeek publishes it (a scale a tile), per tensor or per row: ``quant_method`` fp8, mxfp8 and fbgemm_fp8.

Layout: transformers 5.23 ``integrations/finegrained_fp8.py`` (FP8Linear, FP8Experts), ``integrations/fbgemm_fp8.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analytic.formats.reading import Named, choice, names, reject
from analytic.formats.scheme import Held, Method, Part, Preset, Rules, Scheme, ceil

_SCALES = ("F32", "BF16", "F16")
_EXPONENTS = ("F8_E8M0", "U8", "F32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8(Scheme):
    """A byte an element; ``weight_scale_inv`` with an entry a tile, or one in all."""

    marker = ""
    packed_dtypes = ("F8_E4M3",)
    aliases = {"_scale": "_scale_inv"}  # noqa: RUF012  # a constant of the class

    tile: tuple[int, int] | None
    """Rows and columns that share a scale; None for the whole matrix."""
    exponents: bool = False
    """Whether the scales are powers of two (``scale_fmt`` ue8m0), a byte each."""

    @property
    def name(self) -> str:
        """``fp8-128x128``, ``fp8-tensor``."""
        if self.tile is None:
            return "fp8-tensor"
        return f"fp8-{self.tile[0]}x{self.tile[1]}{'-ue8m0' if self.exponents else ''}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 8

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """As stored."""
        return held[""].shape

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The elements and their scales."""
        *stack, rows, columns = shape
        tile = self.tile
        scales = tuple(stack) if tile is None else (*stack, ceil(rows, tile[0]), ceil(columns, tile[1]))
        return (
            Part(suffix="", dtypes=("F8_E4M3",), shape=shape),
            Part(suffix="_scale_inv", dtypes=_EXPONENTS if self.exponents else _SCALES, shape=scales),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Rows(Scheme):
    """A byte an element; ``weight_scale`` [out, 1] (FBGEMM)."""

    marker = ""
    packed_dtypes = ("F8_E4M3",)

    @property
    def name(self) -> str:
        """``fp8-row``."""
        return "fp8-row"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 8

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """As stored."""
        return held[""].shape

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The elements and a scale a row."""
        scale = Part(suffix="_scale", dtypes=_SCALES, shape=(*shape[:-1], 1))
        return (Part(suffix="", dtypes=("F8_E4M3",), shape=shape), scale)


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of an fp8 config.

    Raises:
        UllageError: an element format, a tile or a scale format that is not known.
    """
    choice({"fmt": str(native.get("fmt", "e4m3")).lower()}, "fmt", {"e4m3": 1, "float8_e4m3fn": 1})
    exponents = choice(native, "scale_fmt", {"ue8m0": True, "float": False}, default="float")
    scheme = Fp8(tile=_tile(native), exponents=exponents)
    skipped = (*names(native, "modules_to_not_convert"), *names(native, "ignored_layers"))
    return Rules(default=scheme, overrides=((Named(names=skipped), None),))


def _tile(native: Mapping[str, Any]) -> tuple[int, int] | None:
    usual = [1, 32] if native.get("quant_method") == "mxfp8" else None if "activation_scheme" in native else [128, 128]
    tile = native.get("weight_block_size", usual)
    if tile is None:
        return None
    if not isinstance(tile, list | tuple) or len(tile) != 2 or not all(type(n) is int and n > 0 for n in tile):
        reject("weight_block_size", tile)
    return tile[0], tile[1]


def read_rows(native: Mapping[str, Any]) -> Rules:
    """The rules of an FBGEMM config."""
    return Rules(default=Fp8Rows(), overrides=((Named(names=names(native, "modules_to_not_convert")), None),))


_BESIDE = r"\.(input_scale|activation_scale|input_scale_ub|[qkv]_scale)$"

METHOD = Method(
    names=("fp8", "mxfp8"),
    read=read,
    capability=(8, 9),
    dequantizes=True,
    presets=(
        Preset(
            name="fp8-128x128",
            scheme=Fp8(tile=(128, 128)),
            beforehand=False,
            source="transformers 5.23 quantizers/quantizer_finegrained_fp8.py: linear layers and stacked experts",
        ),
        Preset(
            name="fp8",
            scheme=Fp8(tile=None),
            source="one float32 scale a matrix, as vLLM's --quantization fp8 makes of 16-bit weights",
        ),
    ),
    beside=_BESIDE,
)

FBGEMM = Method(names=("fbgemm_fp8",), read=read_rows, beside=_BESIDE)

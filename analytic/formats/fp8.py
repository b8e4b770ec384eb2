"""FP8 as DeepSeek publishes it (a scale a tile), per tensor or per row: ``quant_method`` fp8, mxfp8 and fbgemm_fp8.

Layout: transformers 5.23 ``integrations/finegrained_fp8.py`` (FP8Linear, FP8Experts), ``integrations/fbgemm_fp8.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from analytic.formats.reading import Named, choice, names, reject
from analytic.formats.scheme import Held, Method, Part, Preset, Rules, Scheme, ceil, divided

_SCALES = ("F32", "BF16", "F16")
_EXPONENTS = ("F8_E8M0", "U8", "F32", "BF16")


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
    joined: int = 1
    """Matrices that stacked experts have one above the other (gate and up): each has a scale at least."""

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
        """The elements and their scales; that of a whole linear layer is no power of two."""
        dtypes = _EXPONENTS if self.exponents and (self.tile or len(shape) > 2) else _SCALES
        return (
            Part(suffix="", dtypes=("F8_E4M3",), shape=shape),
            Part(suffix="_scale_inv", dtypes=dtypes, shape=self._scales(shape), cast=True),
        )

    def _scales(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        *stack, rows, columns = shape
        if self.tile is None:
            return (*stack, self.joined, 1) if stack else ()
        over, along = ceil(rows, self.tile[0]), ceil(columns, self.tile[1])
        return (*stack, max(over, self.joined) if stack else over, along)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp4Rows(Scheme):
    """Two elements a byte, ``weight_scale_inv`` with an entry for 32 of a row: experts with ``expert_dtype`` fp4."""

    marker = ""
    packed_dtypes = ("I8",)
    aliases = {"_scale": "_scale_inv"}  # noqa: RUF012  # a constant of the class

    exponents: bool

    @property
    def name(self) -> str:
        """``fp4-1x32``."""
        return f"fp4-1x32{'-ue8m0' if self.exponents else ''}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(…, out, in)."""
        *rows, width = held[""].shape
        return (*rows, width * 2)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The elements and their scales."""
        *rows, columns = shape
        dtypes = _EXPONENTS if self.exponents else _SCALES
        groups = divided("input", columns, 32, self.name)
        return (
            Part(suffix="", dtypes=("I8",), shape=(*rows, columns // 2)),
            Part(suffix="_scale_inv", dtypes=dtypes, shape=(*rows, groups), cast=True),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Rows(Scheme):
    """A byte an element; ``weight_scale`` [out, 1] (FBGEMM)."""

    marker = ""
    packed_dtypes = ("F8_E4M3",)

    stacked: Literal["gate_up_proj", "down_proj"] | None = None
    """Which of Llama 4's experts it is: [experts, in, out], with scales [experts, 1, out] or [experts, out, 1]."""

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
        *stack, rows, columns = shape
        over = {None: (rows, 1), "gate_up_proj": (1, columns), "down_proj": (columns, 1)}[self.stacked]
        return (
            Part(suffix="", dtypes=("F8_E4M3",), shape=shape),
            Part(suffix="_scale", dtypes=_SCALES, shape=(*stack, *over)),
        )


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of an fp8 config.

    Raises:
        UllageError: an element format, a tile, a scale format or experts that are not known.
    """
    if native.get("moe_quant_algo") is not None:
        reject("moe_quant_algo", native["moe_quant_algo"], why="experts of another format are not known")
    choice({"fmt": str(native.get("fmt", "e4m3")).lower()}, "fmt", {"e4m3": 1, "float8_e4m3fn": 1})
    usual = "ue8m0" if native.get("quant_method") == "mxfp8" else "float"
    exponents = choice(native, "scale_fmt", {"ue8m0": True, "float": False}, default=usual)
    fp4 = choice(native, "expert_dtype", {"fp8": None, "fp4": Fp4Rows(exponents=exponents)}, default="fp8")
    scheme, embeddings = Fp8(tile=_tile(native), exponents=exponents), names(native, "modules_to_convert")
    skipped = (*names(native, "modules_to_not_convert"), *names(native, "ignored_layers"))
    gates = (_ends((".experts.gate_up_proj",)), replace(scheme, joined=2))
    return Rules(
        default=scheme,
        overrides=(
            *([(Named(names=skipped), None)] if skipped else []),
            *([(_ends(embeddings), Fp8(tile=None))] if embeddings else []),
            gates if fp4 is None else (_is_expert, fp4),
        ),
    )


def _ends(suffixes: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda module: module.endswith(suffixes)


def _is_expert(module: str) -> bool:
    return ".experts." in module


def _tile(native: Mapping[str, Any]) -> tuple[int, int] | None:
    usual = [1, 32] if native.get("quant_method") == "mxfp8" else None if "activation_scheme" in native else [128, 128]
    tile = native.get("weight_block_size", usual)
    if tile is None:
        return None
    if not isinstance(tile, list | tuple) or len(tile) != 2 or not all(type(n) is int and n > 0 for n in tile):
        reject("weight_block_size", tile)
    return tile[0], tile[1]


def read_rows(native: Mapping[str, Any]) -> Rules:
    """The rules of an FBGEMM config; of experts, transformers packs Llama 4's."""
    kinds: tuple[Literal["gate_up_proj", "down_proj"], ...] = ("gate_up_proj", "down_proj")
    stacked = tuple((_ends((f".experts.{kind}",)), Fp8Rows(stacked=kind)) for kind in kinds)
    skipped = Named(names=names(native, "modules_to_not_convert"))
    return Rules(default=Fp8Rows(), overrides=((skipped, None), *stacked))


_BESIDE = r"\.([qkv]_scale|input_scale|input_scale_ub)$|[._]activation_scale$"

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

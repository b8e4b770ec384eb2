"""torchao: tensor subclasses, saved as their inner tensors (``quantization/quantize_/workflows`` 0.18)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from analytic.formats.reading import Named, choice, names, reject, whole
from analytic.formats.scheme import FLOATS, LINEAR, Held, Method, Part, Preset, Rules, Scheme, ceil, divided


@dataclass(frozen=True, kw_only=True, slots=True)
class Bytes(Scheme):
    """``Int8Tensor``, ``Float8Tensor``, ``IntxUnpackedToInt8Tensor``: a byte an element, scales a row or a group."""

    marker = "._weight_qdata"
    packed_dtypes = ("I8", "F8_E4M3")

    kind: Literal["int8", "float8", "intx"]
    group_size: int | None = None
    """Columns that share a scale; None for the row."""

    @property
    def name(self) -> str:
        """``torchao-int8``, ``torchao-float8``."""
        return f"torchao-{self.kind}" + (f"-g{self.group_size}" if self.group_size else "")

    @property
    def weight_bits(self) -> int:
        """As stored: narrower integers are not packed."""
        return 8

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """As stored."""
        return held[self.marker].shape

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Elements and scales; integers have zero points as well."""
        *rows, columns = shape
        groups = divided("input", columns, self.group_size, self.name) if self.group_size else 1
        is_float, beside = self.kind == "float8", (*rows, groups)
        scales = FLOATS if self.kind == "intx" else ("F32", "BF16", "F16")
        return (
            Part(suffix="._weight_qdata", dtypes=("F8_E4M3",) if is_float else ("I8",), shape=shape),
            Part(suffix="._weight_scale", dtypes=scales, shape=beside),
            *(
                ()
                if is_float
                else (Part(suffix="._weight_zero_point", dtypes=("I8",), shape=beside, presence="usual"),)
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Int4(Scheme):
    """``Int4Tensor`` (plain packing): two elements a byte, scales and zero points [groups, out]."""

    marker = "._weight_qdata"
    packed_dtypes = ("I8", "U8")

    group_size: int

    @property
    def name(self) -> str:
        """``torchao-int4-g128``."""
        return f"torchao-int4-g{self.group_size}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(out, in)."""
        *rows, width = held[self.marker].shape
        return (*rows, width * 2)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Packed elements, scales and zero points."""
        *stack, rows, columns = shape
        beside = (*stack, divided("input", columns, self.group_size, self.name), rows)
        return (
            Part(suffix="._weight_qdata", dtypes=("I8", "U8"), shape=(*stack, rows, columns // 2)),
            Part(suffix="._weight_scale", dtypes=FLOATS, shape=beside),
            Part(suffix="._weight_zero_point", dtypes=FLOATS, shape=beside),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Int4Tiles(Scheme):
    """``Int4TilePackedTo4dTensor``: padded to 1,024 columns and a tile of rows; scale and zero point in pairs."""

    marker = "._weight_qdata"
    packed_dtypes = ("I32",)
    packed_rank = 4

    group_size: int
    tile: int = 8

    @property
    def name(self) -> str:
        """``torchao-int4-tiles-g128``."""
        return f"torchao-int4-tiles-g{self.group_size}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(out, in), both as padded."""
        *stack, rows, columns, _, _ = held[self.marker].shape
        return (*stack, rows * self.tile, columns * 128)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """32-bit words of tiles, and pairs."""
        *stack, rows, columns = shape
        rows, columns = self.tile * ceil(rows, self.tile), 1024 * ceil(columns, 1024)
        tiles = (*stack, rows // self.tile, columns // 128, 32, 4)
        pairs = (*stack, columns // self.group_size, rows, 2)
        return (
            Part(suffix="._weight_qdata", dtypes=("I32",), shape=tiles),
            Part(suffix="._weight_scale_and_zero", dtypes=("BF16", "F16", "F32"), shape=pairs),
        )


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of a torchao config as transformers writes it: one configuration for every linear layer.

    Raises:
        UllageError: a configuration or a packing that is not known, or one by module.
    """
    kind = native.get("quant_type")
    own = kind.get("default") if isinstance(kind, Mapping) else None
    if not isinstance(kind, Mapping) or set(kind) != {"default"} or not isinstance(own, Mapping):
        reject("quant_type", kind, why="known: one configuration as default")
    data = own.get("_data")
    make = choice(own, "_type", _CONFIGS)
    skipped = Named(names=names(native, "modules_to_not_convert"))
    return Rules(default=make(data if isinstance(data, Mapping) else {}), overrides=((skipped, None),), strict=False)


def _word(data: Mapping[str, Any], key: str) -> object:
    value = data.get(key)
    return value.get("_data") if isinstance(value, Mapping) else value


def _columns(data: Mapping[str, Any], key: str) -> int | None:
    """Columns that share a scale, by a granularity; None for a row."""
    granularity = data.get(key)
    kind = granularity.get("_type") if isinstance(granularity, Mapping) else None
    inner = granularity.get("_data") if isinstance(granularity, Mapping) else None
    if kind == "PerGroup" and isinstance(inner, Mapping):
        return whole(inner, "group_size", among=range(1, 65_536))
    if data.get("group_size") is not None and granularity is None:
        return whole(data, "group_size", among=range(1, 65_536))
    if kind not in (None, "PerRow", "PerAxis"):
        reject(key, kind, why="known: PerRow, PerAxis, PerGroup")
    return None


def _int4(data: Mapping[str, Any]) -> Scheme:
    group = whole(data, "group_size", among=(32, 64, 128, 256), default=128)
    packing = choice({"packing": _word(data, "int4_packing_format") or "plain"}, "packing", _PACKINGS)
    scheme: Scheme = packing(group, data)
    return scheme


_PACKINGS: Mapping[str, Callable[[int, Mapping[str, Any]], Scheme]] = {
    **dict.fromkeys(("plain", "PLAIN"), lambda group, _: Int4(group_size=group)),
    **dict.fromkeys(
        ("tile_packed_to_4d", "TILE_PACKED_TO_4D"),
        lambda group, data: Int4Tiles(
            group_size=group, tile=whole(data, "int4_tile_packed_ntile", among=(8, 16), default=8)
        ),
    ),
}


def _intx(key: str) -> Callable[[Mapping[str, Any]], Scheme]:
    return lambda data: Bytes(kind="intx", group_size=_columns(data, key))


_CONFIGS: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "Int8WeightOnlyConfig": lambda data: Bytes(kind="int8", group_size=_columns(data, "granularity")),
    "Int8DynamicActivationInt8WeightConfig": lambda data: Bytes(kind="int8"),
    "Float8WeightOnlyConfig": lambda data: Bytes(kind="float8"),
    "Float8DynamicActivationFloat8WeightConfig": lambda data: Bytes(kind="float8"),
    "Int4WeightOnlyConfig": _int4,
    "IntxWeightOnlyConfig": _intx("granularity"),
    "Int8DynamicActivationIntxWeightConfig": _intx("weight_granularity"),
}

_SOURCE = "torchao 0.18 through transformers' TorchAoConfig: nn.Linear layers, without fused experts"
_LINEAR = frozenset({LINEAR})

METHOD = Method(
    names=("torchao",),
    read=read,
    presets=(
        Preset(name="torchao-int8", scheme=Bytes(kind="int8"), takes=_LINEAR, beforehand=False, source=_SOURCE),
        Preset(name="torchao-float8", scheme=Bytes(kind="float8"), takes=_LINEAR, beforehand=False, source=_SOURCE),
        Preset(name="torchao-int4", scheme=Int4(group_size=128), takes=_LINEAR, beforehand=False, source=_SOURCE),
    ),
)

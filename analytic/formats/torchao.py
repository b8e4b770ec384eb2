"""torchao: tensor subclasses, saved as their inner tensors (``quantization/quantize_/workflows`` 0.18)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from analytic.formats.reading import Named, choice, expression, names, reject, whole
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
class Int4Words(Scheme):
    """``Int4PlainInt32Tensor`` (XPU, Ascend): 8 elements in 32 bits, scales and zero points [groups, out]."""

    marker = "._weight_qdata"
    packed_dtypes = ("I32",)

    group_size: int

    @property
    def name(self) -> str:
        """``torchao-int4-words-g128``."""
        return f"torchao-int4-words-g{self.group_size}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(out, in)."""
        *rows, words = held[self.marker].shape
        return (*rows, words * 8)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Packed elements, scales and zero points."""
        *stack, rows, columns = shape
        beside = (*stack, divided("input", columns, self.group_size, self.name), rows)
        words = divided("input", columns, 8, self.name)
        return (
            Part(suffix="._weight_qdata", dtypes=("I32",), shape=(*stack, rows, words)),
            Part(suffix="._weight_scale", dtypes=("BF16", "F16"), shape=beside),
            Part(suffix="._weight_zero_point", dtypes=("I8",), shape=beside),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Int4Tiles(Scheme):
    """``Int4TilePackedTo4dTensor``: padded to 1,024 columns and ``tile`` rows; scale and zero point in pairs."""

    marker = "._weight_qdata"
    packed_dtypes = ("I32",)
    packed_rank = 4

    group_size: int
    tile: int = 8
    """Rows that are padded to; AMD's GPUs have 16, but store tiles of 8 as well (``aten/native/cuda/int4mm.cu``)."""

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
        return (*stack, rows * 8, columns * 128)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """32-bit words of tiles, and pairs."""
        *stack, rows, columns = shape
        rows, columns = self.tile * ceil(rows, self.tile), 1024 * ceil(columns, 1024)
        tiles = (*stack, rows // 8, columns // 128, 32, 4)
        pairs = (*stack, columns // self.group_size, rows, 2)
        return (
            Part(suffix="._weight_qdata", dtypes=("I32",), shape=tiles),
            Part(suffix="._weight_scale_and_zero", dtypes=("BF16",), shape=pairs),
        )


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of a torchao config as transformers writes it: one configuration, or one by module.

    Raises:
        UllageError: a configuration, a version or a packing that is not known.
    """
    kind = native.get("quant_type")
    own = kind.get("default") if isinstance(kind, Mapping) else None
    if not isinstance(kind, Mapping) or set(kind) != {"default"} or not isinstance(own, Mapping):
        reject("quant_type", kind, why="known: one configuration as default")
    skipped = (Named(names=names(native, "modules_to_not_convert")), None)
    if own.get("_type") not in ("FqnToConfig", "ModuleFqnToConfig"):
        return Rules(default=_scheme(own), overrides=(skipped,), strict=False)
    data = _data(own)
    named = data.get("fqn_to_config") or data.get("module_fqn_to_config")
    if not isinstance(named, Mapping):
        reject("fqn_to_config", named)
    default = None if named.get("_default") is None else _scheme(named["_default"])
    exact = [_override(str(name), one) for name, one in named.items() if not str(name).startswith("re:")]
    alike = [_override(str(name), one) for name, one in named.items() if str(name).startswith("re:")]
    return Rules(default=default, overrides=(*exact, *alike, skipped), strict=False)


def _override(name: str, own: object) -> tuple[Callable[[str], bool], Scheme | None]:
    """What ``FqnToConfig`` gives to a module, by the name of it or of its weight."""
    scheme = None if own is None else _scheme(own)
    if not name.startswith("re:"):
        return (lambda module: name in (module, f"{module}.weight")), scheme
    compiled = expression(name[3:])
    return (lambda module: any(compiled.fullmatch(known) for known in (f"{module}.weight", module))), scheme


def _scheme(own: object) -> Scheme:
    if not isinstance(own, Mapping):
        reject("quant_type", own)
    make: Callable[[Mapping[str, Any]], Scheme] = choice(own, "_type", _CONFIGS)
    if own["_type"] in _SECOND and own.get("_version") == 1:
        reject("_version", 1, why=f"tensors of {own['_type']} of version 1 are not known, those of version 2 are")
    return make(_data(own))


def _data(own: Mapping[str, Any]) -> Mapping[str, Any]:
    data = own.get("_data")
    return data if isinstance(data, Mapping) else {}


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


def _packing(data: Mapping[str, Any], key: str, among: Mapping[str, Any], usual: str) -> Any:
    """What a packing means; ``preshuffled`` and ``opaque_`` tensors cannot be written to safetensors."""
    said = _word(data, key) or usual
    return choice({key: said.lower() if isinstance(said, str) else said}, key, among)


def _int4(data: Mapping[str, Any]) -> Scheme:
    group = whole(data, "group_size", among=(32, 64, 128, 256), default=128)
    scheme: Scheme = _packing(data, "int4_packing_format", _PACKINGS, "plain")(group, data)
    return scheme


def _int4_float8(data: Mapping[str, Any]) -> Scheme:
    _packing(data, "int4_packing_format", {"plain": 1}, "preshuffled")
    return Int4(group_size=128)


_PACKINGS: Mapping[str, Callable[[int, Mapping[str, Any]], Scheme]] = {
    "plain": lambda group, _: Int4(group_size=group),
    "plain_int32": lambda group, _: Int4Words(group_size=group),
    "tile_packed_to_4d": lambda group, data: Int4Tiles(
        group_size=group, tile=whole(data, "int4_tile_packed_ntile", among=(8, 16), default=8)
    ),
}


def _intx(key: str) -> Callable[[Mapping[str, Any]], Scheme]:
    def make(data: Mapping[str, Any]) -> Scheme:
        _packing(data, "intx_packing_format", {"unpacked_to_int8": 1}, "unpacked_to_int8")
        return Bytes(kind="intx", group_size=_columns(data, key))

    return make


_CONFIGS: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "Int8WeightOnlyConfig": lambda data: Bytes(kind="int8", group_size=_columns(data, "granularity")),
    "Int8DynamicActivationInt8WeightConfig": lambda data: Bytes(kind="int8"),
    "Float8WeightOnlyConfig": lambda data: Bytes(kind="float8"),
    "Float8DynamicActivationFloat8WeightConfig": lambda data: Bytes(kind="float8"),
    "Int4WeightOnlyConfig": _int4,
    "Float8DynamicActivationInt4WeightConfig": _int4_float8,
    "IntxWeightOnlyConfig": _intx("granularity"),
    "Int8DynamicActivationIntxWeightConfig": _intx("weight_granularity"),
}

_SECOND = ("Int4WeightOnlyConfig", "IntxWeightOnlyConfig", "Int8DynamicActivationIntxWeightConfig")
"""Configurations whose tensors were others in version 1, which torchao 0.18 cannot load."""

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

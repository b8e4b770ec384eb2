"""compressed-tensors: one scheme a group of modules, after ``compressed_tensors/compressors`` 0.20.

What the ``format`` of a group says is how its weights are packed; the arguments say how large the groups are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from analytic.formats.reading import Named, choice, names, reject, whole
from analytic.formats.scheme import FLOATS, Held, Method, Part, Preset, Rules, Scheme, Serving, ceil, divided

Strategy = Literal["tensor", "channel", "group", "block"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scales:
    """How many scales a matrix has."""

    strategy: Strategy
    group_size: int = 0
    """Columns that share a scale."""
    block: tuple[int, int] = (128, 128)
    """Rows and columns that share one."""

    def shape(self, shape: tuple[int, ...], name: str) -> tuple[int, ...]:
        """Of the tensor of scales of a matrix of (…, rows, columns)."""
        *stack, rows, columns = shape
        return {
            "tensor": lambda: (*stack, 1),
            "channel": lambda: (*stack, rows, 1),
            "group": lambda: (*stack, rows, divided("input", columns, self.group_size, name)),
            "block": lambda: (*stack, ceil(rows, self.block[0]), ceil(columns, self.block[1])),
        }[self.strategy]()

    @property
    def label(self) -> str:
        """In a format's name."""
        if self.strategy == "block":
            return f"-{self.block[0]}x{self.block[1]}"
        return f"-g{self.group_size}" if self.strategy == "group" else f"-{self.strategy}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedIntegers(Scheme):
    """``pack-quantized``: ``weight_packed`` int32 [out, in · bits / 32], ``weight_scale``, ``weight_shape`` [2]."""

    marker = ".weight_packed"
    packed_dtypes = ("I32",)

    bits: int
    scales: Scales
    symmetric: bool = True
    ordered: bool = False
    """Whether ``weight_g_idx`` [in] names the group of each input channel."""

    @property
    def name(self) -> str:
        """``ct-int4-g128``."""
        return f"ct-int{self.bits}{self.scales.label}{'' if self.symmetric else '-asym'}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return self.bits

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(out, in): from the scales where they are by group, else as many columns as the words can hold."""
        *stack, rows, words = held[self.marker].shape
        scale = held.get(".weight_scale")
        if self.scales.strategy == "group" and scale is not None:
            return (*stack, rows, scale.shape[-1] * self.scales.group_size)
        return (*stack, rows, words * 32 // self.bits)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Packed integers, scales, shape; zero points packed along the output; groups of ordered channels."""
        *stack, rows, columns = shape
        scales = self.scales.shape(shape, self.name)
        packed = Part(suffix=".weight_packed", dtypes=("I32",), shape=(*stack, rows, ceil(columns * self.bits, 32)))
        zeros = (*stack, ceil(rows * self.bits, 32), scales[-1]) if len(scales) > 1 else scales
        return (
            packed,
            Part(suffix=".weight_scale", dtypes=FLOATS, shape=scales),
            Part(suffix=".weight_shape", dtypes=("I64", "I32"), shape=(2,)),
            Part(
                suffix=".weight_zero_point",
                dtypes=("I32", "I8"),
                shape=zeros,
                presence="rare" if self.symmetric else "always",
            ),
            Part(
                suffix=".weight_g_idx",
                dtypes=("I32", "I64"),
                shape=(columns,),
                presence="always" if self.ordered else "rare",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Elements(Scheme):
    """``int-quantized``, ``float-quantized``: ``weight`` [out, in] of a byte an element, ``weight_scale`` beside it."""

    marker = ".weight"
    packed_dtypes = ("I8", "F8_E4M3")

    kind: Literal["int", "fp", "mxfp"]
    scales: Scales
    symmetric: bool = True
    bits: int = 8
    """Of an integer; narrower ones take a byte all the same."""

    @property
    def name(self) -> str:
        """``ct-int8-channel``, ``ct-fp8-tensor``, ``ct-int4-g128-unpacked``."""
        if self.kind == "mxfp":
            return "ct-mxfp8"
        unpacked = "" if self.bits == 8 else "-unpacked"
        return f"ct-{self.kind}{self.bits}{self.scales.label}{'' if self.symmetric else '-asym'}{unpacked}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 8

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """As stored."""
        return held[self.marker].shape

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The elements, scales and zero points."""
        dtypes = ("I8",) if self.kind == "int" else ("F8_E4M3",)
        scale_dtypes = ("U8", "F8_E8M0") if self.kind == "mxfp" else FLOATS
        scales = self.scales.shape(shape, self.name)
        return (
            Part(suffix=".weight", dtypes=dtypes, shape=shape),
            Part(suffix=".weight_scale", dtypes=scale_dtypes, shape=scales),
            Part(
                suffix=".weight_zero_point",
                dtypes=dtypes,
                shape=scales,
                presence="rare" if self.symmetric else "always",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Microscaled(Scheme):
    """``nvfp4-pack-quantized`` and its like: floats of 4 or 6 bits in bytes, with a scale of a byte a group."""

    marker = ".weight_packed"
    packed_dtypes = ("U8",)

    kind: Literal["nvfp4", "mxfp4", "mxfp6"]

    @property
    def name(self) -> str:
        """``ct-nvfp4``."""
        return f"ct-{self.kind}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 6 if self.kind == "mxfp6" else 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(out, in)."""
        *stack, rows, width = held[self.marker].shape
        return (*stack, rows, width * 8 // self.weight_bits)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Packed floats and their scales; NVIDIA's have a scale of the whole matrix as well."""
        *stack, rows, columns = shape
        is_nvidia = self.kind == "nvfp4"
        groups = divided("input", columns, 16 if is_nvidia else 32, self.name)
        scale_dtypes = ("F8_E4M3",) if is_nvidia else ("U8", "F8_E8M0")
        packed = (*stack, rows, columns * self.weight_bits // 8)
        whole_matrix = Part(suffix=".weight_global_scale", dtypes=("F32",), shape=(*stack, 1))
        return (
            Part(suffix=".weight_packed", dtypes=("U8",), shape=packed),
            Part(suffix=".weight_scale", dtypes=scale_dtypes, shape=(*stack, rows, groups)),
            *((whole_matrix,) if is_nvidia else ()),
        )


MXFP8 = Elements(kind="mxfp", scales=Scales(strategy="group", group_size=32))


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of a compressed-tensors config: its groups by their targets, less what it ignores.

    Raises:
        UllageError: a format, a type or a strategy that is not known, or sparse weights.
    """
    groups = native.get("config_groups")
    if not isinstance(groups, Mapping) or not groups or not all(isinstance(row, Mapping) for row in groups.values()):
        reject("config_groups", groups)
    sparsity = native.get("sparsity_config") or {}
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        reject("sparsity_config", sparsity.get("format"), why="sparse weights are not known to ullage")
    ignored = Named(names=names(native, "ignore"))
    overrides: list[tuple[Callable[[str], bool], Scheme | None]] = [(ignored, None)]
    default: Scheme | None = None
    for row in groups.values():
        scheme = _scheme(row, row.get("format") or native.get("format"))
        targets = names(row, "targets")
        if any(_is_class(target) for target in targets):
            default = scheme
        overrides.append((Named(names=tuple(t for t in targets if not _is_class(t))), scheme))
    return Rules(default=default, overrides=tuple(overrides))


def _is_class(target: str) -> bool:
    """Whether a target is the class of a module (``Linear``), not its name."""
    return target[:1].isupper() and "." not in target


def _scheme(row: Mapping[str, Any], written: object) -> Scheme | None:
    arguments = row.get("weights")
    if arguments is None:
        return None
    if not isinstance(arguments, Mapping):
        reject("weights", arguments)
    kind, bits = arguments.get("type", "int"), whole(arguments, "num_bits", among=range(1, 9))
    make = choice({"format": written or _usual(kind, bits, arguments)}, "format", _FORMATS)
    scheme: Scheme = make(str(kind), bits, arguments)
    return scheme


def _usual(kind: object, bits: int, arguments: Mapping[str, Any]) -> str:
    """The format where a config names none (``compressors/format.py``, _infer_module_format)."""
    if kind == "int":
        return "int-quantized" if bits == 8 else "pack-quantized"
    if bits == 4:
        return "nvfp4-pack-quantized" if arguments.get("group_size") == 16 else "mxfp4-pack-quantized"
    return "float-quantized"


def _scales(arguments: Mapping[str, Any]) -> Scales:
    group = arguments.get("group_size")
    usual = "tensor" if group is None else "channel" if group == -1 else "group"
    known = {"tensor": "tensor", "channel": "channel", "group": "group", "block": "block"}
    strategy = choice({"strategy": arguments.get("strategy") or usual}, "strategy", known)
    size = whole(arguments, "group_size", among=range(1, 65_536)) if strategy == "group" else 0
    block = arguments.get("block_structure") or (128, 128)
    if strategy == "block" and (
        not isinstance(block, list | tuple) or len(block) != 2 or not all(map(_is_size, block))
    ):
        reject("block_structure", block)
    return Scales(strategy=strategy, group_size=size, block=(block[0], block[1]) if strategy == "block" else (128, 128))


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _symmetric(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("symmetric", True) is not False


def _packed(kind: str, bits: int, arguments: Mapping[str, Any]) -> Scheme:
    if kind != "int":
        reject("type", kind, why="pack-quantized holds integers")
    ordered = arguments.get("actorder") in ("group", True)
    return PackedIntegers(bits=bits, scales=_scales(arguments), symmetric=_symmetric(arguments), ordered=ordered)


def _elements(kind: str, bits: int, arguments: Mapping[str, Any]) -> Scheme:
    if kind not in ("int", "float") or (kind == "float" and bits != 8):
        reject("type", f"{kind}, {bits} bits", why="a byte an element holds integers, or floats of 8 bits")
    return Elements(
        kind="int" if kind == "int" else "fp", bits=bits, scales=_scales(arguments), symmetric=_symmetric(arguments)
    )


_FORMATS: Mapping[str, Callable[[str, int, Mapping[str, Any]], Scheme]] = {
    "pack-quantized": _packed,
    "int-quantized": _elements,
    "float-quantized": _elements,
    "naive-quantized": _elements,
    "nvfp4-pack-quantized": lambda *_: Microscaled(kind="nvfp4"),
    "mxfp4-pack-quantized": lambda *_: Microscaled(kind="mxfp4"),
    "mxfp6-pack-quantized": lambda *_: Microscaled(kind="mxfp6"),
    "mxfp8-quantized": lambda *_: MXFP8,
}

_DENSE = "transformers decompresses compressed-tensors at the first forward pass: the weights are served in 16 bits"


def _preset(name: str, scheme: Scheme) -> Preset:
    return Preset(
        name=name, scheme=scheme, source="compressed-tensors 0.20 quantization/quant_scheme.py, PRESET_SCHEMES"
    )


_G128, _CHANNEL = Scales(strategy="group", group_size=128), Scales(strategy="channel")

METHOD = Method(
    names=("compressed-tensors",),
    read=read,
    dequantizes=True,
    presets=(
        _preset("w4a16", PackedIntegers(bits=4, scales=_G128)),
        _preset("w4a16-asym", PackedIntegers(bits=4, scales=_G128, symmetric=False)),
        _preset("w8a16", PackedIntegers(bits=8, scales=_G128)),
        _preset("w8a8", Elements(kind="int", scales=_CHANNEL)),
        _preset("fp8-dynamic", Elements(kind="fp", scales=_CHANNEL)),
        _preset("mxfp8", MXFP8),
    ),
    transformers=Serving(
        decompresses=True,
        keeps=(".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx", ".weight_global_scale"),
        widens=(".weight_scale",),
        note=_DENSE,
    ),
    beside=r"\.(input|output|[qkv])_(scale|zero_point|global_scale)$",
)

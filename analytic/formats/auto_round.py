"""AutoRound: what other formats pack, by ``packing_format`` and ``data_type``; ``extra_config`` overrides modules.

Layout: auto-round 0.16 ``export/export_to_autoround``; which scheme a module has, ``inference/convert_model.py``.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from analytic.formats.awq import Awq
from analytic.formats.compressed_tensors import MXFP8, Microscaled
from analytic.formats.gptq import BITS, GROUPS, Gptq
from analytic.formats.mlx import Mlx
from analytic.formats.reading import choice, expression, reject, whole
from analytic.formats.scheme import FLOATS, Held, Method, Part, Rules, Scheme, ceil, divided


@dataclass(frozen=True, kw_only=True, slots=True)
class Nibbles(Scheme):
    """``weight_packed`` [out, in / 2] of bytes, ``weight_scale`` [out, in / group] of a byte each."""

    marker = ".weight_packed"
    packed_dtypes = ("U8",)

    kind: Literal["mxint4", "nvfp4-e5m3"]
    group_size: int

    @property
    def name(self) -> str:
        """``auto-round-mxint4``."""
        return f"auto-round-{self.kind}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(out, in)."""
        *rows, width = held[self.marker].shape
        return (*rows, width * 2)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Elements and scales."""
        *rows, columns = shape
        groups = divided("input", columns, self.group_size, self.name)
        return (
            Part(suffix=".weight_packed", dtypes=("U8",), shape=(*rows, columns // 2)),
            Part(suffix=".weight_scale", dtypes=("U8",), shape=(*rows, groups)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Float8(Scheme):
    """``weight`` of a byte an element; ``weight_scale`` [1] or [out], or ``weight_scale_inv`` with an entry a tile."""

    marker = ".weight"
    packed_dtypes = ("F8_E4M3",)

    scales: Literal["tensor", "row"] | tuple[int, int]
    """What shares a scale; a tile is of (rows, columns)."""

    @property
    def name(self) -> str:
        """``auto-round-fp8-row``, ``auto-round-fp8-128x128``."""
        label = self.scales if isinstance(self.scales, str) else f"{self.scales[0]}x{self.scales[1]}"
        return f"auto-round-fp8-{label}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 8

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """As stored."""
        return held[self.marker].shape

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The elements and their scales, in the dtype of the model."""
        return (Part(suffix=".weight", dtypes=("F8_E4M3",), shape=shape), self._beside(*shape[-2:]))

    def _beside(self, rows: int, columns: int) -> Part:
        if isinstance(self.scales, str):
            entries = rows if self.scales == "row" else 1
            return Part(suffix=".weight_scale", dtypes=FLOATS, shape=(entries,))
        tiles = (ceil(rows, self.scales[0]), ceil(columns, self.scales[1]))
        return Part(suffix=".weight_scale_inv", dtypes=FLOATS, shape=tiles)


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of an AutoRound config.

    Raises:
        UllageError: a data type, a packing, a width or a group size that is not known.
    """
    extra = native.get("extra_config") or {}
    if not isinstance(extra, Mapping) or not all(isinstance(own, Mapping) for own in extra.values()):
        reject("extra_config", extra)
    named = [(_is(str(name)), _scheme({**native, **own})) for name, own in extra.items()]
    alike = [(_is_like(name), _scheme({**native, **own})) for name, own in extra.items() if _PATTERN.search(str(name))]
    return Rules(default=_scheme(native), overrides=(*named, *alike), strict=False)


_PATTERN = re.compile(r"[*+?^$|()\[\]{}\\]")
"""What tells a regular expression from the name of a module."""


def _is(name: str) -> Callable[[str], bool]:
    return lambda module: module == name


def _is_like(pattern: str) -> Callable[[str], bool]:
    compiled = expression(pattern)
    return lambda module: compiled.search(module) is not None


def _scheme(native: Mapping[str, Any]) -> Scheme | None:
    if native.get("bits") in (16, 32):
        return None
    make: Callable[[Mapping[str, Any]], Scheme] = choice(native, "data_type", _TYPES, default="int")
    return make(native)


def _integers(native: Mapping[str, Any]) -> Scheme:
    make: Callable[[Mapping[str, Any]], Scheme] = choice(native, "packing_format", _PACKINGS, default="auto_round")
    return make(native)


def _gptq(native: Mapping[str, Any]) -> Scheme:
    return Gptq(bits=whole(native, "bits", among=BITS), group_size=whole(native, "group_size", among=GROUPS))


def _awq(native: Mapping[str, Any]) -> Scheme:
    whole(native, "bits", among=(4,))
    return Awq(group_size=whole(native, "group_size", among=GROUPS))


def _mlx(native: Mapping[str, Any]) -> Scheme:
    bits, group = whole(native, "bits", among=(2, 3, 4, 5, 6, 8)), whole(native, "group_size", among=(32, 64, 128))
    return Mlx(bits=bits, group_size=group)


def _microscaled(native: Mapping[str, Any]) -> Scheme:
    whole(native, "group_size", among=(32,))
    return Microscaled(kind="mxfp4") if whole(native, "bits", among=(4, 8)) == 4 else MXFP8


def _grouped(scheme: Scheme, group: int) -> Callable[[Mapping[str, Any]], Scheme]:
    def make(native: Mapping[str, Any]) -> Scheme:
        whole(native, "bits", among=(4,))
        whole(native, "group_size", among=(group,))
        return scheme

    return make


def _float8(native: Mapping[str, Any]) -> Scheme:
    whole(native, "bits", among=(8,))
    choice(native, "fmt", {"e4m3": 1}, default="e4m3")
    tile = native.get("group_size")
    if isinstance(tile, list) and len(tile) == 2 and all(type(n) is int and n > 0 for n in tile):
        return Float8(scales=(tile[0], tile[1]))
    return Float8(scales="tensor" if whole(native, "group_size", among=(0, -1)) == 0 else "row")


_PACKINGS: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = {
    **dict.fromkeys(("auto_round", "auto_round:gptq", "auto_round:auto_gptq", "auto_round:gptqmodel"), _gptq),
    **dict.fromkeys(("auto_gptq",), _gptq),
    **dict.fromkeys(("auto_round:awq", "auto_round:auto_awq", "auto_awq"), _awq),
    **dict.fromkeys(("mlx", "auto_round:mlx"), _mlx),
}

_TYPES: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "int": _integers,
    **dict.fromkeys(("mx_fp", "mx_fp_rceil"), _microscaled),
    "mx_int": _grouped(Nibbles(kind="mxint4", group_size=32), 32),
    "nv_fp": _grouped(Microscaled(kind="nvfp4"), 16),
    "nvfp4_v2": _grouped(Nibbles(kind="nvfp4-e5m3", group_size=16), 16),
    "fp": _float8,
}

METHOD = Method(names=("auto-round",), read=read, beside=r"\.(input_scale|input_global_scale)$")

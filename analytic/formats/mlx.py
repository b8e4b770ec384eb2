"""MLX: unsigned 32-bit words along the input, with scales and biases a group (``mlx.core.quantize``)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from analytic.formats.reading import choice, reject, whole
from analytic.formats.scheme import (
    EMBEDDING,
    EXPERT,
    LINEAR,
    Held,
    Method,
    Part,
    Preset,
    Rules,
    Scheme,
    Serving,
    divided,
)

BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlx(Scheme):
    """``weight`` uint32 [out, in · bits / 32], ``scales`` and (``affine``) ``biases`` [out, in / group]."""

    marker = ".weight"
    packed_dtypes = ("U32",)

    bits: int
    group_size: int
    mode: Literal["affine", "mxfp4", "mxfp8", "nvfp4"] = "affine"

    @property
    def name(self) -> str:
        """``mlx-int4-g64``, ``mlx-mxfp4``."""
        return f"mlx-int{self.bits}-g{self.group_size}" if self.mode == "affine" else f"mlx-{self.mode}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return self.bits

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(…, out, in)."""
        *rows, words = held[self.marker].shape
        return (*rows, words * 32 // self.bits)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Words and scales, and biases where integers are not centred."""
        *rows, columns = shape
        groups = divided("input", columns, self.group_size, self.name)
        words = divided("input", columns * self.bits, 32, self.name)
        affine = self.mode == "affine"
        floats = ("BF16", "F16", "F32")
        scales = Part(suffix=".scales", dtypes=floats if affine else ("U8",), shape=(*rows, groups))
        return (
            Part(suffix=".weight", dtypes=("U32",), shape=(*rows, words)),
            scales,
            *((Part(suffix=".biases", dtypes=floats, shape=(*rows, groups)),) if affine else ()),
        )


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of an MLX config: one scheme, and what single modules have instead (``false``: nothing).

    Raises:
        UllageError: a width, a group size or a mode that is not known.
    """
    overrides = [
        _override(module, own, native) for module, own in native.items() if isinstance(own, Mapping) or own is False
    ]
    return Rules(default=_scheme(native), overrides=tuple(overrides))


def _override(module: str, own: object, native: Mapping[str, Any]) -> tuple[Callable[[str], bool], Mlx | None]:
    scheme = _scheme({**native, **own}) if isinstance(own, Mapping) else None
    return (lambda name: name == module), scheme


def _scheme(native: Mapping[str, Any]) -> Mlx:
    mode = choice(native, "mode", {m: m for m in ("affine", "mxfp4", "mxfp8", "nvfp4")}, default="affine")
    bits, group = whole(native, "bits", among=BITS), whole(native, "group_size", among=(16, 32, 64, 128))
    if mode != "affine" and (bits, group) != _OF_MODE[mode]:
        reject("mode", mode, why=f"it has {_OF_MODE[mode][0]} bits and groups of {_OF_MODE[mode][1]}")
    return Mlx(bits=bits, group_size=group, mode=mode)


_OF_MODE = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}

_ALL = frozenset({LINEAR, EXPERT, EMBEDDING})
_SOURCE = "mlx-lm convert -q (utils.py, quantize_model): all that mlx.nn can quantise, the embedding too"

METHOD = Method(
    names=("mlx",),
    read=read,
    presets=(
        Preset(name="mlx-int4", scheme=Mlx(bits=4, group_size=64), takes=_ALL, source=_SOURCE),
        Preset(name="mlx-int8", scheme=Mlx(bits=8, group_size=64), takes=_ALL, source=_SOURCE),
    ),
    transformers=Serving(note="transformers does not load MLX checkpoints: counted as stored"),
)

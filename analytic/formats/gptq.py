"""GPTQ: integers packed along the input, with scales and zero points a group, and the group of each input channel.

Layout: GPTQModel 7 ``nn_modules/qlinear`` (``BaseQuantLinear``), the same as AutoGPTQ's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analytic.formats.reading import Named, choice, expression, flag, names, reject, whole
from analytic.formats.scheme import Held, Method, Part, Preset, Rules, Scheme, Serving, ceil, divided

BITS = (2, 3, 4, 5, 6, 7, 8)
GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)

_SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gptq(Scheme):
    """``qweight`` [in · bits / 32, out], ``qzeros`` [groups, out · bits / 32], ``scales`` [groups, out], ``g_idx``."""

    marker = ".qweight"
    packed_dtypes = ("I32",)

    bits: int
    group_size: int
    """Input channels that share a scale; -1 for all."""

    @property
    def name(self) -> str:
        """``gptq-int4-g128``, or ``gptq-int4`` with a scale a column."""
        return f"gptq-int{self.bits}" + (f"-g{self.group_size}" if self.group_size > 0 else "")

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return self.bits

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(out, in)."""
        packed, out = held[".qweight"].shape[-2:]
        return (*held[".qweight"].shape[:-2], out, packed * 32 // self.bits)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Four tensors; a checkpoint may leave ``g_idx`` out where channels are in order."""
        *stack, out, into = shape
        groups = ceil(into, self.group_size) if self.group_size > 0 else 1
        return (
            Part(
                suffix=".qweight",
                dtypes=("I32",),
                shape=(*stack, divided("input", into * self.bits, 32, self.name), out),
            ),
            Part(suffix=".qzeros", dtypes=("I32",), shape=(*stack, groups, ceil(out * self.bits, 32))),
            Part(suffix=".scales", dtypes=_SCALES, shape=(*stack, groups, out)),
            Part(suffix=".g_idx", dtypes=("I32",), shape=(*stack, into), presence="usual"),
        )


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of a GPTQ config, ``dynamic`` overrides by module included (GPTQModel ``QuantizeConfig.dynamic_get``).

    Raises:
        UllageError: a width, a group size, a packing or an override that is not known.
    """
    if native.get("pack_dtype", "int32") != "int32":
        reject("pack_dtype", native["pack_dtype"], why="known: int32")
    choice(native, "checkpoint_format", {"gptq": 1, "gptq_v2": 2}, default="gptq")
    flag(native, "desc_act", default=False)
    own = _scheme(native, {})
    dynamic = native.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        reject("dynamic", dynamic)
    overrides = [_override(str(pattern), changed, native) for pattern, changed in dynamic.items()]
    skipped = names(native, "modules_to_not_convert")
    return Rules(default=own, overrides=(*overrides, (Named(names=skipped), None)), strict=bool(skipped or dynamic))


def _scheme(native: Mapping[str, Any], changed: Mapping[str, Any]) -> Gptq:
    both = {**native, **changed}
    return Gptq(bits=whole(both, "bits", among=BITS), group_size=whole(both, "group_size", among=GROUPS, default=-1))


def _override(pattern: str, changed: object, native: Mapping[str, Any]) -> tuple[Callable[[str], bool], Gptq | None]:
    if not isinstance(changed, Mapping):
        reject("dynamic", changed)
    sign, bare = (pattern[0], pattern[2:]) if pattern[:2] in ("+:", "-:") else ("+", pattern)
    compiled = expression(bare)
    return (lambda module: compiled.match(module) is not None), None if sign == "-" else _scheme(native, changed)


_SOURCE = "GPTQModel 7 nn_modules/qlinear; every linear layer of the decoder, experts one by one"

_MARLIN = "once loaded, GPTQModel's Marlin kernels free the zero points (under 1 % of the weights): counted as stored"

METHOD = Method(
    names=("gptq",),
    read=read,
    transformers=Serving(note=_MARLIN),
    presets=(
        Preset(name="gptq-int4", aliases=("gptq",), scheme=Gptq(bits=4, group_size=128), source=_SOURCE),
        Preset(name="gptq-int8", scheme=Gptq(bits=8, group_size=128), source=_SOURCE),
    ),
)

"""AWQ: 4-bit integers packed along the output, with scales and zero points a group (AutoAWQ ``WQLinear_GEMM``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analytic.formats.reading import Named, choice, flag, names, whole
from analytic.formats.scheme import Held, Method, Part, Preset, Rules, Scheme, divided


@dataclass(frozen=True, kw_only=True, slots=True)
class Awq(Scheme):
    """``qweight`` [in, out / 8], ``qzeros`` [groups, out / 8], ``scales`` [groups, out]."""

    marker = ".qweight"
    packed_dtypes = ("I32",)

    group_size: int

    @property
    def name(self) -> str:
        """``awq-int4-g128``, or ``awq-int4`` with a scale a column."""
        return "awq-int4" + (f"-g{self.group_size}" if self.group_size > 0 else "")

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(out, in)."""
        *stack, into, packed = held[".qweight"].shape
        return (*stack, packed * 8, into)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Three tensors."""
        *stack, out, into = shape
        words = divided("output", out, 8, self.name)
        groups = divided("input", into, self.group_size if self.group_size > 0 else into, self.name)
        return (
            Part(suffix=".qweight", dtypes=("I32",), shape=(*stack, into, words)),
            Part(suffix=".qzeros", dtypes=("I32",), shape=(*stack, groups, words)),
            Part(suffix=".scales", dtypes=("F16", "BF16", "F32"), shape=(*stack, groups, out)),
        )


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of an AWQ config.

    Raises:
        UllageError: a width, a group size or a packing that is not known.
    """
    whole(native, "bits" if "bits" in native else "w_bit", among=(4,))
    key = "group_size" if "group_size" in native else "q_group_size"
    choice({"version": str(native.get("version", "gemm")).lower()}, "version", {"gemm": 1})
    flag(native, "zero_point", default=True)
    skipped = names(native, "modules_to_not_convert")
    scheme = Awq(group_size=whole(native, key, among=(-1, 16, 32, 64, 128, 256), default=128))
    return Rules(default=scheme, overrides=((Named(names=skipped), None),), strict=bool(skipped))


METHOD = Method(
    names=("awq",),
    read=read,
    presets=(
        Preset(
            name="awq-int4",
            aliases=("awq",),
            scheme=Awq(group_size=128),
            source="AutoAWQ 0.2.9 WQLinear_GEMM; every linear layer of the decoder, experts one by one",
        ),
    ),
)

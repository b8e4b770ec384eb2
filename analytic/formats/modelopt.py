"""NVIDIA ModelOpt: NVFP4 (16 elements a scale, two levels), FP8 per tensor, and AWQ on 4-bit integers.

Layout: ModelOpt ``torch/export/unified_export_hf.py``; vLLM ``quantization/modelopt.py`` reads the same names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analytic.formats.reading import Named, choice, names, whole
from analytic.formats.scheme import Held, Method, Part, Preset, Rules, Scheme, Serving, divided


@dataclass(frozen=True, kw_only=True, slots=True)
class Nvfp4(Scheme):
    """``weight`` [out, in / 2] of bytes, ``weight_scale`` [out, in / 16] in FP8, ``weight_scale_2`` for the matrix."""

    marker = ".weight"
    packed_dtypes = ("U8",)

    group_size: int = 16

    @property
    def name(self) -> str:
        """``nvfp4``."""
        return "nvfp4" if self.group_size == 16 else f"nvfp4-g{self.group_size}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(out, in)."""
        *rows, width = held[self.marker].shape
        return (*rows, width * 2)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Packed elements, scales of groups, a scale of the matrix, and that of its input where it was calibrated."""
        *rows, columns = shape
        groups = divided("input", columns, self.group_size, self.name)
        return (
            Part(suffix=".weight", dtypes=("U8",), shape=(*rows, columns // 2)),
            Part(suffix=".weight_scale", dtypes=("F8_E4M3",), shape=(*rows, groups)),
            Part(suffix=".weight_scale_2", dtypes=("F32",), shape=()),
            Part(suffix=".input_scale", dtypes=("F32",), shape=(), presence="usual"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Tensor(Scheme):
    """``weight`` of a byte an element, one ``weight_scale`` and one ``input_scale``."""

    marker = ".weight"
    packed_dtypes = ("F8_E4M3",)

    @property
    def name(self) -> str:
        """``fp8-tensor``."""
        return "modelopt-fp8"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 8

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """As stored."""
        return held[self.marker].shape

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The elements and two scales."""
        return (
            Part(suffix=".weight", dtypes=("F8_E4M3",), shape=shape),
            Part(suffix=".weight_scale", dtypes=("F32",), shape=()),
            Part(suffix=".input_scale", dtypes=("F32",), shape=(), presence="usual"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Int4Awq(Scheme):
    """``weight`` [out / 2, in] of bytes, ``weight_scale`` [out, in / group], ``pre_quant_scale`` [in]."""

    marker = ".weight"
    packed_dtypes = ("U8",)

    group_size: int

    @property
    def name(self) -> str:
        """``modelopt-int4-awq``."""
        return f"modelopt-int4-awq-g{self.group_size}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(out, in)."""
        *stack, half, columns = held[self.marker].shape
        return (*stack, half * 2, columns)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Packed integers, scales of groups, and what the input is multiplied with."""
        *stack, rows, columns = shape
        groups = divided("input", columns, self.group_size, self.name)
        halves = divided("output", rows, 2, self.name)
        return (
            Part(suffix=".weight", dtypes=("U8",), shape=(*stack, halves, columns)),
            Part(suffix=".weight_scale", dtypes=("F32", "BF16", "F16"), shape=(*stack, rows, groups)),
            Part(suffix=".pre_quant_scale", dtypes=("BF16", "F16", "F32"), shape=(columns,), presence="usual"),
        )


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of a ModelOpt config (``config.json``, or ``hf_quant_config.json`` in older checkpoints).

    Raises:
        UllageError: an algorithm that is not known, mixed precisions among them.
    """
    make = choice(native, "quant_algo", _ALGORITHMS)
    skipped = (*names(native, "ignore"), *names(native, "exclude_modules"))
    return Rules(default=make(native), overrides=((Named(names=skipped), None),))


_ALGORITHMS: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "NVFP4": lambda native: Nvfp4(group_size=_group(native, 16)),
    "NVFP4_AWQ": lambda native: Nvfp4(group_size=_group(native, 16)),
    "FP8": lambda native: Fp8Tensor(),
    "W4A16_AWQ": lambda native: Int4Awq(group_size=_group(native, 128)),
}


def _group(native: Mapping[str, Any], usual: int) -> int:
    return whole(native, "group_size", among=(16, 32, 64, 128, 256), default=usual)


METHOD = Method(
    names=("modelopt", "modelopt_fp4"),
    read=read,
    presets=(
        Preset(name="nvfp4", scheme=Nvfp4(), source="ModelOpt torch/export: every linear layer, experts one by one"),
    ),
    transformers=Serving(note="transformers 5.23 does not load ModelOpt checkpoints (vLLM does): counted as stored"),
    beside=r"\.[qkv]_(scale|bias)$|_(bmm_quantizer|quantizer)\b.*$",
)

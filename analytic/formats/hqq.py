"""HQQ: elements of one matrix as rows of groups, packed row upon row; a scale and a zero a group.

Layout: hqq 0.2.8 ``core/quantize.py`` (Quantizer.quantize, HQQLinear.state_dict_keys) and ``core/bitpack.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from analytic.formats.reading import Named, names, reject, whole
from analytic.formats.scheme import FLOATS, LINEAR, Held, Method, Part, Preset, Rules, Scheme, Serving, ceil, divided

_PER_WORD = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}
"""Elements in one byte, or (3 bits) in one 32-bit word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hqq(Scheme):
    """``W_q`` [groups / elements a word, group], ``scale`` and ``zero`` [groups, 1]: the matrix's shape is not kept."""

    marker = ".W_q"
    packed_dtypes = ("U8", "I32")

    bits: int
    group_size: int

    @property
    def name(self) -> str:
        """``hqq-int4-g64``."""
        return f"hqq-int{self.bits}-g{self.group_size}"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return self.bits

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(elements,): by the scales, as words may have room left."""
        scale = held.get(".scale")
        words, _ = held[self.marker].shape if len(held[self.marker].shape) == 2 else (0, 0)
        groups = prod(scale.shape) if scale is not None else words * _PER_WORD[self.bits]
        return (groups * self.group_size,)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Packed elements, scales and zeros."""
        groups = divided("elements", prod(shape), self.group_size, self.name)
        words = (ceil(groups, _PER_WORD[self.bits]), self.group_size)
        return (
            Part(suffix=".W_q", dtypes=("I32",) if self.bits == 3 else ("U8",), shape=words),
            Part(suffix=".scale", dtypes=FLOATS, shape=(groups, 1)),
            Part(suffix=".zero", dtypes=FLOATS, shape=(groups, 1)),
        )


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of an HQQ config: one set of parameters for every linear layer.

    Raises:
        UllageError: parameters by module, a width or an axis that is not known.
    """
    outer = native.get("quant_config")
    inner = outer.get("weight_quant_params") if isinstance(outer, Mapping) else None
    if not isinstance(inner, Mapping):
        reject("quant_config", outer, why="known: weight_quant_params for every linear layer")
    whole(inner, "axis", among=(1,), default=1)
    scheme = Hqq(
        bits=whole(inner, "nbits", among=tuple(_PER_WORD)),
        group_size=whole(inner, "group_size", among=range(8, 65_536)),
    )
    return Rules(default=scheme, overrides=((Named(names=names(native, "skip_modules")), None),), strict=False)


_SOURCE = "hqq 0.2.8 models/base.py: nn.Linear layers, without the output head"

_LINEAR = frozenset({LINEAR})

METHOD = Method(
    names=("hqq",),
    read=read,
    presets=tuple(
        Preset(name=f"hqq-int{b}", scheme=Hqq(bits=b, group_size=64), takes=_LINEAR, beforehand=False, source=_SOURCE)
        for b in (8, 4, 3, 2)
    ),
    transformers=Serving(note="transformers 5.23 does not load HQQ checkpoints (hqq itself does): counted as stored"),
    dropped=r"\.(nbits|group_size|shape|axis|packing|unpack_view_dtype|view_as_float|quant_scale|quant_zero"
    r"|compute_dtype|offload_meta|encoded_state_dict|stores_quant_config|channel_wise|optimize|round_zero)$",
)

"""GGUF: every tensor in blocks of a type of its own, which its header names (`analytic.formats.ggml`).

What ``llama-quantize`` makes of a model that is not quantised is a mixture of types (`analytic.formats.gguf_mixtures`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from analytic.formats.ggml import BY_NAME, GgmlType
from analytic.formats.gguf_mixtures import ALIASES, DEFAULTS
from analytic.formats.scheme import EMBEDDING, EXPERT, LINEAR, Held, Method, Part, Preset, Rules, Scheme, Serving


@dataclass(frozen=True, slots=True)
class Blocks(Scheme):
    """Rows in blocks of one type."""

    marker = ""
    packed_dtypes = ("U8",)

    type: GgmlType

    @property
    def name(self) -> str:
        """The type's name."""
        return self.type.name

    @property
    def weight_bits(self) -> int:
        """Of an element, its share of the block's scales left out."""
        return 8 * self.type.block_bytes // self.type.block_elements

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """The tensor's own."""
        return held[self.marker].shape

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """One tensor of whole blocks."""
        blocks = prod(shape) // self.type.block_elements
        return (Part(suffix=self.marker, dtypes=("U8",), shape=(blocks, self.type.block_bytes)),)


METHOD = Method(
    names=("gguf",),
    read=lambda _: Rules(default=None),
    presets=tuple(
        Preset(
            name=name,
            aliases=ALIASES.get(name, ()),
            scheme=Blocks(BY_NAME[kind]),
            takes=frozenset({LINEAR, EXPERT, EMBEDDING}),
            mixture=name,
            source="llama.cpp 0.5, llama-quantize",
        )
        for name, kind in DEFAULTS.items()
    ),
    dequantizes=True,
    transformers=Serving(
        note="transformers keeps GGUF blocks where it has kernels for them, else it dequantises: --quantization none"
    ),
)

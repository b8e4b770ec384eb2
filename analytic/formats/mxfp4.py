"""MXFP4 as gpt-oss publishes it: blocks of 32 elements in 16 bytes, a scale of a byte each; experts only.

Layout: OCP Microscaling Formats v1.0 §5.2, transformers 5.23 ``integrations/mxfp4.py`` (Mxfp4GptOssExperts).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analytic.formats.reading import Named, names
from analytic.formats.scheme import EXPERT, Held, Method, Part, Preset, Rules, Scheme, divided

BLOCK = 32
"""Elements that share a scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mxfp4(Scheme):
    """``_blocks`` [experts, out, in / 32, 16] and ``_scales`` [experts, out, in / 32]."""

    marker = "_blocks"
    packed_rank = 3
    packed_dtypes = ("U8",)

    @property
    def name(self) -> str:
        """``mxfp4``."""
        return "mxfp4"

    @property
    def weight_bits(self) -> int:
        """Of one weight."""
        return 4

    def shape_of(self, held: Mapping[str, Held]) -> tuple[int, ...]:
        """(experts, out, in)."""
        *rows, blocks, _ = held[self.marker].shape
        return (*rows, blocks * BLOCK)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Blocks and scales."""
        *rows, columns = shape
        blocks = divided("input", columns, BLOCK, self.name)
        return (
            Part(suffix="_blocks", dtypes=("U8",), shape=(*rows, blocks, BLOCK // 2)),
            Part(suffix="_scales", dtypes=("U8", "F8_E8M0"), shape=(*rows, blocks)),
        )


def read(native: Mapping[str, Any]) -> Rules:
    """The rules of an mxfp4 config."""
    skipped = Named(names=names(native, "modules_to_not_convert"))
    return Rules(default=Mxfp4(), overrides=((skipped, None),), strict=False)


METHOD = Method(
    names=("mxfp4",),
    read=read,
    capability=(7, 5),
    dequantizes=True,
    presets=(
        Preset(
            name="mxfp4",
            scheme=Mxfp4(),
            takes=frozenset({EXPERT}),
            beforehand=False,
            source="transformers 5.23 quantizers/quantizer_mxfp4.py: the experts",
        ),
    ),
)

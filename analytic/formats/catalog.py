"""All weight formats at a glance: what `--quantization` makes, and which published checkpoints are read."""

from dataclasses import dataclass
from math import prod

from analytic.formats.registry import methods, presets
from analytic.formats.scheme import EMBEDDING, EXPERT, LINEAR, Preset
from analytic.formats.table import FORMATS

SAMPLE = (4096, 4096)
"""Matrix that the bits a weight are of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One format."""

    name: str
    bits_per_weight: float
    """Of a 4,096 x 4,096 matrix, scales and all."""
    packs: str
    """Which matrices: ``linear``, ``experts`` or both."""
    made: str
    """``while loading`` or ``beforehand``."""
    source: str


def rows() -> tuple[Row, ...]:
    """What `--quantization` can make, narrowest first."""
    packed = (_packed(preset) for name, (preset, _) in presets().items() if name == preset.name.lower())
    return tuple(sorted((*packed, *_bitsandbytes()), key=lambda row: (row.bits_per_weight, row.name)))


def read_methods() -> tuple[str, ...]:
    """Every ``quant_method`` whose checkpoints are read."""
    return tuple(sorted(methods()))


def _packed(preset: Preset) -> Row:
    parts = (part for part in preset.scheme.parts(SAMPLE) if part.presence != "rare")
    kinds = {
        frozenset({LINEAR}): "linear",
        frozenset({EXPERT}): "experts",
        frozenset({LINEAR, EXPERT, EMBEDDING}): "all matrices",
    }
    return Row(
        name=preset.name,
        bits_per_weight=8 * sum(part.bytes for part in parts) / prod(SAMPLE),
        packs="a mixture" if preset.mixture else kinds.get(preset.takes, "linear and experts"),
        made="beforehand" if preset.beforehand else "while loading",
        source=preset.source,
    )


def _bitsandbytes() -> list[Row]:
    return [
        Row(
            name=f"{row.name.removesuffix('-dq')} --double-quant" if row.name.endswith("-dq") else row.name,
            bits_per_weight=8 * row.bytes(SAMPLE) / prod(SAMPLE),
            packs="linear",
            made="while loading",
            source=row.source,
        )
        for row in FORMATS.values()
        if row.name.startswith("bnb-")
    ]

"""What an engine holds of a model's weights once it has loaded them."""

from dataclasses import dataclass

ALL_LAYERS = 999
"""More than any model has: llama.cpp's ``-ngl 999``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What an engine holds more, or less, than the checkpoint's tensors."""

    what: str
    """``output head, tied to the embedding, a second time``."""
    bytes: int
    """More (or, negative, less) than the checkpoint's tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The weights in one place."""

    place: str
    """``GPU`` or ``host``."""
    bytes: int
    """All weights there."""
    changes: tuple[Change, ...] = ()

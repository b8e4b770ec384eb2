"""What a holder of sequence state allocates for one kind of layers: a row of its bill."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """The cache of all layers of one kind, as one holder (an engine's cache) allocates it."""

    kind: str
    """In the field's words: ``full attention``, ``sliding window``, ``latent attention``, ``recurrent``…"""
    layers: int
    """Layers that store it; one that reads another layer's cache stores none."""
    bytes: int
    """All of it, over all layers and sequences."""
    bytes_per_token: int
    """What one more token adds to a sequence in all these layers; 0 for a state or a window that does not grow."""
    note: str = ""
    """How it is rounded or padded, in the holder's own terms (``cells 4,096``, ``blocks of 16 tokens``)."""

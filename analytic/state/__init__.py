"""Sequence state: what a model keeps of the tokens it has seen, a class a cache kind."""

from analytic.state.kinds import (
    CacheKind,
    FullCache,
    LatentCache,
    RecurrentState,
    SlidingCache,
)
from analytic.state.sequence import (
    cached_tokens,
    caches,
    for_layer,
    growth_transient_bytes,
    sequence_state_bytes,
    sequence_state_bytes_per_token,
    storage_growth,
)

__all__ = [
    "CacheKind",
    "FullCache",
    "LatentCache",
    "RecurrentState",
    "SlidingCache",
    "cached_tokens",
    "caches",
    "for_layer",
    "growth_transient_bytes",
    "sequence_state_bytes",
    "sequence_state_bytes_per_token",
    "storage_growth",
]

"""Sequence state: what a model keeps of the tokens it has seen, a class a cache kind."""

from analytic.state.kinds import (
    CacheKind,
    CrossCache,
    FullCache,
    IndexedCache,
    LatentCache,
    RecurrentState,
    SlidingCache,
    for_layer,
)
from analytic.state.quantized import QuantizedCache, quantized_state_bytes
from analytic.state.sequence import (
    cached_tokens,
    caches,
    cross_cache,
    growth_transient_bytes,
    sequence_state_bytes,
    sequence_state_bytes_per_token,
    storage_growth,
)
from analytic.state.static import StaticCache, StaticSlidingCache, require_static, static

__all__ = [
    "CacheKind",
    "CrossCache",
    "FullCache",
    "IndexedCache",
    "LatentCache",
    "QuantizedCache",
    "RecurrentState",
    "SlidingCache",
    "StaticCache",
    "StaticSlidingCache",
    "cached_tokens",
    "caches",
    "cross_cache",
    "for_layer",
    "growth_transient_bytes",
    "quantized_state_bytes",
    "require_static",
    "sequence_state_bytes",
    "sequence_state_bytes_per_token",
    "static",
    "storage_growth",
]

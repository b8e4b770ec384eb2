"""Sequence state of a whole model: the cache kinds of its layers, summed over groups of identical layers."""

from collections.abc import Iterator
from functools import lru_cache

from analytic.models.geometry import Attention, Geometry, LatentAttention, Layer, Recurrent
from analytic.quantity import round_up
from analytic.state.kinds import CacheKind, FullCache, LatentCache, RecurrentState, SlidingCache


def cached_tokens(*, prompt_tokens: int, output_tokens: int) -> int:
    """Tokens in the cache when ``generate`` returns: the last generated token is never fed back."""
    return prompt_tokens + max(output_tokens - 1, 0)


@lru_cache(maxsize=4096)
def for_layer(mixer: Attention | LatentAttention | Recurrent) -> CacheKind:
    """The cache kind that holds a mixer's state."""
    if isinstance(mixer, Recurrent):
        return RecurrentState(
            conv_elements=mixer.conv_channels * mixer.conv_kernel,
            state_elements=mixer.state_elements,
            state_itemsize=mixer.state_itemsize,
        )
    if isinstance(mixer, LatentAttention):
        return LatentCache(kv_lora_rank=mixer.kv_lora_rank, qk_rope_head_dim=mixer.qk_rope_head_dim)
    heads = mixer.kv_heads if mixer.cached_heads is None else mixer.cached_heads
    if mixer.window_tokens is None:
        return FullCache(heads=heads, head_dim=mixer.head_dim, v_head_dim=mixer.v_head_dim)
    return SlidingCache(
        heads=heads, head_dim=mixer.head_dim, v_head_dim=mixer.v_head_dim, window_tokens=mixer.window_tokens
    )


@lru_cache(maxsize=4096)
def caches(layer: Layer) -> tuple[CacheKind, ...]:
    """Cache kinds of one layer: two for a hybrid one, none for one that only feeds forward or reads another's cache."""
    own = (mixer for mixer in (layer.mixer, layer.recurrent) if mixer is not None)
    return tuple(for_layer(mixer) for mixer in own if not (isinstance(mixer, Attention) and mixer.cached_heads == 0))


def _grouped(geometry: Geometry) -> Iterator[tuple[CacheKind, int]]:
    for layer, count in geometry.groups:
        for cache in caches(layer):
            yield cache, count


def sequence_state_bytes(
    geometry: Geometry, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int, rounded: bool = False
) -> int:
    """Bytes of the state of ``sequences`` sequences that hold ``total_tokens`` tokens each.

    With no token beyond the prompt it is the state as a prefill leaves it. ``rounded`` counts each storage as the CUDA
    allocator does. ``itemsize`` is that of the cached dtype.
    """
    total_bytes = 0
    for cache, count in _grouped(geometry):
        if total_tokens > prompt_tokens:
            storages = cache.decode_storages(total_tokens=total_tokens, sequences=sequences, itemsize=itemsize)
        else:
            storages = cache.prefill_storages(prompt_tokens=total_tokens, sequences=sequences, itemsize=itemsize)
        total_bytes += count * sum(map(round_up, storages) if rounded else storages)
    return total_bytes


def storage_growth(
    geometry: Geometry, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int
) -> Iterator[tuple[int, int, int]]:
    """Every kind of storage: how many there are, their bytes after the prompt, and their bytes at the end."""
    for cache, count in _grouped(geometry):
        first = cache.prefill_storages(prompt_tokens=prompt_tokens, sequences=sequences, itemsize=itemsize)
        last = cache.decode_storages(total_tokens=total_tokens, sequences=sequences, itemsize=itemsize)
        for before, after in zip(first, last, strict=True):
            yield count, before, after


def sequence_state_bytes_per_token(geometry: Geometry, *, tokens: int, itemsize: int) -> int:
    """Bytes that one more token adds to a sequence of ``tokens``, in the layers that still grow."""
    return sum(count * cache.bytes_per_token(tokens=tokens, itemsize=itemsize) for cache, count in _grouped(geometry))


def growth_transient_bytes(
    geometry: Geometry, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int
) -> int:
    """Most bytes alive beyond a layer's own state while one layer takes its last token; layers do so in turn."""
    return max(
        (
            cache.growth_transient_bytes(
                prompt_tokens=prompt_tokens, total_tokens=total_tokens, sequences=sequences, itemsize=itemsize
            )
            for cache, _ in _grouped(geometry)
        ),
        default=0,
    )

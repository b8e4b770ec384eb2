"""Sequence state of a whole model: the cache kinds of its layers, summed over groups of identical layers."""

from collections.abc import Iterator
from functools import lru_cache

from analytic.errors import UllageError
from analytic.models.geometry import Attention, Geometry, Layer
from analytic.quantity import round_up
from analytic.state.kinds import CacheKind, CrossCache, for_layer
from analytic.state.static import static


def cached_tokens(*, prompt_tokens: int, output_tokens: int) -> int:
    """Tokens in the cache when ``generate`` returns: the last generated token is never fed back."""
    return prompt_tokens + max(output_tokens - 1, 0)


@lru_cache(maxsize=4096)
def caches(layer: Layer) -> tuple[CacheKind, ...]:
    """Cache kinds of one layer: two for a hybrid one, none for one that only feeds forward or reads another's cache."""
    own = (mixer for mixer in (layer.mixer, layer.recurrent) if mixer is not None)
    return tuple(for_layer(mixer) for mixer in own if not (isinstance(mixer, Attention) and mixer.cached_heads == 0))


def cross_cache(layer: Layer, encoder_tokens: int) -> CrossCache | None:
    """What a layer keeps of the encoder's tokens; None where it attends to none."""
    if (cross := layer.cross) is None:
        return None
    return CrossCache(
        heads=cross.kv_heads, head_dim=cross.head_dim, v_head_dim=cross.v_head_dim, encoder_tokens=encoder_tokens
    )


def _own(geometry: Geometry, room_tokens: int | None) -> Iterator[tuple[CacheKind, int]]:
    """Every cache kind of the model's own tokens, and its layers."""
    for layer, count in geometry.groups:
        for cache in caches(layer):
            yield cache if room_tokens is None else static(cache, room_tokens), count


def _all(geometry: Geometry, room_tokens: int | None, encoder_tokens: int | None) -> Iterator[tuple[CacheKind, int]]:
    """The same, and what is kept of the encoder's tokens, for which a static cache has just the room."""
    yield from _own(geometry, room_tokens)
    for layer, count in geometry.groups:
        if layer.cross is not None and (cross := cross_cache(layer, _encoder_tokens(geometry, encoder_tokens))):
            yield cross if room_tokens is None else static(cross, room_tokens), count


def _encoder_tokens(geometry: Geometry, given: int | None) -> int:
    tokens = geometry.encoder_tokens if given is None else given
    if tokens is None:
        raise UllageError(
            f"a {geometry.model_type!r} decoder keeps keys and values of its encoder's tokens: how many is not given",
            hint="give encoder_tokens: those of the padded input",
        )
    return tokens


def sequence_state_bytes(
    geometry: Geometry,
    *,
    prompt_tokens: int,
    total_tokens: int,
    sequences: int,
    itemsize: int,
    room_tokens: int | None = None,
    encoder_tokens: int | None = None,
    rounded: bool = False,
) -> int:
    """Bytes of the state of ``sequences`` sequences that hold ``total_tokens`` tokens each.

    With no token beyond the prompt it is the state as a prefill leaves it. ``rounded`` counts each storage as the CUDA
    allocator does. ``itemsize`` is that of the cached dtype. With ``room_tokens`` the cache is a static one that has
    room for so many. ``encoder_tokens`` are those that an encoder-decoder model's encoder hands on.

    Raises:
        UllageError: an encoder-decoder model without its encoder's tokens.
    """
    total_bytes = 0
    for cache, count in _all(geometry, room_tokens, encoder_tokens):
        if total_tokens > prompt_tokens:
            storages = cache.decode_storages(total_tokens=total_tokens, sequences=sequences, itemsize=itemsize)
        else:
            storages = cache.prefill_storages(prompt_tokens=total_tokens, sequences=sequences, itemsize=itemsize)
        total_bytes += count * sum(map(round_up, storages) if rounded else storages)
    return total_bytes


def storage_growth(
    geometry: Geometry,
    *,
    prompt_tokens: int,
    total_tokens: int,
    sequences: int,
    itemsize: int,
    room_tokens: int | None = None,
    encoder_tokens: int | None = None,
) -> Iterator[tuple[int, int, int]]:
    """Every kind of storage: how many there are, their bytes after the prompt, and their bytes at the end."""
    for cache, count in _all(geometry, room_tokens, encoder_tokens):
        first = cache.prefill_storages(prompt_tokens=prompt_tokens, sequences=sequences, itemsize=itemsize)
        last = cache.decode_storages(total_tokens=total_tokens, sequences=sequences, itemsize=itemsize)
        for before, after in zip(first, last, strict=True):
            yield count, before, after


def sequence_state_bytes_per_token(geometry: Geometry, *, tokens: int, itemsize: int) -> int:
    """Bytes that one more token adds to a sequence of ``tokens``, in the layers that still grow."""
    return sum(count * cache.bytes_per_token(tokens=tokens, itemsize=itemsize) for cache, count in _own(geometry, None))


def growth_transient_bytes(
    geometry: Geometry,
    *,
    prompt_tokens: int,
    total_tokens: int,
    sequences: int,
    itemsize: int,
    room_tokens: int | None = None,
) -> int:
    """Most bytes alive beyond a layer's own state while one layer takes its last token; layers do so in turn."""
    return max(
        (
            cache.growth_transient_bytes(
                prompt_tokens=prompt_tokens, total_tokens=total_tokens, sequences=sequences, itemsize=itemsize
            )
            for cache, _ in _own(geometry, room_tokens)
        ),
        default=0,
    )

"""Caches that have all their room from the first token on (``StaticCache``, cache_utils.py of transformers 5.23).

Every layer allocates keys and values [sequences, heads, room, head_dim] as zeros when it sees its first token, and
writes into them; a window has no more room than its tokens. Convolution and recurrent states are those of a dynamic
cache. The attention of every step reads the whole room.
"""

from dataclasses import dataclass
from functools import singledispatch

from analytic.errors import UllageError
from analytic.models.geometry import Geometry
from analytic.state.kinds import (
    CacheKind,
    CrossCache,
    FullCache,
    IndexedCache,
    LatentCache,
    RecurrentState,
    SlidingCache,
)

LENGTH_BYTES = 8
"""``StaticLayer.cumulative_length``: one int64 on the device, so that a compiled graph can read it."""

WITHOUT = ("minimax",)
"""Model types whose class makes a growing cache of its own, whatever ``generate`` is asked for (generation/utils.py,
_supports_default_dynamic_cache)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticCache(CacheKind):
    """Keys and values of all the room (``StaticLayer``)."""

    heads: int
    head_dim: int
    v_head_dim: int
    room_tokens: int
    """Tokens that keys and values have room for (``max_cache_len``)."""

    @property
    def _filled(self) -> FullCache:
        return FullCache(heads=self.heads, head_dim=self.head_dim, v_head_dim=self.v_head_dim)

    def prefill_storages(self, *, prompt_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Keys and values of the whole room, and how much of it is taken."""
        stored = self._filled.prefill_storages(prompt_tokens=self.room_tokens, sequences=sequences, itemsize=itemsize)
        return *stored, LENGTH_BYTES

    def decode_storages(self, *, total_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """The same."""
        return self.prefill_storages(prompt_tokens=total_tokens, sequences=sequences, itemsize=itemsize)

    def growth_transient_bytes(self, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int) -> int:
        """Nothing grows: a token is written in place (``index_copy_``)."""
        return 0

    def bytes_per_token(self, *, tokens: int, itemsize: int) -> int:
        """Room for one more token: a key and a value a head."""
        return self._filled.bytes_per_token(tokens=tokens, itemsize=itemsize)


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticSlidingCache(StaticCache):
    """Keys and values of a window, or of a chunk (``StaticSlidingWindowLayer``); ``room_tokens`` is no more than it."""

    window_tokens: int

    def growth_transient_bytes(self, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int) -> int:
        """A full window is rolled by a token into new keys and values, which are then copied back."""
        if total_tokens <= self.room_tokens:
            return 0
        return sum(self._filled.decode_storages(total_tokens=self.room_tokens, sequences=sequences, itemsize=itemsize))

    def bytes_per_token(self, *, tokens: int, itemsize: int) -> int:
        """Nothing once there is room for the window."""
        return self._filled.bytes_per_token(tokens=tokens, itemsize=itemsize) if tokens < self.window_tokens else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticIndexedCache(StaticCache):
    """Beside the latents, the keys of a sparse attention's indexer and their own length (``StaticIndexedLayer``)."""

    index_head_dim: int

    def prefill_storages(self, *, prompt_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Latents, rotated keys and the indexer's keys of the whole room."""
        stored = self._filled.prefill_storages(prompt_tokens=self.room_tokens, sequences=sequences, itemsize=itemsize)
        keys_bytes = sequences * self.room_tokens * self.index_head_dim * itemsize
        return *stored, LENGTH_BYTES, keys_bytes, LENGTH_BYTES

    def bytes_per_token(self, *, tokens: int, itemsize: int) -> int:
        """Room for one more token, in the indexer too."""
        return self._filled.bytes_per_token(tokens=tokens, itemsize=itemsize) + self.index_head_dim * itemsize


@singledispatch
def static(cache: CacheKind, room_tokens: int) -> CacheKind:
    """What a static cache with room for ``room_tokens`` keeps where a dynamic one keeps ``cache``."""
    raise AssertionError(f"{type(cache).__name__} has no static form")


@static.register
def _(cache: FullCache, room_tokens: int) -> CacheKind:
    return StaticCache(heads=cache.heads, head_dim=cache.head_dim, v_head_dim=cache.v_head_dim, room_tokens=room_tokens)


@static.register
def _(cache: LatentCache, room_tokens: int) -> CacheKind:
    return StaticCache(heads=1, head_dim=cache.kv_lora_rank, v_head_dim=cache.qk_rope_head_dim, room_tokens=room_tokens)


@static.register
def _(cache: IndexedCache, room_tokens: int) -> CacheKind:
    return StaticIndexedCache(
        heads=1,
        head_dim=cache.kv_lora_rank,
        v_head_dim=cache.qk_rope_head_dim,
        room_tokens=room_tokens,
        index_head_dim=cache.index_head_dim,
    )


@static.register
def _(cache: CrossCache, room_tokens: int) -> CacheKind:
    """The cross part has its own room: the encoder's tokens."""
    return StaticCache(
        heads=cache.heads, head_dim=cache.head_dim, v_head_dim=cache.v_head_dim, room_tokens=cache.encoder_tokens
    )


@static.register
def _(cache: SlidingCache, room_tokens: int) -> CacheKind:
    return StaticSlidingCache(
        heads=cache.heads,
        head_dim=cache.head_dim,
        v_head_dim=cache.v_head_dim,
        room_tokens=min(cache.window_tokens, room_tokens),
        window_tokens=cache.window_tokens,
    )


@static.register
def _(cache: RecurrentState, room_tokens: int) -> CacheKind:
    return cache


def require_static(geometry: Geometry) -> None:
    """Raise where transformers would not serve the model with a static cache.

    Raises:
        UllageError: its class makes another cache; the message names the model type.
    """
    if geometry.model_type in WITHOUT:
        raise UllageError(
            f"transformers gives a {geometry.model_type!r} model no static cache: its class makes one that grows",
            hint="--cache-implementation dynamic",
        )

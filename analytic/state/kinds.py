"""One layer's sequence state, as the cache classes of transformers 5.23 store it (``cache_utils.py``).

Each kind answers with the sizes of the storages that stay alive; their sum is the bytes, their rounded sum what CUDA's
allocator hands out. Keys and values are [sequences, heads, tokens, head_dim], each its own storage.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

from analytic.models.geometry import Attention, LatentAttention, Recurrent

WINDOW_TENSOR_BYTES = 8
"""``DynamicSlidingWindowLayer._sliding_window_tensor``: one int64 that every sliding layer moves to its device."""


class CacheKind(ABC):
    """State of one layer for a number of sequences of equal length."""

    __slots__ = ()

    @abstractmethod
    def prefill_storages(self, *, prompt_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Bytes of each storage alive after the prompt and before the first decode step."""

    @abstractmethod
    def decode_storages(self, *, total_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Bytes of each storage alive after a decode step that brought the cache to ``total_tokens``."""

    @abstractmethod
    def growth_transient_bytes(self, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int) -> int:
        """Most bytes alive beyond ``decode_bytes(total_tokens)`` while the layer takes its last token."""

    @abstractmethod
    def bytes_per_token(self, *, tokens: int, itemsize: int) -> int:
        """Bytes that one more token adds to a sequence of ``tokens``."""

    def prefill_bytes(self, *, prompt_tokens: int, sequences: int, itemsize: int) -> int:
        """Bytes alive after the prompt and before the first decode step."""
        return sum(self.prefill_storages(prompt_tokens=prompt_tokens, sequences=sequences, itemsize=itemsize))

    def decode_bytes(self, *, total_tokens: int, sequences: int, itemsize: int) -> int:
        """Bytes alive after a decode step that brought the cache to ``total_tokens``."""
        return sum(self.decode_storages(total_tokens=total_tokens, sequences=sequences, itemsize=itemsize))

    def stored_bytes(self, *, tokens: int, sequences: int, itemsize: int) -> int:
        """Bytes in the steady state of a cache that has seen ``tokens`` tokens."""
        return self.decode_bytes(total_tokens=tokens, sequences=sequences, itemsize=itemsize)


@dataclass(frozen=True, kw_only=True, slots=True)
class FullCache(CacheKind):
    """Every token's key and value (``DynamicLayer``): grown by ``torch.cat``, keys first, then values."""

    heads: int
    """Heads as cached; not always the model's ``num_key_value_heads``."""
    head_dim: int
    v_head_dim: int

    def prefill_storages(self, *, prompt_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Keys and values of the prompt."""
        per_element = sequences * self.heads * prompt_tokens * itemsize
        return per_element * self.head_dim, per_element * self.v_head_dim

    def decode_storages(self, *, total_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Keys and values of every token."""
        return self.prefill_storages(prompt_tokens=total_tokens, sequences=sequences, itemsize=itemsize)

    def growth_transient_bytes(self, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int) -> int:
        """The larger of: old keys beside new ones (old values not yet grown), old values beside new ones."""
        key_bytes, value_bytes = self.decode_storages(
            total_tokens=total_tokens - 1, sequences=sequences, itemsize=itemsize
        )
        new_value_bytes = sequences * self.heads * self.v_head_dim * itemsize
        return max(key_bytes - new_value_bytes, value_bytes)

    def bytes_per_token(self, *, tokens: int, itemsize: int) -> int:
        """A key and a value a head."""
        return self.heads * (self.head_dim + self.v_head_dim) * itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentCache(CacheKind):
    """The compressed latent and the rotated key part, one head each (``models/deepseek_v3``: not expanded)."""

    kv_lora_rank: int
    qk_rope_head_dim: int

    @property
    def _pair(self) -> FullCache:
        return FullCache(heads=1, head_dim=self.kv_lora_rank, v_head_dim=self.qk_rope_head_dim)

    def prefill_storages(self, *, prompt_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Latents and rotated keys of the prompt."""
        return self._pair.prefill_storages(prompt_tokens=prompt_tokens, sequences=sequences, itemsize=itemsize)

    def decode_storages(self, *, total_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Latents and rotated keys of every token."""
        return self._pair.decode_storages(total_tokens=total_tokens, sequences=sequences, itemsize=itemsize)

    def growth_transient_bytes(self, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int) -> int:
        """Old latents beside new ones."""
        return self._pair.growth_transient_bytes(
            prompt_tokens=prompt_tokens, total_tokens=total_tokens, sequences=sequences, itemsize=itemsize
        )

    def bytes_per_token(self, *, tokens: int, itemsize: int) -> int:
        """One latent and one rotated key."""
        return (self.kv_lora_rank + self.qk_rope_head_dim) * itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedCache(LatentCache):
    """A latent cache beside the keys of a sparse attention's indexer, one head (``DynamicIndexedLayer``)."""

    index_head_dim: int

    def prefill_storages(self, *, prompt_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Latents, rotated keys and the indexer's keys of the prompt."""
        latents = self._pair.prefill_storages(prompt_tokens=prompt_tokens, sequences=sequences, itemsize=itemsize)
        return *latents, sequences * prompt_tokens * self.index_head_dim * itemsize

    def decode_storages(self, *, total_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """The same of every token."""
        return self.prefill_storages(prompt_tokens=total_tokens, sequences=sequences, itemsize=itemsize)

    def bytes_per_token(self, *, tokens: int, itemsize: int) -> int:
        """One latent, one rotated key, one key of the indexer."""
        return (self.kv_lora_rank + self.qk_rope_head_dim + self.index_head_dim) * itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossCache(CacheKind):
    """Keys and values of what an encoder handed on (``EncoderDecoderCache``): made at the first step, then read."""

    heads: int
    head_dim: int
    v_head_dim: int
    encoder_tokens: int
    """Tokens that the encoder handed on, padding included; not those of the decoder."""

    def prefill_storages(self, *, prompt_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Keys and values of the encoder's tokens, whatever the decoder's."""
        per_element = sequences * self.heads * self.encoder_tokens * itemsize
        return per_element * self.head_dim, per_element * self.v_head_dim

    def decode_storages(self, *, total_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """The same."""
        return self.prefill_storages(prompt_tokens=total_tokens, sequences=sequences, itemsize=itemsize)

    def growth_transient_bytes(self, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int) -> int:
        """Nothing grows."""
        return 0

    def bytes_per_token(self, *, tokens: int, itemsize: int) -> int:
        """Nothing: one more token of the decoder adds none here."""
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingCache(CacheKind):
    """The last tokens of a window, or of a chunk (``DynamicSlidingWindowLayer`` serves both).

    It keeps ``window_tokens - 1`` tokens as a view of the tensor that the last step concatenated, and a view keeps its
    whole storage: the full prompt until the first decode step, ``window_tokens`` tokens after it.
    """

    heads: int
    head_dim: int
    v_head_dim: int
    window_tokens: int

    @property
    def _unbounded(self) -> FullCache:
        return FullCache(heads=self.heads, head_dim=self.head_dim, v_head_dim=self.v_head_dim)

    def prefill_storages(self, *, prompt_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Keys and values of the whole prompt, and the window's size as a tensor."""
        stored = self._unbounded.prefill_storages(prompt_tokens=prompt_tokens, sequences=sequences, itemsize=itemsize)
        return *stored, WINDOW_TENSOR_BYTES

    def decode_storages(self, *, total_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Keys and values of a window, and the window's size as a tensor."""
        tokens = min(total_tokens, self.window_tokens)
        return self.prefill_storages(prompt_tokens=tokens, sequences=sequences, itemsize=itemsize)

    def growth_transient_bytes(self, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int) -> int:
        """Old keys and old values: both are replaced only after both have grown."""
        first = total_tokens == prompt_tokens + 1
        old_tokens = prompt_tokens if first else min(total_tokens - 1, self.window_tokens)
        return sequences * old_tokens * self._unbounded.bytes_per_token(tokens=old_tokens, itemsize=itemsize)

    def bytes_per_token(self, *, tokens: int, itemsize: int) -> int:
        """Nothing once the window is full."""
        return self._unbounded.bytes_per_token(tokens=tokens, itemsize=itemsize) if tokens < self.window_tokens else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrentState(CacheKind):
    """Convolution and recurrent state, written in place (``LinearAttentionLayer``)."""

    conv_elements: int
    """Channels × kernel of one sequence, in the dtype of the run; 0 without a convolution."""
    state_elements: int
    """Elements of the recurrent state of one sequence; 0 without one."""
    state_itemsize: int | None
    """Bytes of a state's element; None means the dtype of the run."""

    def prefill_storages(self, *, prompt_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """The states, whatever the prompt's length."""
        sizes = (
            sequences * self.conv_elements * itemsize,
            sequences * self.state_elements * (self.state_itemsize or itemsize),
        )
        return tuple(size for size in sizes if size)

    def decode_storages(self, *, total_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """The states, whatever the length."""
        return self.prefill_storages(prompt_tokens=total_tokens, sequences=sequences, itemsize=itemsize)

    def growth_transient_bytes(self, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int) -> int:
        """Nothing grows."""
        return 0

    def bytes_per_token(self, *, tokens: int, itemsize: int) -> int:
        """Nothing grows."""
        return 0


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
        latent = LatentCache(kv_lora_rank=mixer.kv_lora_rank, qk_rope_head_dim=mixer.qk_rope_head_dim)
        if mixer.index_head_dim is None:
            return latent
        return IndexedCache(
            kv_lora_rank=latent.kv_lora_rank,
            qk_rope_head_dim=latent.qk_rope_head_dim,
            index_head_dim=mixer.index_head_dim,
        )
    heads = mixer.kv_heads if mixer.cached_heads is None else mixer.cached_heads
    if mixer.window_tokens is None:
        return FullCache(heads=heads, head_dim=mixer.head_dim, v_head_dim=mixer.v_head_dim)
    return SlidingCache(
        heads=heads, head_dim=mixer.head_dim, v_head_dim=mixer.v_head_dim, window_tokens=mixer.window_tokens
    )

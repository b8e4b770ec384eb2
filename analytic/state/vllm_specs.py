"""What one layer takes of a block of vLLM 0.33.0, a class a cache kind (``v1/kv_cache_interface.py``)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from analytic.errors import UllageError

KERNEL_BLOCK_TOKENS = 16
"""Smallest block of the attention kernels that are not MLA's (``get_supported_kernel_block_sizes``)."""

CONCURRENT_BATCHES = 2
"""Batches in flight: asynchronous scheduling, without a pipeline (``config/vllm.py``, ``max_concurrent_batches``)."""

SCALE_BYTES = 4
"""One float32 scale a token, head and side (``v1/attention/backends/triton_attn.py``, ``customize_spec``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheDtype:
    """What ``--kv-cache-dtype`` makes of one token."""

    pair_bytes: Callable[[int, int, int], int] | None
    """Bytes of a head's key and value from (key size, value size, the run's itemsize); None where no backend has it."""
    latent_bytes: Callable[[int, int], int] | None
    """Bytes of an MLA latent with its rotated key from (elements, the run's itemsize); None where no backend has it."""
    sparse: bool = False
    """Only the backends of sparse MLA have it."""


def _plain(itemsize: int) -> CacheDtype:
    return CacheDtype(
        pair_bytes=lambda key, value, _: (key + value) * itemsize, latent_bytes=lambda size, _: size * itemsize
    )


def _pairs(pair_bytes: Callable[[int, int, int], int]) -> CacheDtype:
    return CacheDtype(pair_bytes=pair_bytes, latent_bytes=None)


def _packed_latent(fixed_bytes: int) -> CacheDtype:
    return CacheDtype(pair_bytes=None, latent_bytes=lambda _size, _itemsize: fixed_bytes, sparse=True)


_FP8 = _plain(1)
_BYTE_SCALED = _pairs(lambda key, value, _: key + value + 2 * SCALE_BYTES)
_NVFP4 = _pairs(lambda key, value, _: key // 2 + key // 16 + value // 2 + value // 16)

CACHE_DTYPES: Mapping[str, CacheDtype] = {
    "auto": CacheDtype(pair_bytes=lambda key, value, size: (key + value) * size, latent_bytes=lambda n, size: n * size),
    "float16": _plain(2),
    "bfloat16": _plain(2),
    "fp8": _FP8,
    "fp8_e4m3": _FP8,
    "fp8_e5m2": _pairs(lambda key, value, _: key + value),
    "int8_per_token_head": _BYTE_SCALED,
    "fp8_per_token_head": _BYTE_SCALED,
    "int4_per_token_head": _pairs(lambda key, value, _: key // 2 + value // 2 + 2 * SCALE_BYTES),
    "nvfp4": _NVFP4,
    "nvfp4_4over6": _NVFP4,
    "fp8_ds_mla": _packed_latent(656),
    "nvfp4_ds_mla": _packed_latent(352),
}
"""``config/cache.py`` (names), ``utils/torch_utils.py`` (sizes), ``customize_spec`` of triton_attn.py and flashinfer.py
(scales), ``layers/attention/mla_attention.py`` (656 and 352). TurboQuant, Octave and UltraQuant are not modelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec(ABC):
    """One layer's cache (``KVCacheSpec``)."""

    kind: ClassVar[str]
    padded_bytes: int | None = None
    """Bytes of a page that is padded to another layer's; None where it is not."""

    @property
    @abstractmethod
    def content_bytes(self) -> int:
        """Bytes of a block in this layer, without padding."""

    @property
    @abstractmethod
    def span_tokens(self) -> int | None:
        """Tokens that a block stands for; None where one block serves a whole sequence."""

    @property
    def page_bytes(self) -> int:
        """Bytes of a block in this layer (``page_size_bytes``)."""
        return self.content_bytes if self.padded_bytes is None else self.padded_bytes

    @property
    @abstractmethod
    def type_key(self) -> tuple[object, ...]:
        """Layers that agree in this need the same number of blocks (``is_uniform_with_collection``)."""

    @abstractmethod
    def blocks_for(self, tokens: int, in_flight_tokens: int) -> int:
        """Blocks that vLLM plans for a request of up to ``tokens`` tokens (``max_memory_usage_bytes``)."""

    @abstractmethod
    def blocks_held(self, tokens: int) -> int:
        """Blocks of a sequence that decodes its ``tokens``-th token (``v1/core/single_type_kv_cache_manager.py``)."""

    @abstractmethod
    def with_page(self, page_bytes: int) -> "Spec":
        """The same layer with a larger page (``unify_kv_cache_spec_page_size``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FullSpec(Spec):
    """Every token's key and value (``FullAttentionSpec``)."""

    kind: ClassVar[str] = "full attention"
    block_tokens: int
    kv_heads: int
    """Key heads of one rank."""
    head_dim: int
    v_head_dim: int
    head_bytes: int
    """Bytes of one token in one head: key, value and scales."""

    @property
    def type_key(self) -> tuple[object, ...]:
        """Whatever the heads, and latent or not."""
        return FullSpec.kind, self.block_tokens

    @property
    def content_bytes(self) -> int:
        """Tokens × heads × bytes."""
        return self.block_tokens * self.kv_heads * self.head_bytes

    @property
    def span_tokens(self) -> int | None:
        """The block's tokens."""
        return self.block_tokens

    def blocks_for(self, tokens: int, in_flight_tokens: int) -> int:
        """A block for every ``block_tokens`` begun."""
        return math.ceil(tokens / self.block_tokens)

    def blocks_held(self, tokens: int) -> int:
        """The same: none is freed before the request ends."""
        return math.ceil(tokens / self.block_tokens)

    def with_page(self, page_bytes: int) -> "FullSpec":
        """More tokens a block where that fits exactly, else padding."""
        ratio, rest = divmod(page_bytes, self.page_bytes)
        if rest:
            return replace(self, padded_bytes=page_bytes)
        return replace(self, block_tokens=self.block_tokens * ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSpec(FullSpec):
    """Every token's latent and rotated key, one head on every rank (``MLAAttentionSpec``)."""

    kind: ClassVar[str] = "latent attention"

    def with_page(self, page_bytes: int) -> "FullSpec":
        """More tokens a block; latents cannot be padded."""
        if page_bytes % self.page_bytes:
            raise UllageError(
                "latent attention beside other caches whose pages it does not divide is not modelled for vLLM 0.33.0",
                hint="measure this model instead",
            )
        return replace(self, block_tokens=self.block_tokens * (page_bytes // self.page_bytes))


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexerSpec(LatentSpec):
    """Every token's key for the choice of tokens in sparse attention (``DeepseekV32IndexerCache``)."""

    kind: ClassVar[str] = "sparse indexer"


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingSpec(FullSpec):
    """The tokens of a window and those of the batches in flight (``SlidingWindowSpec``)."""

    kind: ClassVar[str] = "sliding window"
    window_tokens: int

    @property
    def type_key(self) -> tuple[object, ...]:
        """The window too."""
        return self.kind, self.block_tokens, self.window_tokens

    def blocks_for(self, tokens: int, in_flight_tokens: int) -> int:
        """One block more than the tokens fill: a window need not start where a block does."""
        return math.ceil(min(self.window_tokens - 1 + in_flight_tokens, tokens) / self.block_tokens) + 1

    def blocks_held(self, tokens: int) -> int:
        """Those that the window still reaches."""
        return math.ceil(tokens / self.block_tokens) - max(tokens - self.window_tokens, 0) // self.block_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkedSpec(FullSpec):
    """The tokens of a chunk and those of the batches in flight (``ChunkedLocalAttentionSpec``)."""

    kind: ClassVar[str] = "chunked attention"
    chunk_tokens: int

    @property
    def type_key(self) -> tuple[object, ...]:
        """The chunk too."""
        return self.kind, self.block_tokens, self.chunk_tokens

    def blocks_for(self, tokens: int, in_flight_tokens: int) -> int:
        """Chunks start where blocks do."""
        return math.ceil(min(self.chunk_tokens + in_flight_tokens, tokens) / self.block_tokens)

    def blocks_held(self, tokens: int) -> int:
        """Those of the chunk that the last token is in."""
        before = (tokens - 1) // self.chunk_tokens * self.chunk_tokens
        return math.ceil(tokens / self.block_tokens) - before // self.block_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrentSpec(Spec):
    """Convolution and recurrent state, one copy a block (``MambaSpec``)."""

    kind: ClassVar[str] = "recurrent"
    state_bytes: int
    """Both states of one layer on one rank."""
    block_tokens: int | None
    """Tokens between states that prefix caching may keep; None without it."""
    checkpoint_tokens: int | None = None
    """Alignment of a state that the kernel exports from inside a prefill, in a block of its own; None without one."""

    @property
    def content_bytes(self) -> int:
        """A block is a state."""
        return self.state_bytes

    @property
    def span_tokens(self) -> int | None:
        """Tokens between kept states."""
        return self.block_tokens

    @property
    def type_key(self) -> tuple[object, ...]:
        """The page too."""
        return self.kind, self.block_tokens, self.page_bytes, self.checkpoint_tokens

    def blocks_for(self, tokens: int, in_flight_tokens: int) -> int:
        """One state; with prefix caching the one before it too, and one inside a prefill."""
        return 1 if self.block_tokens is None else 2 + (self.checkpoint_tokens is not None)

    def blocks_held(self, tokens: int) -> int:
        """The running state, and the one it was copied from until the next token."""
        if self.block_tokens is None:
            return 1
        return math.ceil(tokens / self.block_tokens) - max(tokens - 2, 0) // self.block_tokens

    def with_page(self, page_bytes: int) -> "RecurrentSpec":
        """Padding: a state has no tokens to add."""
        return replace(self, padded_bytes=page_bytes)

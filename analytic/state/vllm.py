"""Sequence state as vLLM 0.33.0 pages it: blocks of one size, drawn by every group of layers from one pool.

A group is a set of layers that share a block table; a block holds ``block_tokens`` tokens of all of them, or one
recurrent state a layer. Every block costs the bytes of the widest group, so a narrower group's blocks are padded. The
formulas are those of ``v1/kv_cache_interface.py`` (specs), ``v1/core/kv_cache_planning.py`` (groups, blocks) and
``platforms/interface.py`` (the block sizes of hybrids), for CUDA, the layer-outermost layout that vLLM resolves there
(``LBNHC``, ``LBHNC``), no speculative decoding and no context or pipeline parallelism.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from analytic.errors import UllageError
from analytic.models.geometry import Attention, Geometry, LatentAttention, Recurrent
from analytic.state.held import Held

KERNEL_BLOCK_TOKENS = 16
"""Smallest block of the attention kernels that are not MLA's (``get_supported_kernel_block_sizes``)."""

CONCURRENT_BATCHES = 2
"""Batches in flight: asynchronous scheduling, without a pipeline (``config/vllm.py``, ``max_concurrent_batches``)."""

SCALE_BYTES = 4
"""One float32 scale a token, head and side (``v1/attention/backends/triton_attn.py``, ``customize_spec``)."""

NOT_SERVED: Mapping[str, str] = {"bamba": "0.23.0", "dots1": "0.23.0", "minimax": "0.23.0", "mpt": "0.28.0"}
"""Model types and the last vLLM that had them (``models/registry.py``, ``_PREVIOUSLY_SUPPORTED_MODELS``)."""

EXTRA_WINDOW_TOKENS: Mapping[str, int] = {"cohere2": 1}
"""What a model file adds to the config's window (``models/commandr.py``)."""

STATE_DTYPES: Mapping[str, str] = dict.fromkeys(("nemotron_h", "qwen3_5_text", "qwen3_5_moe_text"), "float32")
"""Where "auto" is not the dtype of the run: Nemotron H's default (``models/config.py``), and what the published Qwen3.5
configs ask for (``mamba_ssm_dtype``)."""

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}

GDN_CHECKPOINT_TOKENS: Mapping[str, int | None] = {"flashinfer": 64, "triton": None, "cutedsl": None}
"""Prefill backends of a gated delta net, and the alignment of the states that they export inside a prefill.
FlashInfer's is the default on Hopper and Blackwell (``gdn/qwen_gdn_linear_attn.py``), Triton's elsewhere."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Layers with one block table (``KVCacheGroupSpec``)."""

    specs: tuple[Spec, ...]
    """One a layer."""

    @property
    def kind(self) -> str:
        """In the field's words."""
        return self.specs[0].kind

    @property
    def block_tokens(self) -> int | None:
        """Tokens that a block of this group stands for; None where one block serves a whole sequence."""
        return self.specs[0].span_tokens

    @property
    def page_bytes(self) -> int:
        """Bytes of a block that this group's layers lay out, their own padding included."""
        return sum(spec.page_bytes for spec in self.specs)

    @property
    def content_bytes(self) -> int:
        """Bytes of a block that this group's layers use."""
        return sum(spec.content_bytes for spec in self.specs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The blocks of one rank, and what requests take of them."""

    groups: tuple[Group, ...]
    in_flight_tokens: int
    """Tokens that are scheduled and not yet settled, whose blocks a window cannot free (``max_in_flight_tokens``)."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers: those of the widest group (``_get_kv_cache_bytes_per_block``)."""
        return max(group.page_bytes for group in self.groups)

    @property
    def layers_per_group(self) -> tuple[int, ...]:
        """Layers of each group; a group with fewer than the widest wastes the rest of its blocks."""
        return tuple(len(group.specs) for group in self.groups)

    def group_blocks_for(self, tokens: int) -> tuple[int, ...]:
        """Blocks of each group that vLLM plans for a request of up to ``tokens`` tokens."""
        return tuple(
            max(spec.blocks_for(tokens, self.in_flight_tokens) for spec in group.specs) for group in self.groups
        )

    def blocks_for(self, tokens: int) -> int:
        """Blocks that vLLM plans for a request of up to ``tokens`` tokens."""
        return sum(self.group_blocks_for(tokens))

    def blocks_held(self, tokens: int) -> int:
        """Blocks of a sequence that decodes its ``tokens``-th token; a prefill may hold more, up to ``blocks_for``."""
        return sum(max(spec.blocks_held(tokens) for spec in group.specs) for group in self.groups)

    def blocks_in(self, budget_bytes: int) -> int:
        """Blocks that a budget buys (``num_blocks``); one of them is the null block, which no request gets."""
        return budget_bytes // self.block_bytes

    def max_concurrency(self, budget_bytes: int, tokens: int) -> float:
        """Requests of ``tokens`` tokens at once, as vLLM prints it (``get_max_concurrency_for_kv_cache_config``)."""
        return self.blocks_in(budget_bytes) / self.blocks_for(tokens)

    def capacity_tokens(self, budget_bytes: int, tokens: int) -> int:
        """The tokens that vLLM prints for a ``--max-model-len`` of ``tokens`` (``get_kv_cache_capacity``)."""
        return int(self.max_concurrency(budget_bytes, tokens) * tokens)

    def fits(self, budget_bytes: int, tokens: int) -> bool:
        """Whether vLLM starts with a ``--max-model-len`` of ``tokens`` (``_check_enough_kv_cache_memory``)."""
        return (self.blocks_for(tokens) + 1) * self.block_bytes <= budget_bytes


def pool(
    geometry: Geometry,
    *,
    itemsize: int,
    kv_cache_dtype: str = "auto",
    block_size: int = 16,
    tensor_parallel_size: int = 1,
    max_num_batched_tokens: int = 8192,
    enable_prefix_caching: bool | None = None,
    mamba_ssm_cache_dtype: str = "auto",
    gdn_prefill_backend: str = "flashinfer",
) -> Pool:
    """The pool of one rank. ``itemsize`` is that of the run's dtype; the other names and defaults are vLLM's.

    ``max_num_batched_tokens`` is what ``vllm serve`` takes on a GPU of 70 to 160 GiB that is no A100
    (``engine/arg_utils.py``, ``get_batch_defaults``). MLA kernels may ask for other blocks than 16: FlashMLA 64,
    FlashInfer 32, CUTLASS 128. ``enable_prefix_caching`` None is vLLM's own choice: on, unless no layer attends.
    """
    if geometry.model_type in NOT_SERVED:
        last = NOT_SERVED[geometry.model_type]
        raise UllageError(
            f"vLLM 0.33.0 has no class for model type {geometry.model_type!r}", hint=f"vLLM {last} was the last one"
        )
    if block_size <= 0 or block_size % KERNEL_BLOCK_TOKENS:
        raise UllageError(f"block size {block_size} is not a multiple of 16 tokens", hint="give vLLM's --block-size")
    mixers = tuple(_mixers(geometry))
    attends = any(not isinstance(mixer, Recurrent) for mixer in mixers)
    run = _Run(
        model_type=geometry.model_type,
        itemsize=itemsize,
        kv_cache_dtype=kv_cache_dtype,
        block_size=block_size,
        ranks=tensor_parallel_size,
        caching=attends if enable_prefix_caching is None else enable_prefix_caching,
        state_itemsize=_state_itemsize(geometry.model_type, mamba_ssm_cache_dtype, itemsize),
        gdn_prefill_backend=gdn_prefill_backend,
        sparse=any(isinstance(mixer, LatentAttention) and mixer.index_head_dim is not None for mixer in mixers),
    )
    return Pool(
        groups=tuple(_groups(_aligned([spec for mixer in mixers for spec in _specs(mixer, run)], run))),
        in_flight_tokens=CONCURRENT_BATCHES * max_num_batched_tokens,
    )


def vllm_state(
    geometry: Geometry,
    *,
    tokens: int,
    sequences: int,
    itemsize: int,
    kv_cache_dtype: str = "auto",
    block_size: int = 16,
    tensor_parallel_size: int = 1,
    max_num_batched_tokens: int = 8192,
    enable_prefix_caching: bool | None = None,
    mamba_ssm_cache_dtype: str = "auto",
    gdn_prefill_backend: str = "flashinfer",
) -> tuple[Held, ...]:
    """Bytes of the blocks that vLLM plans for ``sequences`` requests of up to ``tokens`` tokens, by kind, on one rank.

    That is the most that they take, at the end of a long prefill; the note says what they hold while they decode.
    """
    held = pool(
        geometry,
        itemsize=itemsize,
        kv_cache_dtype=kv_cache_dtype,
        block_size=block_size,
        tensor_parallel_size=tensor_parallel_size,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_prefix_caching=enable_prefix_caching,
        mamba_ssm_cache_dtype=mamba_ssm_cache_dtype,
        gdn_prefill_backend=gdn_prefill_backend,
    )
    kinds = dict.fromkeys(group.kind for group in held.groups)
    return tuple(_held(held, kind, tokens=tokens, sequences=sequences) for kind in kinds)


def _held(held: Pool, kind: str, *, tokens: int, sequences: int) -> Held:
    part = replace(held, groups=tuple(group for group in held.groups if group.kind == kind))
    blocks = part.blocks_for(tokens)
    grows = part.blocks_for(tokens + (part.groups[0].block_tokens or 0)) > blocks
    padding_bytes = sum(held.block_bytes - group.content_bytes for group in part.groups)
    span = part.groups[0].block_tokens
    count = f"{len(part.groups)} group{'s' * (len(part.groups) > 1)}"
    note = f"{count}, blocks of {span:,} tokens" if span else f"{count}, blocks of a whole sequence"
    note += f" and {held.block_bytes:,} bytes; {blocks:,} a sequence, {part.blocks_held(tokens):,} while it decodes"
    if padding_bytes:
        note += f"; {padding_bytes:,} bytes of padding in a block of each group"
    return Held(
        kind=kind,
        layers=sum(spec.kind == kind for group in part.groups for spec in group.specs),
        bytes=sequences * blocks * held.block_bytes,
        bytes_per_token=math.ceil(len(part.groups) * held.block_bytes / span) if grows and span else 0,
        note=note,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    model_type: str
    itemsize: int
    kv_cache_dtype: str
    block_size: int
    ranks: int
    caching: bool
    state_itemsize: int
    gdn_prefill_backend: str
    sparse: bool
    """Whether some layer has a sparse attention's indexer."""


Row = TypeVar("Row")


def _known(table: Mapping[str, Row], name: str, what: str) -> Row:
    if name not in table:
        raise UllageError(f"{what} {name!r} is not modelled for vLLM 0.33.0", hint=f"known: {', '.join(table)}")
    return table[name]


def _state_itemsize(model_type: str, name: str, itemsize: int) -> int:
    if name == "auto":
        name = STATE_DTYPES.get(model_type, "auto")
    return itemsize if name == "auto" else _known(DTYPE_BYTES, name, "state dtype")


def _mixers(geometry: Geometry) -> Iterator[Attention | LatentAttention | Recurrent]:
    """What stores state, in the layers' order; a layer that reads an earlier one's cache stores none."""
    for layer in geometry.layers:
        if layer.cross is not None:
            raise UllageError(
                f"{geometry.model_type!r} has cross attention, whose blocks in vLLM are not modelled",
                hint="estimate a decoder-only model, or measure this one",
            )
        for mixer in (layer.mixer, layer.recurrent):
            if mixer is not None and not (isinstance(mixer, Attention) and mixer.cached_heads == 0):
                yield mixer


def _specs(mixer: Attention | LatentAttention | Recurrent, run: _Run) -> Iterable[Spec]:
    if isinstance(mixer, Recurrent):
        return [_recurrent(mixer, run)]
    if mixer.heads % run.ranks:
        raise UllageError(
            f"{mixer.heads} query heads do not divide among {run.ranks} tensor-parallel ranks",
            hint="choose a --tensor-parallel-size that divides them",
        )
    return _latent(mixer, run) if isinstance(mixer, LatentAttention) else [_attention(mixer, run)]


def _cell(run: _Run, kind: str) -> CacheDtype:
    dtype = _known(CACHE_DTYPES, run.kv_cache_dtype, "KV cache dtype")
    if run.kv_cache_dtype in DTYPE_BYTES and DTYPE_BYTES[run.kv_cache_dtype] != run.itemsize:
        raise UllageError(
            f"KV cache dtype {run.kv_cache_dtype!r} is not the run's dtype, which vLLM 0.33.0 refuses",
            hint='use "auto"',
        )
    if (dtype.latent_bytes if kind == LatentSpec.kind else dtype.pair_bytes) is None or dtype.sparse > run.sparse:
        raise UllageError(
            f"no CUDA backend of vLLM 0.33.0 stores this {kind} as {run.kv_cache_dtype!r}", hint='use "auto" or "fp8"'
        )
    return dtype


INDEX_SCALE_ELEMENTS = 128
"""Elements of an indexer's key that share a float32 scale (``models/deepseek_v2.py``, Indexer.quant_block_size)."""


def _latent(mixer: LatentAttention, run: _Run) -> Iterator[LatentSpec]:
    latent_bytes = _cell(run, LatentSpec.kind).latent_bytes
    assert latent_bytes is not None
    size = mixer.kv_lora_rank + mixer.qk_rope_head_dim
    yield LatentSpec(
        block_tokens=run.block_size,
        kv_heads=1,
        head_dim=size,
        v_head_dim=0,
        head_bytes=latent_bytes(size, run.itemsize),
    )
    if mixer.index_head_dim is not None:  # float8 whatever the cache's dtype
        size = mixer.index_head_dim + mixer.index_head_dim // INDEX_SCALE_ELEMENTS * SCALE_BYTES
        yield IndexerSpec(block_tokens=run.block_size, kv_heads=1, head_dim=size, v_head_dim=0, head_bytes=size)


def _attention(mixer: Attention, run: _Run) -> FullSpec:
    pair_bytes = _cell(run, FullSpec.kind).pair_bytes
    assert pair_bytes is not None
    full = FullSpec(
        block_tokens=run.block_size,
        kv_heads=_local_heads(mixer.kv_heads, run.ranks),
        head_dim=mixer.head_dim,
        v_head_dim=mixer.v_head_dim,
        head_bytes=pair_bytes(mixer.head_dim, mixer.v_head_dim, run.itemsize),
    )
    fields = {
        name: getattr(full, name) for name in ("block_tokens", "kv_heads", "head_dim", "v_head_dim", "head_bytes")
    }
    if mixer.window_tokens is None:
        return full
    if mixer.chunked:
        return ChunkedSpec(**fields, chunk_tokens=mixer.window_tokens)
    return SlidingSpec(**fields, window_tokens=mixer.window_tokens + EXTRA_WINDOW_TOKENS.get(run.model_type, 0))


def _local_heads(heads: int, ranks: int) -> int:
    """Key heads of a rank; fewer heads than ranks are replicated (``config/model.py``, ``get_num_kv_heads``)."""
    if max(heads, ranks) % min(heads, ranks):
        raise UllageError(
            f"{heads} key heads neither divide among {ranks} tensor-parallel ranks nor repeat evenly on them",
            hint="choose a --tensor-parallel-size that divides them or is a multiple of them",
        )
    return max(1, heads // ranks)


def _mamba2_channels(mixer: Recurrent, ranks: int) -> int:
    """Convolved channels of all ranks: groups that do not divide are repeated to one a rank (``mamba_utils.py``)."""
    state_size = mixer.state_elements // mixer.inner_size
    groups = (mixer.conv_channels - mixer.inner_size) // (2 * state_size)
    groups = groups if groups % ranks == 0 else ranks
    return mixer.inner_size + 2 * groups * state_size


CHANNELS: Mapping[str, Callable[[Recurrent, int], int]] = {
    "mamba": lambda mixer, _: mixer.conv_channels,
    "mamba2": _mamba2_channels,
    "gated_delta_net": lambda mixer, _: mixer.conv_channels,
    "short_conv": lambda mixer, _: mixer.conv_channels,
}
"""Channels of all ranks' convolutions, for each recurrent mixer that vLLM has (``layers/mamba/mamba_utils.py``)."""

CHECKPOINT_TOKENS: Mapping[str, Callable[[_Run], int | None]] = {
    "mamba": lambda _: None,
    "mamba2": lambda _: 1,
    "gated_delta_net": lambda run: _known(GDN_CHECKPOINT_TOKENS, run.gdn_prefill_backend, "GDN prefill backend"),
    "short_conv": lambda _: None,
}
"""Alignment of the states that a mixer's kernel exports from inside a prefill (``prefill_checkpoint_alignment``)."""


def _recurrent(mixer: Recurrent, run: _Run) -> RecurrentSpec:
    """The convolution holds the kernel less one token; both states divide among the ranks."""
    channels = _known(CHANNELS, mixer.kind, "recurrent mixer")(mixer, run.ranks)
    if channels % run.ranks or mixer.state_elements % run.ranks or (mixer.heads or run.ranks) % run.ranks:
        raise UllageError(
            f"the states of {mixer.kind!r} do not divide among {run.ranks} tensor-parallel ranks",
            hint="choose a smaller --tensor-parallel-size",
        )
    conv_bytes = channels // run.ranks * (mixer.conv_kernel - 1) * run.itemsize
    return RecurrentSpec(
        state_bytes=conv_bytes + mixer.state_elements // run.ranks * run.state_itemsize,
        block_tokens=run.block_size if run.caching else None,
        checkpoint_tokens=CHECKPOINT_TOKENS[mixer.kind](run) if run.caching else None,
    )


def _aligned(specs: list[Spec], run: _Run) -> list[Spec]:
    """A hybrid's blocks: attention's long enough to hold a state, states padded to them.

    ``platforms/interface.py``, ``_align_hybrid_block_size``. With prefix caching a state is kept at every block's end.
    """
    attention = {spec for spec in specs if isinstance(spec, FullSpec)}
    states = [spec for spec in specs if isinstance(spec, RecurrentSpec)]
    if not attention or not states:
        return specs
    if len(attention) > 1:
        raise UllageError(
            f"{run.model_type!r} mixes states with attention of several kinds, whose blocks are not modelled",
            hint="measure this model instead",
        )
    (layer,) = attention
    least = max(KERNEL_BLOCK_TOKENS, run.block_size)
    least = math.lcm(least, *(spec.checkpoint_tokens or 1 for spec in states))
    token_bytes = layer.kv_heads * layer.head_bytes
    block_tokens = least * math.ceil(states[0].state_bytes / (least * token_bytes))
    return [_on_block(spec, block_tokens, block_tokens * token_bytes) for spec in specs]


def _on_block(spec: Spec, block_tokens: int, page_bytes: int) -> Spec:
    if isinstance(spec, RecurrentSpec):
        span = None if spec.block_tokens is None else block_tokens
        return replace(spec, block_tokens=span, padded_bytes=page_bytes)
    assert isinstance(spec, FullSpec)
    return replace(spec, block_tokens=block_tokens)


def _groups(specs: list[Spec]) -> Iterable[Group]:
    """``get_kv_cache_groups``: one group where all layers need the same blocks, else equal shares of each kind."""
    if not specs:
        raise UllageError("no layer of this model stores state", hint="vLLM needs no KV cache for it")
    if len({spec.type_key for spec in specs}) == 1:
        return [Group(specs=tuple(specs))]
    page_bytes = max(spec.page_bytes for spec in specs)
    buckets: dict[Spec, int] = {}
    for spec in specs:
        same_page = spec if spec.page_bytes == page_bytes else spec.with_page(page_bytes)
        buckets[same_page] = buckets.get(same_page, 0) + 1
    return list(_shares(buckets))


def _shares(buckets: Mapping[Spec, int]) -> Iterator[Group]:
    """``_get_kv_cache_groups_uniform_page_size``: as many layers a group as the rarest kind has, or the commonest
    where that is less than half as many again."""
    least, most = min(buckets.values()), max(buckets.values())
    size = most if most < least * 1.5 else least
    for spec, layers in buckets.items():
        groups = math.ceil(layers / size)
        for index in range(groups):
            yield Group(specs=(spec,) * len(range(index, layers, groups)))

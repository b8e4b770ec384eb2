"""Sequence state as vLLM 0.33.0 pages it: blocks of one size, drawn by every group of layers from one pool.

A group is a set of layers that share a block table; a block holds ``block_tokens`` tokens of all of them, or one
recurrent state a layer. Every block costs the bytes of the widest group, so a narrower group's blocks are padded. The
formulas are those of ``v1/kv_cache_interface.py`` (specs), ``v1/core/kv_cache_planning.py`` (groups, blocks) and
``platforms/interface.py`` (the block sizes of hybrids), for CUDA, the layer-outermost layout that vLLM resolves there
(``LBNHC``, ``LBHNC``), no speculative decoding and no context or pipeline parallelism.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from analytic.errors import UllageError
from analytic.models.geometry import Attention, Geometry, LatentAttention, Recurrent
from analytic.state.held import Held
from analytic.state.vllm_pool import Pool, groups_of
from analytic.state.vllm_specs import (
    CACHE_DTYPES,
    CONCURRENT_BATCHES,
    KERNEL_BLOCK_TOKENS,
    SCALE_BYTES,
    CacheDtype,
    ChunkedSpec,
    FullSpec,
    IndexerSpec,
    LatentSpec,
    RecurrentSpec,
    SlidingSpec,
    Spec,
)

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
        groups=tuple(groups_of(_aligned([spec for mixer in mixers for spec in _specs(mixer, run)], run))),
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

"""The arithmetic of vLLM's profiling pass and of its dummy sampler: what each moment has alive on one rank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from analytic.engines.vllm.moments import FAMILIES, Family, Moments, Need
from analytic.errors import UllageError
from analytic.formats.table import itemsize
from analytic.loaded.vllm_shards import VOCABULARY_ROWS
from analytic.models.geometry import (
    Attention,
    FeedForward,
    Geometry,
    LatentAttention,
    Layer,
    MixtureOfExperts,
    Recurrent,
)
from analytic.quantity import round_up

MIB = 2**20
FLASHINFER_BYTES = MIB
"""State of FlashInfer's top-k kernel, which stays (flashinfer/sampling.py, top_k_mask_logits)."""
FLASHINFER_FROM = (8, 0)
"""Compute capability from which FlashInfer samples; before, a Triton kernel masks the logits in place."""
SAMPLING_BYTES = 12
"""A logit: a copy in float32, masked to the top k, and their softmax (v1/worker/gpu/sample/sampler.py)."""
MASKED_BYTES = 4
"""A logit without FlashInfer: the copy alone."""
TURING_SMS = 72
"""Multiprocessors of the largest GPU before FlashInfer's: Triton's kernel has a row of float32 for each."""
CHECKPOINT_TOKENS = 16
"""Tokens between states that are kept along a prefill: the block of the prefix cache (mamba_utils.py)."""
CONTEXT_TOKENS = 64 * 1024
"""Most tokens whose latent keys and values are expanded at once (mla_attention.py)."""
CONTEXT_REQUESTS, CONTEXT_PAGES = 8, 4
PAGE_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmRun:
    """What a run of vLLM is; sizes as its flags have them."""

    dtype: str
    """Of activations."""
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_expert_parallel: bool = False
    data_parallel_size: int = 1
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    enforce_eager: bool = False
    quantization: str | None = None
    capability: tuple[int, int] | None = None
    """CUDA compute capability; None where the GPU is not known."""


def batch_bytes(run: VllmRun) -> int:
    """What describes a batch (v1/worker/gpu/input_batch.py, make_dummy)."""
    return 20 * run.max_num_seqs + 4


def family(geometry: Geometry) -> Family:
    """The row of a model type; UllageError where it was never recorded."""
    if geometry.model_type not in FAMILIES:
        raise UllageError(
            f"what vLLM allocates in a pass of a {geometry.model_type} model is not known",
            hint=f"recorded: {', '.join(FAMILIES)}",
        )
    return FAMILIES[geometry.model_type]


def moments(geometry: Geometry, run: VllmRun) -> dict[str, int]:
    """Bytes at each kind of layer's widest line, and at the sampler's, above what was held before the pass.

    Routed experts leave a workspace to all that follows.

    Raises:
        UllageError: a model type that was never recorded.
    """
    known = family(geometry)
    own = known.eager if run.enforce_eager or known.compiled is None else known.compiled
    given_up = _narrowed_bytes(geometry, run) if known.narrows_rotary and run.enforce_eager else 0
    left = 0
    found: dict[str, int] = {}
    for layer in _telling(geometry.layers):
        if known.checkpoints and isinstance(layer.mixer, Recurrent) and _has_flashinfer_scan(run):
            left = max(left, checkpoint_bytes(layer.mixer, run))
        for name, size in _of_layer(geometry, own, layer, run, routed=left > 0):
            found[name] = max(found.get(name, 0), left + size - given_up)
        if isinstance(layer.feed_forward, MixtureOfExperts) and not _makes_its_own(own, run):
            left = max(left, workspace_bytes(geometry, layer.feed_forward, run))
            if own.shared is not None:
                size = left + _bytes(own.shared, geometry, layer, run) - given_up
                found["shared experts"] = max(found.get("shared experts", 0), size)
    return {**found, "sampler": left + sampler_bytes(geometry, run) - given_up}


def _telling(layers: Sequence[Layer]) -> Iterator[Layer]:
    """The first and the last of equal layers, in their order: what is left only grows, so the last peaks highest."""
    first: dict[Layer, int] = {}
    last: dict[Layer, int] = {}
    for index, layer in enumerate(layers):
        first.setdefault(layer, index)
        last[layer] = index
    return (layers[index] for index in sorted({*first.values(), *last.values()}))


def _of_layer(
    geometry: Geometry, own: Moments, layer: Layer, run: VllmRun, *, routed: bool
) -> Iterator[tuple[str, int]]:
    """Of its mixer, and of what follows it; routed is whether experts came before."""
    if isinstance(layer.mixer, Attention | LatentAttention) and own.attention is not None:
        size = _bytes(own.attention, geometry, layer, run)
        if routed and run.tensor_parallel_size > 1 and isinstance(layer.mixer, Attention):
            # the experts' sum over ranks is a tensor of its own, which a latent attention's norm takes over
            size += run.max_num_batched_tokens * geometry.hidden_size * itemsize(run.dtype)
        yield "attention", size
    if isinstance(layer.mixer, Recurrent) and own.recurrent is not None:
        yield "mixer", _bytes(own.recurrent, geometry, layer, run)
    if isinstance(layer.feed_forward, FeedForward) and own.mlp is not None:
        yield "mlp", _bytes(own.mlp, geometry, layer, run)
    if isinstance(layer.feed_forward, MixtureOfExperts) and own.experts is not None and _makes_its_own(own, run):
        yield "experts", _bytes(own.experts, geometry, layer, run)


def _narrowed_bytes(geometry: Geometry, run: VllmRun) -> int:
    """What a rotary table in float32 gives up to one in the serving dtype."""
    heads: list[int] = [layer.mixer.head_dim for layer in geometry.layers if isinstance(layer.mixer, Attention)]
    return (geometry.max_position_embeddings or 0) * max(heads, default=0) * (4 - itemsize(run.dtype))


def _has_flashinfer_scan(run: VllmRun) -> bool:
    """Whether FlashInfer scans a prefill: from Hopper on, which is assumed of an unknown GPU."""
    return run.capability is None or run.capability >= (9, 0)


def checkpoint_bytes(mixer: Recurrent, run: VllmRun) -> int:
    """States in float32 at every 16th token of a batch, which stay as a workspace."""
    states = -(-run.max_num_batched_tokens // CHECKPOINT_TOKENS)
    return states * mixer.state_elements // run.tensor_parallel_size * 4


def _makes_its_own(own: Moments, run: VllmRun) -> bool:
    """Whether MXFP4 experts run on Triton's own kernels, which ask PyTorch each time: on Hopper."""
    return own.experts is not None and run.capability is not None and run.capability[0] == 9


def workspace_bytes(geometry: Geometry, moe: MixtureOfExperts, run: VllmRun) -> int:
    """Both ends of the routed experts' two products, which stay (fused_moe/experts/*.py, workspace_shapes).

    With experts over several replicas each sees the tokens of all (all2all's all-gather).
    """
    ranks = 1 if run.enable_expert_parallel else run.tensor_parallel_size
    replicas = run.data_parallel_size if run.enable_expert_parallel else 1
    inner_of, hidden_of = family(geometry).padded_experts
    inner, hidden = round_up(moe.intermediate_size // ranks, inner_of), round_up(geometry.hidden_size, hidden_of)
    first = max((2 if moe.gated else 1) * inner, hidden)
    elements = moe.experts_per_token * (first + max(inner, hidden))
    return run.max_num_batched_tokens * replicas * elements * itemsize(run.dtype)


def sampler_bytes(geometry: Geometry, run: VllmRun) -> int:
    """Of the dummy sampler run: the pass's output, the last states, their logits and what sampling makes of them."""
    item, requests = itemsize(run.dtype), min(run.max_num_seqs, run.max_num_batched_tokens)
    states = (run.max_num_batched_tokens + requests) * geometry.hidden_size * item
    logits = requests * round_up(geometry.vocab_size, VOCABULARY_ROWS) * item
    has_flashinfer = run.capability is None or run.capability >= FLASHINFER_FROM
    each = SAMPLING_BYTES if has_flashinfer else MASKED_BYTES
    rest = FLASHINFER_BYTES if has_flashinfer else 4 * TURING_SMS * geometry.vocab_size
    return states + logits + requests * geometry.vocab_size * each + rest + 45 * requests + 4


def _bytes(need: Need, geometry: Geometry, layer: Layer, run: VllmRun) -> int:
    split, whole = _split_sizes(geometry, layer), _whole_sizes(geometry, layer)
    elements: float = sum(getattr(need, name) * size / run.tensor_parallel_size for name, size in split.items())
    elements += sum(getattr(need, name) * size for name, size in whole.items()) + need.one
    if isinstance(layer.mixer, Attention):  # a rank has one head of keys at least
        elements += need.k * max(layer.mixer.kv_heads / run.tensor_parallel_size, 1) * layer.mixer.head_dim
    is_latent = isinstance(layer.mixer, LatentAttention)
    context = _context_bytes(layer.mixer, run) if need.context and is_latent else 0
    return round(elements * run.max_num_batched_tokens * itemsize(run.dtype)) + context + batch_bytes(run)


def _split_sizes(geometry: Geometry, layer: Layer) -> dict[str, int]:
    """Elements a token of what is split over ranks."""
    mixer, ff = layer.mixer, layer.feed_forward
    found: dict[str, int] = {}
    recurrent = next((each.mixer for each in geometry.layers if isinstance(each.mixer, Recurrent)), None)
    if recurrent is not None:
        found = {"inner": recurrent.inner_size, "conv": recurrent.conv_channels, "heads": recurrent.heads or 0}
    if isinstance(mixer, Attention):
        found |= {"q": mixer.heads * mixer.head_dim, "o": mixer.heads * mixer.v_head_dim}
    elif isinstance(mixer, LatentAttention):
        query = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
        found |= {"q": mixer.heads * query, "o": mixer.heads * mixer.v_head_dim}
    if isinstance(ff, FeedForward):
        found["i"] = ff.intermediate_size
    elif isinstance(ff, MixtureOfExperts):
        found |= {"routed_i": ff.experts_per_token * ff.intermediate_size, "s": ff.shared_intermediate_size}
    return found


def _whole_sizes(geometry: Geometry, layer: Layer) -> dict[str, int]:
    """Elements a token of what every rank has."""
    mixer, ff = layer.mixer, layer.feed_forward
    found = {"h": geometry.hidden_size}
    if isinstance(mixer, Attention):
        found["rope"] = mixer.head_dim
    elif isinstance(mixer, LatentAttention):
        q_lora, rope = mixer.q_lora_rank or 0, mixer.qk_rope_head_dim
        found |= {"latent": mixer.kv_lora_rank + rope + q_lora, "normed": mixer.kv_lora_rank}
        found |= {"q_lora": q_lora, "rope": rope}
    if isinstance(ff, MixtureOfExperts):
        found["routed_h"] = ff.experts_per_token * geometry.hidden_size
    return found


def _context_bytes(mixer: object, run: VllmRun) -> int:
    """Keys and values expanded for the context of eight requests of full length, within 65,536 tokens."""
    assert isinstance(mixer, LatentAttention)
    pages = CONTEXT_PAGES * run.max_num_seqs * PAGE_TOKENS
    tokens = min(max(CONTEXT_REQUESTS * run.max_model_len, pages), CONTEXT_TOKENS)
    expanded = mixer.heads // run.tensor_parallel_size * (mixer.qk_nope_head_dim + mixer.v_head_dim)
    return tokens * expanded * itemsize(run.dtype)

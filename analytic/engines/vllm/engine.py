"""vLLM 0.33: what it allocates of its budget before the KV cache, and how many blocks the rest buys.

Memory that may be used is ``gpu_memory_utilization`` of what the device has. vLLM takes a snapshot once the CUDA
context and NCCL are there, so that neither counts; weights, the peak of a profiling pass and, since 0.21, CUDA graphs
do. All that is left becomes the KV cache (``v1/worker/gpu_worker.py``, ``determine_available_memory``).
"""

from collections.abc import Hashable, Iterator
from dataclasses import replace
from math import ceil
from typing import Any

from analytic.deployment import Deployment
from analytic.engine_constants import EngineCalibration
from analytic.engines.vllm.memory import defaults
from analytic.engines.vllm.stages import Stage, stage_of, stages
from analytic.errors import UllageError, UsageError
from analytic.hardware import Gpu, context_range
from analytic.ledger import Component, Ledger, Part, Phase
from analytic.loaded.vllm import ONLINE
from analytic.models.geometry import Geometry, LatentAttention
from analytic.parallel import Degrees, Kind
from analytic.quantity import NOTHING, GiB, Quantity, bounded, exact
from analytic.request import LARGEST
from analytic.state.vllm_pool import Pool

NAME = "vLLM"
VERSION = "0.33"
REST: Kind = "tensor"
"""How GPUs work together where nothing else is asked for."""

UTILIZATION = 0.92
"""Default of ``--gpu-memory-utilization`` (config/cache.py)."""
BLOCK, LATENT_BLOCK = 16, 64
"""Tokens of a block by default, and of latent attention's kernels (FlashMLA)."""
TENSOR_DEGREES = (1, 2, 4, 8)
"""That are proposed: within a node."""

CHARGES_CONTEXT = False

NOT_MODELED = ("LoRA adapters, speculative decoding, context parallelism and offloading of vLLM",)


def prepare(asked: Deployment) -> Deployment:
    """Resolve vLLM's defaults for the GPU; refuse what it would.

    Raises:
        UllageError: degrees, a format or a cache dtype that vLLM does not serve.
    """
    request, flags = asked.request, asked.flags
    if request.double_quant or request.compute_dtype:
        raise UsageError("--double-quant and --compute-dtype are transformers'", hint="leave them out")
    dtype = _dtype(asked)
    longest = flags.max_model_len or request.total_tokens
    if request.total_tokens > longest:
        raise UsageError(
            f"{request.total_tokens:,} tokens of prompt and output exceed --max-model-len {longest:,}",
            hint="ask for shorter sequences, or a larger --max-model-len",
        )
    batched, sequences = defaults(asked.gpu, max_model_len=longest)
    utilization = UTILIZATION if request.gpu_memory_utilization is None else request.gpu_memory_utilization
    resolved = replace(
        flags,
        max_model_len=longest,
        max_num_batched_tokens=flags.max_num_batched_tokens or batched,
        max_num_seqs=flags.max_num_seqs or sequences,
        enforce_eager=bool(flags.enforce_eager),
        enable_expert_parallel=bool(flags.enable_expert_parallel),
        block_size=flags.block_size or (LATENT_BLOCK if _is_latent(asked.model.geometry) else BLOCK),
    )
    return replace(asked, dtype=dtype, flags=resolved, request=replace(request, gpu_memory_utilization=utilization))


NO_FLOAT16 = frozenset(("gemma2", "gemma3", "gemma3_text", "glm4"))
"""Model types that vLLM does not run in float16 (config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS)."""
BFLOAT16_FROM = (8, 0)
"""Compute capability from which vLLM runs bfloat16 (platforms/cuda.py, supported_dtypes)."""


def _dtype(asked: Deployment) -> str:
    """What ``auto`` becomes on the GPU (config/model.py, _resolve_auto_dtype); float32 is served in 16 bits.

    Raises:
        UllageError: vLLM does not run the model, or the GPU, in the dtype that was asked for.
    """
    capability = asked.gpu.capability if asked.gpu else None
    no_float16 = asked.model.geometry.model_type in NO_FLOAT16
    no_bfloat16 = capability is not None and capability < BFLOAT16_FROM
    supported = [
        dtype
        for dtype, is_missing in (("bfloat16", no_bfloat16), ("float16", no_float16), ("float32", False))
        if not is_missing
    ]
    if asked.request.dtype == "auto":
        return supported[0] if asked.dtype == "float32" or asked.dtype not in supported else asked.dtype
    if asked.dtype not in supported:
        where = f" on {asked.gpu.name}" if asked.gpu and asked.dtype == "bfloat16" else ""
        raise UllageError(
            f"vLLM does not run {asked.model.id} in {asked.dtype}{where}",
            hint=f"take --dtype {' or '.join(supported)}, or auto",
        )
    return asked.dtype


def _is_latent(geometry: Geometry) -> bool:
    return any(isinstance(layer.mixer, LatentAttention) for layer, _ in geometry.groups)


def kind(gpu: Gpu) -> Hashable:
    """vLLM chooses kernels by compute capability; its defaults by memory are in the flags."""
    return gpu.capability


def usable_bytes(asked: Deployment, gpu: Gpu) -> int:
    """vLLM's budget of one GPU (``request_memory``); given bytes of KV cache only have to fit beside the context."""
    if asked.flags.kv_cache_memory_bytes is not None:
        return gpu.cuda_bytes - context_range(gpu).bytes
    return ceil(gpu.cuda_bytes * (asked.request.gpu_memory_utilization or UTILIZATION))


def ledgers(asked: Deployment) -> tuple[Ledger, ...]:
    """What the request's sequences need; vLLM itself fills its budget with blocks (`details`)."""
    degrees = asked.degrees
    rows = [_ledger(asked, stage) for stage in stages(asked)]
    return tuple(
        replace(rows[pipeline], rank=degrees.name(0, pipeline, tensor))
        for pipeline in range(degrees.pipeline)
        for tensor in range(degrees.tensor)
    )


def _ledger(asked: Deployment, stage: Stage) -> Ledger:
    context = context_range(asked.gpu)
    outside = bounded(context.low_bytes, context.bytes, context.high_bytes, "assumed")
    state = exact(_state_bytes(asked, stage.pool))
    components: dict[Component, Quantity] = {
        "weights": exact(stage.weights_bytes),
        "sequence_state": state,
        "activations": stage.activations,
        "workspace": stage.graphs,
        "allocator_slack": NOTHING,
        "context": outside + stage.non_torch,
    }
    note = "captured for each batch size that decoding may have"
    return Ledger(
        phases=(
            Phase(
                name="prefill",
                moment=stage.moment,
                sequence_state=state,
                activations=stage.activations,
                temporaries=NOTHING,
            ),
        ),
        components=components,
        retained=stage.graphs,
        load_peak=exact(stage.weights_bytes),
        parts=(Part(component="workspace", name="cuda graphs", bytes=stage.graphs.bytes, note=note),),
        layers=stage.span,
        uncounted=outside,
    )


def _state_bytes(asked: Deployment, blocks: Pool) -> int:
    """Blocks of the request's sequences; one more is the null block, and one of the longest must fit.

    Raises:
        UllageError: the bytes of KV cache that were given do not hold them.
    """
    request, flags = asked.request, asked.flags
    needed = request.batch_size * blocks.blocks_for(request.total_tokens)
    longest = blocks.blocks_for(flags.max_model_len or request.total_tokens)
    size = (max(needed, longest) + 1) * blocks.block_bytes
    given = flags.kv_cache_memory_bytes
    if given is not None and size > given:
        raise UllageError(
            f"--kv-cache-memory-bytes {given:,} holds less than the {size:,} bytes that the request needs",
            hint="give more, or ask for fewer or shorter sequences",
        )
    return size if given is None else given


def gpus_needed(asked: Deployment, capacity_bytes: int) -> Degrees | None:
    """The fewest GPUs that hold it: tensor parallel in a node, then stages of as many; None if none do."""
    widest = 1
    for tensor in TENSOR_DEGREES:
        degrees = Degrees(tensor=tensor, data=asked.degrees.data)
        needed = _charged_bytes(asked, degrees)
        if needed is not None:
            widest = tensor
            if needed <= capacity_bytes:
                return degrees
    for pipeline in range(2, len(asked.model.geometry.layers) + 1):
        degrees = Degrees(tensor=widest, pipeline=pipeline, data=asked.degrees.data)
        if _holds(replace(asked, degrees=degrees), capacity_bytes):
            return degrees
    return None


def _charged_bytes(asked: Deployment, degrees: Degrees) -> int | None:
    """Of the fullest GPU; None for degrees that cannot be."""
    try:
        return max(row.charged.bytes for row in ledgers(replace(asked, degrees=degrees)))
    except UllageError:
        return None


def _holds(asked: Deployment, capacity_bytes: int) -> bool:
    """Whether each stage fits, those most likely not to asked first; False for degrees that cannot be."""
    order = (0, *reversed(range(1, asked.degrees.pipeline)))
    try:
        return all(_ledger(asked, stage_of(asked, stage)).charged.bytes <= capacity_bytes for stage in order)
    except UllageError:
        return False


def state_bytes_per_token(asked: Deployment) -> int:
    """What one more token would add to one sequence, over all GPUs: its part of the blocks that grow."""
    longest = asked.request.total_tokens
    return ceil(asked.degrees.tensor * sum(stage.pool.bytes_per_token(longest) for stage in stages(asked)))


def changes(asked: Deployment) -> Iterator[tuple[str, Deployment]]:
    """What could be asked for instead, one flag at a time, but for sizes and GPUs."""
    request, flags = asked.request, asked.flags
    if asked.model.native_format is None and request.quantization is None:
        for name in ("fp8", "w4a16"):
            yield f"--quantization {name}", asked.asking(quantization=name)
    if request.kv_cache_dtype == "auto":
        yield "--kv-cache-dtype fp8", asked.asking(kv_cache_dtype="fp8")
    if (flags.max_num_seqs or 0) > 64:
        yield "--max-num-seqs 64", replace(asked, flags=replace(flags, max_num_seqs=64))
    if (flags.max_num_batched_tokens or 0) > 2048:
        yield "--max-num-batched-tokens 2048", replace(asked, flags=replace(flags, max_num_batched_tokens=2048))
    if not flags.enforce_eager:
        yield "--enforce-eager", replace(asked, flags=replace(flags, enforce_eager=True))


def setting(asked: Deployment) -> str:
    """How it serves, in a few words."""
    return f"vLLM {VERSION} on {asked.degrees}" if asked.gpus > 1 else f"vLLM {VERSION}"


def warnings(asked: Deployment) -> Iterator[str]:
    """What the reader might not expect of vLLM."""
    request, flags = asked.request, asked.flags
    if request.batch_size > (flags.max_num_seqs or LARGEST["batch_size"]):
        yield f"{request.batch_size:,} sequences exceed --max-num-seqs {flags.max_num_seqs:,}: the rest wait"
    if asked.constants is not None:
        yield from _strangers(asked.constants, asked.gpu)
    if str(request.quantization) in ONLINE:
        yield f"{request.quantization}: vLLM quantises while it loads, which needs the 16-bit weights first"


def _strangers(constants: EngineCalibration, gpu: Gpu | None) -> Iterator[str]:
    """What constants were not fitted to."""
    if gpu is not None and gpu.name not in constants.gpus:
        yield f"the constants were fitted on {', '.join(constants.gpus) or 'no named GPU'}, not on {gpu.name}"
    if not any(version.startswith(f"{VERSION}.") for version in constants.versions):
        yield f"the constants were fitted to vLLM {', '.join(constants.versions)}, and {VERSION} is modelled"


def lines(asked: Deployment, rows: tuple[Ledger, ...]) -> Iterator[str]:
    """What vLLM would print of its KV cache."""
    found = details(asked, rows)
    if found["kv_cache_bytes"] is None:
        yield f"A block of {found['block_size']} tokens has {found['block_bytes']:,} bytes on each GPU."
        return
    held, longest = found["kv_cache_bytes"], found["max_model_len"]
    bounds = f"{held['low_bytes'] / GiB:,.2f}–{held['high_bytes'] / GiB:,.2f}"
    yield (
        f"vLLM fills its budget of {found['budget_bytes'] / GiB:,.2f} GiB a GPU: {held['bytes'] / GiB:,.2f} GiB of KV "
        f"cache ({bounds}), {found['gpu_blocks']:,} blocks, {found['kv_cache_tokens']:,} tokens, "
        f"{found['maximum_concurrency']:,.2f}x for {longest:,} tokens."
    )
    if not found["starts"]:
        yield f"It would not start: one sequence of --max-model-len {longest:,} does not fit."


def details(asked: Deployment, rows: tuple[Ledger, ...]) -> dict[str, Any]:
    """What vLLM prints: bytes of KV cache, blocks, tokens and concurrency, of the rank that has fewest blocks."""
    flags = asked.flags
    longest = flags.max_model_len or asked.request.total_tokens
    found = [_cache(asked, stage, longest) for stage in stages(asked)]
    fewest = min(found, key=lambda row: row["gpu_blocks"] or 0)
    return fewest | {
        "max_model_len": longest,
        "max_num_seqs": flags.max_num_seqs,
        "max_num_batched_tokens": flags.max_num_batched_tokens,
    }


def _cache(asked: Deployment, stage: Stage, longest: int) -> dict[str, Any]:
    held, gpu = stage.pool, asked.gpu
    known: dict[str, Any] = {
        "block_size": held.groups[0].block_tokens,
        "block_bytes": held.block_bytes,
        "blocks_per_sequence": held.blocks_for(longest),
    }
    if gpu is None:
        none = ("budget_bytes", "kv_cache_bytes", "gpu_blocks", "kv_cache_tokens", "maximum_concurrency", "starts")
        return known | dict.fromkeys(none)
    budget = usable_bytes(asked, gpu)
    fixed = stage.fixed
    given = asked.flags.kv_cache_memory_bytes
    left = [max(0, budget - less) for less in (fixed.high_bytes, fixed.bytes, fixed.low_bytes)]
    low, middle, high = [given] * 3 if given is not None else left
    return known | {
        "budget_bytes": budget,
        "kv_cache_bytes": {"bytes": middle, "low_bytes": low, "high_bytes": high, "basis": fixed.basis},
        "gpu_blocks": held.blocks_in(middle),
        "kv_cache_tokens": held.capacity_tokens(middle, longest),
        "maximum_concurrency": round(held.max_concurrency(middle, longest), 2),
        "starts": held.fits(middle, longest),
    }

"""llama.cpp 0.5: weights, state and compute buffers on each GPU, and what the host holds beside them."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Any

from analytic.deployment import Deployment
from analytic.engines.llamacpp.graph import Buffer, compute_buffers
from analytic.errors import UllageError, UsageError
from analytic.flags import Flags
from analytic.hardware import Gpu, context_range
from analytic.ledger import Component, Ledger, Part, Phase
from analytic.loaded import ALL_LAYERS, Loaded
from analytic.loaded.gguf_file import gguf_file
from analytic.loaded.llamacpp import gpu_names, layer_devices, llamacpp_weights
from analytic.models.geometry import Geometry
from analytic.models.model import Model
from analytic.parallel import Degrees, Kind
from analytic.placement import Span
from analytic.quantity import NOTHING, GiB, Quantity, bounded, exact, round_up
from analytic.state.held import Held
from analytic.state.llamacpp import CELL_STEP, llamacpp_state
from analytic.weights import weigh

NAME = "llama.cpp"
VERSION = "0.5"
REST: Kind = "pipeline"
"""How GPUs work together where nothing else is asked for: ``--split-mode layer``."""
CHARGES_CONTEXT = True

KERNELS_FROM = (7, 5)
"""Compute capability from which the CUDA backend's kernels are those that were recorded."""

MOST_GPUS = 16
"""GPUs that llama.cpp can use (ggml-backend.cpp, GGML_SCHED_MAX_BACKENDS)."""

BATCH, UBATCH = 2048, 512
"""Defaults of ``-b`` and ``-ub`` (common/common.h)."""

NOT_MODELED = ("llama.cpp's draft models, LoRA adapters, control vectors, and its backends but CUDA",)


def prepare(asked: Deployment) -> Deployment:
    """Resolve llama.cpp's defaults; refuse what it cannot do.

    Raises:
        UllageError: flags that contradict each other, or a context that does not hold the sequences.
    """
    request, flags, gpus = asked.request, asked.flags, asked.degrees.pipeline
    if request.gpu_memory_utilization is not None:
        raise UsageError("llama.cpp has no --gpu-memory-utilization", hint="leave it out")
    if request.double_quant or request.compute_dtype:
        raise UsageError("--double-quant and --compute-dtype are transformers'", hint="leave them out")
    if flags.split_mode == "row":
        raise UllageError("--split-mode row is not modelled", hint="take --split-mode layer")
    if flags.tensor_split is not None and len(flags.tensor_split) != gpus:
        raise UsageError(
            f"--tensor-split has {len(flags.tensor_split)} shares, and there are {gpus} GPUs",
            hint="give a share for each GPU: --gpu NAME:2 --tensor-split 3,1",
        )
    if gpus > MOST_GPUS:
        raise UsageError(f"{gpus} GPUs: llama.cpp takes up to {MOST_GPUS}", hint="give fewer")
    if (flags.main_gpu or 0) >= gpus:
        raise UsageError(f"--main-gpu {flags.main_gpu}: there are {gpus} GPUs", hint="they count from 0")
    resolved = replace(
        flags,
        logical_batch_size=flags.logical_batch_size or BATCH,
        ubatch_size=flags.ubatch_size or UBATCH,
        n_gpu_layers=ALL_LAYERS if flags.n_gpu_layers is None else flags.n_gpu_layers,
        n_cpu_moe=flags.n_cpu_moe or 0,
        flash_attn=flags.flash_attn is not False,
        cache_type_k=flags.cache_type_k or "f16",
        cache_type_v=flags.cache_type_v or "f16",
        swa_full=bool(flags.swa_full),
        kv_unified=bool(flags.kv_unified),
        split_mode=flags.split_mode or "layer",
        tensor_split=flags.tensor_split or (1.0,) * gpus,
        main_gpu=flags.main_gpu or 0,
    )
    _require_cells(asked)
    return replace(asked, flags=resolved)


def _require_cells(asked: Deployment) -> None:
    """Refuse a context that was asked for and does not hold the sequences."""
    request, flags = asked.request, asked.flags
    if flags.ctx_size is None:
        return
    shared = request.batch_size if flags.kv_unified else 1
    cells = flags.ctx_size if flags.kv_unified else flags.ctx_size // request.batch_size
    if cells < shared * request.total_tokens:
        raise UsageError(
            f"-c {flags.ctx_size:,} gives each of {request.batch_size:,} sequences {cells // shared:,} cells, fewer "
            f"than its {request.total_tokens:,} tokens",
            hint="ask for a larger context, or fewer or shorter sequences",
        )


def kind(gpu: Gpu) -> Hashable:
    """The CUDA backend's host code asks for no capability in what is counted here."""
    return None


def usable_bytes(asked: Deployment, gpu: Gpu) -> int:
    """All of it."""
    return gpu.total_bytes


def _context_size(asked: Deployment) -> int:
    request = asked.request
    return asked.flags.ctx_size or request.batch_size * round_up(request.total_tokens, CELL_STEP)


def ledgers(asked: Deployment) -> tuple[Ledger, ...]:
    """One a GPU.

    Raises:
        UsageError: the context that was asked for does not hold the sequences.
    """
    _require_cells(asked)
    return tuple(_ledger(asked, index, name) for index, name in enumerate(gpu_names(asked.degrees.pipeline)))


_Held = tuple[tuple[Loaded, ...], tuple[tuple[Held, ...], ...], tuple[Buffer, ...], Mapping[int | None, Span]]


def held(asked: Deployment) -> _Held:
    """Weights by place, state of each GPU and last of the host, buffers, and the layers of each device."""
    request = asked.request
    size = _context_size(asked)
    return _held(asked.model, asked.dtype, request.weight_format, request.batch_size, size, asked.flags)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Placed:
    """What of a model hangs on no workload."""

    weights: tuple[Loaded, ...]
    parts: tuple[Geometry, ...]
    """The layers of each GPU, and last of the host."""
    spans: Mapping[int | None, Span]


@lru_cache(maxsize=1024)
def _placed(
    model: Model, dtype: str, quantization: str | None, layers: int, experts: int, split: tuple[float, ...]
) -> _Placed:
    file: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "gpu_layers": layers}
    devices = layer_devices(gguf_file(model, **file).blocks, gpu_layers=layers, tensor_split=split)
    return _Placed(
        weights=llamacpp_weights(model, **file, cpu_moe_layers=experts, tensor_split=split),
        parts=tuple(_part(model.geometry, devices, place) for place in (*range(len(split)), None)),
        spans=_spans(devices, len(model.geometry.layers)),
    )


def _shares(flags: Flags) -> tuple[float, ...]:
    """Of the GPUs: all of one where nothing is split."""
    assert flags.tensor_split is not None
    if flags.split_mode != "none":
        return flags.tensor_split
    return tuple(float(gpu == flags.main_gpu) for gpu in range(len(flags.tensor_split)))


@lru_cache(maxsize=4096)
def _held(model: Model, dtype: str, quantization: str | None, parallel: int, ctx_size: int, flags: Flags) -> _Held:
    assert flags.n_gpu_layers is not None
    experts, split = flags.n_cpu_moe or 0, _shares(flags)
    placed = _placed(model, dtype, quantization, flags.n_gpu_layers, experts, split)
    cache: dict[str, Any] = {
        "ctx_size": ctx_size,
        "parallel": parallel,
        "kv_unified": flags.kv_unified,
        "ubatch_size": flags.ubatch_size,
        "flash_attention": flags.flash_attn,
        "cache_type_k": flags.cache_type_k,
        "cache_type_v": flags.cache_type_v,
        "swa_full": flags.swa_full,
    }
    state = tuple(llamacpp_state(part, **cache) if part.layers else () for part in placed.parts)
    buffers = compute_buffers(
        model,
        dtype=dtype,
        quantization=quantization,
        gpu_layers=flags.n_gpu_layers,
        **cache,
        batch_size=flags.logical_batch_size or BATCH,
        cpu_moe_layers=experts,
        tensor_split=split,
        split_mode=flags.split_mode or "layer",
        main_gpu=flags.main_gpu or 0,
    )
    return placed.weights, state, buffers, placed.spans


def _spans(devices: tuple[int | None, ...], layers: int) -> Mapping[int | None, Span]:
    found: dict[int | None, Span] = {}
    for layer, device in enumerate(devices[:layers]):
        found[device] = (found.get(device, (layer, 0))[0], layer + 1)
    return found


def _part(geometry: Geometry, devices: tuple[int | None, ...], place: int | None) -> Geometry:
    """The layers of one device."""
    own = tuple(layer for layer, device in zip(geometry.layers, devices, strict=False) if device == place)
    return replace(geometry, layers=own)


def _ledger(asked: Deployment, index: int, name: str) -> Ledger:
    weights, state, buffers, spans = held(asked)
    (loaded,) = (row for row in weights if row.place == name)
    compute = [buffer for buffer in buffers if buffer.place == f"GPU{index}"]
    computing = bounded(
        sum(buffer.low for buffer in compute),
        sum(buffer.bytes for buffer in compute),
        sum(buffer.high for buffer in compute),
        "traced",
    )
    cached = exact(sum(row.bytes for row in state[index]))
    pool = _pool(asked)
    context = context_range(asked.gpu)
    components: dict[Component, Quantity] = {
        "weights": exact(loaded.bytes),
        "sequence_state": cached,
        "activations": computing,
        "workspace": pool,
        "allocator_slack": NOTHING,
        "context": bounded(context.low_bytes, context.bytes, context.high_bytes, "assumed"),
    }
    note = "what kernels of the CUDA backend take while they run: quantised inputs, dequantised matrices"
    return Ledger(
        rank=asked.degrees.name(0, index, 0),
        phases=(
            Phase(
                name="prefill",
                moment="compute buffer",
                sequence_state=cached,
                activations=computing,
                temporaries=NOTHING,
            ),
        ),
        components=components,
        retained=pool,
        load_peak=exact(loaded.bytes),
        parts=(
            *(Part(component="sequence_state", name=row.kind, bytes=row.bytes, note=row.note) for row in state[index]),
            *(Part(component="activations", name=buffer.note, bytes=buffer.bytes) for buffer in compute),
            Part(component="workspace", name="pool", bytes=pool.bytes, note=note),
        ),
        layers=spans.get(index),
    )


def _pool(asked: Deployment) -> Quantity:
    """ggml's pool (ggml-cuda.cu, ggml_cuda_pool_vmm), which grows as kernels ask, in steps of 2 MiB.

    A quantised matrix takes its inputs in blocks of 32 of 36 bytes (q8_1); where cuBLAS multiplies, the matrix itself
    in 16 bits beside inputs and outputs. cuBLAS has a workspace of its own.
    """
    rows = asked.flags.ubatch_size or UBATCH
    matrices = _matrices(asked.model, asked.dtype, asked.request.weight_format)
    widest = max((columns for _, columns in matrices), default=0)
    largest = max((rows_ * columns for rows_, columns in matrices), default=0)
    longest = max((rows_ for rows_, _ in matrices), default=0)
    quantized = round_up(ceil(rows * widest * 36 / 32), 2**21)
    by_cublas = round_up(2 * (largest + rows * (widest + longest)), 2**21) + 2**25
    return bounded(0, quantized, max(quantized, by_cublas), "assumed")


@lru_cache(maxsize=1024)
def _matrices(model: Model, dtype: str, quantization: str | None) -> tuple[tuple[int, int], ...]:
    """Rows and columns of each kind of matrix that is multiplied in the layers."""
    served = weigh(model, dtype=dtype, quantization=quantization).served
    groups = (s.group for s in served if s.group.layers is not None and len(s.group.shape) > 1)
    return tuple({group.matrix: 0 for group in groups})


def gpus_needed(asked: Deployment, capacity_bytes: int) -> Degrees | None:
    """The fewest equal GPUs that hold it, layers in a row; None if none do, or if a split was asked for."""
    most = min(MOST_GPUS, len(asked.model.geometry.layers))
    if asked.flags.tensor_split is not None and len(set(asked.flags.tensor_split)) > 1:
        return None
    for gpus in range(1, most + 1):
        several = replace(asked, degrees=Degrees(pipeline=gpus), flags=replace(asked.flags, tensor_split=(1.0,) * gpus))
        if max(row.charged.bytes for row in ledgers(several)) <= capacity_bytes:
            return several.degrees
    return None


def state_bytes_per_token(asked: Deployment) -> int:
    """What one more cell of a slot would add, on all devices and the host."""
    _, state, *_ = held(asked)
    return sum(row.bytes_per_token for rows in state for row in rows)


def changes(asked: Deployment) -> Iterator[tuple[str, Deployment]]:
    """What could be asked for instead, one flag at a time, but for sizes and GPUs."""
    flags = asked.flags
    if asked.model.source != "gguf" and asked.request.quantization is None:
        for name in ("Q8_0", "Q4_K_M"):
            yield f"--quantization {name}", asked.asking(quantization=name)
    if flags.cache_type_k == flags.cache_type_v == "f16" and flags.flash_attn:
        yield "-ctk q8_0 -ctv q8_0", replace(asked, flags=replace(flags, cache_type_k="q8_0", cache_type_v="q8_0"))
    if (flags.ubatch_size or UBATCH) > 128:
        yield "-ub 128", replace(asked, flags=replace(flags, ubatch_size=128))
    layers = len(asked.model.geometry.layers)
    for share in (3, 2, 1):
        count = layers * share // 4
        if (flags.n_gpu_layers or 0) > count > 0:
            yield f"-ngl {count}", replace(asked, flags=replace(flags, n_gpu_layers=count))


def setting(asked: Deployment) -> str:
    """How it serves, in a few words."""
    layers, flags = len(asked.model.geometry.layers), asked.flags
    offloaded = "" if (flags.n_gpu_layers or 0) > layers else f", {flags.n_gpu_layers} of {layers + 1} layers offloaded"
    return f"llama.cpp {VERSION}{offloaded}"


def warnings(asked: Deployment) -> Iterator[str]:
    """What the reader might not expect of llama.cpp."""
    context = _context_size(asked)
    yield f"-c {context:,} with -np {asked.request.batch_size}: llama.cpp allocates all cells at once"
    if asked.gpu is not None and asked.gpu.capability is not None and asked.gpu.capability < KERNELS_FROM:
        yield f"compute buffers are those of GPUs from compute capability 7.5 on, {asked.gpu.name} has other kernels"


def lines(asked: Deployment, rows: tuple[Ledger, ...]) -> Iterator[str]:
    """What the host holds."""
    host = details(asked, rows)["host"]
    parts = (("weights", "weights, mapped from the file"), ("state", "cache"), ("buffers", "buffers"))
    held = [f"{host[f'{name}_bytes'] / GiB:,.2f} GiB of {what}" for name, what in parts if host[f"{name}_bytes"]]
    yield f"On the host: {', '.join(held)}."


def details(asked: Deployment, rows: tuple[Ledger, ...]) -> dict[str, Any]:
    """Settings, and what the host holds: mapped weights are read from the file, and may be dropped again."""
    weights, state, buffers, _ = held(asked)
    (host,) = (row for row in weights if row.place == "host")
    return {
        "ctx_size": _context_size(asked),
        "parallel": asked.request.batch_size,
        "host": {
            "weights_bytes": host.bytes,
            "state_bytes": sum(row.bytes for row in state[-1]),
            "buffers_bytes": sum(buffer.bytes for buffer in buffers if buffer.place == "host"),
        },
    }

"""What Hugging Face transformers allocates, and when: load, prefill, decode with a dynamic or a static cache."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from analytic.calibration import Calibration
from analytic.engines.transformers.activations import Peak, decode_peak, has_sdpa, prefill_peak
from analytic.engines.transformers.slack import (
    LARGE_SEGMENT_BYTES,
    SEGMENT_STEP_BYTES,
    grown_slack,
    outgrown_bytes,
    slack_of,
    within,
)
from analytic.engines.transformers.workspace import (
    Bounds,
    bnb_4bit_forward_bytes,
    bnb_int8_forward_bytes,
    bnb_int8_outlier_bytes,
    cublas_workspace_bytes,
)
from analytic.errors import UllageError
from analytic.formats.table import itemsize
from analytic.hardware import Gpu, context_range
from analytic.ledger import Component, Ledger, Part, Phase
from analytic.models.geometry import Geometry, MixtureOfExperts
from analytic.models.model import Model
from analytic.placement import Span
from analytic.quantity import Quantity, bounded, exact, round_up
from analytic.request import Request
from analytic.state import (
    cached_tokens,
    growth_transient_bytes,
    require_static,
    sequence_state_bytes,
    storage_growth,
)
from analytic.weights import QUANTIZATIONS, ServedGroup, weigh

_MIB = 2**20

STAGED_TENSORS_HIGH = 4
"""Tensors that may be staged at once while loading (transformers/core_model_loading.py, GLOBAL_WORKERS)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Work:
    """What the passes of a GPU's part of a model follow from. Equal ones are one object, so that passes are cached."""

    geometry: Geometry
    converted: tuple[tuple[str, int, int], ...]
    """(format, rows, columns) of every kind of quantised matrix, whose forward needs temporaries."""


_one_work = lru_cache(maxsize=4096)(Work)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Share:
    """Everything of the model that lives on one GPU. Equal ones are one object (`share_of`)."""

    work: Work
    weights_bytes: int
    rounding_bytes: int
    warmup_bytes: int
    staging_bytes: int
    leftover_bytes: int
    """Segments that loading leaves cached, and what the first forward pass frees."""
    decompressed_bytes: int
    """What the first forward pass adds to packed weights that it decompresses."""
    large_converted: int
    """Quantised matrices of over 1 MiB."""

    @property
    def geometry(self) -> Geometry:
        """Of its layers."""
        return self.work.geometry

    @property
    def converted_formats(self) -> set[str]:
        """Formats of the quantised matrices."""
        return {name for name, *_ in self.work.converted}

    @property
    def has_experts(self) -> bool:
        """Whether any layer routes its tokens."""
        return any(isinstance(layer.feed_forward, MixtureOfExperts) for layer in self.geometry.layers)


def ledger(
    share: Share, request: Request, *, dtype: str, gpu: Gpu | None, calibration: Calibration | None = None
) -> Ledger:
    """The ledger of a GPU that holds ``share`` of a model; fitted constants take the place of assumed ones."""
    outlier_share = calibration.coefficient("activations", OUTLIERS) if calibration else 0.0
    phases, outgrown = _passes(share.work, _workload(request), dtype, outlier_share)
    cublas = _cublas(gpu)
    if _head_is_first_product(share, request):
        phases = (_before_head(phases, cublas.bytes), *phases[1:])
    peak = max(phases, key=lambda phase: phase.bytes)
    features = overhead_features(share, request, dtype) if calibration else {}

    def fitted(component: Component) -> Quantity | None:
        return calibration.predict(component, features[component]) if calibration else None

    fixed, workspace_parts = _workspace(share, fitted("workspace") or cublas + _unsplit_converted(share))
    held: dict[Component, Quantity] = {
        "weights": exact(share.weights_bytes),
        "sequence_state": peak.sequence_state,
        "activations": peak.activations,
        "workspace": fixed + peak.temporaries,
    }
    context = fitted("context") or _context(gpu)
    room = None if gpu is None else _room(gpu, [*held.values(), context])
    slack, reclaimable = slack_of(
        phases, outgrown=outgrown, leftover_bytes=share.leftover_bytes, staging_bytes=share.staging_bytes, room=room
    )
    if calibration:
        slack = calibration.predict("allocator_slack", features["allocator_slack"]) or slack
        grown = calibration.coefficient("allocator_slack", "outgrown") * features["allocator_slack"]["outgrown"]
        slack, reclaimable = within(slack, room and room[0], round(grown))
    return Ledger(
        phases=phases,
        components={
            **held,
            "allocator_slack": slack,
            "context": context,
        },
        retained=fixed,
        reclaimable=reclaimable,
        load_peak=_load_peak(share),
        parts=(*workspace_parts, Part(component="workspace", name="dequantization", bytes=peak.temporaries.bytes)),
    )


OUTLIERS = "int8-outliers"
"""The share of input columns that bitsandbytes' int8 keeps in float16, which depends on the values."""


def overhead_features(share: Share, request: Request, dtype: str) -> dict[Component, dict[str, float]]:
    """What each component that has to be fitted depends on: the columns of the fit, and of every prediction."""
    formats = share.converted_formats
    backends: dict[str, float] = {
        "fixed": 1.0,
        "bnb-4bit": float(any("4" in name for name in formats)),
        "bnb-int8": float("bnb-int8" in formats),
        "moe": float(share.has_experts),
        "eager": float(request.attention == "eager"),
    }
    state = state_bytes(share.geometry, request, dtype)
    outgrown = grown_slack(_outgrown(share.geometry, request, itemsize(dtype)), state)[0]
    rows = request.batch_size * request.prompt_tokens
    int8 = ((out, into) for name, out, into in share.work.converted if name == "bnb-int8")
    outliers = (bnb_int8_outlier_bytes(*matrix, tokens=rows) for matrix in int8)
    return {
        "context": backends,
        "workspace": {name: backends[name] for name in ("fixed", "bnb-4bit", "bnb-int8")},
        "activations": {OUTLIERS: float(max(outliers, default=0))},
        "allocator_slack": {"fixed": 1.0, "state": state, "outgrown": outgrown, "staging": share.staging_bytes},
    }


@lru_cache(maxsize=4096)
def share_of(model: Model, dtype: str, quantization: str | None, span: Span | None = None) -> Share:
    """The part of ``model`` that a GPU with the layers of ``span`` holds (None: the whole)."""
    served = weigh(model, dtype=dtype, quantization=quantization).served
    if span is None:
        return _share(model.geometry, served)
    layers = model.geometry.layers[slice(*span)]
    served = tuple(_cut(s, span, len(model.geometry.layers), model) for s in served)
    return _share(replace(model.geometry, layers=layers), tuple(s for s in served if s.group.count))


@lru_cache(maxsize=4096)
def rank_of(model: Model, dtype: str, quantization: str | None, ranks: int, rank: int) -> Share:
    """What one of ``ranks`` holds that divide every layer (``tp_plan="auto"``).

    Raises:
        UllageError: transformers does not divide the model so.
    """
    from analytic.engines.transformers.tensor_parallel import shard, sharded_geometry

    geometry = sharded_geometry(model, tensor_parallel_size=ranks, quantization=quantization)
    held = shard(model, dtype=dtype, tensor_parallel_size=ranks, rank=rank, quantization=quantization)
    return _share(geometry, tuple(_scaled(group.served, group.shape, group.each_bytes) for group in held.groups))


def _scaled(served: ServedGroup, shape: tuple[int, ...], each_bytes: int) -> ServedGroup:
    """A rank's part of each tensor of a group, with its part of what loading takes."""
    if each_bytes == served.each_bytes:
        return served
    part = each_bytes / served.each_bytes
    return replace(
        served,
        group=replace(served.group, shape=shape),
        each_bytes=each_bytes,
        rounded_bytes=round_up(each_bytes),
        warmup_bytes=round(served.warmup_bytes * part),
        staging_bytes=round(served.staging_bytes * part),
        leftover_bytes=round(served.leftover_bytes * part),
        decompressed_bytes=round(served.decompressed_bytes * part),
    )


_one_share = lru_cache(maxsize=4096)(Share)


UNSPLIT_CONVERTED_BYTES = (_MIB // 20, _MIB // 5)
"""Assumed end of the block of each quantised matrix of over 1 MiB that was too little to be split (middle, high): on
virtual GPUs 0 to 0.15 MiB, 0.05 in the mean of 18 models and formats."""


def _share(geometry: Geometry, served: tuple[ServedGroup, ...]) -> Share:
    stored = sum(s.bytes for s in served if s.group.persistent)
    warmup = sum(s.warmup_bytes * s.group.count for s in served if s.group.persistent)
    return _one_share(
        work=_one_work(
            geometry=geometry,
            converted=tuple({(s.format, *s.group.matrix): 0 for s in served if s.format.startswith("bnb-")}),
        ),
        weights_bytes=stored,
        rounding_bytes=sum(s.rounded_bytes * s.group.count for s in served) - stored + _unsplit_bytes(served, warmup),
        warmup_bytes=warmup,
        staging_bytes=max((s.staging_bytes for s in served), default=0),
        leftover_bytes=max((s.leftover_bytes for s in served), default=0)
        + sum(s.bytes for s in served if s.decompressed_bytes),
        decompressed_bytes=sum(s.decompressed_bytes * s.group.count - s.bytes for s in served if s.decompressed_bytes),
        large_converted=sum(s.group.count for s in served if s.format.startswith("bnb-") and s.rounded_bytes > _MIB),
    )


def _unsplit_bytes(served: tuple[ServedGroup, ...], warmup_bytes: int) -> int:
    """What is left of the warm-up block, where it is too little to be split from the last large tensor in it."""
    if any(s.staging_bytes or s.leftover_bytes for s in served):
        return 0
    large = sum(s.rounded_bytes * s.group.count for s in served if s.rounded_bytes > _MIB and s.group.persistent)
    rest = round_up(warmup_bytes, SEGMENT_STEP_BYTES) - large
    return rest if 0 < rest <= _MIB else 0


def _cut(served: ServedGroup, span: Span, layers: int, model: Model) -> ServedGroup:
    """The tensors of a group that live with the layers of ``span``."""
    group, (first, end) = served.group, span
    if group.layers is not None and model.is_decoder(group):
        return replace(served, group=replace(group, layers=tuple(i for i in group.layers if first <= i < end)))
    here = end == layers if model.is_after_layers(group) else first == 0
    return served if here else replace(served, group=replace(group, layers=()))


def state_bytes(geometry: Geometry, request: Request, dtype: str) -> int:
    """Sequence state at the end of generation."""
    return _state(geometry, request, dtype, cached_tokens(**_tokens(request)))


def _tokens(request: Request) -> dict[str, int]:
    return {"prompt_tokens": request.prompt_tokens, "output_tokens": request.output_tokens}


def require_served(geometry: Geometry, request: Request) -> None:
    """Raise where no ledger of serving the model so can be drawn up.

    Raises:
        UllageError: an encoder-decoder model, or one that transformers gives no static cache.
    """
    if any(layer.cross is not None for layer in geometry.layers):
        raise UllageError(
            f"serving an encoder-decoder model ({geometry.model_type}) is not modelled: only its sequence state is",
            hint="analytic.state.sequence_state_bytes counts it, given encoder_tokens",
        )
    if request.cache_implementation == "static":
        require_static(geometry)


def room_tokens(request: Request) -> int | None:
    """Tokens that a static cache has room for (generation/utils.py, max_cache_length); None for one that grows."""
    return cached_tokens(**_tokens(request)) if request.cache_implementation == "static" else None


def _cache(request: Request, size: int, total_tokens: int) -> dict[str, Any]:
    """What the cache's bytes depend on beside the geometry."""
    return {
        "prompt_tokens": request.prompt_tokens,
        "total_tokens": total_tokens,
        "sequences": request.batch_size,
        "itemsize": size,
        "room_tokens": room_tokens(request),
    }


def _state(geometry: Geometry, request: Request, dtype: str, total_tokens: int) -> int:
    return sequence_state_bytes(geometry, **_cache(request, itemsize(dtype), total_tokens))


def _workload(request: Request) -> Request:
    """``request`` less a format that no pass hangs on, beyond the `Work`."""
    packed = request.quantization not in (None, *QUANTIZATIONS)
    return replace(request, quantization=None) if packed else request


@lru_cache(maxsize=65536)
def _passes(work: Work, request: Request, dtype: str, outlier_share: float) -> tuple[tuple[Phase, ...], int]:
    """Prefill and the last decode step where there is one; bytes of the segments that the cache outgrows."""
    return _phases(work, request, dtype, outlier_share), _outgrown(work.geometry, request, itemsize(dtype))


def _phases(work: Work, request: Request, dtype: str, outlier_share: float) -> tuple[Phase, ...]:
    geometry, batch, prompt = work.geometry, request.batch_size, request.prompt_tokens
    end = cached_tokens(**_tokens(request))
    run: dict[str, Any] = {
        "batch_size": batch,
        "itemsize": itemsize(dtype),
        "attention": request.attention,
        "padded": request.padded,
        "fused_softmax": dtype == "float16",
        "room_tokens": room_tokens(request),
    }

    def phase(name: Literal["prefill", "decode"], tokens: int, rows: int, peak: Peak) -> Phase:
        return Phase(
            name=name,
            moment=peak.moment,
            sequence_state=exact(_state(geometry, request, dtype, tokens)),
            activations=_traced(peak, *_unsplit(geometry, request, itemsize(dtype), tokens)),
            temporaries=bounded(*_temporaries(work, request, dtype, rows, peak.moment, outlier_share), "traced"),
        )

    prefill = phase("prefill", prompt, batch * prompt, prefill_peak(geometry, prompt_tokens=prompt, **run))
    if request.output_tokens == 1:
        return (prefill,)
    step = decode_peak(geometry, context_tokens=end, **run)
    return prefill, phase("decode", end, batch, _at_least(step, _growth(geometry, request, itemsize(dtype), end)))


def _head_is_first_product(share: Share, request: Request) -> bool:
    """Whether no layer needs cuBLAS: int8 products and fused attention have libraries of their own."""
    is_int8 = share.converted_formats == {"bnb-int8"} and not share.has_experts
    return is_int8 and request.attention == "sdpa" and has_sdpa(share.geometry)


def _before_head(phases: tuple[Phase, ...], cublas_bytes: int) -> Phase:
    """The prefill less the workspace of cuBLAS, which is not there yet at a peak before the head; after it it is."""
    prefill = phases[0]
    after = max(prefill.sequence_state.bytes, *(phase.bytes for phase in phases[1:]), 0)
    late = max(0, min(cublas_bytes, prefill.bytes - after))
    temporaries, activations = prefill.temporaries, prefill.activations
    freed = min(late, temporaries.bytes)
    return replace(prefill, temporaries=_less(temporaries, freed), activations=_less(activations, late - freed))


def _less(quantity: Quantity, count: int) -> Quantity:
    low, high = max(0, quantity.low_bytes - count), quantity.high_bytes - count
    return replace(quantity, bytes=quantity.bytes - count, low_bytes=low, high_bytes=max(quantity.bytes - count, high))


def _growth(geometry: Geometry, request: Request, size: int, context: int) -> int:
    return growth_transient_bytes(geometry, **_cache(request, size, context))


def _at_least(peak: Peak, floor: int) -> Peak:
    """The step's peak, or the cache's growth (old and new keys side by side) where that is more."""
    if floor <= peak.bytes:
        return peak
    return Peak(bytes=floor, low_bytes=floor, high_bytes=max(floor, peak.high_bytes), moment="cache growth")


def _unsplit(geometry: Geometry, request: Request, size: int, tokens: int) -> tuple[int, int]:
    """Ends of blocks that count beside the activations (middle, high): seen are up to 2 MiB, and a 500th of the cache.

    A block that is up to 1 MiB too large is not split (CUDACachingAllocator.cpp, should_split): of a tensor of little
    more than that, it can be all. A static cache's blocks come from fresh segments, or those of freed activations.
    """
    kinds = list(storage_growth(geometry, **_cache(request, size, tokens)))
    if room_tokens(request) is None:
        return 0, 2 * _MIB + sum(n * (_MIB if _MIB < last < 2 * _MIB else last // 500) for n, _, last in kinds)
    shared = sum(count * _end_bytes(last) for count, _, last in kinds if last < LARGE_SEGMENT_BYTES)
    own = sum(count * _end_bytes(last) for count, _, last in kinds if last >= LARGE_SEGMENT_BYTES)
    return shared, shared + own + 2 * _MIB


def _end_bytes(storage_bytes: int) -> int:
    """What a fresh segment leaves unsplit, for each of the equal storages that share it: over 1 MiB it is split."""
    if storage_bytes <= _MIB:
        return 0
    shared = storage_bytes < LARGE_SEGMENT_BYTES
    segment_bytes = 2 * LARGE_SEGMENT_BYTES if shared else round_up(storage_bytes, SEGMENT_STEP_BYTES)
    left = segment_bytes % storage_bytes
    return left // (segment_bytes // storage_bytes) if left <= _MIB else 0


def _traced(peak: Peak, unsplit_bytes: int, unsplit_high_bytes: int) -> Quantity:
    middle = peak.bytes + unsplit_bytes
    return bounded(peak.low_bytes, middle, max(peak.high_bytes, peak.bytes + unsplit_high_bytes), "traced")


def _temporaries(work: Work, request: Request, dtype: str, tokens: int, moment: str, outlier_share: float) -> Bounds:
    """What the quantised matrix that needs most adds to the activation peak while ``tokens`` rows pass it.

    A gated feed-forward peaks when its product is there; while the last matrix before it is multiplied, it is not yet.
    """
    wanted = (_matrix_temporaries(*matrix, request, dtype, tokens, outlier_share) for matrix in work.converted)
    most = max(wanted, key=lambda bounds: bounds.bytes, default=Bounds(0, 0, 0))
    rows = max((rows for _, rows, _ in work.converted), default=0)
    absent = tokens * rows * itemsize(dtype) if moment == "mlp" else 0
    return Bounds(max(0, most.low_bytes - absent), max(0, most.bytes - absent), most.high_bytes)


def _matrix_temporaries(
    name: str, rows: int, columns: int, request: Request, dtype: str, tokens: int, outlier_share: float
) -> Bounds:
    if name == "bnb-int8":
        return bnb_int8_forward_bytes(
            rows, columns, tokens=tokens, is_float16=dtype == "float16", outlier_share=outlier_share
        )
    return bnb_4bit_forward_bytes(
        rows,
        columns,
        tokens=tokens,
        itemsize=itemsize(dtype),
        compute_itemsize=itemsize(request.compute_dtype or dtype),
        double_quant=request.double_quant,
    )


def _cublas(gpu: Gpu | None) -> Quantity:
    return bounded(*cublas_workspace_bytes(gpu.capability if gpu else None), "assumed")


def _unsplit_converted(share: Share) -> Quantity:
    middle, high = (share.large_converted * each for each in UNSPLIT_CONVERTED_BYTES)
    return bounded(0, middle, high, "assumed")


def _workspace(share: Share, assumed: Quantity) -> tuple[Quantity, tuple[Part, ...]]:
    parts: tuple[Part, ...] = (
        Part(
            component="workspace",
            name="cublas",
            bytes=assumed.bytes,
            note="once, at the first matrix product; ends of quantised matrices' blocks that are too small to be split",
        ),
        Part(
            component="workspace",
            name="rounding",
            bytes=share.rounding_bytes,
            note="each weight tensor up to a multiple of 512 bytes; rotary tables; the end of the block loaded into",
        ),
    )
    if share.decompressed_bytes:
        note = "what the first forward pass adds, when it replaces packed weights by ones in the serving dtype"
        parts += (Part(component="workspace", name="decompressed", bytes=share.decompressed_bytes, note=note),)
    return assumed + exact(share.rounding_bytes + share.decompressed_bytes), parts


def _room(gpu: Gpu, held: list[Quantity]) -> tuple[int, int]:
    """Bytes of a GPU beside what is held there, with the middle and with the high figures."""
    return gpu.total_bytes - sum(q.bytes for q in held), gpu.total_bytes - sum(q.high_bytes for q in held)


def _outgrown(geometry: Geometry, request: Request, size: int) -> int:
    if room_tokens(request) is not None:
        return 0
    return outgrown_bytes(
        geometry,
        prompt_tokens=request.prompt_tokens,
        total_tokens=cached_tokens(**_tokens(request)),
        sequences=request.batch_size,
        itemsize=size,
    )


def _context(gpu: Gpu | None) -> Quantity:
    known = context_range(gpu)
    return bounded(known.low_bytes, known.bytes, known.high_bytes, "assumed")


def _load_peak(share: Share) -> Quantity:
    """The warm-up block comes and goes first; then tensors are staged beside the growing model."""
    resident = share.weights_bytes + share.rounding_bytes
    low = max(share.warmup_bytes, resident)
    middle = max(share.warmup_bytes, resident + share.staging_bytes)
    high = max(share.warmup_bytes, resident + STAGED_TENSORS_HIGH * share.staging_bytes) + _MIB  # the last block's end
    return bounded(low, middle, high, "assumed")

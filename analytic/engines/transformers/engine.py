"""transformers on one GPU or several, whole layers in a row or every layer divided, and the ledger of each."""

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from analytic.deployment import Deployment
from analytic.engines.transformers.activations import has_sdpa
from analytic.engines.transformers.share import ledger, rank_of, require_served, share_of, state_bytes
from analytic.engines.transformers.workspace import cublas_workspace_bytes
from analytic.errors import UllageError, UsageError
from analytic.formats.registry import find_method, find_preset
from analytic.formats.table import itemsize
from analytic.hardware import Gpu, context_range
from analytic.ledger import Ledger
from analytic.models.geometry import Geometry
from analytic.models.model import Model
from analytic.parallel import Degrees, Kind
from analytic.placement import Span, balance
from analytic.quantity import GiB, bounded
from analytic.request import Request
from analytic.state import cached_tokens, sequence_state_bytes_per_token
from analytic.weights import is_packing, weigh

NAME = "transformers"
VERSION = "5.23"
REST: Kind = "pipeline"
"""How GPUs work together where nothing else is asked for."""

CHARGES_CONTEXT = True

NOT_MODELED: tuple[str, ...] = ()


def prepare(asked: Deployment) -> Deployment:
    """Resolve what depends on the GPU, and refuse what transformers cannot do.

    Raises:
        UllageError: a cache dtype, an architecture or degrees that are not served.
    """
    request, dtype = asked.request, asked.dtype
    if request.kv_cache_dtype not in ("auto", dtype):
        raise UllageError(
            f"transformers' {request.cache_implementation} cache keeps the model's dtype ({dtype}),"
            f" not {request.kv_cache_dtype}",
            hint="leave --kv-cache-dtype at auto",
        )
    require_served(asked.model.geometry, request)
    degrees = asked.degrees
    if degrees.tensor > 1 and degrees.pipeline > 1:
        raise UsageError(
            f"transformers does not combine {degrees}: it divides layers, or places them in a row",
            hint="give --tensor-parallel-size or --pipeline-parallel-size",
        )
    if asked.flags.device_map is not None and (asked.gpu is None or degrees.tensor > 1):
        raise UsageError("--device-map places layers on GPUs by their memory", hint="add --gpu NAME:N, without -tp")
    calibration = asked.calibration
    if calibration is not None and request.attention not in calibration.attention:
        calibration = None
    return replace(asked, request=_as_served(asked.model, request, asked.gpu), calibration=calibration)


def _as_served(model: Model, request: Request, gpu: Gpu | None) -> Request:
    """A quantised checkpoint that the GPU cannot run quantised is served dequantised."""
    needs = find_method(model.native_format).capability if model.native_format else None
    if request.quantization is None and needs and gpu and gpu.capability and gpu.capability < needs:
        return replace(request, quantization="none")
    return request


def kind(gpu: Gpu) -> Hashable:
    """What depends on the GPU beside its context: cuBLAS's workspace."""
    return cublas_workspace_bytes(gpu.capability)


def usable_bytes(asked: Deployment, gpu: Gpu) -> int:
    """What may be used of one GPU."""
    share = asked.request.gpu_memory_utilization
    return int(gpu.total_bytes * (1.0 if share is None else share))


def ledgers(asked: Deployment) -> tuple[Ledger, ...]:
    """One a GPU.

    Raises:
        UllageError: more GPUs than layers, ranks that the model does not divide by, or modules that stay on the host.
    """
    model, request, dtype, degrees = asked.model, asked.request, asked.dtype, asked.degrees
    on: dict[str, Any] = {"dtype": dtype, "gpu": asked.gpu, "calibration": asked.calibration}
    if degrees.tensor == degrees.pipeline == 1 and asked.flags.device_map is None:
        return (ledger(share_of(model, dtype, request.weight_format), request, **on),)
    if degrees.tensor > 1:
        ranks = range(degrees.tensor)
        parts = [rank_of(model, dtype, request.weight_format, degrees.tensor, rank) for rank in ranks]
        held = {share: _with_nccl(ledger(share, request, **on)) for share in dict.fromkeys(parts)}
        return tuple(replace(held[part], rank=degrees.name(0, 0, rank)) for rank, part in enumerate(parts))
    spans = _spans(asked)
    shares = [share_of(model, dtype, request.weight_format, span) for span in spans]
    rows = {share: ledger(share, request, **on) for share in dict.fromkeys(shares)}
    return tuple(
        replace(rows[share], rank=degrees.name(0, rank, 0), layers=span)
        for rank, (share, span) in enumerate(zip(shares, spans, strict=True))
    )


NCCL_BYTES = (100 * 2**20, 500 * 2**20, 2400 * 2**20)
"""Assumed of NCCL's communicators and buffers (low, middle, high): 0.1 to 2.2 GiB in logs of vLLM on several GPUs."""


def _with_nccl(row: Ledger) -> Ledger:
    context = row.components["context"] + bounded(*NCCL_BYTES, "assumed")
    return replace(row, components={**row.components, "context": context})


def _spans(asked: Deployment) -> Sequence[Span]:
    """The layers of each GPU: those that leave the fullest least, or as accelerate places them (``device_map``)."""
    model, request, stages = asked.model, asked.request, asked.degrees.pipeline
    if asked.flags.device_map is not None and asked.gpu is not None:
        return _placed(asked, asked.gpu, asked.flags.device_map)
    layers = len(model.geometry.layers)
    if stages > layers:
        raise UsageError(f"{stages} GPUs for {layers} layers: a layer is not split", hint=f"at most {layers}")
    return balance(_sizes(model, request, asked.dtype), gpus=stages)


def _placed(asked: Deployment, gpu: Gpu, device_map: str) -> Sequence[Span]:
    """By what is free of each GPU once it has a context.

    Raises:
        UllageError: something stays on the host, or a GPU gets no layer.
    """
    from analytic.engines.transformers.device_map import infer_device_map

    free = gpu.cuda_bytes - context_range(gpu).bytes
    placement = infer_device_map(
        asked.model,
        device_map=device_map,  # type: ignore[arg-type]
        max_memory=dict.fromkeys(range(asked.degrees.pipeline), free),
        dtype=asked.dtype,
        quantization=asked.request.weight_format,
        is_free=True,
    )
    if placement.offloaded:
        first = next(iter(placement.offloaded))
        raise UllageError(
            f"--device-map {device_map} leaves {len(placement.offloaded)} modules of {asked.model.id} on the host, "
            f"{first} first",
            hint="take more GPUs, or a narrower format",
        )
    spans = {span.device: (span.first, span.past) for span in placement.spans}
    if set(placement.weights) != set(range(len(spans))):
        raise UllageError(
            f"--device-map {device_map} gives a GPU no layer of {asked.model.id}, only modules beside them",
            hint="ask for fewer GPUs, or another --device-map",
        )
    return [spans[device] for device in range(len(spans))]


def _sizes(model: Model, request: Request, dtype: str) -> list[int]:
    """Weights and state of each layer; what stands before and after the layers stays with the first and the last."""
    weights, kinds, alone = _layers(model, dtype, request.weight_format)
    states = [state_bytes(geometry, request, dtype) for geometry in alone]
    return [held + states[kind] for held, kind in zip(weights, kinds, strict=True)]


@lru_cache(maxsize=1024)
def _layers(
    model: Model, dtype: str, quantization: str | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Geometry, ...]]:
    """Weight bytes of each layer, its kind, and each kind as a geometry of its own."""
    weights = [0] * len(model.geometry.layers)
    for served in weigh(model, dtype=dtype, quantization=quantization).served:
        group = served.group
        if group.layers is not None and model.is_decoder(group):
            for layer in group.layers:
                weights[layer] += served.each_bytes * group.copies
        else:
            weights[-1 if model.is_after_layers(group) else 0] += served.bytes
    kinds = [layer for layer, _ in model.geometry.groups]
    alone = tuple(replace(model.geometry, layers=(layer,)) for layer in kinds)
    return tuple(weights), tuple(kinds.index(layer) for layer in model.geometry.layers), alone


def gpus_needed(asked: Deployment, capacity_bytes: int) -> Degrees | None:
    """The fewest GPUs that hold it, whole layers on each; None if one layer is too much."""

    flags = replace(asked.flags, device_map=None)

    def fits(gpus: int) -> bool:
        rows = ledgers(replace(asked, flags=flags, degrees=Degrees(pipeline=gpus)))
        return max(row.charged.bytes for row in rows) <= capacity_bytes

    counts: Sequence[int] = range(1, len(asked.model.geometry.layers) + 1)
    found = bisect_left(counts, True, key=fits)
    return Degrees(pipeline=counts[found]) if found < len(counts) else None


def state_bytes_per_token(asked: Deployment) -> int:
    """What one more token would add to one sequence at the end of its generation, over all GPUs."""
    request, ranks = asked.request, asked.degrees.tensor
    tokens = cached_tokens(prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens)
    geometry = asked.model.geometry
    if ranks > 1:
        geometry = rank_of(asked.model, asked.dtype, request.weight_format, ranks, 0).geometry
    return ranks * sequence_state_bytes_per_token(geometry, tokens=tokens, itemsize=itemsize(asked.dtype))


def changes(asked: Deployment) -> Iterator[tuple[str, Deployment]]:
    """What could be asked for instead, one flag at a time, but for sizes and GPUs."""
    request = asked.request
    if asked.model.native_format is None:
        if request.quantization in (None, "none"):
            yield "--quantization bnb-int8", asked.asking(quantization="bnb-int8")
        if request.quantization in (None, "none", "bnb-int8"):
            yield "--quantization bnb-nf4", asked.asking(quantization="bnb-nf4")
    if asked.dtype == "float32":
        yield "--dtype bfloat16", replace(asked.asking(dtype="bfloat16"), dtype="bfloat16")
    if request.attention == "eager":
        yield "--attention sdpa", asked.asking(attention="sdpa")


def setting(asked: Deployment) -> str:
    """How it serves, in a few words."""
    placed = f", device_map {asked.flags.device_map}" * (asked.flags.device_map is not None)
    divided = f" on {asked.degrees}" * (asked.degrees.tensor > 1)
    return f"transformers with {asked.request.attention}{divided}{placed}"


def warnings(asked: Deployment) -> Iterator[str]:
    """What transformers makes of the request that the reader might not expect."""
    yield from _format_notes(asked)
    if asked.flags.device_map is not None and (used := len(_spans(asked))) < asked.degrees.pipeline:
        yield f"--device-map {asked.flags.device_map} uses {used} of {asked.degrees.pipeline} GPUs"
    if asked.request.attention == "sdpa" and not has_sdpa(asked.model.geometry):
        yield f"{asked.model.architecture} has no sdpa attention: transformers runs it eager, as counted here"
    weights = weigh(asked.model, dtype=asked.dtype, quantization=asked.request.weight_format)
    left = weights.unconverted
    if left:
        size, share = sum(left.values()), sum(left.values()) / weights.bytes
        names = ", ".join(name.removesuffix(".weight") for name in list(left)[:3])
        yield (
            f"{size / GiB:.2f} GiB ({share:.0%} of the weights) stay in {asked.dtype}: "
            f"{_converter(asked)} does not convert {names}{' …' if len(left) > 3 else ''}"
        )


def _converter(asked: Deployment) -> str:
    """Who leaves matrices as they are."""
    quantization = asked.request.quantization
    beforehand = is_packing(quantization) and find_preset(str(quantization))[0].beforehand
    return str(quantization) if beforehand else "transformers"


def _format_notes(asked: Deployment) -> Iterator[str]:
    """What transformers makes of a packed format, and where it comes from."""
    quantization, native = asked.request.quantization, asked.model.native_format
    if is_packing(quantization):
        preset, method = find_preset(str(quantization))
        if preset.beforehand:
            yield f"{preset.name} is made beforehand ({preset.source}): counted is a checkpoint of it"
        if method.transformers.note:
            yield method.transformers.note
    elif quantization is None and native is not None and (note := find_method(native).transformers.note):
        yield note


def details(asked: Deployment, rows: tuple[Ledger, ...]) -> dict[str, Any]:
    """Nothing that the ledger does not say."""
    return {}


def lines(asked: Deployment, rows: tuple[Ledger, ...]) -> Iterator[str]:
    """None either."""
    return iter(())

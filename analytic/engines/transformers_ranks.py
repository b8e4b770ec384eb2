"""transformers on one GPU or several: whole layers in a row, and the ledger of each."""

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from analytic.deployment import Deployment
from analytic.engines.activations import has_sdpa
from analytic.engines.transformers import ledger, require_served, share_of, state_bytes
from analytic.engines.workspace import cublas_workspace_bytes
from analytic.errors import UllageError, UsageError
from analytic.formats.registry import find_method, find_preset
from analytic.hardware import Gpu
from analytic.ledger import Ledger
from analytic.models.geometry import Geometry
from analytic.models.model import Model
from analytic.parallel import Degrees, Kind
from analytic.placement import balance
from analytic.quantity import GiB
from analytic.request import Request
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
        UsageError: more GPUs than layers.
    """
    model, request, dtype = asked.model, asked.request, asked.dtype
    on: dict[str, Any] = {"dtype": dtype, "gpu": asked.gpu, "calibration": asked.calibration}
    stages = asked.degrees.pipeline
    if stages == 1:
        return (ledger(share_of(model, dtype, request.weight_format), request, **on),)
    layers = len(model.geometry.layers)
    if stages > layers:
        raise UsageError(f"{stages} GPUs for {layers} layers: a layer is not split", hint=f"at most {layers}")
    spans = balance(_sizes(model, request, dtype), gpus=stages)
    shares = [share_of(model, dtype, request.weight_format, span) for span in spans]
    rows = {share: ledger(share, request, **on) for share in dict.fromkeys(shares)}
    return tuple(
        replace(rows[share], rank=asked.degrees.name(0, rank, 0), layers=span)
        for rank, (share, span) in enumerate(zip(shares, spans, strict=True))
    )


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

    def fits(gpus: int) -> bool:
        rows = ledgers(replace(asked, degrees=Degrees(pipeline=gpus)))
        return max(row.charged.bytes for row in rows) <= capacity_bytes

    counts: Sequence[int] = range(1, len(asked.model.geometry.layers) + 1)
    found = bisect_left(counts, True, key=fits)
    return Degrees(pipeline=counts[found]) if found < len(counts) else None


def changes(asked: Deployment) -> Iterator[tuple[str, Deployment]]:
    """What could be asked for instead, one flag at a time, but for sizes and GPUs."""
    request = asked.request
    if asked.model.native_format is None:
        if request.quantization in (None, "none"):
            yield "--quantization bnb-int8", asked.asking(quantization="bnb-int8")
        if request.quantization in (None, "none", "bnb-int8"):
            yield "--quantization bnb-nf4", asked.asking(quantization="bnb-nf4")
    if asked.dtype == "float32":
        yield "--dtype bfloat16", asked.asking(dtype="bfloat16")
    if request.attention == "eager":
        yield "--attention sdpa", asked.asking(attention="sdpa")


def setting(asked: Deployment) -> str:
    """How it serves, in a few words."""
    return f"transformers with {asked.request.attention}"


def warnings(asked: Deployment) -> Iterator[str]:
    """What transformers makes of the request that the reader might not expect."""
    yield from _format_notes(asked)
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

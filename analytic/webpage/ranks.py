"""What the page is told of vLLM's weights: bytes of one GPU by dtype, format, kind of GPU and degrees, or a refusal.

`analytic.loaded.vllm` computes them of every tensor, the page looks them up. GPUs that share every layer have a number
each. Bytes of a pipeline stage are a sum over what the stage has (`stage_row`), so that a few stages tell all others.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

from analytic.engines.vllm.engine import TENSOR_DEGREES
from analytic.engines.vllm.stages import BEFORE_BLACKWELL, BLACKWELL
from analytic.errors import UllageError
from analytic.formats.table import itemsize
from analytic.hardware import gpus
from analytic.loaded.vllm import pipeline_spans, vllm_weights
from analytic.loaded.vllm_families import FAMILIES
from analytic.models.geometry import MixtureOfExperts
from analytic.models.model import Model
from analytic.placement import Span
from analytic.state.vllm import pool
from analytic.webpage.linear import independent, solved
from analytic.weights import DTYPES

PACKED = ("fp8", "w4a16", "gptq-int4", "awq-int4")
"""Formats that the page offers of vLLM."""
MOST_TENSOR = 8
"""GPUs that share every layer."""

Capability = tuple[int, int] | None
"""Of a GPU; None where none is named."""
Asked = tuple[str, Capability]
"""Dtype, and kind of GPU."""
Outcome = int | tuple[str, str]
"""Bytes of one GPU, or message and hint of a refusal."""
Place = tuple[int, int]
"""Stages of a pipeline, and which of them."""


def vllm_table(model: Model) -> dict[str, Any]:
    """Of one model: for each dtype and format which variant of its weights each kind of GPU has."""
    kinds, mixers = _kinds(model)
    stages = list(independent(_rows(model, kinds, mixers)))
    variants: dict[tuple[Outcome, ...], int] = {}
    choices: dict[str, dict[str, int]] = {}
    told: list[dict[str, Any]] = []
    for quantization in (None, "none", *PACKED):
        for (dtype, capability), outcomes in _outcomes(model, quantization).items():
            if outcomes not in variants:
                variants[outcomes] = len(variants)
                find = partial(_bytes, model, dtype, quantization, capability)
                told.append({"ranks": outcomes, **_stages(model, outcomes, stages, find)})
            number = ".".join(map(str, capability or ()))
            choices.setdefault(f"{dtype} {quantization}", {})[number] = variants[outcomes]
    return {"kinds": kinds, "mixers": mixers, "by_expert": _needs_experts(model), "variants": told, "choices": choices}


def _kinds(model: Model) -> tuple[list[int], list[int]]:
    """Of each layer: which others take as much, and which mix alike, so that they share what positions take."""
    mixing = [layer.mixer for layer in model.geometry.layers]
    held = [set(group.layers or ()) for group in model.tensors]
    tensors = [(mixer, *(index in layers for layers in held)) for index, mixer in enumerate(mixing)]
    return _numbered(tensors), _numbered(mixing)


def _numbered(values: Sequence[Any]) -> list[int]:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return [numbers[value] for value in values]


def stage_row(kinds: Sequence[int], mixers: Sequence[int], span: Span) -> list[int]:
    """What a stage has: what all have, the model's start, its end, layers of each kind, and each mixer at all."""
    first, end = span
    layers, mixing = kinds[first:end], mixers[first:end]
    return [
        1,
        int(first == 0),
        int(end == len(kinds)),
        *(sum(layer == kind for layer in layers) for kind in range(max(kinds) + 1)),
        *(int(mixer in mixing) for mixer in range(max(mixers) + 1)),
    ]


def _rows(model: Model, kinds: list[int], mixers: list[int]) -> Iterator[tuple[Place, list[int]]]:
    """Every stage that vLLM loads, one of those that have the same."""
    seen: set[tuple[int, ...]] = set()
    has_experts = [isinstance(layer.feed_forward, MixtureOfExperts) for layer in model.geometry.layers]
    for pipeline in range(2, len(kinds) + 1):
        for stage, (first, end) in enumerate(pipeline_spans(len(kinds), pipeline)):
            row = stage_row(kinds, mixers, (first, end))
            if tuple(row) not in seen and (any(has_experts[first:end]) or not _needs_experts(model)):
                seen.add(tuple(row))
                yield (pipeline, stage), row


def _needs_experts(model: Model) -> bool:
    """Whether vLLM loads no stage without experts."""
    family = FAMILIES.get(model.geometry.model_type)
    has_experts = any(isinstance(layer.feed_forward, MixtureOfExperts) for layer, _ in model.geometry.groups)
    return has_experts and family is not None and family.needs_experts


def _stages(
    model: Model, outcomes: tuple[Outcome, ...], stages: list[tuple[Place, list[int]]], find: Callable[..., int]
) -> dict[str, Any]:
    """What each entry of `stage_row` takes with the widest tensor parallelism that can be: pipelines have no other."""
    possible = [degree for degree in TENSOR_DEGREES if isinstance(outcomes[degree - 1], int) and _pools(model, degree)]
    if not possible or not stages:
        return {}
    values = [find(possible[-1], *place) for place, _ in stages]
    return {"widest": possible[-1], "factors": solved([row for _, row in stages], values)}


def _pools(model: Model, tensor: int) -> bool:
    """Whether blocks of the cache can be split so."""
    try:
        pool(model.geometry, itemsize=2, tensor_parallel_size=tensor)
    except UllageError:
        return False
    return True


def _outcomes(model: Model, quantization: str | None) -> dict[Asked, tuple[Outcome, ...]]:
    """Of one of 1 to 8 GPUs. Dtypes of a size that take the same on one GPU do so on several."""
    plain = model.native_format is None and quantization in (None, "none")
    known = {BEFORE_BLACKWELL, BLACKWELL} if plain else {gpu.capability for gpu in gpus() if gpu.capability}
    told = partial(_told, model, quantization, (None, *sorted(known)))
    alone = told(DTYPES, 1)
    twins = {dtype: next(other for other in DTYPES if _are_alike(alone, other, dtype)) for dtype in DTYPES}
    rows = [alone, *(told(tuple(dict.fromkeys(twins.values())), tensor) for tensor in range(2, MOST_TENSOR + 1))]
    return {(dtype, gpu): tuple(row[twins[dtype], gpu] for row in rows) for dtype, gpu in alone}


def _are_alike(outcomes: dict[Asked, Outcome], one: str, other: str) -> bool:
    same = all(outcomes[one, gpu] == told for (dtype, gpu), told in outcomes.items() if dtype == other)
    return same and itemsize(one) == itemsize(other)


def _told(
    model: Model, quantization: str | None, capabilities: tuple[Capability, ...], dtypes: tuple[str, ...], tensor: int
) -> dict[Asked, Outcome]:
    """What is refused alike without a GPU and on the oldest hangs on neither, nor, in first and last dtype, on that."""

    @cache
    def told(dtype: str, capability: Capability) -> Outcome:
        try:
            return _bytes(model, dtype, quantization, capability, tensor)
        except UllageError as refusal:
            return refusal.message, refusal.hint

    def are_refused(first: str, last: str) -> bool:
        return isinstance(told(first, None), tuple) and told(first, None) == told(last, capabilities[1])

    if are_refused(dtypes[0], dtypes[-1]):
        return dict.fromkeys(product(dtypes, capabilities), told(dtypes[0], None))
    hanging = {dtype: not are_refused(dtype, dtype) for dtype in dtypes}
    return {(dtype, gpu): told(dtype, gpu if hanging[dtype] else None) for dtype, gpu in product(dtypes, capabilities)}


def _bytes(
    model: Model,
    dtype: str,
    quantization: str | None,
    capability: Capability,
    tensor: int,
    pipeline: int = 1,
    stage: int = 0,
) -> int:
    (loaded,) = vllm_weights(
        model,
        dtype=dtype,
        quantization=quantization,
        capability=capability,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        pipeline_rank=stage,
    )
    return loaded.bytes

"""Weights as vLLM holds them on one GPU after ``process_weights_after_loading``: fused, padded, and what it adds.

After vLLM 0.33, and held to it by ``tests/test_vllm_weights.py`` and ``tests/test_vllm_weights_parallel.py``: what
differs from the checkpoint is what other GPUs hold (``vllm_ranks``), by model type (``vllm_families``), by format and
GPU (``vllm_formats``), or the same for all.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from analytic.errors import UllageError
from analytic.formats.registry import find_preset
from analytic.formats.table import itemsize
from analytic.loaded import Change, Loaded
from analytic.loaded.vllm_families import FAMILIES, WRAPPERS, Family, text_config
from analytic.loaded.vllm_formats import repacked
from analytic.loaded.vllm_parallel import Degrees, degrees_of, pipeline_spans
from analytic.loaded.vllm_ranks import Rank, rank_of, spread
from analytic.loaded.vllm_rotary import rotary_tables
from analytic.loaded.vllm_shards import VOCABULARY_ROWS
from analytic.models.geometry import Attention, Geometry, LatentAttention, MixtureOfExperts
from analytic.models.model import Model
from analytic.quantity import round_up
from analytic.weights import DTYPES, ServedGroup, is_packing, weigh

SCALES_BYTES = 4 * 4
"""Of an attention layer: float32 scales of queries, keys, values and probabilities (attention/attention.py)."""

__all__ = ["ONLINE", "pipeline_spans", "vllm_weights"]

_SCALING = frozenset({"rope_scaling", "rope_parameters"})
"""Keys of a config of which one says how positions are scaled, if only by null."""

ONLINE: Mapping[str, str] = {
    "fp8": "fp8",
    "fp8_per_tensor": "fp8",
    "fp8_per_block": "fp8-128x128",
    "fp8_per_channel": "fp8-dynamic",
}
"""vLLM's names of what it makes of 16-bit weights while it loads (config/quantization.py) to the formats it makes."""


def vllm_weights(
    model: Model,
    *,
    dtype: str,
    quantization: str | None,
    capability: tuple[int, int] | None = None,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    pipeline_rank: int = 0,
    enable_expert_parallel: bool = False,
    data_parallel_size: int = 1,
) -> tuple[Loaded, ...]:
    """What vLLM holds of ``model`` in ``dtype`` on one GPU, beside its checkpoint's tensors as stored.

    ``capability`` is the GPU's CUDA compute capability; kernels of packed formats differ by it. The other names are
    vLLM's, and ``pipeline_rank`` is the stage that is meant. The tensor-parallel ranks of a stage hold the same number
    of bytes, but where whole experts do not divide among them: the answer is then that of the first, which has most.
    Data-parallel ranks share the experts of a mixture, whole or in parts; of a model without they are replicas.

    Raises:
        UllageError: a model type or a format that vLLM does not load, or that was never recorded; degrees that
            something of the model does not divide by.
    """
    if dtype not in DTYPES:
        raise UllageError(f"dtype {dtype!r} is not served", hint=f"known: {', '.join(DTYPES)}")
    if quantization == "none" and model.native_format is not None:
        raise UllageError(
            f"vLLM does not dequantise {model.id}, which is published in {model.native_format}",
            hint="leave --quantization out",
        )
    _require_no_gguf(model, quantization)
    family = _family(model)
    degrees = degrees_of(
        model,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        pipeline_rank=pipeline_rank,
        enable_expert_parallel=enable_expert_parallel,
        data_parallel_size=data_parallel_size,
    )
    online = str(quantization) in ONLINE
    quantization = ONLINE.get(str(quantization), quantization)
    router = _router_format(model, family, str(quantization)) if online else None
    rank = _rank(model, dtype, quantization, degrees)
    _require_aligned(model, rank.geometry, rank.served, dtype, capability)
    padding = _vocabulary(model, rank.stage, dtype)
    changes = tuple(
        change
        for change in (
            *spread(rank, padding.bytes, lambda s: _stored_bytes(s, family, dtype)),
            *_dropped(rank.served, family, dtype),
            *_recast(rank.served, family, dtype),
            padding,
            _scales(rank.geometry),
            *_rotary(model, rank.geometry, family, dtype),
            *_own(model, rank, family, dtype),
            *repacked(
                model, rank.geometry, rank.served, dtype=dtype, capability=capability, online=online, router=router
            ),
        )
        if change.bytes
    )
    stored = sum(_stored_bytes(s, family, dtype) for s in rank.whole)
    return (Loaded(place="GPU", bytes=stored + sum(change.bytes for change in changes), changes=changes),)


@lru_cache(maxsize=4096)
def _rank(model: Model, dtype: str, quantization: str | None, degrees: Degrees) -> Rank:
    """The rank, whatever GPU it is on."""
    served = weigh(model, dtype=dtype, quantization=quantization).served
    return rank_of(model, _family(model), (s for s in served if s.group.persistent), degrees)


def _require_no_gguf(model: Model, quantization: str | None) -> None:
    is_mixture = is_packing(quantization) and quantization not in ONLINE and find_preset(str(quantization))[0].mixture
    if model.source == "gguf" or is_mixture:
        raise UllageError("vLLM 0.33 itself loads no GGUF, a plugin does", hint="serve a safetensors checkpoint")


def _family(model: Model) -> Family:
    model_type, whole = model.geometry.model_type, str(model.config.get("model_type"))
    if model_type not in FAMILIES:
        raise UllageError(
            f"what vLLM holds of a {model_type} model is not known",
            hint=f"recorded: {', '.join(FAMILIES)}",
        )
    if "text_config" in model.config and whole not in WRAPPERS:
        raise UllageError(
            f"what vLLM holds of a {whole} model is not known", hint=f"recorded with a tower: {', '.join(WRAPPERS)}"
        )
    return FAMILIES[model_type]


def _require_aligned(
    model: Model, geometry: Geometry, served: Iterable[ServedGroup], dtype: str, capability: tuple[int, int] | None
) -> None:
    """Refuse plain experts that kernels of Blackwell pad (fused_moe/oracle/unquantized.py), if the GPU may be one."""
    if not any(s.group.role == "expert" and s.format == dtype for s in served):
        return
    sizes = {
        layer.feed_forward.intermediate_size
        for layer in geometry.layers
        if isinstance(layer.feed_forward, MixtureOfExperts)
    }
    if any(size % 128 for size in sizes) and (capability is None or capability >= (10, 0)):
        raise UllageError(
            f"{model.id}: how vLLM pads experts of {min(sizes)} depends on the GPU",
            hint="name one before Blackwell; what it does there was not recorded",
        )


def _router_format(model: Model, family: Family, quantization: str) -> str | None:
    """What routers are quantised to while loading; None where they are not."""
    if not any(group.role == "router" for group in model.tensors):
        return None
    if family.online_router is None:
        raise UllageError(
            f"whether vLLM quantises the routers of a {model.geometry.model_type} model while loading is not known",
            hint="serve a checkpoint that is quantised already",
        )
    return find_preset(quantization)[0].scheme.name if family.online_router else None


def _stored_bytes(served: ServedGroup, family: Family, dtype: str) -> int:
    """As the checkpoint has it: what transformers upcasts is in float32 there only if vLLM holds it so too."""
    if served.group.stored in ("float32-unless-float64", "float32-if-float16"):
        return _held_bytes(served, family, dtype)
    return served.bytes


def _held_bytes(served: ServedGroup, family: Family, dtype: str) -> int:
    """Of a plain tensor."""
    group = served.group
    return group.elements * group.count * itemsize("float32" if group.name.endswith(family.float32) else dtype)


def _dropped(served: Iterable[ServedGroup], family: Family, dtype: str) -> Iterator[Change]:
    for s in served:
        if s.group.name in family.dropped:
            yield Change(what=f"{s.group.name} is not loaded", bytes=-_stored_bytes(s, family, dtype))


def _recast(served: Iterable[ServedGroup], family: Family, dtype: str) -> Iterator[Change]:
    """Plain tensors are cast to the serving dtype, but for those that the model file makes in float32."""
    for s in served:
        if not s.group.pieces and s.group.stored in ("model", "float32"):
            name = s.group.name.removesuffix(".weight").rpartition(".")[2]
            held = "float32" if s.group.name.endswith(family.float32) else dtype
            change = _held_bytes(s, family, dtype) - _stored_bytes(s, family, dtype)
            yield Change(what=f"{name} in {held}", bytes=change)


def _vocabulary(model: Model, served: Iterable[ServedGroup], dtype: str) -> Change:
    rows = model.geometry.vocab_size
    padded = sum(
        (round_up(group.shape[0], VOCABULARY_ROWS) - group.shape[0]) * group.elements // group.shape[0]
        for group in (s.group for s in served)
        if group.role in ("embedding", "output") and group.layers is None and group.shape[0] == rows
    )
    return Change(what=f"vocabulary padded to a multiple of {VOCABULARY_ROWS}", bytes=padded * itemsize(dtype))


def _scales(geometry: Geometry) -> Change:
    layers = sum(isinstance(layer.mixer, Attention | LatentAttention) for layer in geometry.layers)
    return Change(what="scales of queries, keys, values and probabilities", bytes=SCALES_BYTES * layers)


def _rotary(model: Model, geometry: Geometry, family: Family, dtype: str) -> Iterator[Change]:
    rotary = family.rotary
    if rotary is None:
        return
    if model.source == "catalog" and not _SCALING & text_config(model).keys():
        raise UllageError(
            f"the catalogue does not know how {model.id} scales its rotary embedding, and vLLM's table follows it",
            hint="give the model's config.json, or its directory",
        )
    geometry = geometry if rotary.table else model.geometry
    for kind, table in sorted(rotary_tables(text_config(model), geometry, rotary)):
        of = f" of {kind.replace('_', ' ')}" if rotary.by_kind else ""
        if rotary.table:
            size = table.positions * table.elements * itemsize(rotary.dtype or dtype)
            yield Change(what=f"rotary table of {table.positions:,} positions{of}", bytes=size)
        else:  # one for each two elements, and the same before scaling
            yield Change(what=f"rotary frequencies{of}", bytes=2 * table.elements // 2 * itemsize("float32"))


def _own(model: Model, rank: Rank, family: Family, dtype: str) -> Iterator[Change]:
    for added in family.adds:
        yield Change(what=added.what, bytes=added.bytes(model, rank.geometry, itemsize(dtype)))
    whole, vision = str(model.config.get("model_type")), model.config.get("vision_config")
    if whole in WRAPPERS and isinstance(vision, Mapping) and rank.degrees.is_first:
        what, size = WRAPPERS[whole]
        yield Change(what=what, bytes=size(vision, itemsize(dtype)))

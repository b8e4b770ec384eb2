"""What one of vLLM's ranks has of a model: the layers of its pipeline stage, and of each tensor its part."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from analytic.errors import UllageError
from analytic.loaded import Change
from analytic.loaded.vllm_families import Family
from analytic.loaded.vllm_parallel import LONGEST, Degrees, Part, UnevenError, World, pipeline_spans
from analytic.loaded.vllm_shards import is_vision, local_heads, part, require_heads
from analytic.models.geometry import Attention, Geometry, LatentAttention, Layer, MixtureOfExperts
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model
from analytic.weights import ServedGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """What the fullest tensor-parallel rank of one pipeline stage has."""

    degrees: Degrees
    whole: tuple[ServedGroup, ...]
    """The model's tensors."""
    stage: tuple[ServedGroup, ...]
    """Those of the stage, each whole."""
    served: tuple[ServedGroup, ...]
    """The rank's parts of them, in the same order."""
    whys: tuple[str, ...]
    """Why each is no even part of them; empty where it is one."""
    geometry: Geometry
    """The stage's layers, with the rank's heads and experts."""


def rank_of(model: Model, family: Family, served: Iterable[ServedGroup], degrees: Degrees) -> Rank:
    """The rank that `Degrees` mean.

    Raises:
        UllageError: something that does not divide, or a tensor that no rule splits.
    """
    whole = tuple(served)
    _require_known(model, family, degrees)
    stage = tuple(s for s in (_on_stage(model, family, s, degrees) for s in whole) if s is not None)
    cut = partial(_cut, model, family, stage)
    try:
        parts = cut(degrees)
    except UnevenError as uneven:
        raise _impossible(model, cut, degrees, str(uneven)) from None
    first, end = pipeline_spans(len(model.geometry.layers), degrees.pipeline)[degrees.stage]
    layers = tuple(_local(layer, degrees) for layer in model.geometry.layers[first:end])
    return Rank(
        degrees=degrees,
        whole=whole,
        stage=stage,
        served=tuple(_scaled(s, part) for s, part in zip(stage, parts, strict=True)),
        whys=tuple(part.why for part in parts),
        geometry=replace(model.geometry, layers=layers),
    )


def _require_known(model: Model, family: Family, degrees: Degrees) -> None:
    first, end = pipeline_spans(len(model.geometry.layers), degrees.pipeline)[degrees.stage]
    if family.needs_experts and _has_experts(model.geometry.layers) > _has_experts(model.geometry.layers[first:end]):
        raise UllageError(
            f"vLLM 0.33 does not load layers {first} to {end - 1} of {model.id} alone: they have no experts",
            hint="use fewer pipeline stages",
        )
    if not family.repeats_keys:
        heads = min(layer.mixer.kv_heads for layer in model.geometry.layers if isinstance(layer.mixer, Attention))
        if degrees.tensor > heads:
            raise UllageError(
                f"vLLM 0.33 does not repeat the {heads} key heads of a {model.geometry.model_type} model on more ranks",
                hint=f"--tensor-parallel-size up to {heads}",
            )


def _has_experts(layers: Iterable[Layer]) -> bool:
    return any(isinstance(layer.feed_forward, MixtureOfExperts) for layer in layers)


def _on_stage(model: Model, family: Family, served: ServedGroup, degrees: Degrees) -> ServedGroup | None:
    """What a pipeline stage has of a group, whole; None for nothing."""
    group = served.group
    if degrees.pipeline == 1:
        return served
    if model.is_decoder(group):
        first, end = pipeline_spans(len(model.geometry.layers), degrees.pipeline)[degrees.stage]
        layers = tuple(index for index in group.layers or () if first <= index < end)
        return replace(served, group=replace(group, layers=layers)) if layers else None
    if is_vision(group):
        return served if degrees.is_first else None
    if group.role in family.everywhere:
        return served
    if group.role == "embedding":
        return served if degrees.is_first or (degrees.is_last and _is_tied(model, group)) else None
    return served if degrees.is_last else None


def _is_tied(model: Model, group: TensorGroup) -> bool:
    has_head = any(other.role == "output" for other in model.tensors)
    return not has_head and group.shape[0] == model.geometry.vocab_size


def _cut(model: Model, family: Family, stage: Sequence[ServedGroup], degrees: Degrees) -> list[Part]:
    """The part of each group.

    Raises:
        UnevenError: something does not divide.
    """
    if degrees.tensor == degrees.data == 1:
        return [Part(s.group.shape) for s in stage]
    require_heads(model.geometry, _vision_heads(model), degrees.tensor)
    world = World(
        geometry=model.geometry,
        degrees=degrees,
        splits_shared=family.splits_shared,
        head_norms=family.splits_head_norms,
    )
    parts = [part(s.group, world) for s in stage]
    for s, own in zip(stage, parts, strict=True):
        _require_groups(s, own)
    return parts


def _vision_heads(model: Model) -> int:
    """0 without a vision tower."""
    vision = model.config.get("vision_config")
    if not isinstance(vision, Mapping):
        return 0
    heads = vision.get("num_attention_heads") or vision.get("num_heads")
    return heads if isinstance(heads, int) else 0


_GROUP = re.compile(r"(?:-g(?P<group>\d+))|(?P<block>-128x128)")


def _require_groups(served: ServedGroup, own: Part) -> None:
    """Packed matrices are split between groups, and fp8 between blocks. Experts have kernels for the rest.

    Raises:
        UnevenError: a part that ends within one.
    """
    group = served.group
    found = _GROUP.search(served.format)
    if found is None or group.role == "expert" or own.shape == group.shape:
        return
    size = int(found["group"] or 128)
    out, into = replace(group, shape=own.shape).matrix
    if (into != group.matrix[1] and into % size) or (found["block"] and out != group.matrix[0] and out % size):
        raise UnevenError(f"groups of {size} in {group.name}")


def _impossible(model: Model, cut: Callable[[Degrees], object], degrees: Degrees, what: str) -> UllageError:
    """Names what does not divide, and the tensor-parallel degrees by which everything does."""
    possible = []
    for ranks in range(1, min(LONGEST, _most(model)) + 1):
        try:
            cut(replace(degrees, tensor=ranks))
        except UnevenError:
            continue
        possible.append(str(ranks))
    among = f"{degrees.tensor} tensor-parallel ranks"
    if degrees.data > 1:
        among += f" of {degrees.data} data-parallel ones"
    said = ", ".join(possible[:16])
    return UllageError(
        f"{model.id}: {what} do not divide among {among}",
        hint=f"--tensor-parallel-size may be {said}" if possible else "choose a smaller --data-parallel-size",
    )


def _most(model: Model) -> int:
    """More ranks than heads is never possible."""
    heads = [
        layer.mixer.heads for layer, _ in model.geometry.groups if isinstance(layer.mixer, Attention | LatentAttention)
    ]
    return min(heads, default=128)


def _scaled(served: ServedGroup, part: Part) -> ServedGroup:
    """A part of a group; of a packed one the bytes are but in proportion, and its kernel's row corrects them."""
    group = replace(served.group, shape=part.shape)
    return replace(served, group=group, each_bytes=served.each_bytes * group.elements // (served.group.elements or 1))


def _local(layer: Layer, degrees: Degrees) -> Layer:
    mixer, feed_forward = layer.mixer, layer.feed_forward
    if isinstance(mixer, Attention):
        heads, kv_heads = mixer.heads // degrees.tensor, local_heads(mixer.kv_heads, degrees.tensor)
        mixer = replace(mixer, heads=heads, kv_heads=kv_heads)
    if isinstance(feed_forward, MixtureOfExperts) and not degrees.by_expert:
        size = feed_forward.intermediate_size // degrees.expert_ranks
        feed_forward = replace(feed_forward, intermediate_size=size)
    return replace(layer, mixer=mixer, feed_forward=feed_forward)


def _split_over(degrees: Degrees) -> str:
    if degrees.tensor == 1:
        return f"experts split over {degrees.expert_ranks} ranks"
    experts = f", experts over {degrees.expert_ranks}" if degrees.data > 1 else ""
    return f"split over {degrees.tensor} ranks{experts}"


MAP_BYTES = 4
"""Of an expert, where whole experts are spread: its place on the rank, or none (fused_moe/expert_map_manager.py)."""


def spread(rank: Rank, padding_bytes: int, stored: Callable[[ServedGroup], int]) -> Iterator[Change]:
    """What other ranks hold, and what this one holds beside an even part of its stage.

    ``padding_bytes`` are those that the stage's vocabulary is padded by before it is split.
    """
    if rank.degrees.pipeline > 1:
        away = sum(map(stored, rank.stage)) - sum(map(stored, rank.whole))
        yield Change(what="on other pipeline stages", bytes=away)
    ranks = rank.degrees.expert_ranks
    if ranks == 1:
        return
    sums: dict[str, int] = {}
    split = 0
    for whole, own, why in zip(rank.stage, rank.served, rank.whys, strict=True):
        among = ranks if own.group.role == "expert" else rank.degrees.tensor
        even = stored(whole) // among if why else stored(own)
        split += even - stored(whole)
        if why:
            sums[why] = sums.get(why, 0) + stored(own) - even
    yield Change(what=_split_over(rank.degrees), bytes=split - padding_bytes)
    yield from (Change(what=why, bytes=more) for why, more in sums.items())
    if rank.degrees.by_expert:
        mixtures = (layer.feed_forward for layer in rank.geometry.layers)
        places = sum(mixture.experts for mixture in mixtures if isinstance(mixture, MixtureOfExperts))
        yield Change(what="places of the experts on ranks", bytes=MAP_BYTES * places)

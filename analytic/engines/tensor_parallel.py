"""What one rank holds when transformers divides a model's tensors: ``from_pretrained(…, tp_plan="auto")``.

After transformers 5.23 (``distributed/tensor_parallel.py``) and held to it by ``tests/test_tensor_parallel.py``, in
which real ranks load and run. The plan of each class is a row of ``tp_plans.json`` (``tests/record_distribution.py``):
a module or parameter, with ``*`` for indices, and the style that it is divided in.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import prod

from analytic.engines.module_tree import tied_parameters
from analytic.errors import UllageError, UsageError
from analytic.formats.table import itemsize
from analytic.models.geometry import Attention, FeedForward, Geometry, LatentAttention, Layer, MixtureOfExperts
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model
from analytic.weights import DTYPES, ServedGroup, weigh

REPLICATED = "replicated"
"""Of a tensor that every rank holds whole."""

_TILED, _TILE = "fp8-128x128", 128
"""The packed format whose tiles can be divided, and their sides; their scales are divided as they are."""

Cut = tuple[int, int]
"""The dimension that is divided, and how many parts of it are divided each for itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardedGroup:
    """What one rank holds of the tensors of a group."""

    served: ServedGroup
    """The whole."""
    style: str
    """As the plan has it; ``replicated`` without one."""
    shape: tuple[int, ...]
    """Of the rank's part of each tensor, before any quantisation."""
    each_bytes: int

    @property
    def bytes(self) -> int:
        """Of all tensors of the group."""
        return self.each_bytes * self.served.group.count


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardedWeights:
    """All weights that one rank holds."""

    rank: int
    groups: tuple[ShardedGroup, ...]
    bytes: int
    """Parameters and persistent buffers."""
    by_role: dict[str, int]
    replicated_bytes: int
    """Of them, what every rank holds whole."""


def shard(
    model: Model, *, dtype: str, tensor_parallel_size: int, rank: int = 0, quantization: str | None = None
) -> ShardedWeights:
    """The weights that a rank holds of ``model``.

    Args:
        model: the model.
        dtype: that it is served in.
        tensor_parallel_size: how many ranks there are.
        rank: which; the last ones hold the least.
        quantization: as `weigh` takes it.

    Raises:
        UsageError: an option that is not known.
        UllageError: the class has no plan, its heads cannot be divided so, or its format cannot be divided.
    """
    _require_known(dtype, tensor_parallel_size, rank)
    _require_possible(model, tensor_parallel_size)
    served = weigh(model, dtype=dtype, quantization=quantization).served
    groups = tuple(_sharded(s, model, tensor_parallel_size, rank) for s in served)
    held = [g for g in groups if g.served.group.persistent]
    by_role: dict[str, int] = {}
    for group in held:
        role = group.served.group.role
        by_role[role] = by_role.get(role, 0) + group.bytes
    return ShardedWeights(
        rank=rank,
        groups=groups,
        bytes=sum(by_role.values()),
        by_role=by_role,
        replicated_bytes=sum(g.bytes for g in held if g.shape == g.served.group.shape),
    )


def possible_degrees(model: Model, up_to: int = 64) -> tuple[int, ...]:
    """The numbers of ranks, ``up_to`` the largest, that transformers can run ``model`` on; one is always among them."""
    return tuple(degree for degree in range(1, up_to + 1) if degree == 1 or _obstacle(model, degree) is None)


def sharded_geometry(model: Model, *, tensor_parallel_size: int) -> Geometry:
    """What caches and activations of a rank follow from: the geometry with what the first rank holds of each layer.

    Heads and intermediate sizes are divided where the plan keeps their outputs apart. Recurrent mixers, projections
    whose outputs are gathered and the latents of multi-head latent attention stay whole on every rank.

    Raises:
        UllageError: as `shard`.
    """
    _require_possible(model, tensor_parallel_size)
    if tensor_parallel_size == 1:
        return model.geometry
    split = _Split.of(model)
    layers = {layer: _divided(layer, split, tensor_parallel_size) for layer, _ in model.geometry.groups}
    return replace(model.geometry, layers=tuple(layers[layer] for layer in model.geometry.layers))


def plan_of(model: Model) -> Mapping[str, str]:
    """Style by module or parameter of the model's class.

    Raises:
        UllageError: the class has none.
    """
    if model.architecture not in _plans():
        raise UllageError(
            f"transformers has no plan to divide a {model.architecture}'s tensors",
            hint="put whole layers on each GPU: --pipeline-parallel-size",
        )
    return _plans()[model.architecture]


def style_of(group: TensorGroup, plan: Mapping[str, str]) -> str:
    """The style of a group's tensors: their own, else that of the module that owns them."""
    pattern = re.sub(r"\.\d{1,9}(?=\.|$)", ".*", group.name.replace("{}", "*").replace("{e}", "*"))
    return plan.get(pattern) or plan.get(pattern.rpartition(".")[0]) or REPLICATED


@cache
def _plans() -> Mapping[str, Mapping[str, str]]:
    plans: Mapping[str, Mapping[str, str]] = json.loads((files("analytic.models") / "tp_plans.json").read_bytes())
    return plans


def _require_known(dtype: str, degree: int, rank: int) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not served", hint=f"known: {', '.join(DTYPES)}")
    if degree < 1 or not 0 <= rank < degree:
        raise UsageError(f"rank {rank} is none of {degree}", hint="ranks count from 0")


def _require_possible(model: Model, degree: int) -> None:
    obstacle = None if degree == 1 else _obstacle(model, degree)
    if obstacle is not None:
        known = ", ".join(map(str, possible_degrees(model)))
        raise UllageError(
            f"transformers cannot divide {model.id} by {degree}: {obstacle}", hint=f"possible up to 64: {known}"
        )


def _obstacle(model: Model, degree: int) -> str | None:
    """Why a number of ranks, more than one, is not possible; None if it is."""
    try:
        plan, split = plan_of(model), _Split.of(model)
    except UllageError as refusal:
        return refusal.message
    for layer, _ in model.geometry.groups:
        for what, heads in _divided_heads(layer, split):
            if heads % degree:
                return f"{heads} {what} heads"
    groups = {group.name: group for group in model.tensors}
    for name, group in groups.items():
        cut = _cut(style_of(group, plan), group)
        if cut is not None and _part(group.shape, cut, degree, degree - 1)[cut[0]] == 0:
            return f"{name} leaves the last rank nothing"
    for name, other in tied_parameters(model.architecture, groups).items():
        alias = replace(groups[other], name=name)
        if _cut(style_of(alias, plan), alias) != _cut(style_of(groups[other], plan), groups[other]):
            return f"{name} is tied to {other}, which the plan does not divide in the same way"
    return None


def _divided_heads(layer: Layer, split: "_Split") -> Iterator[tuple[str, int]]:
    for mixer in (layer.mixer, layer.cross):
        if isinstance(mixer, Attention) and split.heads:
            yield from (("attention", mixer.heads), ("key", mixer.kv_heads))
        if isinstance(mixer, LatentAttention) and split.latent_heads:
            yield "attention", mixer.heads


def _cut(style: str, group: TensorGroup) -> Cut | None:
    """Where a style divides a tensor; None where every rank holds it whole (each style's ``shard_param``)."""
    dimensions, name = len(group.shape), group.name.rpartition(".")[2]
    rows, last = max(dimensions - 2, 0), dimensions - 1
    if group.role == "buffer" or not dimensions:
        return None
    match style:
        case "colwise" | "colwise_gather_output" | "colwise_rep":
            return rows, 1
        case "rowwise" | "rowwise_split_input" | "rowwise_rep":
            return None if name == "bias" else (last, 1)
        case "embedding_rowwise":
            return 0, 1
        case "embedding_colwise":
            return 1, 1
        case "packed_colwise":
            return rows, 1 if dimensions == 1 else 2
        case "packed_rowwise":
            return None if dimensions == 1 else (last, 2)
        case _ if style in _WHOLE:
            return None
    raise UllageError(f"how transformers divides {group.name} ({style[:60]}) is not known")


_WHOLE = (
    *(REPLICATED, "replicated_with_grad_allreduce", "mla_kv_a_proj", "all_reduce", "moe_tp_experts"),
    *("moe_identity_expert", "local_params", "replicate"),
)
"""Styles that leave parameters whole, and change at most what goes in or comes out."""


def _part(shape: tuple[int, ...], cut: Cut, degree: int, rank: int) -> tuple[int, ...]:
    """The shape of a rank's part: chunks as large as the first, so that the last ranks hold less, or nothing."""
    dimension, parts = cut
    size, held = shape[dimension], 0
    width = -(-size // parts)
    for start in range(0, size, width):
        part = min(width, size - start)
        chunk = -(-part // degree)
        held += max(0, min(chunk, part - rank * chunk))
    return (*shape[:dimension], held, *shape[dimension + 1 :])


def _sharded(served: ServedGroup, model: Model, degree: int, rank: int) -> ShardedGroup:
    group = served.group
    style = style_of(group, plan_of(model)) if degree > 1 else REPLICATED
    cut = _cut(style, group)
    if cut is None:
        return ShardedGroup(served=served, style=style, shape=group.shape, each_bytes=served.each_bytes)
    shape = _part(group.shape, cut, degree, rank)
    return ShardedGroup(
        served=served, style=style, shape=shape, each_bytes=_part_bytes(served, model, shape, cut, degree, rank)
    )


def _part_bytes(served: ServedGroup, model: Model, shape: tuple[int, ...], cut: Cut, degree: int, rank: int) -> int:
    group = served.group
    if served.format == _TILED:
        tiles = (*group.shape[:-2], *(-(-size // _TILE) for size in group.shape[-2:]))
        first = _part(group.shape, cut, degree, 0)[cut[0]] // cut[1]
        if first % _TILE:
            raise UllageError(
                f"{group.name} of {model.id} cannot be divided by {degree}: tiles of {_TILE} x {_TILE} would be cut",
                hint="fewer ranks, or --quantization none",
            )
        return prod(shape) + itemsize("float32") * prod(_part(tiles, cut, degree, rank))
    if group.pieces or served.each_bytes != group.elements * served.each_bytes // max(group.elements, 1):
        raise UllageError(
            f"{group.name} of {model.id} is served in {served.format}, of which transformers runs no part",
            hint="put whole layers on each GPU: --pipeline-parallel-size",
        )
    return prod(shape) * (served.each_bytes // group.elements)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Split:
    """Which outputs of a decoder layer's projections a rank computes only a part of."""

    heads: bool
    latent_heads: bool
    feed_forward: bool
    experts: bool
    shared_experts: bool

    @classmethod
    def of(cls, model: Model) -> "_Split":
        """By the plan of the model's class, and the decoder's tensors that it applies to."""
        plan = plan_of(model)
        styles = {group.name: style_of(group, plan) for group in model.tensors if model.is_decoder(group)}

        def divides(pattern: str) -> bool:
            return any(style in _APART and re.search(pattern, name) for name, style in styles.items())

        return cls(
            heads=divides(r"\.(k_proj|qkv_proj|query_key_value)\."),
            latent_heads=divides(r"\.kv_b_proj\."),
            feed_forward=divides(r"\.(mlp|feed_forward)\.(up_proj|fc1|c_fc|dense_h_to_4h)\."),
            experts=divides(r"\.experts\.(gate_up_proj|up_proj)$"),
            shared_experts=divides(r"\.shared_experts?\.up_proj\."),
        )


_APART = ("colwise", "packed_colwise", "packed_rowwise")
"""Styles whose outputs are not gathered; ``packed_rowwise`` is of weights that are stored as [in, out]."""


def _divided(layer: Layer, split: _Split, degree: int) -> Layer:
    return replace(
        layer,
        mixer=_divided_mixer(layer.mixer, split, degree)
        if isinstance(layer.mixer, Attention | LatentAttention)
        else layer.mixer,
        cross=None if layer.cross is None else _divided_attention(layer.cross, split, degree),
        feed_forward=_divided_feed_forward(layer.feed_forward, split, degree),
    )


def _divided_mixer(mixer: Attention | LatentAttention, split: _Split, degree: int) -> Attention | LatentAttention:
    if isinstance(mixer, Attention):
        return _divided_attention(mixer, split, degree)
    return replace(mixer, heads=mixer.heads // degree) if split.latent_heads else mixer


def _divided_attention(mixer: Attention, split: _Split, degree: int) -> Attention:
    if not split.heads:
        return mixer
    cached = None if mixer.cached_heads is None else mixer.cached_heads // degree
    return replace(mixer, heads=mixer.heads // degree, kv_heads=mixer.kv_heads // degree, cached_heads=cached)


def _divided_feed_forward(
    feed_forward: FeedForward | MixtureOfExperts | None, split: _Split, degree: int
) -> FeedForward | MixtureOfExperts | None:
    """With the first rank's part of each intermediate size, which need not be a multiple."""
    if isinstance(feed_forward, FeedForward) and split.feed_forward:
        return replace(feed_forward, intermediate_size=-(-feed_forward.intermediate_size // degree))
    if isinstance(feed_forward, MixtureOfExperts):
        experts, shared = feed_forward.intermediate_size, feed_forward.shared_intermediate_size
        return replace(
            feed_forward,
            intermediate_size=-(-experts // degree) if split.experts else experts,
            shared_intermediate_size=-(-shared // degree) if split.shared_experts else shared,
        )
    return feed_forward

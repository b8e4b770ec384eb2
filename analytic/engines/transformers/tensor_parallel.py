"""What one rank holds when transformers divides a model's tensors: ``from_pretrained(…, tp_plan="auto")``.

After transformers 5.23 (``tensor_plan``) and held to it by ``tests/test_tensor_parallel.py``, in which real ranks load
and run.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from analytic.engines.transformers.module_tree import tied_parameters
from analytic.engines.transformers.tensor_plan import (
    APART,
    BY_LAYERS,
    REPLICATED,
    Cut,
    cut_of,
    has_plan,
    part_of,
    plan_of,
    style_of,
)
from analytic.errors import UllageError, UsageError
from analytic.formats.table import itemsize
from analytic.models.geometry import Attention, FeedForward, Geometry, LatentAttention, Layer, MixtureOfExperts
from analytic.models.model import Model
from analytic.weights import DTYPES, ServedGroup, weigh

_TILED, _TILE = "fp8-128x128", 128
"""The packed format whose tiles can be divided, and their sides; their scales are divided as they are."""

_GROUPED = 8
"""What the width of a rank's experts is a multiple of, for ``grouped_mm`` takes strides of 16 bytes."""


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
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not served", hint=f"known: {', '.join(DTYPES)}")
    if not 0 <= rank < tensor_parallel_size:
        raise UsageError(f"rank {rank} is none of {tensor_parallel_size}", hint="ranks count from 0")
    _require_possible(model, tensor_parallel_size, quantization)
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


def possible_degrees(model: Model, up_to: int = 64, *, quantization: str | None = None) -> tuple[int, ...]:
    """The numbers of ranks, ``up_to`` the largest, that transformers can run ``model`` on; one is always among them."""
    degrees = range(1, up_to + 1)
    return tuple(degree for degree in degrees if degree == 1 or _obstacle(model, degree, quantization) is None)


def sharded_geometry(model: Model, *, tensor_parallel_size: int, quantization: str | None = None) -> Geometry:
    """What caches and activations of a rank follow from: the geometry with what the first rank holds of each layer.

    Heads and intermediate sizes are divided where the plan keeps their outputs apart. Recurrent mixers, projections
    whose outputs are gathered and the latents of multi-head latent attention stay whole on every rank.

    Raises:
        UllageError: as `shard`.
    """
    _require_possible(model, tensor_parallel_size, quantization)
    if tensor_parallel_size == 1:
        return model.geometry
    split = _Split.of(model)
    layers = {layer: _divided(layer, split, tensor_parallel_size) for layer, _ in model.geometry.groups}
    return replace(model.geometry, layers=tuple(layers[layer] for layer in model.geometry.layers))


def _require_possible(model: Model, degree: int, quantization: str | None) -> None:
    if degree < 1:
        raise UsageError(f"tensor_parallel_size {degree} must be 1 or more")
    obstacle = None if degree == 1 else _obstacle(model, degree, quantization)
    if obstacle is not None:
        known = ", ".join(map(str, possible_degrees(model, quantization=quantization)))
        raise UllageError(
            f"transformers cannot divide {model.id} by {degree}: {obstacle}",
            hint=f"possible up to 64: {known}; {BY_LAYERS}",
        )


def _obstacle(model: Model, degree: int, quantization: str | None) -> str | None:
    """Why transformers does not run a number of ranks, more than one; None if it does."""
    if not has_plan(model):
        return f"it has no plan for a {model.architecture}"
    plan, split = plan_of(model), _Split.of(model)
    for layer, _ in model.geometry.groups:
        for what, heads in _divided_heads(layer, split):
            if heads % degree:
                return f"{heads} {what} heads"
    served = weigh(model, dtype="bfloat16", quantization=quantization).served
    obstacles = (_obstacle_in(s, cut, degree) for s in served if (cut := cut_of(style_of(s.group, plan), s.group)))
    return next(filter(None, obstacles), None) or _untied(model, plan)


def _obstacle_in(served: ServedGroup, cut: Cut, degree: int) -> str | None:
    """Why a tensor cannot be divided so."""
    group = served.group
    first, last = (part_of(group.shape, cut, degree, rank)[cut[0]] for rank in (0, degree - 1))
    if not last:
        return f"{group.name} leaves the last rank nothing"
    if served.format == _TILED:
        is_cut = first // cut[1] % _TILE
        return f"tiles of {_TILE} x {_TILE} of {group.name} would be cut" if is_cut else None
    if served.format not in DTYPES:
        return f"it runs no part of {group.name} in {served.format}"
    if group.role == "expert" and {first // cut[1] % _GROUPED, last // cut[1] % _GROUPED} != {0}:
        return f"a rank's experts would be no multiple of {_GROUPED} wide, which grouped_mm needs"
    return None


def _untied(model: Model, plan: Mapping[str, str]) -> str | None:
    """Why a tied parameter cannot be divided: its other name is not divided in the same way."""
    groups = {group.name: group for group in model.tensors}
    for name, other in tied_parameters(model.architecture, groups).items():
        alias = replace(groups[other], name=name)
        if cut_of(style_of(alias, plan), alias) != cut_of(style_of(groups[other], plan), groups[other]):
            return f"{name} is tied to {other}, which the plan does not divide in the same way"
    return None


def _divided_heads(layer: Layer, split: "_Split") -> Iterator[tuple[str, int]]:
    for mixer in (layer.mixer, layer.cross):
        if isinstance(mixer, Attention) and split.heads:
            yield from (("attention", mixer.heads), ("key", mixer.kv_heads))
        if isinstance(mixer, LatentAttention) and split.latent_heads:
            yield "attention", mixer.heads


def _sharded(served: ServedGroup, model: Model, degree: int, rank: int) -> ShardedGroup:
    group = served.group
    style = style_of(group, plan_of(model)) if degree > 1 else REPLICATED
    cut = cut_of(style, group)
    if cut is None:
        return ShardedGroup(served=served, style=style, shape=group.shape, each_bytes=served.each_bytes)
    shape = part_of(group.shape, cut, degree, rank)
    return ShardedGroup(
        served=served, style=style, shape=shape, each_bytes=_part_bytes(served, shape, cut, degree, rank)
    )


def _part_bytes(served: ServedGroup, shape: tuple[int, ...], cut: Cut, degree: int, rank: int) -> int:
    if served.format != _TILED:
        return prod(shape) * itemsize(served.format)
    whole = served.group.shape
    tiles = (*whole[:-2], *(-(-size // _TILE) for size in whole[-2:]))
    return prod(shape) + itemsize("float32") * prod(part_of(tiles, cut, degree, rank))


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
            return any(style in APART and re.search(pattern, name) for name, style in styles.items())

        return cls(
            heads=divides(r"\.(k_proj|qkv_proj|query_key_value)\."),
            latent_heads=divides(r"\.kv_b_proj\."),
            feed_forward=divides(r"\.(mlp|feed_forward)\.(up_proj|fc1|c_fc|dense_h_to_4h)\."),
            experts=divides(r"\.experts\.(gate_up_proj|up_proj)$"),
            shared_experts=divides(r"\.shared_experts?\.up_proj\."),
        )


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

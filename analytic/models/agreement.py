"""A checkpoint held against its config: what one says and the other belies is refused, as loading would refuse it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analytic.errors import UllageError
from analytic.models.geometry import Attention, FeedForward, Geometry, Layer, MixtureOfExperts
from analytic.models.inventory import TensorGroup
from analytic.models.served_names import Family

_HINT = "complete the download, and take config.json from the same place"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claims:
    """What a config says, read."""

    id: str
    config: Mapping[str, Any]
    geometry: Geometry
    family: Family
    is_tied: bool


def require_agreement(groups: tuple[TensorGroup, ...], claims: Claims) -> None:
    """Refuse a checkpoint that lacks what its config says there is, or holds it in another size.

    What stands beside packed weights is not compared: a quantiser may leave out any layer. Nor are shapes that a packed
    format does not keep.

    Raises:
        UllageError: by the name of the first contradiction.
    """
    said = next(_contradictions(groups, claims), None)
    if said is not None:
        raise contradiction(claims.id, said)


def contradiction(id: str, said: str) -> UllageError:
    """The error of a config and a checkpoint that cannot both be right."""
    return UllageError(f"{id}: {said}", hint=_HINT)


def _contradictions(groups: tuple[TensorGroup, ...], claims: Claims) -> Iterator[str]:
    yield from (f"{g.name} is stored under two names" for g in groups if g.copies > 1 and "{e}" not in g.name)
    yield from _missing_outside_layers(groups, claims)
    yield from _missing_layers(_held(groups, claims), claims)
    yield from _other_sizes(groups, claims)
    yield from _uneven_layers(_held(groups, claims), claims)
    yield from _other_widths(groups, claims)


def _missing_outside_layers(groups: tuple[TensorGroup, ...], claims: Claims) -> Iterator[str]:
    modules = {group.name.rpartition(".")[0] for group in groups}
    for name in sorted(claims.family.always):
        if name.rpartition(".")[0] not in modules:
            yield f"the checkpoint lacks {name}"
    if not claims.is_tied and not any(group.role == "output" for group in groups):
        yield "the checkpoint lacks the output head (tie_word_embeddings is false)"


def _held(groups: tuple[TensorGroup, ...], claims: Claims) -> list[set[str]]:
    """Names that each layer of the decoder holds."""
    held: list[set[str]] = [set() for _ in claims.geometry.layers]
    for group in groups:
        if group.name.partition("{}")[0] == claims.family.decoder and group.role != "buffer":
            for index in group.layers or ():
                held[index].add(group.name)
    return held


def _missing_layers(held: list[set[str]], claims: Claims) -> Iterator[str]:
    for index, names in enumerate(held):
        if not names:
            yield f"config.json says {len(held)} layers, the checkpoint holds none at {claims.family.decoder}{index}"


def _uneven_layers(held: list[set[str]], claims: Claims) -> Iterator[str]:
    """Layers that the config makes alike hold tensors of the same names."""
    first: dict[Layer, int] = {}
    for index, layer in enumerate(claims.geometry.layers):
        alike = first.setdefault(layer, index)
        for name in sorted(held[index] ^ held[alike]):
            yield f"the checkpoint lacks {name.replace('{}', str(index if name in held[alike] else alike))}"


def _key_rows(layer: Layer) -> int | None:
    return layer.mixer.kv_heads * layer.mixer.head_dim if isinstance(layer.mixer, Attention) else None


def _value_rows(layer: Layer) -> int | None:
    return layer.mixer.kv_heads * layer.mixer.v_head_dim if isinstance(layer.mixer, Attention) else None


def _feed_forward_rows(layer: Layer) -> int | None:
    return layer.feed_forward.intermediate_size if isinstance(layer.feed_forward, FeedForward) else None


_ROWS: tuple[tuple[str, Callable[[Layer], int | None]], ...] = (
    (".self_attn.k_proj.weight", _key_rows),
    (".self_attn.v_proj.weight", _value_rows),
    (".mlp.up_proj.weight", _feed_forward_rows),
)
"""Rows of the matrices that decide the size of a cache or of activations; None where the config does not say."""


def _other_widths(groups: tuple[TensorGroup, ...], claims: Claims) -> Iterator[str]:
    for group in groups:
        rows = next((rows for end, rows in _ROWS if group.name == f"{claims.family.decoder}{{}}{end}"), None)
        for index in (group.layers or ()) if rows else ():
            said = rows(claims.geometry.layers[index]) if rows else None
            if said not in (None, group.shape[0]) and len(group.shape) > 1:
                name = group.name.replace("{}", str(index))
                yield f"config.json says {said} rows of {name}, the checkpoint holds {group.shape[0]}"


def _other_sizes(groups: tuple[TensorGroup, ...], claims: Claims) -> Iterator[str]:
    """The embedding, the output head and the number of experts are as the config says."""
    geometry = claims.geometry
    rows = (geometry.vocab_size, claims.config.get("word_embed_proj_dim") or geometry.hidden_size)
    for role, what in (("embedding", "embedding"), ("output", "output head")):
        weights = (g for g in groups if g.role == role and not g.layers and g.stored == "model")
        held = [g.shape for g in weights if len(g.shape) == 2]
        if held and rows not in held:
            yield f"config.json says an {what} of {list(rows)}, the checkpoint holds {list(max(held))}"
    counts = {ff.experts for layer in geometry.layers if isinstance(ff := layer.feed_forward, MixtureOfExperts)}
    for group in groups:
        held_experts = group.shape[0] if len(group.shape) == 3 else group.copies if "{e}" in group.name else None
        if group.role == "expert" and held_experts is not None and held_experts not in counts:
            said = " or ".join(map(str, sorted(counts))) or "no"
            yield f"config.json says {said} experts, {group.name} holds {held_experts}"

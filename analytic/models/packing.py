"""What a packed format would make of a model that is not packed: module by module, by the tool's own rules."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from analytic.formats.scheme import EMBEDDING, EXPERT, LINEAR, Preset, Rules, Scheme
from analytic.formats.table import FORMATS
from analytic.models.inventory import Piece, TensorGroup


def pack(groups: Iterable[TensorGroup], preset: Preset, *, decoder: Iterable[TensorGroup]) -> tuple[TensorGroup, ...]:
    """The groups with those packed that ``preset`` takes; tools that work beforehand take the ``decoder``'s only.

    Raises:
        UllageError: a matrix that the format cannot hold.
    """
    inside = set(decoder) if preset.beforehand else None

    def takes(group: TensorGroup) -> bool:
        kind = kind_of(group)
        return kind in preset.takes and (inside is None or group in inside or kind == EMBEDDING)

    return tuple(
        packed_group(group, preset.scheme, splits=preset.beforehand) if takes(group) else group for group in groups
    )


def kind_of(group: TensorGroup) -> str | None:
    """What a format can take a group's tensors for: linear layers, experts, embeddings, or nothing."""
    if group.stored != "model":
        return None
    if group.role in ("embedding", "output"):
        return EMBEDDING if len(group.shape) == 2 else None
    if group.role == "expert" and (len(group.shape) == 3 or group.copies > 1):
        return EXPERT
    return LINEAR if group.converts and len(group.shape) == 2 else None


def pack_by_rules(groups: Iterable[TensorGroup], rules: Rules) -> Iterator[TensorGroup]:
    """The groups as a checkpoint with these rules holds them, layer by layer where the rules tell layers apart."""
    for group in groups:
        if kind_of(group) not in (LINEAR, EXPERT):
            yield group
            continue
        by_scheme: dict[Scheme | None, list[int]] = {}
        for layer in group.layers or (-1,):
            module = group.name.removesuffix(".weight").replace("{}", str(layer)).replace("{e}", "0")
            by_scheme.setdefault(rules.scheme(module), []).append(layer)
        for scheme, layers in by_scheme.items():
            part = group if group.layers is None else replace(group, layers=tuple(layers))
            yield part if scheme is None else packed_group(part, scheme, splits=True)


def packed_group(group: TensorGroup, scheme: Scheme, *, splits: bool) -> TensorGroup:
    """A group held by ``scheme``; ``splits`` packs each expert by itself, and its gate apart from its up."""
    if scheme.name in FORMATS:
        return replace(group, stored=scheme.name, converts=False)
    count, shape = _matrices(group) if splits else (1, (*group.shape[:-2], *group.matrix))
    parts = (part for part in scheme.parts(shape) if part.presence != "rare")
    pieces = tuple(Piece(part.suffix, part.dtypes[0], part.bytes, count) for part in parts)
    return replace(group, stored=scheme.name, pieces=pieces, converts=False)


def _matrices(group: TensorGroup) -> tuple[int, tuple[int, ...]]:
    """How many matrices a tensor of the group is, and the shape of each."""
    rows, columns = group.matrix
    if len(group.shape) == 2:
        return 1, (rows, columns)
    joined = group.name.endswith("gate_up_proj")
    return group.shape[0] * (1 + joined), (rows // (1 + joined), columns)

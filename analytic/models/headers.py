"""An inventory from the safetensors headers of a checkpoint: what is served of what is stored.

Names, roles and what bitsandbytes converts come from the catalogue's models of the same class, shapes from the headers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from analytic.errors import UllageError
from analytic.formats.dtypes import FLOAT_DTYPES, ROW_OF_DTYPE
from analytic.models.agreement import Claims, contradiction, require_agreement
from analytic.models.catalog import published_dtype
from analytic.models.config_reader import read_geometry
from analytic.models.configfile import architecture_of
from analytic.models.geometry import Geometry
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model, Source
from analytic.models.packed import Unpacked, quantization_of, unpack
from analytic.models.roles import role_of
from analytic.models.safetensors import StoredTensor
from analytic.models.served_names import Family, Served, family_of, fold_index, split_index, tied_in

# Stored by some, loaded by none: position tables, causal masks, caches' scales, extra prediction heads.
_NEVER_SERVED = re.compile(
    r"(inv_freq|(cos|sin)_cached|(attn|attention)\.(masked_)?bias|position_ids|embed_positions|\.[kv]_scale)$"
    r"|^(model\.)?mtp\."
)

_LEADS_BACK = re.compile(r"\.(o_proj|out_proj|down_proj|dense|dense_4h_to_h|fc2|fc_out|w2)\.weight$")
"""Matrices whose output is the hidden stream."""

_EXPERTS = re.compile(r"\.experts\.\d+\.")
_COMPARE = "compare with the model's published config.json"


class UnfamiliarError(UllageError):
    """The names of a checkpoint's tensors do not say what is served; the class itself would have to be asked."""


def from_headers(
    stored: tuple[StoredTensor, ...],
    config: Mapping[str, Any],
    *,
    id: str,
    source: Source,
    revision: str | None = None,
) -> Model:
    """The served model of a checkpoint.

    An already quantised checkpoint counts as stored. Any other takes the serving dtype, as transformers casts it.

    Raises:
        UnfamiliarError: the catalogue has no model of the class, or none with such a tensor.
        UllageError: a format that is not known, or a config and a checkpoint that contradict each other.
    """
    geometry, native = read_geometry(config), quantization_of(config)
    named, method = architecture_of(config), None if native is None else str(native["quant_method"])
    family = family_of(named, str(config["model_type"]), quantized=method)
    architecture = family.architecture if family else named
    if architecture is None or (family is None and native is None):
        raise UnfamiliarError(
            f"{id}: no model of the catalogue is a {named or config['model_type']}, to tell its tensors by",
            hint="pip install 'ullage[profiler]', and transformers tells them",
        )
    sorting = _Sorting(id=id, config=config, geometry=geometry, family=family, native=native is not None)
    tensors, left = sorting.split(unpack(stored, native))
    groups = tuple(_fold(_fused(tensors, id)))
    if family is not None:
        claims = Claims(id=id, config=config, geometry=geometry, family=family, is_tied=sorting.is_tied)
        require_agreement(groups, claims)
    return Model(
        id=id,
        source=source,
        revision=revision,
        architecture=architecture,
        dtype=published_dtype(config) or stored_dtype(stored),
        config=config if native is None else {**config, "quantization_config": native},
        tensors=(*groups, *(_rotary_tables(family, geometry) if family else ())),
        published_parameters=None if native is None else sum(t.unpacked.parameters for t in tensors),
        stored_bytes=sum(tensor.bytes for tensor in stored),
        notes=_notes(left),
    )


def stored_dtype(stored: Iterable[StoredTensor]) -> str | None:
    """What transformers serves where the config names no dtype: the first float by name in the first file."""
    first = min(((t.file, t.name, t.dtype) for t in stored if t.dtype in FLOAT_DTYPES), default=None)
    return None if first is None else ROW_OF_DTYPE[first[2]]


class _Tensor(NamedTuple):
    """A stored tensor that is served."""

    unpacked: Unpacked
    group: TensorGroup
    """Under its served name, with the layer's index still in ``layers``."""
    place: Served | None


@dataclass(frozen=True, kw_only=True)
class _Sorting:
    """What decides whether a stored tensor is served."""

    id: str
    config: Mapping[str, Any]
    geometry: Geometry
    family: Family | None
    native: bool
    _made: dict[tuple[Any, ...], TensorGroup] = field(default_factory=dict, repr=False, compare=False)
    """Groups by what makes them: experts are many, and alike."""

    @property
    def is_tied(self) -> bool:
        """Whether the output head is the embedding."""
        said = tied_in(self.config)
        return bool(self.family and self.family.tied_by_default) if said is None else said

    def split(self, tensors: Iterable[Unpacked]) -> tuple[list[_Tensor], list[Unpacked]]:
        """The served tensors, and those that are stored in vain."""
        split = [(tensor, *split_index(tensor.name)) for tensor in tensors]
        decoder = self._decoder_prefixes(split)
        served, left = [], []
        for tensor, pattern, index in split:
            extra = index is not None and index >= len(self.geometry.layers) and _prefix(pattern) in decoder
            placed = None if extra else self._place(tensor, pattern, index)
            if placed is None:
                left.append(tensor)
            else:
                served.append(placed)
        return served, left

    def _decoder_prefixes(self, split: list[tuple[Unpacked, str, int | None]]) -> set[str]:
        """What precedes a decoder layer's index in stored names; the largest stack where the class is not known."""
        if self.family is not None:
            prefixes = {_prefix(pattern) for _, pattern, index in split if index is not None}
            return {prefix for prefix in prefixes if self.family.is_decoder(prefix)}
        sizes: Counter[str] = Counter()
        for tensor, pattern, index in split:
            if index is not None:
                sizes[_prefix(pattern)] += tensor.bytes
        return {prefix for prefix, _ in sizes.most_common(1)}

    def _place(self, tensor: Unpacked, pattern: str, index: int | None) -> _Tensor | None:
        """A tensor under its served name; None where it is not served."""
        place = self.family.find(pattern) if self.family else None
        rule = place.rule if place else None
        role = rule.role if rule else role_of(pattern, module="", parameter=not tensor.side)
        is_tied_head = role == "output" and self.is_tied and pattern.endswith("weight")
        if is_tied_head or (rule is not None and not rule.persistent):
            return None
        if rule is None and _NEVER_SERVED.search(pattern):
            return None
        tensor = self._shaped(tensor, pattern)
        layers = None if index is None else (index,)
        group = self._group(tensor, rule, layers) if rule else self._unruled(tensor, pattern, role, layers)
        if tensor.pieces and place is not None and place.expert is not None:  # stays by itself, as it is stored
            group, place = replace(group, name=pattern), None
        return _Tensor(unpacked=tensor, group=group, place=place)

    def _shaped(self, tensor: Unpacked, pattern: str) -> Unpacked:
        """A packed matrix whose format does not keep its shape: one side of it is the model's hidden size."""
        hidden = self.geometry.hidden_size
        if tensor.stored == "model" or tensor.side or len(tensor.shape) != 1 or tensor.shape[0] % hidden:
            return tensor
        other = tensor.shape[0] // hidden
        return tensor._replace(shape=(hidden, other) if _LEADS_BACK.search(pattern) else (other, hidden))

    def _group(self, tensor: Unpacked, rule: TensorGroup, layers: tuple[int, ...] | None) -> TensorGroup:
        key = (id(rule), tensor.shape, tensor.stored, tensor.pieces, layers)
        if key not in self._made:
            self._made[key] = self._new_group(tensor, rule, layers)
        return self._made[key]

    def _new_group(self, tensor: Unpacked, rule: TensorGroup, layers: tuple[int, ...] | None) -> TensorGroup:
        if self.native:
            stored = rule.stored if tensor.stored == "model" else tensor.stored
            return replace(rule, shape=tensor.shape, stored=stored, pieces=tensor.pieces, converts=False, layers=layers)
        if tensor.stored != rule.stored:
            self._require_plain(tensor)
        if len(tensor.shape) != len(rule.shape) and not _EXPERTS.search(tensor.name):
            raise contradiction(self.id, f"{tensor.name} has {len(tensor.shape)} dimensions, not {len(rule.shape)}")
        return replace(rule, shape=tensor.shape, layers=layers)

    def _require_plain(self, tensor: Unpacked) -> None:
        if tensor.stored != "model":
            said = f"{tensor.name} is {tensor.stored}, but config.json has no quantization_config"
            raise UllageError(f"{self.id}: {said}", hint=_COMPARE)

    def _unruled(self, tensor: Unpacked, pattern: str, role: str, layers: tuple[int, ...] | None) -> TensorGroup:
        """A tensor that no catalogue model has: part of a quantised checkpoint, an untied head, or a bias asked for."""
        if not (self.native or role == "output" or self._is_bias_asked_for(pattern)):
            assert self.family is not None
            self._require_plain(tensor)
            raise UnfamiliarError(
                f"{self.id}: {tensor.name} is in no {self.family.architecture} of the catalogue",
                hint="pip install 'ullage[profiler]', and transformers tells whether it is served",
            )
        return TensorGroup(
            name=pattern,
            role=role,
            shape=tensor.shape,
            stored=tensor.stored,
            pieces=tensor.pieces,
            layers=layers,
        )

    def _is_bias_asked_for(self, pattern: str) -> bool:
        module, _, kind = pattern.rpartition(".")
        asked = any(value is True and "bias" in key for key, value in self.config.items())
        return kind == "bias" and asked and self.family is not None and self.family.has_module(module)


def _prefix(pattern: str) -> str:
    return pattern.partition("{}")[0]


def _fused(tensors: Iterable[_Tensor], id: str) -> Iterator[TensorGroup]:
    """The groups of all tensors, with the parts of a layer's experts in one."""
    parts: dict[tuple[str, tuple[int, ...] | None], list[_Tensor]] = {}
    for tensor in tensors:
        if tensor.place is not None and tensor.place.expert is not None:
            parts.setdefault((tensor.group.name, tensor.group.layers), []).append(tensor)
        else:
            yield tensor.group
    for members in parts.values():
        yield _fuse(members, id)


def _fuse(members: list[_Tensor], id: str) -> TensorGroup:
    """Experts' matrices as one: stacked by expert, parts below each other."""
    group = members[0].group
    kinds = {(t.group.shape[1:], t.group.stored, len(t.group.shape)) for t in members}
    held = {(t.place.part, t.place.expert): t.group.shape[0] for t in members if t.place and len(t.group.shape) == 2}
    names = {part for part, _ in held}
    parts = 2 if group.name.endswith(".gate_up_proj") else 1
    experts = {expert for _, expert in held}
    rows = {part: {held.get((part, expert)) for expert in experts} for part in names}
    whole = (
        len(held) == len(members) == parts * len(experts)
        and len(names) == parts
        and experts == set(range(len(experts)))
    )
    if len(kinds) > 1 or not whole or any(len(sizes) > 1 for sizes in rows.values()):
        first = members[0].unpacked
        raise UllageError(
            f"{id}: the experts beside {first.name} are incomplete or of different shapes",
            hint="complete the copy or download",
        )
    height = sum(size or 0 for sizes in rows.values() for size in sizes)
    return replace(group, shape=(len(experts), height, group.shape[1]))


def _fold(groups: Iterable[TensorGroup]) -> Iterator[TensorGroup]:
    """Tensors that differ only in their indices as one group."""
    members: dict[TensorGroup, Counter[int | None]] = {}
    for group in groups:
        alike = replace(group, name=fold_index(group.name), layers=None)
        members.setdefault(alike, Counter())[group.layers[0] if group.layers else None] += 1
    for alike, counts in members.items():
        for copies in sorted(set(counts.values())):
            layers = tuple(sorted(i for i, n in counts.items() if i is not None and n == copies))
            yield replace(alike, copies=copies, layers=layers or None)


def _rotary_tables(family: Family, geometry: Geometry) -> Iterator[TensorGroup]:
    """Buffers that no checkpoint holds, in the shapes of the family's catalogue model."""
    for group in family.groups.values():
        if not group.persistent and group.layers is None:
            yield group
        elif not group.persistent:
            yield replace(group, layers=tuple(range(len(geometry.layers))))


def _notes(left: list[Unpacked]) -> tuple[str, ...]:
    if not left:
        return ()
    named = ", ".join(t.name for t in left[:2])
    size = sum(t.bytes for t in left)
    more = f" and {len(left) - 2} more" if len(left) > 2 else ""
    return (f"stored but not served: {named}{more} ({size:,} bytes)",)

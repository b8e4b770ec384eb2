"""The shipped catalogue: configs and tensor inventories of models that people serve.

One file a model in ``catalog/``, made by ``python -m profiler.catalog`` and held equal to a fresh run by a test.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from analytic.models.inventory import TensorGroup
from analytic.models.model import Model

_FOLDER = files("analytic.models") / "catalog"
_INDEX = files("analytic.models") / "catalog_index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A line of ``ullage models``."""

    name: str
    id: str
    architecture: str
    parameters: int
    aliases: tuple[str, ...]


@cache
def entries() -> tuple[Entry, ...]:
    """All models of the catalogue, by name."""
    rows = json.loads(_INDEX.read_bytes())
    return tuple(Entry(**{**row, "aliases": tuple(row["aliases"])}) for row in rows)


@cache
def _names() -> dict[str, str]:
    named = {name.lower(): e.name for e in entries() for name in e.aliases}
    return named | {name.lower(): e.name for e in entries() for name in (e.name, e.id)}


def find(name: str) -> str | None:
    """The catalogue name behind a name, Hub id or alias; None if there is none."""
    return _names().get(name.lower())


def close_names(name: str) -> list[str]:
    """Catalogue names that resemble ``name``, for a hint."""
    found = get_close_matches(name.lower(), _names(), n=6, cutoff=0.6)
    return list(dict.fromkeys(_names()[match] for match in found))[:3]


@lru_cache(maxsize=64)
def load(name: str) -> Model:
    """The model of a catalogue ``name`` (as `find` returns it)."""
    document = json.loads((_FOLDER / f"{name}.json").read_bytes())
    return Model(
        id=document["id"],
        source="catalog",
        architecture=document["architecture"],
        dtype=published_dtype(document["config"]) or document.get("checkpoint_dtype"),
        config=document["config"],
        tensors=tuple(group_from_row(row) for row in document["tensors"]),
    )


def published_dtype(config: Mapping[str, Any]) -> str | None:
    """``dtype`` (``torch_dtype`` in older files) of a config or of its text part."""
    nested = config.get("text_config")
    parts = (config, nested) if isinstance(nested, Mapping) else (config,)
    return next((p[key] for p in parts for key in ("dtype", "torch_dtype") if p.get(key)), None)


def row_from_group(group: TensorGroup) -> list[Any]:
    """``[name, role, module, layers, shape, stored, flags]``; flags: c converts, n not persistent."""
    flags = "c" * group.converts + "n" * (not group.persistent)
    layers = None if group.layers is None else _spans(group.layers)
    return [group.name, group.role, group.module, layers, list(group.shape), group.stored, flags]


def group_from_row(row: list[Any]) -> TensorGroup:
    """The inverse of `row_from_group`."""
    name, role, module, layers, shape, stored, flags = row
    return TensorGroup(
        name=name,
        role=role,
        module=module,
        layers=None if layers is None else tuple(_indices(layers)),
        shape=tuple(shape),
        stored=stored,
        converts="c" in flags,
        persistent="n" not in flags,
    )


def _spans(layers: Iterable[int]) -> str:
    """``0-2,5`` for 0, 1, 2, 5."""
    spans: list[list[int]] = []
    for layer in sorted(layers):
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _indices(spans: str) -> Iterable[int]:
    for span in spans.split(","):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)

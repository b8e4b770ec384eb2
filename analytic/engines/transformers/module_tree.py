"""A model as the tree of modules that accelerate places: their order, their sizes, and which are never divided.

Order and classes are a row of ``module_trees.json`` by class (``tests/record_distribution.py`` writes it from the
installed transformers); which modules a model has, and their sizes, follow from its tensors.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from analytic.errors import UllageError
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model

WHOLE = "whole"
"""A module of a class in ``_no_split_modules``."""
_BY_HAND = "place its layers by hand, on --pipeline-parallel-size GPUs"
OWNS = "owns"
"""A module without children, with tensors of its own."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Node:
    """A module, or a parameter that a divided module holds itself."""

    name: str
    size: float
    """Bytes as accelerate counts them; bitsandbytes' four bits are half a byte."""
    children: tuple["Node", ...] = ()
    """Child modules, in order."""
    parameters: tuple["Node", ...] = ()
    """Its own, if it has children."""
    is_whole: bool = False
    """Whether its class is never divided."""
    is_module: bool = True

    @property
    def is_divisible(self) -> bool:
        """Whether its children may go to different devices."""
        return bool(self.children) and not self.is_whole

    @property
    def parts(self) -> tuple["Node", ...]:
        """What takes its place when it is divided."""
        return (*self.parameters, *self.children)

    def undivided(self) -> Iterator["Node"]:
        """The least that goes to one device: itself, or those below it."""
        if not self.is_divisible:
            yield self
        for child in self.children if self.is_divisible else ():
            yield from child.undivided()


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleTree:
    """All modules of one model."""

    architecture: str
    rows: Mapping[str, Any]
    """By module name: its children by name, or what it is if it has none that matter."""
    tied: Mapping[str, str]
    """Parameters that share another's storage, to the other."""
    sizes: Mapping[str, float]
    """Bytes of each tensor, ties once."""
    buffers: Collection[str]
    """Names of the tensors that are no parameters."""

    @cached_property
    def roots(self) -> tuple[Node, ...]:
        """The model's children, then its own buffers.

        Raises:
            UllageError: a tensor in a module that the class is not known to have.
        """
        own = (name for name in self.sizes if "." not in name)
        children = self._children("", self.rows)
        return (*children, *(Node(name=name, size=self.sizes[name], is_module=False) for name in own))

    @property
    def size(self) -> float:
        """Bytes of all tensors."""
        return self._totals.get("", 0)

    @property
    def largest_whole(self) -> float:
        """Bytes of the largest module that is never divided for its class; 0 without one."""
        return max((node.size for root in self.roots for node in root.undivided() if node.is_whole), default=0)

    @property
    def largest_owner(self) -> float:
        """Bytes of the tensors of the module that owns most itself."""
        owned: dict[str, float] = {}
        for name, size in self.sizes.items():
            owner, _, _ = name.rpartition(".")
            if owner:
                owned[owner] = owned.get(owner, 0) + size
        return max(owned.values(), default=0)

    @property
    def tied_groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parameters that share a storage, by name."""
        targets = dict.fromkeys(self.tied.values())
        return tuple(
            tuple(sorted((target, *(name for name, other in self.tied.items() if other == target))))
            for target in targets
        )

    @cached_property
    def _totals(self) -> dict[str, float]:
        """Bytes of each module by name, all below it included."""
        totals: dict[str, float] = {}
        for name, size in self.sizes.items():
            owner = name
            while owner:
                owner = owner.rpartition(".")[0]
                totals[owner] = totals.get(owner, 0) + size
        return totals

    @cached_property
    def _below(self) -> dict[str, dict[str, None]]:
        """Names right below each module that has tensors, ties included."""
        below: dict[str, dict[str, None]] = {}
        for name in (*self.sizes, *self.tied):
            while name:
                name, _, last = name.rpartition(".")
                below.setdefault(name, {})[last] = None
        return below

    def _children(self, prefix: str, rows: Mapping[str, Any]) -> tuple[Node, ...]:
        found = self._below.get(prefix, {})
        if "*" in rows:
            numbered = sorted(found, key=int) if all(name.isdecimal() for name in found) else ()
            rows = dict.fromkeys(numbered, rows["*"])
        dot = f"{prefix}." if prefix else ""
        unknown = [name for name in found if name not in rows and f"{dot}{name}" not in self.sizes]
        if unknown:
            raise UllageError(f"{dot}{unknown[0]} is in no {self.architecture} that was recorded", hint=_BY_HAND)
        return tuple(self._node(f"{dot}{name}", row) for name, row in rows.items() if self._exists(dot + name, row))

    def _node(self, name: str, row: Any) -> Node:
        size, is_divided = self._totals.get(name, 0), not isinstance(row, str)
        own = [last for last in self._below.get(name, ()) if f"{name}.{last}" in self.sizes] if is_divided else []
        parameters = (f"{name}.{last}" for last in own if f"{name}.{last}" not in self.buffers)
        return Node(
            name=name,
            size=size,
            children=self._children(name, row) if is_divided else (),
            parameters=tuple(Node(name=own, size=self.sizes[own], is_module=False) for own in parameters),
            is_whole=row == WHOLE,
        )

    def _exists(self, name: str, row: Any) -> bool:
        """A module without any tensor exists if its class always has it."""
        return name in self._below or not {OWNS, WHOLE} & {*_leaves(row)}


def _leaves(row: Any) -> Iterator[str]:
    if isinstance(row, str):
        yield row
    else:
        for below in row.values():
            yield from _leaves(below)


@cache
def _rows() -> Mapping[str, Any]:
    rows: Mapping[str, Any] = json.loads((files("analytic.models") / "module_trees.json").read_bytes())
    return rows


def module_tree(model: Model, sizes: Mapping[str, float], buffers: Collection[str]) -> ModuleTree:
    """The modules of a model by the bytes of its tensors, and the names of those that are no parameters.

    Raises:
        UllageError: a class that was not recorded, or not with such a vision tower.
    """
    architecture, vision = model.architecture, model.config.get("vision_config")
    row = _rows().get(architecture)
    if row is None:
        raise UllageError(f"the order of a {architecture}'s modules is not known", hint=_BY_HAND)
    tower = vision.get("model_type", row["vision"]) if isinstance(vision, Mapping) else row["vision"]
    if tower != row["vision"]:
        raise UllageError(
            f"the order of a {architecture}'s modules is not known with a {str(tower)[:60]} tower", hint=_BY_HAND
        )
    return ModuleTree(
        architecture=architecture,
        rows=row["modules"],
        tied=tied_parameters(architecture, sizes),
        sizes=sizes,
        buffers=buffers,
    )


def tied_parameters(architecture: str, names: Collection[str]) -> dict[str, str]:
    """Parameters of a class that share another's storage, to the other: what it ties and ``names`` lacks."""
    tied = _rows()[architecture]["tied"] if architecture in _rows() else {}
    return {name: other for name, other in tied.items() if name not in names and other in names}


def expanded(group: TensorGroup) -> Iterator[str]:
    """The names of a group's tensors; those of experts that are held one by one as one name."""
    if group.layers is None:
        yield group.name
    else:
        for layer in group.layers:
            yield group.name.replace("{}", str(layer), 1)

"""Checkpoints that are already quantised: packed tensors, what stands beside them, and the weights behind both.

A module's tensors are held against the layout that its format has (`analytic.formats`): what the headers say and what
``quantization_config`` says must be the same, else both are shown.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from analytic.errors import UllageError
from analytic.formats.dtypes import FLOAT_DTYPES, ROW_OF_DTYPE
from analytic.formats.reading import COMPARE
from analytic.formats.registry import find_method
from analytic.formats.scheme import Held, Method, Part, Rules, Scheme
from analytic.formats.table import FORMATS
from analytic.models.inventory import Piece
from analytic.models.safetensors import StoredTensor


class Unpacked(NamedTuple):
    """One weight of a checkpoint, or a tensor that stands beside one: a tuple, as a large checkpoint has 100,000."""

    name: str
    shape: tuple[int, ...]
    """Of the weight behind packed tensors, else as stored."""
    stored: str
    """``model`` where transformers casts it to the serving dtype; else a format."""
    parameters: int
    """What it stands for; 0 for what only stands beside another."""
    bytes: int
    """In the file."""
    file: str
    pieces: tuple[Piece, ...] = ()
    """The tensors that hold it, where its format has no row in the table."""
    side: bool = False
    """Whether it only stands beside packed weights."""


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ``quantization_config`` of a config or of its text part; None without one.

    MLX writes the same under ``quantization`` too, without a method's name.

    Raises:
        UllageError: it is not an object, or names no method.
    """
    nested = config.get("text_config")
    parts = (config, nested) if isinstance(nested, Mapping) else (config,)
    keys = ("quantization_config", "quantization")
    native = next((part[key] for part in parts for key in keys if part.get(key) is not None), None)
    if native is None:
        return None
    if not isinstance(native, Mapping):
        raise UllageError(f"config.json: quantization_config cannot be {repr(native)[:60]}", hint=COMPARE)
    if isinstance(native.get("quant_method"), str):
        return native
    if {"bits", "group_size"} <= native.keys() and "quant_method" not in native:
        return {**native, "quant_method": "mlx"}
    raise UllageError("config.json: quantization_config names no quant_method", hint=COMPARE)


def weight_bits(native: Mapping[str, Any]) -> int:
    """Bits of one weight under most rules of a published ``quantization_config``; 0 where it does not say (GGUF).

    Raises:
        UllageError: a method or a width that is not known.
    """
    schemes = find_method(str(native["quant_method"])).read(native).schemes
    return schemes[0].weight_bits if schemes else 0


def unpack(stored: Iterable[StoredTensor], native: Mapping[str, Any] | None) -> Iterator[Unpacked]:
    """The weights of a checkpoint, each packed one as what it stands for.

    Raises:
        UllageError: a method or dtype that is not known, or tensors that are not what the config says.
    """
    if native is None:
        yield from map(_plain, stored)
        return
    method = find_method(str(native["quant_method"]))
    rules = method.read(native)
    yield from _Sorter(method=method, rules=rules, schemes=rules.schemes).sort(stored)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sorter:
    """What tells packed modules from plain ones."""

    method: Method
    rules: Rules
    schemes: tuple[Scheme, ...]
    joined: dict[tuple[object, ...], "_Joined"] = field(default_factory=dict)
    """What was found of modules alike."""

    def sort(self, stored: Iterable[StoredTensor]) -> Iterator[Unpacked]:
        modules, beside = self._by_module(stored), re.compile(self.method.beside)
        for module, held in modules.items():
            scheme = self._packed_by(held)
            if scheme is None:
                yield from (_beside(t) if beside.search(t.name) else _plain(t) for t in held.values())
            else:
                found = self._joined(self._agreed(module, held, scheme), module, held)
                ending, shape, stored_as, parameters, size, _, pieces, _ = found.weight
                yield Unpacked(module + ending, shape, stored_as, parameters, size, held[found.packed].file, pieces)
                for suffix in found.beside:
                    yield _beside(held[suffix])

    def _by_module(self, stored: Iterable[StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
        """Tensors by the module that they belong to and what follows its name."""
        dropped, suffixes = self.method.dropped and re.compile(self.method.dropped), self._suffixes()
        modules = defaultdict[str, dict[str, StoredTensor]](dict)
        for tensor in stored:
            name, suffix = tensor.name, ""
            if dropped and dropped.search(name):
                continue
            for suffix in suffixes:
                if name.endswith(suffix):
                    break
            modules[name[: len(name) - len(suffix)]][suffix] = tensor
        return modules

    def _suffixes(self) -> tuple[str, ...]:
        """Every suffix of a part, longest first; the last is that of a tensor which is no part."""
        found = {suffix for scheme in self.schemes for suffix in scheme.suffixes}
        return tuple(sorted({"", *found}, key=len, reverse=True))

    def _packed_by(self, held: Mapping[str, StoredTensor]) -> Scheme | None:
        """A scheme whose packed tensor a module holds, the rules apart."""
        for scheme in self.schemes:
            marker = held.get(scheme.marker)
            if marker is not None and marker.dtype in scheme.packed_dtypes:
                return scheme
        return None

    def _agreed(self, module: str, held: Mapping[str, StoredTensor], found: Scheme) -> Scheme:
        """The scheme that the rules give to a module which is packed."""
        said = self.rules.scheme(module.removesuffix(".weight"))
        if said is None and not self.rules.strict:
            return found
        tensor = held[found.marker]
        if said is None:
            raise _contradiction(tensor, f"quantization_config leaves {module.removesuffix('.weight')} unquantised")
        marker = held.get(said.marker)
        if marker is None or marker.dtype not in said.packed_dtypes:
            raise _contradiction(tensor, f"quantization_config says {said.name}")
        return said

    def _joined(self, scheme: Scheme, module: str, held: Mapping[str, StoredTensor]) -> "_Joined":
        """A module's packed weight as one, and what else stands there."""
        alike = (id(scheme), *[(suffix, tensor.dtype, tensor.shape) for suffix, tensor in held.items()])
        if alike not in self.joined:
            self.joined[alike] = _joined(scheme, module, held)
        return self.joined[alike]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Joined:
    """What a module's tensors hold, once they were compared with the format's layout: experts are many, and alike."""

    weight: Unpacked
    """The weight behind them; of its name, what follows the module's."""
    packed: str
    """Suffix of the packed tensor, as it is held."""
    beside: tuple[str, ...]
    """Suffixes that are no part of the format, as they are held."""


def _joined(scheme: Scheme, module: str, held: Mapping[str, StoredTensor]) -> _Joined:
    """A module's tensors held against the layout of its format.

    Raises:
        UllageError: one that is missing, or not what the format has there.
    """
    own = {scheme.aliases.get(suffix, suffix): tensor for suffix, tensor in held.items()}
    marker = own[scheme.marker]
    if len(marker.shape) < scheme.packed_rank:
        raise _contradiction(marker, f"quantization_config says {scheme.name}")
    shape = scheme.shape_of({suffix: Held(t.dtype, t.shape) for suffix, t in own.items()})
    parts = {part.suffix: part for part in scheme.parts(shape)}
    for suffix, part in parts.items():
        if suffix in own:
            _require(own[suffix], part, scheme, shape)
        elif part.presence == "always":
            missing = f"{scheme.name} has {part.dtypes[0]} {list(part.shape)} at {module}{suffix}, which is missing"
            raise _contradiction(marker, missing)
    tensors = {suffix: own[suffix] for suffix in parts if suffix in own}
    pieces = tuple(_piece(parts[suffix], tensor) for suffix, tensor in tensors.items())
    return _Joined(
        weight=Unpacked(
            name=".weight" if scheme.marker[:1] == "." else "",
            shape=shape,
            stored=scheme.name,
            parameters=prod(shape),
            bytes=sum(tensor.bytes for tensor in tensors.values()),
            file=marker.file,
            pieces=() if scheme.name in FORMATS else pieces,
        ),
        packed=next(suffix for suffix, tensor in held.items() if tensor is marker),
        beside=tuple(suffix for suffix in held if scheme.aliases.get(suffix, suffix) not in parts),
    )


def _piece(part: Part, tensor: StoredTensor) -> Piece:
    return Piece(part.suffix, *((part.dtypes[0], part.bytes) if part.cast else (tensor.dtype, tensor.bytes)))


def _require(tensor: StoredTensor, part: Part, scheme: Scheme, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that is not what the format holds there; a scalar may be a list of one."""
    same = tensor.shape == part.shape or (prod(tensor.shape) == prod(part.shape) == 1)
    if not same or tensor.dtype not in part.dtypes:
        weight = " x ".join(map(str, shape))
        raise _contradiction(
            tensor, f"{scheme.name} of a {weight} weight has {' or '.join(part.dtypes)} {list(part.shape)}"
        )


def _contradiction(tensor: StoredTensor, said: str) -> UllageError:
    return UllageError(
        f"{tensor.file}: {tensor.name} is {tensor.dtype} {list(tensor.shape)}, but {said}",
        hint="the files do not belong together, or config.json is of another checkpoint",
    )


def _plain(tensor: StoredTensor) -> Unpacked:
    stored = "model" if tensor.dtype in FLOAT_DTYPES else _row(tensor)
    return Unpacked(
        name=tensor.name,
        shape=tensor.shape,
        stored=stored,
        parameters=prod(tensor.shape),
        bytes=tensor.bytes,
        file=tensor.file,
    )


def _beside(tensor: StoredTensor) -> Unpacked:
    return Unpacked(
        name=tensor.name,
        shape=tensor.shape,
        stored=_row(tensor),
        parameters=0,
        bytes=tensor.bytes,
        file=tensor.file,
        side=True,
    )


def _row(tensor: StoredTensor) -> str:
    if tensor.dtype not in ROW_OF_DTYPE:
        raise UllageError(
            f"{tensor.file}: {tensor.name} is {tensor.dtype}, which is not served",
            hint=f"known: {', '.join(ROW_OF_DTYPE)}",
        )
    return ROW_OF_DTYPE[tensor.dtype]

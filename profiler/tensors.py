"""What a loaded model holds, storage by storage: weights by format, and a row a module."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from analytic.measurement import ModuleRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A parameter or buffer with all that stands beside it."""

    name: str
    kind: str
    """Class of the module that owns it."""
    format: str
    """Its dtype, or ``bnb-nf4``, ``bnb-int8``, …"""
    elements: int
    """Before quantisation."""
    bytes: int
    """Storages, quantisation state included."""
    persistent: bool
    """Whether a checkpoint would hold it (rotary tables are not)."""


def held(model: Any, *, meta_format: str | None = None) -> Iterator[Held]:
    """Every parameter and buffer of ``model``, tied ones and shared storages once.

    Args:
        model: a loaded model.
        meta_format: what the 4-bit modules of a model on the meta device, which nobody quantised, would become.
    """
    seen = dict[int, torch.Tensor]()  # tensors, so that no address comes again
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        becomes = meta_format if type(module).__name__ == "Linear4bit" and tensor is module.weight else None
        stored = _as_quantized(module, becomes) if becomes else _storages(tensor)
        fresh = {t.untyped_storage()._cdata: t for t in stored}
        yield Held(
            name=name,
            kind=type(module).__name__,
            format=becomes or _format(tensor),
            elements=_elements(tensor),
            bytes=sum(t.untyped_storage().nbytes() for key, t in fresh.items() if key not in seen),
            persistent=own_name not in module._non_persistent_buffers_set,
        )
        seen |= fresh


def weights_by_format(tensors: list[Held]) -> dict[str, int]:
    """Bytes of what a checkpoint would hold, largest first."""
    sums = Counter[str]()
    for tensor in tensors:
        if tensor.persistent:
            sums[tensor.format] += tensor.bytes
    return dict(sums.most_common())


def module_rows(tensors: list[Held]) -> tuple[ModuleRow, ...]:
    """A row for modules that differ only in their indices."""
    owners: dict[tuple[str, str], set[str]] = {}
    sizes = Counter[tuple[str, str]]()
    for tensor in tensors:
        owner = tensor.name.rpartition(".")[0]
        key = (re.sub(r"\.\d+(?=\.|$)", ".{}", owner), tensor.kind)
        owners.setdefault(key, set()).add(owner)
        sizes[key] += tensor.bytes
    return tuple(ModuleRow(name=n, kind=k, count=len(owners[n, k]), bytes=size) for (n, k), size in sizes.items())


def resident_tensors(model: Any) -> Iterator[torch.Tensor]:
    """All tensors that ``held`` counts."""
    for tensor in [*model.parameters(), *model.buffers()]:
        yield from _storages(tensor)


def _storages(tensor: Any) -> Iterator[torch.Tensor]:
    """The tensor as it is stored, and what bitsandbytes hangs beside it (nn/modules.py, functional.py: QuantState)."""
    yield tensor
    if (scales := getattr(tensor, "SCB", None)) is not None:
        yield scales
    yield from _state(getattr(tensor, "quant_state", None))


def _state(state: Any) -> Iterator[torch.Tensor]:
    if state is None:
        return
    yield from (state.absmax, state.code)
    if state.nested:
        yield from (state.offset, state.state2.absmax, state.state2.code)


def _as_quantized(module: Any, becomes: str) -> Iterator[torch.Tensor]:
    """What bitsandbytes' own functions return for a weight of this shape on the meta device: shapes without values."""
    from bitsandbytes import functional

    weight = torch.empty_like(module.weight, dtype=torch.float16)
    if becomes == "bnb-int8":
        columns, scales, _ = functional.int8_vectorwise_quant(weight)
        yield from (columns, scales)
        return
    _, kind, *double = becomes.split("-")
    packed, state = functional.quantize_4bit(weight, compress_statistics=bool(double), quant_type=kind)
    yield packed
    yield from _state(state)


def _format(tensor: Any) -> str:
    if getattr(tensor, "SCB", None) is not None:
        return "bnb-int8"
    if (state := getattr(tensor, "quant_state", None)) is not None:
        return f"bnb-{state.quant_type}{'-dq' * state.nested}"
    return f"{tensor.dtype}".removeprefix("torch.")


def _elements(tensor: Any) -> int:
    state = getattr(tensor, "quant_state", None)
    return tensor.numel() if state is None else prod(state.shape)

"""What the page is told as data: models with their weights in every format, GPUs, formats, and what was fitted.

The weights of a model are sums over the tensors that `analytic.weights` serves; the page does the sums, this table has
the summands. Tensors that a format leaves alone are in the table once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from analytic.errors import UllageError
from analytic.formats.catalog import rows
from analytic.formats.registry import find_method, find_preset
from analytic.models.catalog import Entry, entries, load
from analytic.models.geometry import Geometry
from analytic.models.model import Model
from analytic.models.packed import quantization_of, weight_bits
from analytic.progress import showing
from analytic.webpage.ranks import PACKED, vllm_table
from analytic.weights import DTYPES, QUANTIZATIONS, ServedGroup, Weights, weigh

OFFERED = (
    *("fp8", "fp8-dynamic", "fp8-128x128", "mxfp8", "nvfp4", "mxfp4"),
    *("gptq-int4", "gptq-int8", "awq-int4", "w4a16", "w4a16-asym", "w8a16", "w8a8"),
    *("hqq-int8", "hqq-int4", "hqq-int3", "hqq-int2", "torchao-int8", "torchao-float8", "torchao-int4"),
)
"""Packed formats on the page: those that transformers serves; llama.cpp's and MLX's have engines of their own."""

CONVERTED = (*QUANTIZATIONS, "bnb-nf4-dq", "bnb-fp4-dq")
"""What transformers makes while it loads."""

_SIZES = ("each_bytes", "rounded_bytes", "warmup_bytes", "staging_bytes", "leftover_bytes", "decompressed_bytes")


def models(names: Iterable[str] | None = None) -> dict[str, Any]:
    """By catalogue name: what the page knows of each model; ``names`` leaves the others out."""
    wanted = None if names is None else set(names)
    found = [entry for entry in entries() if wanted is None or entry.name in wanted]
    with showing("page", unit="models") as task:
        return {entry.name: _model(entry, load(entry.name)) for entry in task.over(found)}


def _model(entry: Entry, model: Model) -> dict[str, Any]:
    native = quantization_of(model.config)
    return {
        "id": model.id,
        "aliases": entry.aliases,
        "architecture": model.architecture,
        "dtype": model.dtype,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "notes": model.notes,
        "native_format": model.native_format,
        "config": [key for key in ("vision_config",) if key in model.config],
        "native_bits": None if native is None else weight_bits(native),
        "geometry": _geometry(model.geometry),
        "vllm": vllm_table(model),
        **_weights(model),
    }


def _geometry(geometry: Geometry) -> dict[str, Any]:
    """With each kind of layer once, and the kind of every layer."""
    kinds = [layer for layer, _ in geometry.groups]
    order = [kinds.index(layer) for layer in geometry.layers]
    return {**encoded(replace(geometry, layers=())), "kinds": [encoded(kind) for kind in kinds], "order": order}


def encoded(value: object) -> Any:
    """A value as JSON, dataclasses as their name under ``""`` and the fields that differ from the defaults."""
    if isinstance(value, tuple):
        return [encoded(part) for part in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    held = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    usual = {field.name: field.default for field in fields(value)}
    return {"": type(value).__name__} | {name: encoded(part) for name, part in held.items() if part != usual[name]}


def _weights(model: Model) -> dict[str, Any]:
    """Tensor groups, sizes, and which of them every choice of dtype and format serves."""
    groups: dict[str, int] = {}
    tensors: list[Any] = []
    sizes: dict[tuple[Any, ...], int] = {}
    choices: dict[str, Any] = {}
    for dtype, name in choices_of(model):
        try:
            weights = weigh(model, dtype=dtype, quantization=name)
        except UllageError as refusal:
            choices[f"{dtype} {name}"] = {"refused": [refusal.message, refusal.hint]}
            continue
        for served in weights.served:
            if repr(served.group) not in groups:
                groups[repr(served.group)] = len(tensors)
                tensors.append(_tensor(model, served))
        served_rows = [(groups[repr(s.group)], *(getattr(s, size) for size in _SIZES)) for s in weights.served]
        places = [sizes.setdefault(row, len(sizes)) for row in served_rows]
        choices[f"{dtype} {name}"] = _choice(weights, places)
    return {"tensors": tensors, "sizes": list(zip(*sizes, strict=True)), "choices": choices}


def _choice(weights: Weights, places: list[int]) -> dict[str, Any]:
    return {
        "served": places,
        "formats": [served.format for served in weights.served],
        "bytes": weights.bytes,
        "by_format": weights.by_format,
        "by_role": weights.by_role,
        "unconverted": weights.unconverted,
    }


def _tensor(model: Model, served: ServedGroup) -> list[Any]:
    """A group's fields, and where it lives: with its layer, before the layers, or after them."""
    group = served.group
    layers = None if group.layers is None else _runs(group.layers)
    place = "decoder" if model.is_decoder(group) else "after" if model.is_after_layers(group) else "before"
    return [group.name, group.role, group.shape, layers, group.copies, group.module, group.persistent, place]


def _runs(layers: tuple[int, ...]) -> list[int]:
    """Indices as first, length, first, length …"""
    runs: list[int] = []
    for layer in layers:
        if runs and layer == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += [layer, 1]
    return runs


def choices_of(model: Model) -> Iterator[tuple[str, str | None]]:
    """Serving dtypes with the formats that can be asked for in them: packed ones in the dtype that is published, or
    in what is proposed in place of float32, and vLLM's in both of 16 bits, where it proposes them."""
    packed_in = {model.dtype, "bfloat16" if model.dtype == "float32" else None}
    for dtype in DTYPES:
        packed = OFFERED if dtype in packed_in else PACKED if dtype != "float32" else ()
        for name in (None, "none", *CONVERTED, *packed):
            yield dtype, name


def presets() -> dict[str, Any]:
    """What the page says of each packed format."""
    found = {name: find_preset(name) for name in OFFERED}
    return {
        preset.name: {
            "name": preset.name,
            "source": preset.source,
            "beforehand": preset.beforehand,
            "scheme": {"weight_bits": preset.scheme.weight_bits},
            "note": method.transformers.note,
        }
        for preset, method in found.values()
    }


def methods() -> dict[str, Any]:
    """What hangs on the formats that models of the catalogue are published in."""
    natives = {native for entry in entries() if (native := load(entry.name).native_format) is not None}
    found = {native: find_method(native) for native in sorted(natives)}
    return {name: {"capability": made.capability, "note": made.transformers.note} for name, made in found.items()}


def bits() -> dict[str, float]:
    """Bits a weight of each format, for the list to choose from."""
    return {row.name: row.bits_per_weight for row in rows() if row.name in (*OFFERED, *QUANTIZATIONS)}

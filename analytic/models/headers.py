"""An inventory from the safetensors headers of a checkpoint: what is stored, under the names that are served."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from analytic.errors import UllageError
from analytic.models import catalog
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model, Source
from analytic.models.roles import role_of
from analytic.models.safetensors import StoredTensor

FORMAT_OF_DTYPE = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8",
    "F8_E5M2": "float8",
    "F8_E8M0": "float8",
    "I8": "int8",
    "U8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
}
"""Format row of a safetensors dtype."""

_FLOATS = ("F64", "F32", "F16", "BF16")

# Tensors that stand beside packed weights; they are no parameters.
_SIDES = re.compile(
    r"(scales?|qzeros|g_idx|absmax|quant_map|nested_\w+|weight_scale\w*|scale_inv|input_scale|zero_point|SCB"
    r"|weight_format|weight_shape|quant_state\.\w+)$"
)


def from_headers(
    stored: tuple[StoredTensor, ...],
    config: Mapping[str, Any],
    *,
    id: str,
    source: Source,
    revision: str | None = None,
) -> Model | None:
    """The served model of a checkpoint; None where its tensors' names say nothing about an unknown architecture.

    An already quantised checkpoint counts as stored. Any other takes the serving dtype, as transformers casts it.

    Raises:
        UllageError: a dtype that no format row stands for.
    """
    architecture = _architecture(config)
    if config.get("quantization_config") is not None:
        groups, parameters = _as_stored(stored), _unpacked_parameters(stored, config)
        return _model(id, source, revision, architecture, config, stored, groups, parameters, ())
    donor = catalog.of_architecture(architecture)
    if donor is None:
        return None
    served, left = _served(stored, config, donor)
    if sum(t.bytes for t in left) > sum(t.bytes for t in stored) // 10:
        return None
    return _model(id, source, revision, architecture, config, stored, tuple(_fold(served)), None, _notes(left))


def _model(
    id: str,
    source: Source,
    revision: str | None,
    architecture: str,
    config: Mapping[str, Any],
    stored: tuple[StoredTensor, ...],
    groups: tuple[TensorGroup, ...],
    parameters: int | None,
    notes: tuple[str, ...],
) -> Model:
    floats = next((FORMAT_OF_DTYPE[t.dtype] for t in stored if t.dtype in _FLOATS), None)
    return Model(
        id=id,
        source=source,
        revision=revision,
        architecture=architecture,
        dtype=catalog.published_dtype(config) or floats,
        config=config,
        tensors=groups,
        published_parameters=parameters,
        notes=notes,
    )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UllageError("config.json names no architecture", hint='it should hold "architectures": ["LlamaForCausalLM"]')
    return names[0]


def _served(
    stored: Iterable[StoredTensor], config: Mapping[str, Any], donor: Model
) -> tuple[list[TensorGroup], list[StoredTensor]]:
    """Tensors under the rules of a catalogue model of the same class, and those that class does not load."""
    rules = {group.name: group for group in donor.tensors}
    layers, tied = _layer_count(config), _is_tied(config)
    served, left = [], []
    for tensor in stored:
        pattern, index = _pattern(tensor.name)
        rule = rules.get(re.sub(r"\{e\}", "{}", pattern, count=0))
        is_output = rule is None and role_of(pattern, module="", parameter=True) == "output"
        if (index is not None and index >= layers) or (is_output and tied):
            left.append(tensor)
        elif rule is not None:
            stored_as = rule.stored if rule.stored != "model" else "model"
            served.append(replace(rule, name=tensor.name, layers=None, shape=tensor.shape, stored=stored_as))
        elif (is_output and not tied) or ".experts." in pattern:
            served.append(_plain(tensor))
        else:
            left.append(tensor)
    return served, left


def _plain(tensor: StoredTensor) -> TensorGroup:
    role = role_of(tensor.name, module="", parameter=True)
    return TensorGroup(name=tensor.name, role=role, shape=tensor.shape)


def _notes(left: list[StoredTensor]) -> tuple[str, ...]:
    if not left:
        return ()
    named = ", ".join(t.name for t in left[:2])
    size = sum(t.bytes for t in left)
    return (f"{len(left)} stored tensors ({size:,} bytes: {named}{' …' if len(left) > 2 else ''}) are not served",)


def _layer_count(config: Mapping[str, Any]) -> int:
    """Layers that the class builds; a checkpoint may hold more (multi-token prediction)."""
    from analytic.models.config_reader import read_geometry

    return len(read_geometry(config).layers)


def _is_tied(config: Mapping[str, Any]) -> bool:
    nested = config.get("text_config")
    tied = config.get("tie_word_embeddings")
    if tied is None and isinstance(nested, Mapping):
        tied = nested.get("tie_word_embeddings")
    return bool(tied)


def _as_stored(stored: Iterable[StoredTensor]) -> tuple[TensorGroup, ...]:
    """Every tensor in its own dtype."""
    groups = (
        replace(_plain(t), stored=_format(t), role="buffer" if _SIDES.search(t.name) else _plain(t).role) for t in stored
    )
    return tuple(_fold(groups))


def _format(tensor: StoredTensor) -> str:
    if tensor.dtype not in FORMAT_OF_DTYPE:
        raise UllageError(f"{tensor.file}: {tensor.name} is {tensor.dtype}, which is not served yet")
    return FORMAT_OF_DTYPE[tensor.dtype]


def _unpacked_parameters(stored: Iterable[StoredTensor], config: Mapping[str, Any]) -> int:
    """Parameters behind packed integers: ``bits`` of each, as quantization_config says."""
    from math import prod

    native = config["quantization_config"]
    bits = native.get("bits") or {"mxfp4": 4}.get(native.get("quant_method"), 0) or (4 if native.get("load_in_4bit") else 0)
    total = 0
    for tensor in stored:
        if _SIDES.search(tensor.name):
            continue
        packs = {"I32": 32, "U8": 8}.get(tensor.dtype)
        total += prod(tensor.shape) * (packs // bits if packs and bits else 1)
    return total


def _pattern(name: str) -> tuple[str, int | None]:
    """The name with ``{}`` for its first index and ``{e}`` for the others, and that first index."""
    indices = [int(i) for i in re.findall(r"(?<=\.)\d+(?=\.)", name)]
    pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", name, count=1)
    return re.sub(r"(?<=\.)\d+(?=\.)", "{e}", pattern), indices[0] if indices else None


def _fold(tensors: Iterable[TensorGroup]) -> Iterator[TensorGroup]:
    """Tensors that differ only in their indices as one group."""
    members: dict[TensorGroup, dict[int | None, int]] = {}
    for tensor in tensors:
        pattern, index = _pattern(tensor.name)
        counts = members.setdefault(replace(tensor, name=pattern, layers=None, copies=1), {})
        counts[index] = counts.get(index, 0) + 1
    for group, counts in members.items():
        for copies in sorted(set(counts.values())):
            layers = tuple(sorted(i for i, n in counts.items() if i is not None and n == copies))
            yield replace(group, copies=copies, layers=layers if None not in counts else None)

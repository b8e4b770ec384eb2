"""What llama.cpp's graphs of one file are built of: its layers with their weights, and where they lie.

Layers that repeat are left out beyond a few, and weights on the GPUs have one type for all that are multiplied alike:
neither changes what the graphs need, but where `Stack.general` is told so (`analytic.engines.llamacpp.sched`), and then
the whole file stands in. The tests hold the two to be equal.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from analytic.engines.llamacpp import tensors as ops
from analytic.engines.llamacpp.cuda import NOT_MULTIPLIED
from analytic.engines.llamacpp.recipes import RECIPES, Routing
from analytic.engines.llamacpp.sched import Devices
from analytic.engines.llamacpp.tensors import HOST_STAND_IN, STAND_IN, STAND_INS, Sizes, Tensor
from analytic.errors import UllageError
from analytic.formats.ggml import BY_NAME, GgmlType
from analytic.loaded.gguf_file import GgufFile, gguf_file
from analytic.loaded.llamacpp import BACKENDS, Placed, layer_devices, placed_tensors
from analytic.models.geometry import Geometry, Layer, Recurrent
from analytic.models.model import Model
from analytic.state.llamacpp import SLIDES

REPEATS = 5
"""Of layers, or runs of layers, that are alike and follow each other, at least so many are kept."""
CYCLE = 6
"""Freed blocks lie alike again after 1, 2 or 3 layers, so what is left out is a multiple."""
_LONGEST_RUN = 12
"""Layers of a pattern that repeats."""
_TYPES: Mapping[str, GgmlType] = {**BY_NAME, **{kind.name: kind for kind in STAND_INS}}

_Weight = tuple[str, Sizes, str, str]
"""Name of its type, sizes, place, and the file's name where several layers, or input and output, may share it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Layers, weights and devices that graphs are built of."""

    architecture: str
    geometry: Geometry
    routing: Routing
    devices: Devices
    weights: Mapping[str, Tensor]
    """By name as `Builder` asks: a tied head as the head, rotary factors once a layer."""
    general: bool
    """Whether layers were left out, and types stand for others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stacks:
    """Of one file, placed."""

    short: Stack
    """Equal to that of every other file that needs the same."""
    model: Model
    file: GgufFile
    devices: Devices
    placed: tuple[Placed, ...]
    vocabulary: int
    """Rows of the head."""
    windows: tuple[int, ...]
    """That llama.cpp knows."""

    @cached_property
    def whole(self) -> Stack:
        """Every layer, every type."""
        return Stack(
            architecture=self.file.architecture,
            geometry=self.file.geometry,
            routing=_routing(self.model, self.file),
            devices=self.devices,
            weights=_tensors(_weights(self.placed, self.file, general=False)),
            general=False,
        )


@lru_cache(maxsize=256)
def stacks(
    model: Model,
    *,
    dtype: str,
    quantization: str | None,
    gpu_layers: int,
    cpu_moe_layers: int,
    backend: str,
    tensor_split: tuple[float, ...],
) -> Stacks:
    """Of ``model``'s file (see `analytic.loaded.llamacpp.llamacpp_weights`).

    Raises:
        UllageError: the file, or the graph of its architecture, is not known.
    """
    file = gguf_file(model, dtype=dtype, quantization=quantization, gpu_layers=gpu_layers)
    if file.architecture not in RECIPES:
        raise UllageError(
            f"the graph that llama.cpp builds of {file.architecture!r} is not known to ullage",
            hint=f"known: {', '.join(sorted(RECIPES))}",
        )
    placed = tuple(
        placed_tensors(
            file, gpu_layers=gpu_layers, cpu_moe_layers=cpu_moe_layers, backend=backend, tensor_split=tensor_split
        )
    )
    gpus = len(tensor_split) if BACKENDS[backend].is_gpu else 0
    layers = layer_devices(file.blocks, gpu_layers=gpu_layers, tensor_split=tensor_split)
    devices = Devices(
        gpus=gpus,
        layers=tuple(gpus if gpu is None or not gpus else gpu for gpu in layers),
        overlapped=gpus > 1 and gpu_layers > file.blocks and not cpu_moe_layers,
    )
    by_name = {tensor.name: tensor for tensor in file.tensors}
    return Stacks(
        short=_shortened(file, _routing(model, file), devices, placed),
        model=model,
        file=file,
        devices=devices,
        placed=placed,
        windows=tuple(
            {window: 0 for layer, _ in file.geometry.groups if (window := known_window(file.geometry, layer))}
        ),
        vocabulary=(by_name.get("output.weight") or by_name["token_embd.weight"]).shape[-2],
    )


def known_window(geometry: Geometry, layer: Layer) -> int | None:
    """Of a layer of a model whose windows llama.cpp knows."""
    return getattr(layer.mixer, "window_tokens", None) if geometry.model_type in SLIDES else None


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What tells one short stack from another."""

    architecture: str
    geometry: Geometry
    routing: Routing
    devices: Devices
    weights: tuple[tuple[str, _Weight], ...]


@lru_cache(maxsize=256)
def _stack(content: _Content) -> Stack:
    return Stack(
        architecture=content.architecture,
        geometry=content.geometry,
        routing=content.routing,
        devices=content.devices,
        weights=_tensors(dict(content.weights)),
        general=True,
    )


def _shortened(file: GgufFile, routing: Routing, devices: Devices, placed: Sequence[Placed]) -> Stack:
    count = len(file.geometry.layers)
    own: list[dict[str, _Weight]] = [{} for _ in range(count)]
    others: dict[str, _Weight] = {}
    for name, weight in _weights(placed, file, general=True).items():
        layer, tail = _layer_of(name)
        if layer is None:
            others[name] = weight
        elif layer < count:
            own[layer][tail] = weight
    kinds: dict[object, int] = {}
    sequence = [
        kinds.setdefault((layer, devices.layers[index], tuple(sorted(own[index].items()))), len(kinds))
        for index, layer in enumerate(file.geometry.layers)
    ]
    kept = list(kept_layers(sequence))
    for index, layer in enumerate(kept):
        others |= {tail.format(index): weight for tail, weight in own[layer].items()}
    return _stack(
        _Content(
            architecture=file.architecture,
            geometry=replace(file.geometry, layers=tuple(file.geometry.layers[layer] for layer in kept)),
            routing=routing,
            devices=replace(devices, layers=(*(devices.layers[layer] for layer in kept), *devices.layers[count:])),
            weights=tuple(sorted(others.items())),
        )
    )


def kept_layers(kinds: Sequence[int]) -> Iterator[int]:
    """Positions in a row of layers' kinds, but for what repeats and makes no difference."""
    at = 0
    while at < len(kinds):
        length, times = max(
            ((run, _times(kinds, at, run)) for run in range(1, _LONGEST_RUN + 1)),
            key=lambda found: (_left_out(found[1]) * found[0], -found[0]),
        )
        if not _left_out(times):
            length, times = 1, 1
        yield from range(at, at + length * (times - _left_out(times)))
        at += length * times


def _left_out(times: int) -> int:
    return max(times - REPEATS, 0) // CYCLE * CYCLE


def _times(kinds: Sequence[int], at: int, run: int) -> int:
    """How often ``run`` layers from ``at`` on follow each other."""
    first, times = kinds[at : at + run], 1
    while kinds[at + times * run : at + (times + 1) * run] == first:
        times += 1
    return times


def _layer_of(name: str) -> tuple[int | None, str]:
    """The layer of a name, and the name with a gap for it."""
    if name.startswith("blk."):
        layer, tail = name[4:].split(".", 1)
        return int(layer), f"blk.{{}}.{tail}"
    head, at, layer = name.partition("@")
    return (int(layer), f"{head}@{{}}") if at else (None, name)


def _weights(placed: Sequence[Placed], file: GgufFile, *, general: bool) -> dict[str, _Weight]:
    mamba2 = _has_mamba2(file.geometry)
    tied = {one.tensor.name for one in placed if one.layer == file.blocks and one.gpu is None}
    made: dict[str, _Weight] = {}
    for one in placed:
        name, kind, shape = one.tensor.name, one.tensor.type, one.tensor.shape[::-1]
        if mamba2 and len(shape) == 1 and one.tensor.module == "ssm_a":
            shape = (1, *shape)
        if general and kind.name in NOT_MULTIPLIED:
            kind = HOST_STAND_IN
        elif general and len(shape) > 1 and (one.gpu is not None or (one.layer is None and name not in tied)):
            kind = STAND_IN  # multiplied, or looked up; vectors are also added and the like
        place = "repacked" if one.repacked else "host" if one.gpu is None else f"GPU{one.gpu}"
        made[_name(one)] = kind.name, ops.four(shape), place, "" if one.tensor.layer is not None else name
    return made


def _name(one: Placed) -> str:
    if one.tensor.name.startswith("rope_f"):
        return f"rope@{one.layer}"
    return "output.weight" if one.tensor.name == "token_embd.weight" and one.layer is not None else one.tensor.name


def _has_mamba2(geometry: Geometry) -> bool:
    """Whether decays are of heads, which files write as rows of one element."""
    return any(
        isinstance(mixer, Recurrent) and mixer.kind == "mamba2"
        for layer, _ in geometry.groups
        for mixer in (layer.mixer, layer.recurrent)
    )


def _tensors(weights: Mapping[str, _Weight]) -> Mapping[str, Tensor]:
    shared: dict[_Weight, Tensor] = {}
    made = {}
    for name, weight in weights.items():
        kind, sizes, place, source = weight
        tensor = ops.held(_TYPES[kind], *sizes, place=place, is_weight=True)
        made[name] = shared.setdefault(weight, tensor) if source else tensor
    return made


_ROUTING: Mapping[str, str] = {
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
}
"""A file's own metadata, and the config's key."""


def _routing(model: Model, file: GgufFile) -> Routing:
    """Of the file, or of the config that it is converted from; what is missing has no part in the graph."""
    text = model.config.get("text_config")
    config = text if isinstance(text, Mapping) else model.config
    given: Mapping[str, object] = file.numbers or {name: config.get(key) for name, key in _ROUTING.items()}
    numbers = {
        name: float(value) for name, value in given.items() if name in _ROUTING and isinstance(value, int | float)
    }
    normed = numbers.get("expert_weights_norm")
    return Routing(
        groups=int(numbers.get("expert_group_count", 1)),
        used_groups=int(numbers.get("expert_group_used_count", 1)),
        scaled=numbers.get("expert_weights_scale", 0.0) not in (0.0, 1.0),
        normed=None if normed is None else normed > 0,
    )

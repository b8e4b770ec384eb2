"""Where transformers puts a model's modules on several GPUs with ``device_map="auto"`` and its kin.

After transformers 5.23 (``integrations/accelerate.py``, its own form of accelerate 1.15's ``infer_auto_device_map``)
and held to it by ``tests/test_device_map.py``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal, get_args

from analytic.engines.transformers.module_tree import ModuleTree, Node, expanded, module_tree
from analytic.errors import UllageError, UsageError
from analytic.formats.table import FORMATS, NATIVE_FORMATS, itemsize
from analytic.models.model import Model
from analytic.weights import DTYPES, ServedGroup, weigh

Device = int | Literal["cpu", "disk"]
"""A GPU by its index, or where a module waits until it is needed."""
Strategy = Literal["auto", "balanced", "balanced_low_0", "sequential"]

_OFFLOADED = ("cpu", "disk")
_KEPT_FRACTION = 0.90
"""Of the host's memory, of a single GPU's, and of all where a quantiser needs room for its buffers."""
_BITSANDBYTES = {"bnb-nf4": 0.5, "bnb-fp4": 0.5, "bnb-nf4-dq": 0.5, "bnb-fp4-dq": 0.5, "bnb-int8": 1.0}
"""Bytes an element that ``quantized_element_size`` says."""
_NATIVE = ("fp8", "mxfp4")
"""Methods of published checkpoints whose modules transformers replaces before it loads them."""
_ELEMENT_BYTES = {**_BITSANDBYTES, "mxfp4": 0.5}
"""Of formats that are not counted as they are served: the scales of mxfp4 come when it is loaded."""
_COUNTED = (*_BITSANDBYTES, *NATIVE_FORMATS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Decoder layers in a row that are on one device, in full or in part."""

    device: Device
    first: int
    past: int
    """One past the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A model's modules by device."""

    devices: Mapping[str, Device]
    """As ``hf_device_map`` has it: the largest modules that are on one device; ``""`` is the whole model."""
    weights: Mapping[Device, int]
    """Bytes of the weights of each device that has modules, as served: parameters and persistent buffers."""
    spans: tuple[Span, ...]
    """Where the decoder's layers are, by device."""

    @property
    def offloaded(self) -> dict[str, Device]:
        """The modules that wait on the host or the disk; the first GPU runs them."""
        return {name: device for name, device in self.devices.items() if device in _OFFLOADED}


def infer_device_map(
    model: Model,
    *,
    device_map: Strategy,
    max_memory: Mapping[Device, int],
    dtype: str,
    quantization: str | None = None,
    is_free: bool = False,
) -> Placement:
    """The modules of ``model`` by device, as ``from_pretrained(…, device_map=…)`` places them.

    Args:
        model: the model.
        device_map: the strategy; ``auto`` is ``balanced``.
        max_memory: bytes of each GPU, and of the host under ``cpu``; without it what fits no GPU goes to the disk.
        dtype: that it is served in.
        quantization: as `weigh` takes it.
        is_free: whether these are what is free, of which transformers keeps a tenth when no ``max_memory`` is given,
            and not the ``max_memory`` itself.

    Raises:
        UsageError: an option that is not known.
        UllageError: a class or a format whose modules are not known, or a placement that transformers refuses.
    """
    memory = _checked(device_map, max_memory, dtype)
    if model.native_format == "mxfp4" and quantization == "none":
        raise UllageError(
            f"the biases of {model.id} change their dtype as it is dequantised, and where it goes with them",
            hint="leave --quantization out",
        )
    is_quantized = str(quantization) in _BITSANDBYTES
    served = weigh(model, dtype=dtype, quantization=quantization).served
    sizes = {name: _counted_bytes(s, model, dtype) for s in served for name in expanded(s.group)}
    buffers = {name for s in served if s.group.role == "buffer" for name in expanded(s.group)}
    tree = module_tree(model, sizes, buffers)
    if is_free and "cpu" in memory:
        memory["cpu"] *= _KEPT_FRACTION
    if device_map != "sequential":
        memory = _balanced(tree, memory, low_zero=device_map == "balanced_low_0", is_free=is_free)
    if is_quantized:
        memory = {device: size * _KEPT_FRACTION for device, size in memory.items()}
    devices = _cleaned(_Placer.over(memory, tree).placed())
    if is_quantized and {*_OFFLOADED} & {*devices.values()} and {*devices.values()} != {"cpu"}:
        raise UllageError(
            f"{model.id} does not fit: transformers offloads nothing that bitsandbytes quantises",
            hint="more GPUs, or more memory on each",
        )
    return _placement(model, served, devices, buffers)


def _checked(device_map: str, max_memory: Mapping[Device, int], dtype: str) -> dict[Device, float]:
    """The memory, GPUs first."""
    for what, value, known in (("device_map", device_map, get_args(Strategy)), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise UsageError(f"{what}: {value!r} is not known", hint=f"one of {', '.join(known)}")
    gpus: list[Device] = [*sorted(device for device in max_memory if isinstance(device, int))]
    if not gpus or gpus != [*range(len(gpus))] or not {*max_memory} <= {*gpus, "cpu"}:
        raise UsageError(
            f"max_memory: {', '.join(map(str, max_memory))} are not devices", hint="GPUs are 0, 1, …; the host is cpu"
        )
    if any(size < 0 for size in max_memory.values()):
        raise UsageError("max_memory: cannot be negative")
    host: list[Device] = ["cpu"] if "cpu" in max_memory else []
    return {device: max_memory[device] for device in (*gpus, *host)}


def _counted_bytes(served: ServedGroup, model: Model, dtype: str) -> float:
    """What ``compute_module_sizes`` counts of each tensor, before any is loaded or upcast."""
    group, packed = served.group, served.format in FORMATS and FORMATS[served.format].is_packed
    if model.native_format not in (None, *_NATIVE) or group.pieces or (packed and served.format not in _COUNTED):
        raise UllageError(
            f"how large transformers takes modules in {served.format} for when it places them is not known",
            hint=f"known: 16 and 32 bits, {', '.join(_BITSANDBYTES)} and published {' or '.join(_NATIVE)}",
        )
    if served.format in _ELEMENT_BYTES:
        return group.elements * group.copies * _ELEMENT_BYTES[served.format]
    is_upcast = group.stored in ("float32-unless-float64", "float32-if-float16")
    return group.copies * (group.elements * itemsize(dtype) if is_upcast else served.each_bytes)


def _balanced(tree: ModuleTree, memory: dict[Device, float], *, low_zero: bool, is_free: bool) -> dict[Device, float]:
    """Each GPU but the last limited to its share of the model and room for what cannot be divided."""
    gpus: list[Device] = [device for device, size in memory.items() if device != "cpu" and size > 0]
    if not gpus:
        return memory
    memory = dict(memory)
    if len(gpus) == 1:
        low_zero = False
        memory[0] *= _KEPT_FRACTION if is_free else 1
    share = tree.size // (len(gpus) - low_zero) + int(1.25 * max(tree.largest_whole, tree.largest_owner))
    for gpu in gpus[:-1]:
        if not (low_zero and gpu == 0):
            memory[gpu] = min(share, memory[gpu])
    if low_zero:
        others = sum(memory[gpu] for gpu in range(1, len(gpus)))
        memory[0] = min(max(0, tree.size - others), memory[0])
    return memory


@dataclass(kw_only=True, slots=True)
class _Placer:
    """Fills one device after the other, in the order of the modules."""

    memory: Mapping[Device, float]
    devices: list[Device]
    tied: tuple[tuple[str, ...], ...]
    queue: list[Node]
    used: dict[Device, float]
    at: int = 0
    """Index of the device that is being filled."""
    largest: float = 0
    """Bytes of the largest undivided module that is still to be placed: the first GPU and the host keep room for it."""
    largest_names: list[str] = field(default_factory=list)
    result: dict[str, Device] = field(default_factory=dict)

    @classmethod
    def over(cls, memory: Mapping[Device, float], tree: ModuleTree) -> "_Placer":
        """With every device empty."""
        devices: list[Device] = [*memory, "disk"]
        return cls(
            memory=memory,
            devices=devices,
            tied=tree.tied_groups,
            queue=[*tree.roots],
            used=dict.fromkeys(devices, 0),
        )

    def placed(self) -> dict[str, Device]:
        """Every module of the queue, or its parts, by device."""
        self._find_largest(self.queue)
        while self.queue:
            self._treat(self.queue.pop(0))
        return self.result

    def _treat(self, node: Node) -> None:
        """Place a module with what is tied to it, or divide one of them, or turn to the next device."""
        self.largest_names = [n for n in self.largest_names if not f"{n}.".startswith(f"{node.name}.")]
        if not self.largest_names:
            self._find_largest(waiting for waiting in self.queue if waiting.is_module)
        device = self.devices[self.at]
        kept = self.largest if device in (self.devices[0], "cpu") else 0
        room = (inf if device == "disk" else self.memory[device] - kept) - self.used[device]
        partners = self._partners(node)
        together = node.size + sum(partner.size for partner in partners)
        if together <= room:
            self.used[device] += together
            self.result.update(dict.fromkeys((node.name, *(partner.name for partner in partners)), device))
            self.queue = [waiting for waiting in self.queue if waiting not in partners]
        elif node.size <= room and any(partner.is_divisible for partner in partners):
            partner = next(partner for partner in partners if partner.is_divisible)
            where = self.queue.index(partner)
            self._requeue([node, *self.queue[:where], *partner.parts, *self.queue[where + 1 :]])
        elif node.is_divisible:
            self._requeue([*node.parts, *self.queue])
        else:
            self.used[device] += kept
            self.at += 1
            self.queue.insert(0, node)

    def _partners(self, node: Node) -> list[Node]:
        """The waiting modules that hold a parameter tied to one of this module's.

        Raises:
            UllageError: such a parameter is in no waiting module, at which transformers fails.
        """
        partners: list[Node] = []
        for name in self._tied_elsewhere(node.name):
            partner = next((waiting for waiting in self.queue if name.startswith(f"{waiting.name}.")), None)
            if partner is None:
                raise UllageError(
                    f"transformers fails to place {node.name}, as {name} is tied to it and was placed before",
                    hint="more memory on the first GPU",
                )
            if partner not in partners:
                partners.append(partner)
        return partners

    def _tied_elsewhere(self, module: str) -> Iterator[str]:
        for group in self.tied:
            outside = [name for name in group if f"{module}." not in f"{name}."]
            if len(outside) < len(group):
                yield from outside

    def _requeue(self, queue: list[Node]) -> None:
        self.queue = queue
        self._find_largest(waiting for waiting in queue if waiting.is_module)

    def _find_largest(self, nodes: Iterable[Node]) -> None:
        undivided = [least for node in nodes for least in node.undivided()]
        self.largest = max((least.size for least in undivided), default=0)
        self.largest_names = [least.name for least in undivided if least.size == self.largest > 0]


def _cleaned(devices: Mapping[str, Device], module: str = "") -> dict[str, Device]:
    """With one name for all modules below it that are on the same device."""
    if len({*devices.values()}) == 1 and len(devices) > 1:
        return {module: next(iter(devices.values()))}
    below: dict[str, dict[str, Device]] = {}
    for name, device in devices.items():
        depth = module.count(".") + 2 if module else 1
        below.setdefault(".".join(name.split(".")[:depth]), {})[name] = device
    cleaned: dict[str, Device] = {}
    for child, inside in below.items():
        cleaned |= inside if len(inside) == 1 else _cleaned(inside, child)
    return cleaned


def _placement(
    model: Model, served: Iterable[ServedGroup], devices: Mapping[str, Device], buffers: Iterable[str]
) -> Placement:
    first: Device = next((device for device in devices.values() if device not in _OFFLOADED), "cpu")
    weights = dict.fromkeys(devices.values(), 0)
    layers: dict[Device, set[int]] = {device: set() for device in weights}
    for s in served:
        for index, name in enumerate(expanded(s.group)):
            device = _device(name, devices)
            if s.group.layers is not None and model.is_decoder(s.group):
                layers[device].add(s.group.layers[index])
            if s.group.persistent:  # buffers stay on the GPU that runs what is offloaded
                on = first if device in _OFFLOADED and s.group.role == "buffer" else device
                weights[on] = weights.get(on, 0) + s.each_bytes * s.group.copies
    spans = tuple(span for device, held in layers.items() for span in _spans(device, held))
    return Placement(devices=devices, weights=weights, spans=spans)


def _device(name: str, devices: Mapping[str, Device]) -> Device:
    """Of the module that holds a tensor; transformers leaves what has none on the host."""
    while name and name not in devices:
        name = name.rpartition(".")[0]
    return devices.get(name, "cpu")


def _spans(device: Device, layers: Iterable[int]) -> Iterator[Span]:
    rows: list[list[int]] = []
    for layer in sorted(layers):
        if rows and rows[-1][1] == layer:
            rows[-1][1] = layer + 1
        else:
            rows.append([layer, layer + 1])
    yield from (Span(device=device, first=first, past=past) for first, past in rows)

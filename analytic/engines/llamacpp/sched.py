"""ggml's scheduler: on which device each node of a graph runs, and what is copied between devices.

After ``ggml_backend_sched_split_graph`` of ``ggml/src/ggml-backend.cpp`` (llama.cpp 0.5, ggml 0.25).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from analytic.engines.llamacpp import cuda as cuda
from analytic.engines.llamacpp.alloc import Arena, Placed, allocate
from analytic.engines.llamacpp.tensors import STAND_INS, VIEWS, Graph, Tensor

HOST_ALIGNMENT_BYTES = 32
MOST_GPUS = 16
"""GGML_SCHED_MAX_BACKENDS."""
MAX_COPIES = 4
"""Of each input where batches overlap on several devices (GGML_SCHED_MAX_COPIES)."""
PINNABLE_ROWS = 32
"""Of fewer tokens, norms go with their layers' devices even where not all layers are on devices (graph_get_cb)."""

_NAMES = tuple(f"GPU{device}" for device in range(MOST_GPUS))


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """What a graph runs on: the GPUs, then the host."""

    gpus: int
    layers: tuple[int, ...]
    """The device of each layer and of the output; the host's number is ``gpus``."""
    overlapped: bool
    """Whether batches overlap (pipeline parallelism)."""

    @property
    def host(self) -> int:
        """Its number, the last."""
        return self.gpus

    @property
    def full(self) -> bool:
        """Whether every layer is on a GPU, and the output."""
        return self.host not in self.layers

    def holds(self, device: int, place: str) -> bool:
        """Whether ``device`` reads what lies in ``place`` (``GPU0``, or one of the host's)."""
        return place == _NAMES[device] if device < self.gpus else not place.startswith("GPU")

    def runs(self, device: int, node: Tensor) -> bool:
        """Whether ``device`` has the operation, and no source of it lies on another GPU."""
        if device == self.host:
            return True
        own = _NAMES[device]
        for source in node.src:
            if source.held and source.held != own and source.held.startswith("GPU"):
                return False
        return cuda.runs(node)

    def name(self, device: int) -> str:
        """As in `Tensor.held`."""
        return "host" if device == self.host else _NAMES[device]


@dataclass(slots=True)
class _Split:
    device: int
    begin: int
    end: int = 0
    inputs: list[Tensor] = field(default_factory=list)


class _Schedule:
    def __init__(self, graph: Graph, devices: Devices, tokens: int) -> None:
        self.graph, self.devices, self.tokens = graph, devices, tokens
        self.pins = devices.full or tokens < PINNABLE_ROWS
        self.copies: dict[tuple[int, int], list[Tensor]] = {}

    def assign(self) -> None:
        """Passes 1 to 4."""
        steps = [node for node in self.graph.nodes if node.op not in VIEWS]
        for tensor in (*self.graph.leafs, *self.graph.nodes):
            tensor.at = self._first(tensor)
        for order in (steps, steps[::-1]):
            self._spread(order, host_too=False)
        if any(node.at < 0 for node in steps):
            for order in (steps, steps[::-1]):
                self._spread(order, host_too=True)
        for node in steps:
            if node.at < 0:
                node.at = self._nearest(node)
        for node in self.graph.nodes:
            self._follow(node)

    def _first(self, tensor: Tensor) -> int:
        if tensor.pinned_layer is not None and self.pins:
            device = self.devices.layers[tensor.pinned_layer]
            if self.devices.runs(device, tensor):
                return device
        return self._from_here(tensor)

    def _holder(self, place: str, node: Tensor) -> int:
        """The first device that reads what lies in ``place`` and runs ``node`` (…_backend_from_buffer)."""
        for device in range(self.devices.gpus + 1):
            if self.devices.holds(device, place) and self.devices.runs(device, node):
                return device
        return -1

    def _from_here(self, tensor: Tensor) -> int:
        """By where it lies, or its weights (…_backend_id_from_cur)."""
        if (place := (tensor.base or tensor).held) and (device := self._holder(place, tensor)) >= 0:
            return device
        if tensor.is_input:
            return self.devices.host
        if tensor.op in ("rope", "flash_attn_ext"):
            return -1
        for weight in tensor.src:
            if weight.is_weight:
                break
        else:
            return -1
        device = self._holder(weight.held, tensor)
        if device == self.devices.host and weight.held != "repacked":
            for gpu in range(self.devices.gpus):
                if self.devices.runs(gpu, tensor) and cuda.offloads(tensor):
                    return gpu
        return device

    def _spread(self, order: list[Tensor], *, host_too: bool) -> None:
        """Neighbours go where those with weights go, the GPUs' first."""
        current = -1
        for node in order:
            if node.at >= 0:
                current = node.at if host_too or node.at != self.devices.host else -1
            elif current >= 0 and self.devices.runs(current, node):
                node.at = current

    def _nearest(self, node: Tensor) -> int:
        """Where most of its sources can be read."""
        able = [d for d in range(self.devices.gpus + 1) if self.devices.runs(d, node)]
        return max(able, key=lambda d: (sum(self._reads(d, source) for source in node.src), -d))

    def _follow(self, node: Tensor) -> None:
        if node.at < 0 and node.base is not None:
            node.at = node.base.at
        for source in node.src:
            if source.at < 0:
                source.at = source.base.at if source.base is not None else node.at
        if node.at < 0:
            node.at = next(d for d in range(self.devices.gpus + 1) if self.devices.runs(d, node))

    def _reads(self, device: int, tensor: Tensor) -> bool:
        place = (tensor.base or tensor).held
        if place:
            return self.devices.holds(device, place)
        own = tensor.base.at if tensor.at < 0 and tensor.base is not None else tensor.at
        return own == device

    def split(self) -> list[_Split]:
        """Pass 5: runs of nodes of one device, whose sources elsewhere become copies."""
        nodes = self.graph.nodes
        first = next(index for index, node in enumerate(nodes) if node.op not in VIEWS)
        splits = [_Split(device=nodes[first].at, begin=0)]
        for index in range(first, len(nodes)):
            node = nodes[index]
            if node.op in VIEWS:
                continue
            own = splits[-1]
            if node.at != own.device or (own.inputs and self._brings_weight(node, own.device)):
                own.end = index
                splits.append(own := _Split(device=node.at, begin=index))
            for position, source in enumerate(node.src):
                if source.at != own.device and not self._reads(own.device, source):
                    node.src[position] = self._copy(source, own)
        splits[-1].end = len(nodes)
        return splits

    def _brings_weight(self, node: Tensor, device: int) -> bool:
        return any(source.is_weight and source.at != device and not self._reads(device, source) for source in node.src)

    def _copy(self, source: Tensor, split: _Split) -> Tensor:
        key = (id(source), split.device)
        if key not in self.copies:
            count = MAX_COPIES if self.devices.overlapped else 1
            self.copies[key] = [self._twin(source) for _ in range(count)]
            split.inputs.append(source)
        return self.copies[key][0]

    def _twin(self, source: Tensor) -> Tensor:
        shared = self.devices.overlapped
        return Tensor(type=source.type, ne=source.ne, nb=source.nb, is_input=shared, is_output=shared)

    def copies_stand_ins(self, splits: list[_Split]) -> bool:
        """Whether it copies weights whose type is not known."""
        return any(source.type in STAND_INS for split in splits for source in split.inputs)

    def leafs(self, splits: list[_Split]) -> Iterator[Placed]:
        """Pass 6: where batches overlap, every copy of every input is allocated first."""
        if self.devices.overlapped:
            for leaf in self.graph.leafs:
                if leaf.is_input:
                    device = leaf.at
                    leaf.is_output = True
                    yield leaf, device
                    yield from ((self._twin(leaf), device) for _ in range(MAX_COPIES - 1))
            for split in splits:
                for source in split.inputs:
                    yield from ((copy, split.device) for copy in self.copies[id(source), split.device])
        yield from ((leaf, leaf.at) for leaf in self.graph.leafs)

    def nodes(self, splits: list[_Split]) -> Iterator[Placed]:
        """The graph that is allocated: before each split what it copies, behind fused nodes what they keep."""
        for split in splits:
            for source in split.inputs:
                yield _dependency([source]), source.at
                yield self.copies[id(source), split.device][0], split.device
            own = self.graph.nodes[split.begin : split.end]
            until: dict[int, list[Tensor]] = {}
            if split.device != self.devices.host:
                for tensor, last in cuda.kept(own):
                    if all(tensor is not other for other in until.setdefault(id(last), [])):
                        until[id(last)].append(tensor)
            for node in own:
                yield node, node.at
                if id(node) in until:
                    yield _dependency(until[id(node)]), split.device


def _dependency(tensors: list[Tensor]) -> Tensor:
    """A node that only keeps its sources from being freed."""
    first = tensors[0]
    return Tensor(type=first.type, ne=first.ne, nb=first.nb, src=list(tensors), base=first.base or first)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reserved:
    """What a graph needs."""

    bytes: tuple[int, ...]
    """Of the buffer of each GPU, and of the host (last)."""
    taken: tuple[int, ...]
    """Likewise, as if nothing were ever freed."""
    steps: tuple[int, ...]
    """What its allocator decided, and where each buffer was fullest: graphs whose sizes lie on a straight line between
    those of two others, which have these in common, have them too, and need what lies on that line."""


def reserve(graph: Graph, devices: Devices, *, tokens: int, general: bool = False) -> Reserved | None:
    """Schedule a graph and allocate it.

    None for a ``general`` one that does not stand for others: where weights are copied whose type is not known, or
    where batches overlap and each layer has copies that are never freed.
    """
    schedule = _Schedule(graph, devices, tokens)
    schedule.assign()
    splits = schedule.split()
    if general and (schedule.copies_stand_ins(splits) or (devices.overlapped and len(splits) > devices.gpus + 1)):
        return None
    steps: list[int] = []
    arenas = [
        *(Arena(alignment=cuda.ALIGNMENT_BYTES, size_of=cuda.alloc_bytes, steps=steps) for _ in range(devices.gpus)),
        Arena(alignment=HOST_ALIGNMENT_BYTES, size_of=_host_bytes, steps=steps),
    ]
    nodes, leafs = list(schedule.nodes(splits)), list(schedule.leafs(splits))
    allocate(nodes, leafs, arenas)
    return Reserved(
        bytes=tuple(arena.most for arena in arenas),
        taken=tuple(arena.taken for arena in arenas),
        steps=(*steps, *(arena.most_at for arena in arenas)),
    )


def _host_bytes(tensor: Tensor) -> int:
    return tensor.bytes

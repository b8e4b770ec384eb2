"""ggml's scheduler: on which device each node of a graph runs, and what is copied between devices.

After ``ggml_backend_sched_split_graph`` of ``ggml/src/ggml-backend.cpp`` (llama.cpp 0.5, ggml 0.25).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from analytic.engines.ggml import cuda as cuda
from analytic.engines.ggml.alloc import Arena, Placed, allocate
from analytic.engines.ggml.tensors import VIEWS, Graph, Tensor

HOST_ALIGNMENT_BYTES = 32
MAX_COPIES = 4
"""Of each input where batches overlap on several devices (GGML_SCHED_MAX_COPIES)."""
PINNABLE_ROWS = 32
"""Of fewer tokens, norms go with their layers' devices even where not all layers are on devices (graph_get_cb)."""


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
        return place == f"GPU{device}" if device < self.gpus else not place.startswith("GPU")

    def runs(self, device: int, node: Tensor) -> bool:
        """Whether ``device`` has the operation, and no source of it lies on another GPU."""
        if device == self.host:
            return True
        own = f"GPU{device}"
        elsewhere = any(source.held != own and source.held.startswith("GPU") for source in node.src if source.held)
        return not elsewhere and cuda.runs(node)

    def name(self, device: int) -> str:
        """As in `Tensor.held`."""
        return "host" if device == self.host else f"GPU{device}"


@dataclass(slots=True)
class _Split:
    device: int
    begin: int
    end: int = 0
    inputs: list[Tensor] = field(default_factory=list)


class _Schedule:
    def __init__(self, graph: Graph, devices: Devices, tokens: int) -> None:
        self.graph, self.devices, self.tokens = graph, devices, tokens
        self.where: dict[int, int] = {}
        self.copies: dict[tuple[int, int], list[Tensor]] = {}

    def at(self, tensor: Tensor) -> int:
        return self.where.get(id(tensor), -1)

    def assign(self) -> None:
        """Passes 1 to 4."""
        steps = [node for node in self.graph.nodes if node.op not in VIEWS]
        for tensor in (*self.graph.leafs, *self.graph.nodes):
            self._set(tensor, self._first(tensor))
        for order in (steps, steps[::-1]):
            self._spread(order, host_too=False)
        for order in (steps, steps[::-1]):
            self._spread(order, host_too=True)
        for node in steps:
            if self.at(node) < 0:
                self._set(node, self._nearest(node))
        for node in self.graph.nodes:
            self._follow(node)

    def _set(self, tensor: Tensor, device: int) -> None:
        if device >= 0:
            self.where[id(tensor)] = device

    def _first(self, tensor: Tensor) -> int:
        if tensor.pinned_layer is not None and (self.devices.full or self.tokens < PINNABLE_ROWS):
            device = self.devices.layers[tensor.pinned_layer]
            if self.devices.runs(device, tensor):
                return device
        return self._from_here(tensor)

    def _holder(self, tensor: Tensor, node: Tensor) -> int:
        """The first device that reads where ``tensor`` lies and runs ``node`` (…_backend_from_buffer)."""
        place = (tensor.base or tensor).held
        devices = range(self.devices.gpus + 1) if place else ()
        return next((d for d in devices if self.devices.holds(d, place) and self.devices.runs(d, node)), -1)

    def _from_here(self, tensor: Tensor) -> int:
        """By where it lies, or its weights (…_backend_id_from_cur)."""
        if (device := self._holder(tensor, tensor)) >= 0:
            return device
        if tensor.is_input:
            return self.devices.host
        if tensor.op in ("rope", "flash_attn_ext"):
            return -1
        weight = next((source for source in tensor.src if source.is_weight), None)
        if weight is None:
            return -1
        device = self._holder(weight, tensor)
        if device == self.devices.host and weight.held != "repacked":
            for gpu in range(self.devices.gpus):
                if self.devices.runs(gpu, tensor) and cuda.offloads(tensor):
                    return gpu
        return device

    def _spread(self, order: list[Tensor], *, host_too: bool) -> None:
        """Neighbours go where those with weights go, the GPUs' first."""
        current = -1
        for node in order:
            device = self.at(node)
            if device >= 0:
                current = device if host_too or device != self.devices.host else -1
            elif current >= 0 and self.devices.runs(current, node):
                self._set(node, current)

    def _nearest(self, node: Tensor) -> int:
        """Where most of its sources can be read."""
        able = [d for d in range(self.devices.gpus + 1) if self.devices.runs(d, node)]
        return max(able, key=lambda d: (sum(self._reads(d, source) for source in node.src), -d))

    def _follow(self, node: Tensor) -> None:
        if node.base is not None and self.at(node) < 0:
            self._set(node, self.at(node.base))
        for source in node.src:
            if self.at(source) < 0:
                self._set(source, self.at(source.base) if source.base is not None else self.at(node))
        if self.at(node) < 0:
            self._set(node, next(d for d in range(self.devices.gpus + 1) if self.devices.runs(d, node)))

    def _reads(self, device: int, tensor: Tensor) -> bool:
        place = (tensor.base or tensor).held
        if not place:
            own = self.at(tensor)
            if own < 0 and tensor.base is not None:
                own = self.at(tensor.base)
            if own < 0:
                return False
            place = self.devices.name(own)
        return self.devices.holds(device, place)

    def split(self) -> list[_Split]:
        """Pass 5: runs of nodes of one device, whose sources elsewhere become copies."""
        nodes = self.graph.nodes
        first = next(index for index, node in enumerate(nodes) if node.op not in VIEWS)
        splits = [_Split(device=self.at(nodes[first]), begin=0)]
        for index in range(first, len(nodes)):
            node = nodes[index]
            if node.op in VIEWS:
                continue
            own = splits[-1]
            if self.at(node) != own.device or (own.inputs and self._brings_weight(node, own.device)):
                own.end = index
                splits.append(own := _Split(device=self.at(node), begin=index))
            for position, source in enumerate(node.src):
                if self.at(source) != own.device and not self._reads(own.device, source):
                    node.src[position] = self._copy(source, own)
        splits[-1].end = len(nodes)
        return splits

    def _brings_weight(self, node: Tensor, device: int) -> bool:
        return any(
            source.is_weight and self.at(source) != device and not self._reads(device, source) for source in node.src
        )

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

    def leafs(self, splits: list[_Split]) -> Iterator[Placed]:
        """Pass 6: where batches overlap, every copy of every input is allocated first."""
        if self.devices.overlapped:
            for leaf in self.graph.leafs:
                if leaf.is_input:
                    device = self.at(leaf)
                    leaf.is_output = True
                    yield leaf, device
                    yield from ((self._twin(leaf), device) for _ in range(MAX_COPIES - 1))
            for split in splits:
                for source in split.inputs:
                    yield from ((copy, split.device) for copy in self.copies[id(source), split.device])
        yield from ((leaf, self.at(leaf)) for leaf in self.graph.leafs)

    def nodes(self, splits: list[_Split]) -> Iterator[Placed]:
        """The graph that is allocated: before each split what it copies, behind fused nodes what they keep."""
        for split in splits:
            for source in split.inputs:
                yield _dependency([source]), self.at(source)
                yield self.copies[id(source), split.device][0], split.device
            own = self.graph.nodes[split.begin : split.end]
            until: dict[int, list[Tensor]] = {}
            if split.device != self.devices.host:
                for tensor, last in cuda.kept(own):
                    if all(tensor is not other for other in until.setdefault(id(last), [])):
                        until[id(last)].append(tensor)
            for node in own:
                yield node, self.at(node)
                if id(node) in until:
                    yield _dependency(until[id(node)]), split.device


def _dependency(tensors: list[Tensor]) -> Tensor:
    """A node that only keeps its sources from being freed."""
    first = tensors[0]
    return Tensor(type=first.type, ne=first.ne, nb=first.nb, src=list(tensors), base=first.base or first)


def buffer_sizes(graph: Graph, devices: Devices, *, tokens: int) -> tuple[int, ...]:
    """Bytes of the compute buffer of each GPU, and of the host (last), for one graph."""
    schedule = _Schedule(graph, devices, tokens)
    schedule.assign()
    splits = schedule.split()
    arenas = [
        *(Arena(alignment=cuda.ALIGNMENT_BYTES, size_of=cuda.alloc_bytes) for _ in range(devices.gpus)),
        Arena(alignment=HOST_ALIGNMENT_BYTES, size_of=_host_bytes),
    ]
    nodes, leafs = list(schedule.nodes(splits)), list(schedule.leafs(splits))
    allocate(nodes, leafs, arenas)
    return tuple(arena.most for arena in arenas)


def _host_bytes(tensor: Tensor) -> int:
    return tensor.bytes

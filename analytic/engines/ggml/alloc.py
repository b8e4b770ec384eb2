"""ggml's graph allocator: how large the buffers of a graph become, without allocating them.

After ``ggml/src/ggml-alloc.c`` of llama.cpp 0.5 (ggml 0.25): best fit among freed blocks, results in the place of a
source that nobody else needs. Buffers of CUDA and of the host may have any size, so each is one chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from analytic.engines.ggml.tensors import Tensor
from analytic.quantity import round_up

IN_PLACE = frozenset(
    (
        "scale",
        "fill",
        "add",
        "add_id",
        "sub",
        "mul",
        "div",
        "sqr",
        "sqrt",
        "unary",
        "rope",
        "rms_norm",
        "clamp",
        "soft_max",
    )
)
"""Operations that may write over a source (ggml_op_can_inplace)."""

Placed = tuple[Tensor, int]
"""A node or leaf, and the buffer that it goes to."""


@dataclass(slots=True)
class Arena:
    """Offsets of one buffer (struct ggml_dyn_tallocr)."""

    alignment: int
    size_of: Callable[[Tensor], int]
    """Bytes that a tensor takes in such a buffer."""
    most: int = 0
    """The highest byte so far: what the buffer has to hold."""
    _free: list[tuple[int, int]] = field(default_factory=list)
    """Offset and size, in order; what follows ``_end`` is free without limit."""
    _end: int = 0

    def aligned(self, tensor: Tensor) -> int:
        """Bytes of a tensor with what follows it up to the next."""
        return round_up(self.size_of(tensor), self.alignment)

    def take(self, size: int) -> int:
        """Where ``size`` bytes go: the smallest block that holds them, the last of equals."""
        fits = [(own, -index) for index, (_, own) in enumerate(self._free) if own >= size]
        if fits:
            own, index = min(fits)
            offset = self._free[-index][0]
            self._free[-index : -index + 1] = [(offset + size, own - size)] if own > size else []
            return offset
        offset = self._end
        self._end += size
        self.most = max(self.most, self._end)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Free a block, and join it with its neighbours."""
        if size == 0:
            return
        index = next((i for i, (start, _) in enumerate(self._free) if start > offset), len(self._free))
        if index < len(self._free) and offset + size == self._free[index][0]:
            size += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == offset:
            offset, before = self._free.pop(index - 1)
            size += before
            index -= 1
        if offset + size == self._end:
            self._end = offset
        else:
            self._free.insert(index, (offset, size))


@dataclass(slots=True)
class _State:
    children: int = 0
    views: int = 0
    buffer: int = -1
    offset: int = 0
    size: int = 0
    owned: bool = False


class _Allocation:
    def __init__(self, arenas: Sequence[Arena]) -> None:
        self.arenas = arenas
        self.states: dict[int, _State] = {}

    def state(self, tensor: Tensor) -> _State:
        found = self.states.get(id(tensor))
        if found is None:
            found = self.states[id(tensor)] = _State()
        return found

    def place(self, node: Tensor, buffer: int) -> None:
        if node.held or node.base is not None:
            return
        state = self.state(node)
        if state.owned:
            return
        state.owned = True
        if node.op in IN_PLACE and self._over_a_source(node, state):
            return
        state.buffer, state.size = buffer, self.arenas[buffer].aligned(node)
        state.offset = self.arenas[buffer].take(state.size)

    def _over_a_source(self, node: Tensor, state: _State) -> bool:
        """Views are never written over: only what is itself allocated counts as a graph's own."""
        for source in node.src:
            other = self.states.get(id(source))
            if other is None or not other.owned or source.is_output or not node.same_layout(source):
                continue
            if other.children == 1 and other.views == 0:
                arena = self.arenas[other.buffer]
                state.buffer, state.offset, state.size = other.buffer, other.offset, arena.aligned(node)
                other.owned = False
                arena.give(other.offset + state.size, other.size - state.size)
                return True
        return False

    def free(self, node: Tensor) -> None:
        if node.is_output:
            return
        state = self.state(node)
        self.arenas[state.buffer].give(state.offset, state.size)
        state.owned = False

    def release(self, source: Tensor) -> None:
        """One that needed ``source`` has run."""
        state = self.state(source)
        state.children -= 1
        if state.children or state.views:
            return
        if source.base is not None:
            base = self.state(source.base)
            base.views -= 1
            if base.views == 0 and base.children == 0 and base.owned:
                self.free(source.base)
        elif state.owned:
            self.free(source)


def allocate(nodes: Sequence[Placed], leafs: Sequence[Placed], arenas: Sequence[Arena]) -> None:
    """Run the allocator over a graph; each arena then knows the most that it held (ggml_gallocr_alloc_graph_impl)."""
    own = _Allocation(arenas)
    for leaf, buffer in leafs:
        own.place(leaf, buffer)
    for node, buffer in nodes:
        if node.base is not None and node.op != "none":
            own.state(node.base).views += 1
        if node.is_input:
            own.place(node, buffer)
        for source in node.src:
            own.state(source).children += 1
            if source.is_input:
                own.place(source, buffer)
    for node, buffer in nodes:
        for source in node.src:
            own.place(source, buffer)
        own.place(node, buffer)
        for source in node.src:
            own.release(source)

"""ggml's graph allocator: how large the buffers of a graph become, without allocating them.

After ``ggml/src/ggml-alloc.c`` of llama.cpp 0.5 (ggml 0.25): best fit among freed blocks, results in the place of a
source that nobody else needs. Buffers of CUDA and of the host may have any size, so each is one chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from analytic.engines.llamacpp.tensors import Tensor, Use
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
    steps: list[int]
    """Everything that was decided by comparing sizes or offsets, in this arena and those beside it."""
    most: int = 0
    """The highest byte so far: what the buffer has to hold."""
    most_at: int = 0
    """The step at which it was reached."""
    taken: int = 0
    """All that was ever asked for, as if nothing had been freed."""
    _free: list[tuple[int, int]] = field(default_factory=list)
    """Offset and size, in order; what follows ``_end`` is free without limit."""
    _end: int = 0

    def aligned(self, tensor: Tensor) -> int:
        """Bytes of a tensor with what follows it up to the next."""
        return round_up(self.size_of(tensor), self.alignment)

    def take(self, size: int) -> int:
        """Where ``size`` bytes go: the smallest block that holds them, the last of equals."""
        self.taken += size
        best, least, fits = -1, 0, 1
        for index, (_, own) in enumerate(self._free):
            if own >= size:
                fits |= 2 << index
                if best < 0 or own <= least:
                    best, least = index, own
        self.steps += (fits, best)
        if best >= 0:
            offset = self._free[best][0]
            self.steps.append(least > size)
            if least > size:
                self._free[best] = (offset + size, least - size)
            else:
                del self._free[best]
            return offset
        offset = self._end
        self._end += size
        if self._end > self.most:
            self.most, self.most_at = self._end, len(self.steps)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Free a block, and join it with its neighbours."""
        if size == 0:
            self.steps.append(-1)
            return
        free = self._free
        index = len(free)
        while index and free[index - 1][0] > offset:
            index -= 1
        self.steps.append(index)
        if index < len(free) and offset + size == free[index][0]:
            self.steps.append(-2)
            size += free.pop(index)[1]
        if index and sum(free[index - 1]) == offset:
            self.steps.append(-3)
            offset, before = free.pop(index - 1)
            size += before
            index -= 1
        if offset + size == self._end:
            self.steps.append(-4)
            self._end = offset
        else:
            free.insert(index, (offset, size))


class _Allocation:
    """Of a graph; what lies elsewhere (`Tensor.held`), and views of it, have no part in it."""

    def __init__(self, arenas: Sequence[Arena]) -> None:
        self.arenas = arenas

    def place(self, node: Tensor, buffer: int) -> None:
        use = node.use
        if use is None or use.owned or node.base is not None:
            return
        use.owned = True
        if node.op in IN_PLACE and self._over_a_source(node, use):
            return
        arena = self.arenas[buffer]
        use.buffer, use.size = buffer, arena.aligned(node)
        use.offset = arena.take(use.size)

    def _over_a_source(self, node: Tensor, use: Use) -> bool:
        """Views are never written over: only what is itself allocated counts as a graph's own."""
        for source in node.src:
            other = source.use
            if other is None or not other.owned or other.children != 1 or other.views:
                continue
            if not source.is_output and node.same_layout(source):
                arena = self.arenas[other.buffer]
                arena.steps.append(-5)
                use.buffer, use.offset, use.size = other.buffer, other.offset, arena.aligned(node)
                other.owned = False
                arena.give(other.offset + use.size, other.size - use.size)
                return True
        return False

    def free(self, node: Tensor, use: Use) -> None:
        if not node.is_output:
            self.arenas[use.buffer].give(use.offset, use.size)
            use.owned = False

    def release(self, source: Tensor) -> None:
        """One that needed ``source`` has run."""
        use = source.use
        if use is None:
            return
        use.children -= 1
        if use.children or use.views:
            return
        if (base := source.base) is not None:
            of_base = base.use
            assert of_base is not None
            of_base.views -= 1
            if of_base.views == 0 and of_base.children == 0 and of_base.owned:
                self.free(base, of_base)
        elif use.owned:
            self.free(source, use)


def allocate(nodes: Sequence[Placed], leafs: Sequence[Placed], arenas: Sequence[Arena]) -> None:
    """Run the allocator over a graph; each arena then knows the most that it held (ggml_gallocr_alloc_graph_impl)."""
    own = _Allocation(arenas)
    for node, _ in (*leafs, *nodes):
        node.use = None if (node.base or node).held else Use()
    for leaf, buffer in leafs:
        own.place(leaf, buffer)
    for node, buffer in nodes:
        if node.base is not None and node.op != "none" and (use := node.base.use) is not None:
            use.views += 1
        if node.is_input:
            own.place(node, buffer)
        for source in node.src:
            if (use := source.use) is not None:
                use.children += 1
                if source.is_input:
                    own.place(source, buffer)
    for node, buffer in nodes:
        for source in node.src:
            own.place(source, buffer)
        own.place(node, buffer)
        for source in node.src:
            own.release(source)

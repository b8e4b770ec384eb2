"""Tensors and graphs as ggml builds them before it allocates: sizes, strides, sources; no data.

After ``ggml/src/ggml.c`` of llama.cpp 0.5 (ggml 0.25): the shapes of its operations, and the order of a graph's nodes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

from analytic.formats.ggml import BY_NAME, GgmlType

F32, F16, I32, I64 = (BY_NAME[name] for name in ("F32", "F16", "I32", "I64"))
STAND_IN = GgmlType(id=-1, name="any", block_elements=32, block_bytes=34)
"""For the types of weights that are multiplied alike and lie where no graph copies them from."""
HOST_STAND_IN = GgmlType(id=-2, name="any of the host", block_elements=256, block_bytes=54)
"""Likewise of those that only the host multiplies by."""
STAND_INS = (STAND_IN, HOST_STAND_IN)

Sizes = tuple[int, int, int, int]
"""Of the four dimensions, the innermost first: elements (``ne``), or bytes between neighbours (``nb``)."""

VIEWS = frozenset(("view", "reshape", "permute", "transpose"))
"""Operations that only look at their source (ggml_is_view_op)."""


@dataclass(slots=True, eq=False)
class Use:
    """Of one tensor, while its graph is allocated."""

    children: int = 0
    """Nodes to come that read it."""
    views: int = 0
    """Views of it that are still needed."""
    buffer: int = -1
    offset: int = 0
    size: int = 0
    owned: bool = False
    """Whether it has its block."""


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor of a graph; the scheduler replaces its sources by copies, so it is not frozen."""

    type: GgmlType
    ne: Sizes
    nb: Sizes
    op: str = "none"
    src: list["Tensor"] = field(default_factory=list)
    base: "Tensor | None" = None
    """Whose memory it is a view of (``view_src``), itself no view."""
    offset: int = 0
    """Bytes from the beginning of ``base``."""
    held: str = ""
    """Where it lies before any graph: weights and caches; empty for what the graph allocates."""
    is_weight: bool = False
    is_input: bool = False
    is_output: bool = False
    """Never freed."""
    pinned_layer: int | None = None
    """The layer with whose device it is forced to go (graph_get_cb)."""
    detail: str = ""
    """Which one of the unary or gated operations."""
    at: int = -1
    """The device that it is scheduled on."""
    use: "Use | None" = None
    """How it fares in the allocator."""

    @property
    def bytes(self) -> int:
        """From the first to the last element (ggml_nbytes)."""
        (ne, *others), (step, *steps) = self.ne, self.nb
        if 0 in self.ne:
            return 0
        elements = self.type.block_elements
        first = self.type.block_bytes + (ne - 1) * step if elements == 1 else ne * step // elements
        return first + (others[0] - 1) * steps[0] + (others[1] - 1) * steps[1] + (others[2] - 1) * steps[2]

    @property
    def elements(self) -> int:
        """All of them."""
        return prod(self.ne)

    @property
    def rows(self) -> int:
        """All but the innermost dimension."""
        return prod(self.ne[1:])

    @property
    def contiguous(self) -> bool:
        """Without gaps (dimensions of one element may have any stride)."""
        expected = self.type.block_bytes
        for dimension, (size, step) in enumerate(zip(self.ne, self.nb, strict=True)):
            if size != (self.type.block_elements if dimension == 0 else 1) and step != expected:
                return False
            expected = expected * size // (self.type.block_elements if dimension == 0 else 1)
        return True

    def row_bytes(self, elements: int) -> int:
        """Of so many elements of its type."""
        return elements // self.type.block_elements * self.type.block_bytes

    def same_layout(self, other: "Tensor") -> bool:
        """Whether one can take the other's place (ggml_are_same_layout)."""
        return self.type is other.type and self.ne == other.ne and self.nb == other.nb


def four(sizes: Iterable[int]) -> Sizes:
    """Filled up with ones."""
    one, two, three, four = (*sizes, 1, 1, 1)[:4]
    return one, two, three, four


def strides(kind: GgmlType, ne: Sizes) -> Sizes:
    """Bytes between neighbours in a tensor without gaps."""
    row = ne[0] // kind.block_elements * kind.block_bytes
    return kind.block_bytes, row, row * ne[1], row * ne[1] * ne[2]


def new(kind: GgmlType, *sizes: int, op: str = "none", src: Iterable[Tensor | None] = (), detail: str = "") -> Tensor:
    """A tensor without gaps, its absent sources left out."""
    ne = four(sizes)
    own = [one for one in src if one is not None]
    return Tensor(type=kind, ne=ne, nb=strides(kind, ne), op=op, src=own, detail=detail)


def graph_input(kind: GgmlType, *sizes: int) -> Tensor:
    """Written by the host before each run."""
    made = new(kind, *sizes)
    made.is_input = True
    return made


def held(kind: GgmlType, *sizes: int, place: str, is_weight: bool = False) -> Tensor:
    """A weight or a cache, allocated before any graph."""
    made = new(kind, *sizes)
    made.held, made.is_weight = place, is_weight
    return made


def _view(
    source: Tensor, ne: Sizes, nb: Sizes, *, op: str, offset: int = 0, src: Iterable[Tensor] | None = None
) -> Tensor:
    base = source.base or source
    own = [source] if src is None else list(src)
    return Tensor(type=source.type, ne=ne, nb=nb, op=op, src=own, base=base, offset=source.offset + offset)


def view(source: Tensor, sizes: Iterable[int], steps: Iterable[int] = (), offset: int = 0) -> Tensor:
    """Part of a tensor: sizes, the strides of all dimensions but the innermost, and bytes from its beginning."""
    ne = four(sizes)
    given = tuple(steps)
    nb = [source.type.block_bytes, *given]
    if len(nb) == 1:
        nb.append(ne[0] // source.type.block_elements * nb[0])
    while len(nb) < 4:
        nb.append(nb[-1] * ne[len(nb) - 1])
    return _view(source, ne, four(nb), op="view", offset=offset)


def reshape(source: Tensor, *sizes: int) -> Tensor:
    """The same elements in other dimensions."""
    ne = four(sizes)
    return _view(source, ne, strides(source.type, ne), op="reshape")


def permute(source: Tensor, *axes: int) -> Tensor:
    """Dimension ``i`` becomes dimension ``axes[i]``."""
    where = [axes.index(axis) for axis in range(4)]
    ne, nb = (four(sizes[axis] for axis in where) for sizes in (source.ne, source.nb))
    return _view(source, ne, nb, op="permute")


def transpose(source: Tensor) -> Tensor:
    """The first two dimensions exchanged."""
    made = permute(source, 1, 0, 2, 3)
    made.op = "transpose"
    return made


def like(op: str, source: Tensor, *others: Tensor | None, detail: str = "") -> Tensor:
    """An operation with a result of its first source's sizes: sums, norms, scales, rotations, softmax."""
    return new(source.type, *source.ne, op=op, src=(source, *others), detail=detail)


def into(op: str, target: Tensor, *sources: Tensor) -> Tensor:
    """An operation that writes into ``target``, a part of a cache, and is a view of it."""
    return _view(target, target.ne, target.nb, op=op, src=sources)


def mul_mat(weight: Tensor, columns: Tensor) -> Tensor:
    """A product: float32, a row for each row of the weight."""
    return new(F32, weight.ne[1], *columns.ne[1:], op="mul_mat", src=(weight, columns))


def mul_mat_id(weights: Tensor, columns: Tensor, chosen: Tensor) -> Tensor:
    """Products with the chosen experts of a stack."""
    return new(F32, weights.ne[1], chosen.ne[0], columns.ne[2], op="mul_mat_id", src=(weights, columns, chosen))


def get_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table: float32, but integers stay."""
    kind = I32 if table.type is I32 else F32
    return new(kind, table.ne[0], *index.ne[:3], op="get_rows", src=(table, index))


def set_rows(target: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Rows written into a cache."""
    return into("set_rows", target, rows, index, target)


def copied(source: Tensor, target: Tensor) -> Tensor:
    """``source`` written into ``target``."""
    return into("cpy", target, source, target)


def cont(source: Tensor, *sizes: int) -> Tensor:
    """A copy without gaps."""
    return new(source.type, *(sizes or source.ne), op="cont", src=(source,))


def concat(first: Tensor, second: Tensor) -> Tensor:
    """Side by side in the innermost dimension."""
    return new(first.type, first.ne[0] + second.ne[0], *first.ne[1:], op="concat", src=(first, second))


def repeat(source: Tensor, *sizes: int) -> Tensor:
    """Over and over up to the sizes."""
    return new(source.type, *sizes, op="repeat", src=(source,))


def glu(gate: Tensor, up: Tensor | None = None, *, detail: str = "swiglu") -> Tensor:
    """A gated activation of two tensors, or of the halves of one."""
    ne = gate.ne if up is not None else (gate.ne[0] // 2, *gate.ne[1:])
    return new(gate.type, *ne, op="glu", src=(gate, up), detail=detail)


def top_k(scores: Tensor, count: int) -> Tensor:
    """Indices of the greatest: all of them sorted, and the first looked at."""
    order = new(I32, *scores.ne, op="argsort", src=(scores,))
    return view(order, (count, *order.ne[1:]), order.nb[1:])


def sum_rows(source: Tensor) -> Tensor:
    """One sum a row."""
    return new(F32, 1, *source.ne[1:], op="sum_rows", src=(source,))


def flash_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, sinks: Tensor | None) -> Tensor:
    """Attention in one operation; heads come before tokens in its result."""
    ne = (value.ne[0], query.ne[2], query.ne[1], query.ne[3])
    return new(F32, *ne, op="flash_attn_ext", src=(query, key, value, mask, sinks))


def ssm_conv(window: Tensor, kernel: Tensor) -> Tensor:
    """A causal convolution: channels, tokens, sequences."""
    tokens = window.ne[0] - kernel.ne[0] + 1
    return new(F32, kernel.ne[1], tokens, window.ne[2], op="ssm_conv", src=(window, kernel))


def ssm_scan(state: Tensor, x: Tensor, *others: Tensor) -> Tensor:
    """Mamba's scan: outputs, then the last states, in one row; the last source names the sequences."""
    elements = x.elements + state.ne[0] * state.ne[1] * state.ne[2] * others[-1].ne[0]
    return new(F32, elements, op="ssm_scan", src=(state, x, *others))


def gated_delta_net(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """A gated delta rule: outputs, then the last states, in rows of all value heads."""
    width, rows = v.ne[0] * v.ne[1], v.ne[2] * v.ne[3] + v.ne[0] * v.ne[3]
    return new(F32, width, rows, op="gated_delta_net", src=(q, k, v, gate, beta, state))


@dataclass(slots=True)
class Graph:
    """Nodes in the order in which they run, and leaves (ggml_visit_parents_graph: sources first, each once)."""

    nodes: list[Tensor] = field(default_factory=list)
    leafs: list[Tensor] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    def expand(self, tensor: Tensor) -> Tensor:
        """Add a tensor and what it is made of."""
        stack = [(tensor, iter(tensor.src))]
        if id(tensor) in self._seen:
            return tensor
        self._seen.add(id(tensor))
        while stack:
            node, sources = stack[-1]
            for source in sources:
                if id(source) not in self._seen:
                    self._seen.add(id(source))
                    stack.append((source, iter(source.src)))
                    break
            else:
                (self.leafs if node.op == "none" else self.nodes).append(node)
                stack.pop()
        return tensor

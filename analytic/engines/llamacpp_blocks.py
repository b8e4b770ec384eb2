"""The pieces of llama.cpp's graphs: inputs, norms, attention over a cache, feed-forwards, experts.

After ``src/llama-graph.cpp`` and ``src/llama-kv-cache.cpp`` of llama.cpp 0.5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from analytic.engines import llamacpp_tensors as ops
from analytic.engines.llamacpp_tensors import F16, F32, I32, I64, Graph, Tensor
from analytic.formats.ggml import GgmlType


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One physical batch."""

    tokens: int
    sequences: int
    outputs: int
    """Tokens whose logits are wanted."""
    streams: int
    """Caches side by side, one for each slot that has cells of its own."""
    flash: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """Keys and values of one layer."""

    window: int | None
    """None where it holds every token."""
    cells: int
    """Of one stream."""
    place: str
    key_type: GgmlType
    value_type: GgmlType


@dataclass(slots=True)
class CacheInputs:
    """What all layers of one window read of the host."""

    key_index: Tensor
    value_index: Tensor
    mask: Tensor
    key_turn: Tensor | None
    value_turn: Tensor | None


@dataclass(slots=True)
class Builder:
    """A graph in the making, and what it is made of."""

    batch: Batch
    weights: Mapping[str, Tensor]
    """By name; of a tensor in several places, ``name@layer``."""
    graph: Graph = field(default_factory=Graph)
    inputs: dict[object, CacheInputs] = field(default_factory=dict)

    def weight(self, name: str, layer: int | None = None) -> Tensor | None:
        """Of a layer, or outside the layers; None where the file has none."""
        return self.weights.get(name if layer is None else f"blk.{layer}.{name}")

    def need(self, name: str, layer: int | None = None) -> Tensor:
        """One that is there."""
        found = self.weight(name, layer)
        assert found is not None, (name, layer)
        return found

    def mul(self, name: str, columns: Tensor, layer: int | None = None) -> Tensor:
        """A product with a weight, its scale and its bias."""
        module = name.removesuffix(".weight")
        product = ops.mul_mat(self.need(f"{module}.weight", layer), columns)
        for op, part in (("mul", "scale"), ("add", "bias")):
            if (side := self.weight(f"{module}.{part}", layer)) is not None:
                product = ops.like(op, product, side)
        return product

    def norm(self, source: Tensor, module: str, layer: int | None, *, kind: str = "rms_norm") -> Tensor:
        """Normalised, scaled and shifted by what the file has."""
        made = ops.like(kind, source)
        weight, bias = self.weight(f"{module}.weight", layer), self.weight(f"{module}.bias", layer)
        if weight is not None or bias is not None:
            made.pinned_layer = layer
        if weight is not None:
            made = ops.like("mul", made, weight)
        return made if bias is None else ops.like("add", made, bias)

    def embedded(self) -> Tensor:
        """Rows of the embedding; the input for embeddings from outside is there too, unused."""
        tokens = ops.graph_input(I32, self.batch.tokens)
        rows = self.graph.expand(ops.get_rows(self.need("token_embd.weight"), tokens))
        self.graph.expand(ops.graph_input(F32, *rows.ne))
        return rows

    def positions(self, per_token: int = 1) -> Tensor:
        """Of each token."""
        return ops.graph_input(I32, self.batch.tokens * per_token)

    def wanted(self) -> Tensor:
        """Which tokens' outputs are wanted."""
        return ops.graph_input(I32, self.batch.outputs)

    def rotated(self, source: Tensor, positions: Tensor | None, layer: int) -> Tensor:
        """By rotary positions, and by the factors that the file has."""
        if positions is None:
            return source
        return ops.like("rope", source, positions, self.weights.get(f"rope@{layer}"))

    # ---------------------------------------------------------------- attention

    def cache_inputs(self, cache: Cache, k: Tensor, v: Tensor, *, latent: bool, value_width: int) -> CacheInputs:
        """Made once for all layers of a window: indices, mask, and rotations of quantised caches."""
        known = self.inputs.get(cache.window)
        if known is None:
            batch = self.batch
            values = batch.tokens * (1 if batch.flash else value_width)
            mask = (cache.cells, batch.tokens // batch.streams, 1, batch.streams)
            known = self.inputs[cache.window] = CacheInputs(
                key_index=ops.graph_input(I64, batch.tokens),
                value_index=ops.graph_input(I64, values),
                mask=ops.graph_input(F16 if batch.flash else F32, *mask),
                key_turn=None if latent else _turn(cache.key_type, k.ne[0], largest=k.ne[0]),
                value_turn=None if latent else _turn(cache.value_type, v.ne[0], largest=64),
            )
        return known

    def attention(
        self,
        cache: Cache,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        value_width: int,
        latent: bool = False,
        up: Tensor | None = None,
        sinks: Tensor | None = None,
        key_first: bool = False,
        softcap: bool = False,
    ) -> Tensor:
        """Queries against the cache, after keys and values went into it (build_attn).

        Args:
            cache: of the layer.
            q, k, v: of the batch.
            value_width: elements of a token's values, the most of any layer.
            latent: values are the first elements of the keys, and have no cache.
            up: what makes heads' values of latent ones.
            sinks: of the layer.
            key_first: keys come before values in the graph, as where windows have caches of their own.
            softcap: scores go through a tanh.
        """
        batch, inputs = self.batch, self.cache_inputs(cache, k, v, latent=latent, value_width=value_width)
        if inputs.key_turn is not None:
            q, k = _turned(q, inputs.key_turn), _turned(k, inputs.key_turn)
        if inputs.value_turn is not None:
            v = _turned(v, inputs.value_turn)
        for one in (q, k, v) if key_first else (q, v, k):
            self.graph.expand(one)
        shape = cache.cells, batch.streams
        keys = ops.held(cache.key_type, k.ne[0] * k.ne[1], *shape, place=cache.place)
        self.graph.expand(self._write(keys, k, inputs.key_index))
        key = _cells(keys, k.ne[0], k.ne[1], cache.cells)
        if latent:
            value = ops.view(key, (v.ne[0], *key.ne[1:]), key.nb[1:])
        else:
            values = ops.held(cache.value_type, v.ne[0] * v.ne[1], *shape, place=cache.place)
            write = self._write if batch.flash else self._write_transposed
            self.graph.expand(write(values, v, inputs.value_index))
            value = (_cells if batch.flash else _transposed)(values, v.ne[0], v.ne[1], cache.cells)
        made = self._attend(q, key, value, inputs.mask, sinks, up, softcap)
        return made if inputs.value_turn is None else _turned(made, inputs.value_turn)

    def _write(self, whole: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        flat = ops.view(rows, (rows.ne[0] * rows.ne[1], rows.ne[2]), (rows.nb[2],))
        if self.batch.streams > 1:
            whole = ops.reshape(whole, whole.ne[0], whole.ne[1] * whole.ne[2])
        return ops.set_rows(whole, flat, index)

    def _write_transposed(self, whole: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        """Without flash attention values lie by element, so each is a row of its own."""
        width, tokens = rows.ne[0] * rows.ne[1], rows.ne[2]
        flat = (ops.reshape if rows.row_bytes(width) == rows.nb[2] else ops.cont)(rows, width, tokens)
        return ops.set_rows(ops.reshape(whole, 1, whole.elements), ops.reshape(flat, 1, flat.elements), index)

    def _attend(
        self,
        q: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        sinks: Tensor | None,
        up: Tensor | None,
        softcap: bool,
    ) -> Tensor:
        """build_attn_mha."""
        transposed = value.nb[1] > value.nb[2]
        streams = key.ne[3]
        tokens = q.ne[2] // streams
        q = ops.view(q, (q.ne[0], q.ne[1], tokens, streams), (q.nb[1], q.nb[2], q.nb[2] * tokens))
        q, key, value = (ops.permute(one, 0, 2, 1, 3) for one in (q, key, value))
        if self.batch.flash:
            made = ops.flash_attention(q, key, value, mask, sinks)
            if up is not None:
                made = ops.permute(ops.mul_mat(up, ops.permute(made, 0, 2, 1, 3)), 0, 2, 1, 3)
                made = ops.cont(made)
            return self.graph.expand(ops.reshape(made, made.ne[0] * made.ne[1], made.ne[2] * made.ne[3]))
        scores = ops.mul_mat(key, q)
        if softcap:
            scores = ops.like("scale", ops.like("unary", ops.like("scale", scores), detail="tanh"))
        scores = ops.like("soft_max", scores, mask, sinks)
        if not transposed:
            value = ops.cont(ops.transpose(value))
        made = ops.mul_mat(value, scores)
        if up is not None:
            made = ops.mul_mat(up, made)
        made = ops.permute(made, 0, 2, 1, 3)
        return self.graph.expand(ops.cont(made, made.ne[0] * made.ne[1], made.ne[2] * made.ne[3]))

    # ---------------------------------------------------------------- feed-forward

    def feed_forward(self, source: Tensor, layer: int, *, act: str, suffix: str = "") -> Tensor:
        """build_ffn: up, gate where the file has one, the activation, down."""
        up = self.mul(f"ffn_up{suffix}", source, layer)
        gated = self.weight(f"ffn_gate{suffix}.weight", layer) is not None
        return self.mul(f"ffn_down{suffix}", self._activated(up, source, layer, act, suffix, gated), layer)

    def _activated(self, up: Tensor, source: Tensor, layer: int, act: str, suffix: str, gated: bool) -> Tensor:
        if gated:
            return ops.glu(self.mul(f"ffn_gate{suffix}", source, layer), up, detail=act)
        if act == "halves":
            return ops.glu(up)
        made = ops.like("unary", up, detail=act)
        return ops.like("sqr", made) if act == "relu_sqr" else made

    def experts(
        self,
        source: Tensor,
        layer: int,
        *,
        used: int,
        gating: str,
        normed: bool,
        scaled: bool,
        groups: int = 1,
        used_groups: int = 1,
        act: str = "swiglu",
        logits: Tensor | None = None,
        weigh_first: bool = False,
    ) -> Tensor:
        """build_moe_ffn: route, run the chosen experts of each token, weigh and add up."""
        width, tokens = source.ne[0], source.ne[1]
        scores = self.mul("ffn_gate_inp", source, layer) if logits is None else logits
        probabilities = _gated(scores, gating)
        selection = probabilities
        if (correction := self.weight("exp_probs_b.bias", layer)) is not None:
            selection = ops.like("add", selection, correction)
        if weigh_first:
            selection = scores
        if groups > 1:
            selection = _within_groups(selection, groups, used_groups)
        chosen = ops.top_k(selection, used)
        weights = ops.get_rows(ops.reshape(probabilities, 1, scores.ne[0], tokens), chosen)
        if gating == "softmax_weight":
            weights = ops.like("soft_max", ops.reshape(weights, used, tokens))
            weights = ops.reshape(weights, 1, used, tokens)
        if normed:
            flat = ops.reshape(weights, used, tokens)
            flat = ops.like("div", flat, ops.like("clamp", ops.sum_rows(flat)))
            weights = ops.reshape(flat, 1, used, tokens)
        if scaled:
            weights = ops.like("scale", weights)
        self.graph.expand(weights)
        columns = ops.reshape(source, width, 1, tokens)
        if weigh_first:
            columns = ops.like("mul", ops.repeat(columns, width, used, tokens), weights)
        made = self._mul_id("ffn_down_exps", self._experts_inner(columns, chosen, layer, act), chosen, layer)
        if not weigh_first:
            made = ops.like("mul", made, weights)
        return self._summed(made, used)

    def _experts_inner(self, columns: Tensor, chosen: Tensor, layer: int, act: str) -> Tensor:
        if self.weight("ffn_gate_up_exps.weight", layer) is not None:
            both = self._mul_id("ffn_gate_up_exps", columns, chosen, layer)
            half = both.ne[0] // 2
            sizes = (half, *both.ne[1:3])
            gate = ops.view(both, sizes, both.nb[1:3])
            return ops.glu(gate, ops.view(both, sizes, both.nb[1:3], half * both.nb[0]), detail=act)
        up = self._mul_id("ffn_up_exps", columns, chosen, layer)
        if self.weight("ffn_gate_exps.weight", layer) is not None:
            return ops.glu(self._mul_id("ffn_gate_exps", columns, chosen, layer), up, detail=act)
        made = ops.like("unary", up, detail=act)
        return ops.like("sqr", made) if act == "relu_sqr" else made

    def _mul_id(self, module: str, columns: Tensor, chosen: Tensor, layer: int) -> Tensor:
        made = ops.mul_mat_id(self.need(f"{module}.weight", layer), columns, chosen)
        if (scale := self.weight(f"{module}.scale", layer)) is not None:
            count = scale.ne[0]
            scales = ops.repeat(ops.reshape(scale, 1, count, 1), 1, count, columns.ne[2])
            made = ops.like("mul", made, ops.get_rows(scales, chosen))
        if (bias := self.weight(f"{module}.bias", layer)) is not None:
            made = ops.like("add_id", made, bias, chosen)
        return made

    def _summed(self, made: Tensor, used: int) -> Tensor:
        self.graph.expand(made)
        width, tokens = made.ne[0], made.ne[2]
        parts = [ops.view(made, (width, tokens), (made.nb[2],), index * made.nb[1]) for index in range(used)]
        for part in parts:
            self.graph.expand(part)
        total = parts[0]
        for part in parts[1:]:
            total = self.graph.expand(ops.like("add", total, part))
        return ops.cont(total) if used == 1 else total

    def rows(self, index: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
        """Only the tokens whose outputs are wanted."""
        return tuple(ops.get_rows(source, index) for source in sources)

    def logits(self, source: Tensor, *, softcap: bool, scaled: bool) -> None:
        """The head, and what is done to its results."""
        made = self.mul("output", source)
        if scaled:
            made = ops.like("scale", made)
        if softcap:
            made = ops.like("scale", ops.like("unary", ops.like("scale", made), detail="tanh"))
        self.graph.expand(made)


def _cells(cache: Tensor, size: int, heads: int, cells: int) -> Tensor:
    row, whole = cache.row_bytes(size), cache.row_bytes(cache.ne[0])
    return ops.view(cache, (size, heads, cells, cache.ne[2]), (row, whole, whole * cells))


def _transposed(cache: Tensor, size: int, heads: int, cells: int) -> Tensor:
    step = cache.row_bytes(cells)
    return ops.view(cache, (cells, heads, size, cache.ne[2]), (step * size, step, step * cache.ne[0]))


def _turn(kind: GgmlType, size: int, *, largest: int) -> Tensor | None:
    """A Hadamard matrix that evens quantised caches out; none where heads are no multiples of 64."""
    if kind.block_elements == 1 or size % 64:
        return None
    side = 64
    while side < largest and size % (side * 2) == 0:
        side *= 2
    return ops.graph_input(F32, side, side)


def _turned(source: Tensor, turn: Tensor) -> Tensor:
    side = turn.ne[0]
    flat = (ops.reshape if source.contiguous else ops.cont)(source, side, source.elements // side)
    return ops.reshape(ops.mul_mat(turn, flat), *source.ne)


_GATES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: ops.like("soft_max", scores),
    "sigmoid": lambda scores: ops.like("unary", scores, detail="sigmoid"),
    "softmax_weight": lambda scores: scores,
}


def _gated(scores: Tensor, gating: str) -> Tensor:
    return _GATES[gating](scores)


def _within_groups(selection: Tensor, groups: int, used: int) -> Tensor:
    """Scores outside the best groups of experts masked."""
    experts, tokens = selection.ne[0], selection.ne[1]
    size = experts // groups
    grouped = ops.reshape(selection, size, groups, tokens)
    best = ops.get_rows(ops.reshape(grouped, 1, size, groups, tokens), ops.top_k(grouped, 2))
    sums = ops.sum_rows(ops.reshape(best, best.ne[1], best.ne[2], best.ne[3]))
    order = ops.top_k(ops.reshape(sums, sums.ne[1], sums.ne[2]), used)
    inside = ops.get_rows(grouped, order)
    masked = ops.set_rows(ops.like("fill", grouped), inside, order)
    return ops.reshape(masked, experts, tokens)

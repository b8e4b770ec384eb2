"""The pieces of llama.cpp's graphs: inputs, norms, products with weights, feed-forwards, experts.

After ``src/llama-graph.cpp`` of llama.cpp 0.5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from analytic.engines.llamacpp import tensors as ops
from analytic.engines.llamacpp.tensors import F32, I32, I64, Graph, Tensor
from analytic.errors import UllageError


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
    mixed: bool
    """Whether tokens and embeddings from outside may come in one batch, as since 0.6."""


@dataclass(slots=True)
class Builder:
    """A graph in the making, and what it is made of."""

    batch: Batch
    weights: Mapping[str, Tensor]
    """By name; of a tensor in several places, ``name@layer``."""
    graph: Graph = field(default_factory=Graph)

    def weight(self, name: str, layer: int | None = None) -> Tensor | None:
        """Of a layer, or outside the layers; None where the file has none."""
        return self.weights.get(name if layer is None else f"blk.{layer}.{name}")

    def need(self, name: str, layer: int | None = None) -> Tensor:
        """One that is there."""
        found = self.weight(name, layer)
        if found is None:
            where = "" if layer is None else f"blk.{layer}."
            raise UllageError(f"the file has no {where}{name}, which llama.cpp's graph needs", hint="convert it again")
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
        """Rows of the embedding; the inputs for embeddings from outside are there too, unused."""
        tokens = ops.graph_input(I32, self.batch.tokens)
        rows = self.graph.expand(ops.get_rows(self.need("token_embd.weight"), tokens))
        self.graph.expand(ops.graph_input(F32, *rows.ne))
        if self.batch.mixed:
            others = ops.get_rows(self.need("token_embd.weight"), ops.graph_input(I32, self.batch.tokens))
            given = ops.like("dup", ops.graph_input(F32, *rows.ne))
            self.graph.expand(ops.set_rows(given, others, ops.graph_input(I64, self.batch.tokens)))
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

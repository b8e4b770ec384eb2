"""Attention over a cache in llama.cpp's graphs.

After ``build_attn`` and ``build_attn_mha`` of ``src/llama-graph.cpp``, and ``src/llama-kv-cache.cpp`` (llama.cpp 0.5).
"""

from dataclasses import dataclass, field

from analytic.engines.llamacpp import tensors as ops
from analytic.engines.llamacpp.blocks import Builder
from analytic.engines.llamacpp.tensors import F16, F32, I64, Tensor
from analytic.formats.ggml import GgmlType


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
class Attentions:
    """The attention layers of one graph."""

    builder: Builder
    _inputs: dict[int | None, CacheInputs] = field(default_factory=dict)
    """By window."""

    def _shared(self, cache: Cache, k: Tensor, v: Tensor, *, latent: bool, value_width: int) -> CacheInputs:
        """Made once for all layers of a window: indices, mask, and rotations of quantised caches."""
        known = self._inputs.get(cache.window)
        if known is None:
            batch = self.builder.batch
            values = batch.tokens * (1 if batch.flash else value_width)
            mask = (cache.cells, batch.tokens // batch.streams, 1, batch.streams)
            known = self._inputs[cache.window] = CacheInputs(
                key_index=ops.graph_input(I64, batch.tokens),
                value_index=ops.graph_input(I64, values),
                mask=ops.graph_input(F16 if batch.flash else F32, *mask),
                key_turn=None if latent else _turn(cache.key_type, k.ne[0], largest=k.ne[0]),
                value_turn=None if latent else _turn(cache.value_type, v.ne[0], largest=64),
            )
        return known

    def attend(
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
        batch, inputs = self.builder.batch, self._shared(cache, k, v, latent=latent, value_width=value_width)
        if inputs.key_turn is not None:
            q, k = _turned(q, inputs.key_turn), _turned(k, inputs.key_turn)
        if inputs.value_turn is not None:
            v = _turned(v, inputs.value_turn)
        for one in (q, k, v) if key_first else (q, v, k):
            self.builder.graph.expand(one)
        shape = cache.cells, batch.streams
        keys = ops.held(cache.key_type, k.ne[0] * k.ne[1], *shape, place=cache.place)
        self.builder.graph.expand(self._write(keys, k, inputs.key_index))
        key = _cells(keys, k.ne[0], k.ne[1], cache.cells)
        if latent:
            value = ops.view(key, (v.ne[0], *key.ne[1:]), key.nb[1:])
        else:
            values = ops.held(cache.value_type, v.ne[0] * v.ne[1], *shape, place=cache.place)
            write = self._write if batch.flash else self._write_transposed
            self.builder.graph.expand(write(values, v, inputs.value_index))
            value = (_cells if batch.flash else _transposed)(values, v.ne[0], v.ne[1], cache.cells)
        made = self._scores(q, key, value, inputs.mask, sinks, up, softcap)
        return made if inputs.value_turn is None else _turned(made, inputs.value_turn)

    def _write(self, whole: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        flat = ops.view(rows, (rows.ne[0] * rows.ne[1], rows.ne[2]), (rows.nb[2],))
        if self.builder.batch.streams > 1:
            whole = ops.reshape(whole, whole.ne[0], whole.ne[1] * whole.ne[2])
        return ops.set_rows(whole, flat, index)

    def _write_transposed(self, whole: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        """Without flash attention values lie by element, so each is a row of its own."""
        width, tokens = rows.ne[0] * rows.ne[1], rows.ne[2]
        flat = (ops.reshape if rows.row_bytes(width) == rows.nb[2] else ops.cont)(rows, width, tokens)
        return ops.set_rows(ops.reshape(whole, 1, whole.elements), ops.reshape(flat, 1, flat.elements), index)

    def _scores(
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
        if self.builder.batch.flash:
            made = ops.flash_attention(q, key, value, mask, sinks)
            if up is not None:
                made = ops.permute(ops.mul_mat(up, ops.permute(made, 0, 2, 1, 3)), 0, 2, 1, 3)
                made = ops.cont(made)
            return self.builder.graph.expand(ops.reshape(made, made.ne[0] * made.ne[1], made.ne[2] * made.ne[3]))
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
        return self.builder.graph.expand(ops.cont(made, made.ne[0] * made.ne[1], made.ne[2] * made.ne[3]))


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

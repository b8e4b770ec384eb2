"""Recurrent mixers in llama.cpp's graphs: Mamba, Mamba 2, gated delta nets, short convolutions.

After ``src/models/mamba-base.cpp``, ``delta-net-base.cpp``, ``qwen3next.cpp``, ``qwen35.cpp`` of llama.cpp 0.5.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from analytic.engines.llamacpp import tensors as ops
from analytic.engines.llamacpp.blocks import Builder
from analytic.engines.llamacpp.tensors import F32, I32, Tensor

_Rows = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Sizes of a layer's mixer."""

    place: str
    """Where its states lie."""
    inner: int
    """Width of its own stream."""
    heads: int
    """Of values."""
    state: int
    """Size of one head's state."""
    groups: int
    """Of keys."""
    kernel: int
    """Tokens of the convolution."""
    channels: int
    """Of the convolution."""


@dataclass(slots=True)
class Recurrences:
    """The recurrent layers of one graph."""

    builder: Builder
    _inputs: list[Tensor] = field(default_factory=list)

    @property
    def _each(self) -> tuple[int, int]:
        """Tokens of a sequence, and sequences."""
        batch = self.builder.batch
        return batch.tokens // batch.sequences, batch.sequences

    def _state(self, all_states: Tensor, rows: _Rows = ops.get_rows) -> Tensor:
        """build_rs: the states of the batch's sequences; one is cleared, and others are copied where slots moved."""
        graph, (_, sequences) = self.builder.graph, self._each
        if not self._inputs:
            index = ops.graph_input(I32, sequences)
            self._inputs[:] = [ops.view(index, (sequences,)), ops.view(index, (0,), offset=index.bytes)]
        main, extra = self._inputs
        width = all_states.ne[0]
        states = ops.reshape(all_states, width, all_states.ne[1])
        graph.expand(ops.into("scale", (first := ops.view(states, (width,))), first))
        made = graph.expand(rows(states, main))
        rest = ops.view(all_states, (width, 0), (all_states.nb[1],), all_states.bytes)
        graph.expand(ops.copied(ops.get_rows(states, extra), rest))
        return made

    def _held(self, width: int, place: str) -> Tensor:
        return ops.held(F32, width, self.builder.batch.sequences, place=place)

    def _window(self, states: States, tokens: Tensor) -> Tensor:
        """What the convolution runs over: the tokens before, then the batch; the last ones are stored."""
        each, sequences = self._each
        before = states.kernel - 1
        whole = self._held(before * states.channels, states.place)
        own = ops.reshape(self._state(whole), before, states.channels, sequences)
        window = ops.concat(own, ops.transpose(tokens))
        last = ops.view(window, (before, states.channels, sequences), window.nb[1:3], each * window.nb[0])
        target = ops.view(whole, (before * states.channels, sequences), (whole.nb[1],))
        self.builder.graph.expand(ops.copied(last, target))
        return window

    def _convolved(self, states: States, tokens: Tensor, layer: int) -> Tensor:
        made = ops.ssm_conv(self._window(states, tokens), self.builder.need("ssm_conv1d.weight", layer))
        if (bias := self.builder.weight("ssm_conv1d.bias", layer)) is not None:
            made = ops.like("add", made, bias)
        return ops.like("unary", made, detail="silu")

    def _scanned(self, states: States, shape: tuple[int, int, int], x: Tensor, *others: Tensor) -> Tensor:
        width = shape[0] * shape[1] * shape[2]
        whole = self._held(width, states.place)

        def rows(all_states: Tensor, index: Tensor) -> Tensor:
            return ops.ssm_scan(ops.reshape(all_states, *shape, all_states.ne[1]), x, *others, index)

        made = self._state(whole, rows)
        count = self.builder.batch.sequences
        last = ops.view(made, (width * count,), offset=x.bytes)
        self.builder.graph.expand(ops.copied(last, ops.view(whole, (width * count,))))
        return made

    def mamba(self, source: Tensor, states: States, layer: int) -> Tensor:
        """build_mamba_layer: a state for each channel."""
        build, (each, sequences) = self.builder, self._each
        inner, size, rank = states.inner, states.state, states.heads
        both = build.mul("ssm_in", ops.reshape(source, source.ne[0], each, sequences), layer)
        x, z = (ops.view(both, (inner, each, sequences), both.nb[1:3], half * inner * 4) for half in (0, 1))
        x = self._convolved(states, x, layer)
        parts = build.mul("ssm_x", x, layer)
        dt = ops.view(parts, (rank, each, sequences), parts.nb[1:3])
        keys, values = (
            ops.view(parts, (size, 1, each, sequences), (size * 4, *parts.nb[1:3]), (rank + own * size) * 4)
            for own in (0, 1)
        )
        if build.weight("ssm_dt_norm.weight", layer) is not None:
            dt, keys, values = (
                build.norm(one, f"ssm_{name}_norm", layer) for one, name in ((dt, "dt"), (keys, "b"), (values, "c"))
            )
        else:
            dt = ops.cont(dt)
        dt = build.mul("ssm_dt", dt, layer)
        heads = ops.reshape(x, 1, inner, each, sequences)
        made = self._scanned(states, (size, 1, inner), heads, dt, build.need("ssm_a", layer), keys, values)
        y = ops.view(made, (inner, each, sequences), heads.nb[2:4])
        y = ops.like("add", y, ops.like("mul", x, build.need("ssm_d", layer)))
        made = build.mul("ssm_out", ops.glu(ops.cont(z), y), layer)
        return ops.reshape(made, made.ne[0], each * sequences)

    def mamba2(self, source: Tensor, states: States, layer: int) -> Tensor:
        """build_mamba2_layer: a state for each head."""
        build, (each, sequences) = self.builder, self._each
        inner, size, groups, heads = states.inner, states.state, states.groups, states.heads
        width = inner // heads
        whole = build.mul("ssm_in", source, layer)
        whole = ops.reshape(whole, whole.ne[0], each, sequences)
        z = ops.view(whole, (width, heads, each, sequences), (width * 4, *whole.nb[1:3]))
        mixed = ops.view(whole, (states.channels, each, sequences), whole.nb[1:3], inner * 4)
        dt = ops.view(whole, (heads, each, sequences), whole.nb[1:3], (inner + states.channels) * 4)
        mixed = self._convolved(states, mixed, layer)
        x = ops.view(mixed, (width, heads, each, sequences), (width * 4, *mixed.nb[1:3]))
        keys, values = (
            ops.view(
                mixed, (size, groups, each, sequences), (size * 4, *mixed.nb[1:3]), (inner + own * groups * size) * 4
            )
            for own in (0, 1)
        )
        dt = ops.like("add", ops.cont(dt), build.need("ssm_dt.bias", layer))
        made = self._scanned(states, (size, width, heads), x, dt, build.need("ssm_a", layer), keys, values)
        steps = (x.nb[1], heads * x.nb[1], each * heads * x.nb[1])
        y = ops.view(made, (width, heads, each, sequences), steps)
        y = ops.like("add", y, ops.like("mul", x, build.need("ssm_d", layer)))
        y = ops.glu(ops.cont(z), y)
        if build.weight("ssm_norm.weight", layer) is not None:
            y = build.norm(ops.reshape(y, inner // groups, groups, each, sequences), "ssm_norm", layer)
        return build.mul("ssm_out", ops.reshape(y, inner, each * sequences), layer)

    def short_convolution(self, source: Tensor, states: States, layer: int) -> Tensor:
        """LFM2's: gated before and after (src/models/lfm2.cpp)."""
        build, (each, sequences) = self.builder, self._each
        parts = build.mul("shortconv.in_proj", ops.reshape(source, source.ne[0], each, sequences), layer)
        width = parts.ne[0] // 3
        b, c, x = (
            ops.view(parts, (width, each, sequences), parts.nb[1:3], own * width * parts.nb[0]) for own in range(3)
        )
        window = self._window(states, ops.like("mul", b, x))
        made = ops.like("mul", c, ops.ssm_conv(window, build.need("shortconv.conv.weight", layer)))
        made = build.mul("shortconv.out_proj", made, layer)
        return ops.reshape(made, made.ne[0], each * sequences)

    def delta_net(self, source: Tensor, states: States, layer: int, *, repeats: bool) -> Tensor:
        """A gated delta net; ``repeats`` where keys are first repeated up to the number of value heads."""
        build, (each, sequences) = self.builder, self._each
        size, groups, heads = states.state, states.groups, states.heads
        width = states.inner // heads
        mixed = build.mul("attn_qkv", source, layer)
        mixed = ops.reshape(mixed, mixed.ne[0], each, sequences)
        z = build.mul("attn_gate", source, layer)
        beta, alpha = self._rates(source, states, layer)
        alpha = ops.like("unary", ops.like("add", alpha, build.need("ssm_dt.bias", layer)), detail="softplus")
        gate = ops.like("mul", alpha, build.need("ssm_a", layer))
        gate = ops.reshape(gate, 1, heads, each, sequences)
        window = self._window(states, mixed)
        whole = self._held(width * width * heads, states.place)
        state = ops.reshape(self._state(whole), width, width, heads, sequences)
        made = ops.ssm_conv(window, build.need("ssm_conv1d.weight", layer))
        made = ops.like("unary", made, detail="silu")
        row = made.row_bytes(states.channels)
        q, k = (
            ops.view(made, (size, groups, each, sequences), (size * 4, row, row * each), own * size * groups * 4)
            for own in (0, 1)
        )
        v = ops.view(made, (width, heads, each, sequences), (width * 4, row, row * each), 2 * size * groups * 4)
        q, k = (ops.like("scale", ops.like("rms_norm", one)) for one in (q, k))
        if repeats and groups != heads:
            q, k = (_repeated(one, heads // groups) for one in (q, k))
        made = ops.gated_delta_net(q, k, v, gate, beta, state)
        row = made.row_bytes(width)
        output = ops.view(made, (width, heads, each, sequences), (row, row * heads, row * heads * each))
        steps = (row, row * width, row * width * heads)
        last = ops.view(made, (width, width, heads, sequences), steps, row * heads * each * sequences)
        target = ops.view(whole, (whole.ne[0], sequences), (whole.nb[1],))
        build.graph.expand(ops.copied(last, target))
        z = ops.like("unary", ops.reshape(z, width, heads, each, sequences), detail="silu")
        made = ops.like("mul", build.norm(output, "ssm_norm", layer), z)
        made = build.mul("ssm_out", ops.reshape(made, width * heads, each, sequences), layer)
        return ops.reshape(made, made.ne[0], each * sequences)

    def _rates(self, source: Tensor, states: States, layer: int) -> tuple[Tensor, Tensor]:
        """How much is written (beta), and what the decay follows from (alpha)."""
        build, (each, sequences) = self.builder, self._each
        heads = states.heads
        if build.weight("ssm_ba.weight", layer) is None:
            beta = ops.reshape(build.mul("ssm_beta", source, layer), 1, heads, each, sequences)
            alpha = build.mul("ssm_alpha", source, layer)
            return ops.like("unary", beta, detail="sigmoid"), ops.reshape(alpha, heads, each, sequences)
        both = build.mul("ssm_ba", source, layer)
        ratio = heads // states.groups
        both = ops.reshape(both, 2 * ratio, states.groups, each, sequences)
        beta, alpha = (
            ops.view(both, (ratio, states.groups, each, sequences), both.nb[1:], own * ratio * 4) for own in (0, 1)
        )
        beta = ops.like("unary", ops.cont(beta), detail="sigmoid")
        return ops.reshape(beta, 1, heads, each, sequences), ops.cont(alpha, heads, each, sequences)


def _repeated(source: Tensor, times: int) -> Tensor:
    size, groups, each, sequences = source.ne
    made = ops.repeat(ops.reshape(source, size, 1, groups, each * sequences), size, times, groups, each * sequences)
    return ops.reshape(made, size, groups * times, each, sequences)

"""llama.cpp's graphs of whole models: how each architecture puts the pieces together.

After ``src/models/*.cpp`` of llama.cpp 0.5. Sizes, biases and optional norms follow from the file's tensors; what a
tensor cannot say is a row of `analytic.engines.llamacpp.recipes.RECIPES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from analytic.engines.llamacpp import tensors as ops
from analytic.engines.llamacpp.attention import Attentions, Cache
from analytic.engines.llamacpp.blocks import Builder
from analytic.engines.llamacpp.recipes import Recipe, Routing
from analytic.engines.llamacpp.recurrent import Recurrences, States
from analytic.engines.llamacpp.tensors import F32, Tensor
from analytic.models.geometry import Attention, Geometry, LatentAttention, Layer, MixtureOfExperts, Recurrent


@dataclass(slots=True, kw_only=True)
class ModelGraph:
    """A model's graph for one batch."""

    recipe: Recipe
    geometry: Geometry
    routing: Routing
    builder: Builder
    caches: Mapping[int, Cache]
    """By layer."""
    states: Mapping[int, States]
    """By layer."""
    attentions: Attentions
    recurrences: Recurrences
    value_width: int
    """Elements of a token's values, the most of any layer."""
    positions: Tensor
    wanted: Tensor
    attention_scale: Tensor | None = None

    def build(self) -> None:
        """All of it, into the builder's graph."""
        build, recipe = self.builder, self.recipe
        stream = build.embedded()
        if recipe.scales_embedding:
            stream = build.graph.expand(ops.like("scale", stream))
        if (table := build.weight("position_embd.weight")) is not None:
            stream = ops.like("add", stream, ops.get_rows(table, self.positions))
        if build.weight("token_embd_norm.weight") is not None and recipe.norm == "norm":
            stream = build.norm(stream, "token_embd_norm", 0, kind=recipe.norm)
        flow = _FLOWS[recipe.flow]
        for index, layer in enumerate(self.geometry.layers):
            stream = flow(self, index, layer, stream)
        if recipe.rows == "before norm":
            stream.is_output = True
            (stream,) = build.rows(self.wanted, stream)
        name = "token_embd_norm" if build.weight("output_norm.weight") is None else "output_norm"
        made = build.norm(stream, name, None, kind=recipe.norm)
        if recipe.rows == "after norm":
            made.is_output = True
            (made,) = build.rows(self.wanted, made)
        build.logits(made, softcap=recipe.softcap, scaled=recipe.scales_logits)

    def is_last(self, index: int) -> bool:
        """Whether only the wanted tokens go on from the mixer of this layer."""
        return index == len(self.geometry.layers) - 1 and self.recipe.rows == "last layer"

    def norm(self, source: Tensor, module: str, layer: int | None) -> Tensor:
        """With the architecture's kind."""
        return self.builder.norm(source, module, layer, kind=self.recipe.norm)

    # ---------------------------------------------------------------- mixers

    def mixed(self, index: int, mixer: Attention | LatentAttention | Recurrent, source: Tensor) -> Tensor:
        """What the token mixer of a layer makes."""
        if isinstance(mixer, Recurrent):
            return self._recurrent(index, mixer, source)
        if isinstance(mixer, LatentAttention):
            return self._latent(index, mixer, source)
        return self._attention(index, mixer, source)

    def _recurrent(self, index: int, mixer: Recurrent, source: Tensor) -> Tensor:
        states, own = self.states[index], self.recurrences
        if mixer.kind == "gated_delta_net":
            return own.delta_net(source, states, index, repeats=self.recipe.repeats_keys)
        kinds = {"mamba": own.mamba, "mamba2": own.mamba2, "short_conv": own.short_convolution}
        return kinds[mixer.kind](source, states, index)

    def _queries(self, index: int, mixer: Attention, source: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values by head, and the gate that comes with the queries."""
        build, tokens = self.builder, source.ne[1]
        heads = ((mixer.heads, mixer.head_dim), (mixer.kv_heads, mixer.head_dim), (mixer.kv_heads, mixer.v_head_dim))
        if build.weight("attn_qkv.weight", index) is not None:
            whole = build.mul("attn_qkv", source, index)
            made, offset = [], 0
            for count, size in heads:
                made.append(ops.view(whole, (size, count, tokens), (size * 4, whole.nb[1]), offset))
                offset += count * size * 4
            return made[0], made[1], made[2], None
        flat = [build.mul(name, source, index) for name in ("attn_q", "attn_k", "attn_v")]
        gate = None
        if self.recipe.gated_attention:
            (count, size), both = heads[0], flat[0]
            steps = (size * 2 * 4, size * 2 * 4 * count)
            gate = ops.view(both, (size, count, tokens), steps, size * 4)
            flat[0] = ops.view(both, (size, count, tokens), steps)
        if self.recipe.whole_heads_norm:
            flat[:2] = (
                build.norm(one, name, index) for one, name in zip(flat, ("attn_q_norm", "attn_k_norm"), strict=False)
            )
        q, k, v = (
            one if one.base is not None else ops.reshape(one, size, count, tokens)
            for one, (count, size) in zip(flat, heads, strict=True)
        )
        return q, k, v, gate

    def _attention(self, index: int, mixer: Attention, source: Tensor) -> Tensor:
        build, recipe = self.builder, self.recipe
        q, k, v, gate = self._queries(index, mixer, source)
        if not recipe.whole_heads_norm and build.weight("attn_q_norm.weight", index) is not None:
            q, k = self.norm(q, "attn_q_norm", index), self.norm(k, "attn_k_norm", index)
        if mixer.rotary:
            q, k = (build.rotated(one, self.positions, index) for one in (q, k))
        elif self.attention_scale is not None:
            q = ops.like("mul", q, self.attention_scale)
        if recipe.scales_query:
            q = ops.like("scale", q)
        made = self.attentions.attend(
            self.caches[index],
            q,
            k,
            v,
            value_width=self.value_width,
            sinks=build.weight("attn_sinks.weight", index),
            key_first=any(cache.window is not None for cache in self.caches.values()),
            softcap=recipe.score_softcap,
        )
        if gate is not None:
            made = ops.like("mul", made, ops.like("unary", ops.cont(gate, made.ne[0], made.ne[1]), detail="sigmoid"))
        return build.mul("attn_output", made, index)

    def _latent(self, index: int, mixer: LatentAttention, source: Tensor) -> Tensor:
        """Multi-head latent attention with its up-projections moved into queries and results."""
        build, tokens = self.builder, source.ne[1]
        if build.weight("attn_q.weight", index) is None:
            narrow = build.norm(build.mul("attn_q_a", source, index), "attn_q_a_norm", index)
            q = build.mul("attn_q_b", narrow, index)
        else:
            q = build.mul("attn_q", source, index)
        rope, nope, rank = mixer.qk_rope_head_dim, mixer.qk_nope_head_dim, mixer.kv_lora_rank
        q = ops.reshape(q, nope + rope, mixer.heads, tokens)
        both = build.mul("attn_kv_a_mqa", source, index)
        step = (rank + rope) * 4
        latent = ops.view(both, (rank, tokens), (step,))
        turned = build.rotated(ops.view(both, (rope, 1, tokens), (step, step), rank * 4), self.positions, index)
        latent = build.norm(latent, "attn_kv_a_norm", index)
        own = ops.view(q, (nope, mixer.heads, tokens), q.nb[1:3])
        query = build.rotated(ops.view(q, (rope, mixer.heads, tokens), q.nb[1:3], nope * 4), self.positions, index)
        absorbed = ops.mul_mat(build.need("attn_k_b.weight", index), ops.permute(own, 0, 2, 1, 3))
        query = ops.concat(ops.permute(absorbed, 0, 2, 1, 3), query)
        latent = ops.reshape(latent, rank, 1, tokens)
        made = self.attentions.attend(
            self.caches[index],
            query,
            ops.concat(latent, turned),
            latent,
            value_width=0,
            latent=True,
            up=build.need("attn_v_b.weight", index),
        )
        return build.mul("attn_output", made, index)

    # ---------------------------------------------------------------- feed-forward

    def fed(self, index: int, layer: Layer, source: Tensor) -> Tensor:
        """What the feed-forward of a layer makes."""
        build, recipe = self.builder, self.recipe
        if build.weight("ffn_gate_inp.weight", index) is None:
            return build.feed_forward(source, index, act=recipe.act)
        assert isinstance(layer.feed_forward, MixtureOfExperts)
        corrected = build.weight("exp_probs_b.bias", index) is not None
        routed, narrow, logits = self.routing, source, None
        if recipe.flow == "single":
            if build.weight("ffn_latent_down.weight", index) is not None:
                narrow = build.mul("ffn_latent_down", source, index)
            logits = build.mul("ffn_gate_inp", source, index)
        made = build.experts(
            narrow,
            index,
            used=layer.feed_forward.experts_per_token,
            gating="sigmoid" if corrected else recipe.gating,
            normed=recipe.normed if routed.normed is None or not recipe.normed_by_file else routed.normed,
            scaled=routed.scaled,
            groups=routed.groups,
            used_groups=routed.used_groups,
            act=recipe.expert_act,
            logits=logits,
            weigh_first=recipe.weigh_first,
        )
        if build.weight("ffn_latent_up.weight", index) is not None:
            made = build.mul("ffn_latent_up", made, index)
        if build.weight("ffn_up_shexp.weight", index) is None:
            return made
        shared = build.feed_forward(source, index, act=recipe.act, suffix="_shexp")
        if build.weight("ffn_gate_inp_shexp.weight", index) is not None:
            gate = ops.like("unary", build.mul("ffn_gate_inp_shexp", source, index), detail="sigmoid")
            shared = ops.like("mul", shared, gate)
        return ops.like("add", made, shared)


def _sequential(model: ModelGraph, index: int, layer: Layer, stream: Tensor) -> Tensor:
    build, recipe = model.builder, model.recipe
    assert layer.mixer is not None
    made = stream
    if build.weight("attn_norm.weight", index) is not None:
        made = model.norm(stream, "attn_norm", index)
        if recipe.gated_attention:
            build.graph.expand(made)
    own = made
    feeds_own = recipe.feeds_attended_input and build.weight(f"{recipe.ffn_norm}.weight", index) is None
    made = model.mixed(index, layer.mixer, made)
    if model.is_last(index):
        made, stream = build.rows(model.wanted, made, stream)
        if feeds_own:
            (own,) = build.rows(model.wanted, own)
    if recipe.ffn_norm != "post_attention_norm" and build.weight("post_attention_norm.weight", index) is not None:
        made = model.norm(made, "post_attention_norm", index)
    if recipe.scales_residual:
        made = ops.like("scale", made)
    stream = _added(made, stream, stream_first=recipe.stream_first[0])
    made = own if feeds_own else stream
    if build.weight(f"{recipe.ffn_norm}.weight", index) is not None:
        made = model.norm(stream, recipe.ffn_norm, index)
    made = model.fed(index, layer, made)
    if build.weight("post_ffw_norm.weight", index) is not None:
        made = model.norm(made, "post_ffw_norm", None if recipe.act != "halves" else index)
    if recipe.scales_residual:
        made = ops.like("scale", made)
    return _added(made, stream, stream_first=recipe.stream_first[1])


def _added(made: Tensor, stream: Tensor, *, stream_first: bool) -> Tensor:
    return ops.like("add", stream, made) if stream_first else ops.like("add", made, stream)


def _parallel(model: ModelGraph, index: int, layer: Layer, stream: Tensor) -> Tensor:
    build = model.builder
    assert layer.mixer is not None
    own = model.norm(stream, "attn_norm", index)
    has_second = build.weight("attn_norm_2.weight", index) is not None
    read = model.norm(stream, "attn_norm_2", index) if has_second else own
    attended = model.mixed(index, layer.mixer, read)
    if model.is_last(index):
        attended, stream, own = build.rows(model.wanted, attended, stream, own)
    if build.weight("ffn_norm.weight", index) is not None:
        own = model.norm(stream, "ffn_norm", index)
    parts = {"fed": model.fed(index, layer, own), "attended": attended, "stream": stream}
    first, second, third = (parts[name] for name in model.recipe.summed.split())
    return ops.like("add", ops.like("add", first, second), third)


def _single(model: ModelGraph, index: int, layer: Layer, stream: Tensor) -> Tensor:
    made = model.norm(stream, "attn_norm", index)
    made = model.fed(index, layer, made) if layer.mixer is None else model.mixed(index, layer.mixer, made)
    if model.is_last(index):
        made, stream = model.builder.rows(model.wanted, made, stream)
    return ops.like("add", made, stream)


def _beside(model: ModelGraph, index: int, layer: Layer, stream: Tensor) -> Tensor:
    assert layer.mixer is not None
    assert layer.recurrent is not None
    attended = model.mixed(index, layer.mixer, model.norm(stream, "attn_norm", index))
    scanned = model.mixed(index, layer.recurrent, model.norm(stream, "attn_norm", index))
    stream = ops.like("add", ops.like("add", attended, scanned), stream)
    if model.is_last(index):
        (stream,) = model.builder.rows(model.wanted, stream)
    return ops.like("add", model.fed(index, layer, model.norm(stream, "ffn_norm", index)), stream)


_FLOWS: Mapping[str, Callable[[ModelGraph, int, Layer, Tensor], Tensor]] = {
    "sequential": _sequential,
    "parallel": _parallel,
    "single": _single,
    "beside": _beside,
}


def scale_input(tokens: int) -> Tensor:
    """Llama 4's: a factor of each token's queries where they are not rotated."""
    return ops.graph_input(F32, 1, 1, tokens)

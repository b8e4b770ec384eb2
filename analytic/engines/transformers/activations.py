"""Peak transient ("activation") bytes of transformers' prefill and decode, as closed forms.

Every form is a *moment*: what is live together at one line of the modelling code, as multiples of a layer's sizes
(:class:`Need`). A family's row says how its code differs from Llama's; the peak is the largest moment. The scope is
``generate()`` of one batch on one GPU under ``no_grad``, with a dynamic cache (or a static one, all of whose room is
read), ``logits_to_keep=1`` and greedy tokens: all live tensor storages, without the weights and without the cache: in
prefill the one that it leaves behind, in decode the one of that moment.

Derived from transformers 5.23 (``models/*/modeling_*.py``, ``integrations/{sdpa_attention,moe}.py``,
``masking_utils.py``, ``cache_utils.py``, ``generation/utils.py``) and held to real runs by
``tests/test_activations.py``. CUDA differs from those CPU runs in the attention kernel: flash, memory-efficient and
cuDNN attention return the output and at most one fp32 logsumexp a query and head, no scores (and fp32 sums where heads
are wider than 256). ``sdpa`` means transformers' default: a family without it runs eager.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from analytic.engines.transformers.activation_families import FAMILIES, Family, Need
from analytic.errors import UllageError
from analytic.models.geometry import (
    Attention,
    FeedForward,
    Geometry,
    LatentAttention,
    Layer,
    MixtureOfExperts,
    Recurrent,
)
from analytic.quantity import round_up
from analytic.state import RecurrentState, caches, static

AttentionName = Literal["sdpa", "eager"]

FUSED_HEAD_DIM = 256
"""Wider heads have no flash or cuDNN kernel: keys and values are repeated to all heads (``use_gqa_in_sdpa``), and the
memory-efficient kernel sums in an fp32 buffer of its own (ATen mem_eff_attention/kernel_forward.h)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The largest moment of a forward."""

    bytes: int
    """Live bytes at the peak, as a trace of the run counts them."""
    low_bytes: int
    high_bytes: int
    moment: str
    """Where: ``embedding``, ``attention``, ``norm``, ``mlp``, ``experts``, ``mixer`` or ``logits``."""


@dataclass(frozen=True, slots=True)
class _Form:
    """Live bytes as a linear form in batch B, query tokens q and context L."""

    tokens: int = 0
    """Bytes x B·q."""
    context: int = 0
    """Bytes x B·L."""
    pairs: int = 0
    """Bytes x B·q·L."""
    shared: int = 0
    """Bytes x q·L, a mask that all sequences share."""
    rows: int = 0
    """Bytes x B."""

    def __add__(self, other: "_Form") -> "_Form":
        return _Form(
            self.tokens + other.tokens,
            self.context + other.context,
            self.pairs + other.pairs,
            self.shared + other.shared,
            self.rows + other.rows,
        )

    def __neg__(self) -> "_Form":
        return _Form(-self.tokens, -self.context, -self.pairs, -self.shared, -self.rows)

    def bytes(self, batch: int, queries: int, context: int) -> int:
        """The form's value; a decode step has one query token."""
        per_row = queries * (self.tokens + context * self.pairs) + context * self.context + self.rows
        return batch * per_row + queries * context * self.shared


@dataclass(frozen=True, slots=True)
class _Moment:
    name: str
    held: _Form
    """What does not shrink with a sliding window: the ids, the masks of full layers, the streams."""
    inside: _Form
    window_tokens: int | None
    spread_fraction: float
    chunk_tokens: int = 1
    """Prompts are padded to a multiple of it inside the moment."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What besides the geometry decides the moments."""

    itemsize: int
    several: bool
    """More than one sequence."""
    eager: bool
    padded: bool
    windowed: bool
    """The context reaches a sliding window, so that windowed layers need a mask."""
    decode: bool
    fused_softmax: bool
    """Scores become a softmax in fp32 without a copy in fp32: of float16 on CUDA (ATen native/SoftMax.cpp, softmax)."""
    room: int | None
    """Tokens that a static cache has room for; None where the cache grows."""
    overflows: bool
    """A static cache's window has fewer tokens than were seen."""


def prefill_peak(
    geometry: Geometry,
    *,
    batch_size: int,
    prompt_tokens: int,
    itemsize: int,
    attention: AttentionName,
    padded: bool = False,
    fused_softmax: bool = False,
    room_tokens: int | None = None,
) -> Peak:
    """Peak of the prompt's forward and the first token's choice: ``prompt_tokens`` queries a sequence.

    ``room_tokens`` is what a static cache has room for, None with a dynamic one.
    """
    tokens = prompt_tokens, room_tokens
    run = _run(geometry, itemsize, batch_size, attention, padded, fused_softmax, *tokens, decode=False)
    return _peak(_compiled(geometry, run), batch_size, prompt_tokens, room_tokens or prompt_tokens)


def decode_peak(
    geometry: Geometry,
    *,
    batch_size: int,
    context_tokens: int,
    itemsize: int,
    attention: AttentionName,
    padded: bool = False,
    fused_softmax: bool = False,
    room_tokens: int | None = None,
) -> Peak:
    """Peak of one decode step whose attention sees ``context_tokens``, the new token included.

    ``room_tokens`` is what a static cache has room for, all of which every step sees; the last one has filled it.
    """
    tokens = context_tokens, room_tokens
    run = _run(geometry, itemsize, batch_size, attention, padded, fused_softmax, *tokens, decode=True)
    return _peak(_compiled(geometry, run), batch_size, 1, room_tokens or context_tokens)


def has_sdpa(geometry: Geometry) -> bool:
    """Whether transformers' class of this model can use fused attention."""
    return _family(geometry).sdpa


def _peak(moments: tuple[_Moment, ...], batch: int, queries: int, context: int) -> Peak:
    most, spread, name = 0, 0.0, ""
    for moment in moments:
        window = moment.window_tokens
        seen = context if window is None else max(queries, min(context, window))
        inside = round_up(queries, moment.chunk_tokens)
        size = moment.held.bytes(batch, queries, context) + moment.inside.bytes(batch, inside, seen)
        if size > most:
            most, spread, name = size, moment.spread_fraction, moment.name
    margin = int(most * spread)
    return Peak(bytes=most, low_bytes=most - margin, high_bytes=most + margin, moment=name)


def _family(geometry: Geometry) -> Family:
    try:
        return FAMILIES[geometry.model_type]
    except KeyError:
        raise UllageError(
            f"no activation model for model_type {geometry.model_type!r}",
            hint="`ullage models` lists models of the known families",
        ) from None


def _run(
    geometry: Geometry,
    itemsize: int,
    batch: int,
    attention: AttentionName,
    padded: bool,
    fused_softmax: bool,
    context: int,
    room: int | None,
    decode: bool,
) -> _Run:
    window = min(_facts(geometry), default=None)
    windowed = window is not None and (room or context) >= window
    overflows = window is not None and room is not None and context > window
    eager = attention == "eager" or not _family(geometry).sdpa
    return _Run(itemsize, batch > 1, eager, padded, windowed, decode, fused_softmax, room, overflows)


_FACTS: dict[int, tuple[Geometry, tuple[int, ...], dict[_Run, tuple[_Moment, ...]]]] = {}
"""By identity, as hashing a geometry of many layers costs more than evaluating its forms."""


def _facts(geometry: Geometry) -> tuple[int, ...]:
    return _remembered(geometry)[1]


def _remembered(geometry: Geometry) -> tuple[Geometry, tuple[int, ...], dict[_Run, tuple[_Moment, ...]]]:
    entry = _FACTS.get(id(geometry))
    if entry is None:
        if len(_FACTS) >= 256:
            _FACTS.clear()
        windows = {m.window_tokens for layer in geometry.layers if isinstance(m := layer.mixer, Attention)}
        entry = _FACTS[id(geometry)] = (geometry, tuple(w for w in windows if w is not None), {})
    return entry


def _compiled(geometry: Geometry, run: _Run) -> tuple[_Moment, ...]:
    known = _remembered(geometry)[2]
    if run not in known:
        if len(known) >= 1024:  # a static cache's room makes a run of its own
            known.clear()
        known[run] = tuple(_moments(geometry, run))
    return known[run]


def _moments(geometry: Geometry, run: _Run) -> Iterator[_Moment]:
    """The embedding, every moment of every kind of layer, then the logits.

    Only a prompt's last token reaches the layers that read another's cache (``_maybe_slice_kv_shared_inputs``).
    """
    family = _family(geometry)
    to_come = _caches_to_come(geometry, run)
    if geometry.per_layer_input_size:
        made = _Form(tokens=_per_token(family.embedding, _stream_sizes(geometry, run))) + -to_come[0]
        held = _ids(geometry, run) + _masks(geometry, family, run)
        yield _Moment("embedding", held, made, None, family.tolerance_fraction)
    layers = zip(geometry.layers, to_come[1:], strict=True)
    kinds = {
        (layer, index == 0): later
        for index, (layer, later) in enumerate(layers)
        if run.decode or not _reads_another(layer)
    }
    for (layer, first), later in kinds.items():
        for moment in _layer_moments(geometry, family, run, layer, first):
            yield replace(moment, held=moment.held + -later)
    for form in _logits(geometry, family, run):
        yield _Moment("logits", form, _Form(), None, family.tolerance_fraction)


def _caches_to_come(geometry: Geometry, run: _Run) -> tuple[_Form, ...]:
    """The cache that a prefill has not made yet: before the first layer, then after each."""
    made = [_Form() if run.decode else _cached(layer, run) for layer in geometry.layers]
    return tuple(accumulate(reversed(made), initial=_Form()))[::-1]


def _cached(layer: Layer, run: _Run) -> _Form:
    """The layer's keys and values as a prefill makes them: of its tokens, or of a static cache's room."""
    kinds = [cache for cache in caches(layer) if not isinstance(cache, RecurrentState)]
    if run.room is None:
        return _Form(tokens=sum(cache.bytes_per_token(tokens=0, itemsize=run.itemsize) for cache in kinds))
    rooms = (static(cache, run.room) for cache in kinds)
    return _Form(rows=sum(room.prefill_bytes(prompt_tokens=0, sequences=1, itemsize=run.itemsize) for room in rooms))


def _reads_another(layer: Layer) -> bool:
    return isinstance(layer.mixer, Attention) and layer.mixer.cached_heads == 0


def _layer_moments(geometry: Geometry, family: Family, run: _Run, layer: Layer, first: bool) -> Iterator[_Moment]:
    stream = geometry.hidden_size * run.itemsize
    embeds = family.embeds - (family.first_layer_reuses if first else 0)
    around = _held(geometry, family, run)
    window = layer.mixer.window_tokens if isinstance(layer.mixer, Attention) else None

    def moment(name: str, streams: int, inside: _Form, chunk_tokens: int = 1) -> _Moment:
        held = around + _Form(tokens=(embeds + streams) * stream)
        return _Moment(name, held, inside, window, family.tolerance_fraction, chunk_tokens)

    norm = _Form(tokens=_per_token(family.norm, _sizes(geometry, layer, family, run)))
    yield moment("norm", family.before_norm, norm)
    for form in _mixer(geometry, family, run, layer):
        yield moment("attention", family.before_attention, form)
    for mixer in (layer.mixer, layer.recurrent):
        if isinstance(mixer, Recurrent):
            chunk = 1 if run.decode else mixer.chunk_tokens or 1
            yield moment("scan", family.before_attention, _recurrent(geometry, family, run, mixer), chunk)
    for name, form in _feed_forward(geometry, family, run, layer):
        yield moment(name, family.before_ff, form)


def _held(geometry: Geometry, family: Family, run: _Run) -> _Form:
    """Ids and masks, rotary tables, attention masks and per-layer inputs: alive through all layers."""
    mixers = [layer.mixer for layer in geometry.layers]
    rotary = {(m.window_tokens, m.head_dim) for m in mixers if isinstance(m, Attention) and m.rotary}
    head_dims = [head_dim for _, head_dim in rotary]
    latent = [m.qk_rope_head_dim for m in mixers if isinstance(m, LatentAttention)]
    width = sum(head_dims) if family.rope_by_kind else max(head_dims, default=0)
    rotated = int(width * family.rope_fraction) or max(latent, default=0)
    tokens = family.rope_tables * rotated * (family.rope_itemsize or run.itemsize)
    if geometry.per_layer_input_size:
        tokens += _per_token(family.per_layer, _stream_sizes(geometry, run))
    return _ids(geometry, run) + _Form(tokens=tokens) + _masks(geometry, family, run)


def _ids(geometry: Geometry, run: _Run) -> _Form:
    """Int64 ids, padding masks and positions (generation/utils.py); a decode step also keeps the last fp32 logits."""
    if run.decode:
        return _Form(context=8 * (5 + run.padded), rows=4 * geometry.vocab_size)
    return _Form(tokens=8 * 4)


def _masks(geometry: Geometry, family: Family, run: _Run) -> _Form:
    """4-D masks (masking_utils.py): model dtype for eager, boolean for sdpa where is_causal does not suffice.

    A decode step that reads a static cache always has one, as not all of its room is taken.
    """
    softmax = [layer.mixer for layer in geometry.layers if isinstance(layer.mixer, (Attention, LatentAttention))]
    windows = {mixer.window_tokens if isinstance(mixer, Attention) else None for mixer in softmax}
    unused = family.unused_mask and windows == {None}
    if unused:
        windows.add(0)
    if run.eager:
        return _Form(pairs=run.itemsize * len(windows))
    if run.padded:
        return _Form(pairs=len(windows))
    if run.decode and run.room is not None:
        return _Form(shared=len(windows))
    if run.windowed or unused:
        return _Form(shared=sum(window is not None for window in windows))
    return _Form()


def _stream_sizes(geometry: Geometry, run: _Run) -> dict[str, int]:
    """Bytes a query token of what no layer's own sizes enter."""
    hidden, inputs = geometry.hidden_size, geometry.per_layer_input_size
    return {"h": hidden * run.itemsize, "h32": hidden * 4, "p": inputs * run.itemsize, "p32": inputs * 4}


def _sizes(geometry: Geometry, layer: Layer, family: Family, run: _Run) -> dict[str, int]:
    """Bytes a query token of each of :class:`Need`'s per-token fields."""
    e, cast = run.itemsize, 0 if run.itemsize == 4 else 4
    sizes = _stream_sizes(geometry, run)
    if isinstance(layer.mixer, Attention):
        mixer = layer.mixer
        q, k, v = mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim, mixer.kv_heads * mixer.v_head_dim
        sizes |= {"q": q * e, "q32": q * 4, "q_cast": q * cast, "q_rot": int(q * family.rope_fraction) * e}
        sizes |= {"k": k * e, "k32": k * 4, "k_cast": k * cast, "k_rot": int(k * family.rope_fraction) * e}
        o, wide = mixer.heads * mixer.v_head_dim, mixer.head_dim > FUSED_HEAD_DIM
        sizes |= {"v": v * e, "o": o * e, "o_wide": o * cast * wide, "lse": mixer.heads * 4}
    return sizes


def _per_token(need: Need, sizes: dict[str, int]) -> int:
    return sum(getattr(need, name) * size for name, size in sizes.items())


def _mixer(geometry: Geometry, family: Family, run: _Run, layer: Layer) -> Iterator[_Form]:
    if isinstance(layer.mixer, Attention):
        yield from _attention(geometry, family, run, layer, layer.mixer)
    elif isinstance(layer.mixer, LatentAttention):
        yield from _latent_attention(geometry, run, layer.mixer)


def _attention(geometry: Geometry, family: Family, run: _Run, layer: Layer, mixer: Attention) -> Iterator[_Form]:
    sizes = _sizes(geometry, layer, family, run)
    cached = mixer.kv_heads if mixer.cached_heads is None else mixer.cached_heads
    grown = _grown(mixer, run, cached)
    table = 4 * int(mixer.head_dim * family.rope_fraction) * (geometry.max_position_embeddings or 0)
    held = _Form(rows=table * family.repeats_rope_table)
    earlier = _Form(pairs=(family.eager_held - 1) * mixer.heads * run.itemsize * run.eager)
    for need in family.attention:
        made = _Form() if run.decode or need.new_v else -_cached(layer, run)
        yield held + earlier + made + _Form(tokens=_per_token(need, sizes), context=need.new_v * grown)
    grouped = 1 < mixer.kv_heads < mixer.heads
    repeated = mixer.heads * (mixer.head_dim + mixer.v_head_dim) * run.itemsize * grouped
    kept = held + _Form(tokens=_per_token(family.kept, sizes))
    if run.overflows and not run.decode and mixer.window_tokens is not None:  # all are attended to, the last cached
        kept += _Form(tokens=cached * (mixer.head_dim + mixer.v_head_dim) * run.itemsize)
    if run.eager:
        keys32 = 4 * mixer.kv_heads * mixer.head_dim * (family.keys32 and run.itemsize != 4)
        copies = _Form(context=repeated * family.eager_repeats + keys32)
        yield kept + copies + _scores(family.eager, mixer.heads, run)
        yield kept + copies + _scores(Need(w=1), mixer.heads, run) + _Form(tokens=2 * sizes["o"])
        if mixer.kv_heads == 1 and run.several:  # repeated as a view, which matmul must copy beside the queries
            copied = _Form(tokens=sizes["q"], context=mixer.heads * mixer.head_dim * run.itemsize)
            yield kept + copied + _scores(Need(w=1), mixer.heads, run)
    elif family.sdpa_broadcasts and mixer.kv_heads == 1 < mixer.heads:
        for form in _math_kernel(run, mixer):
            yield kept + form
    else:
        inputs = _sdpa_inputs(run, repeated, mixer.window_tokens, wide=mixer.head_dim > FUSED_HEAD_DIM)
        yield kept + _Form(tokens=_per_token(family.kernel, sizes)) + inputs
    yield kept + _Form(tokens=_per_token(family.output, sizes)) + _Form(pairs=_held_weights(family, run, mixer.heads))


def _grown(mixer: Attention, run: _Run, cached_heads: int) -> int:
    """Keys and values a token of context that a decode step holds beside the cache while it takes the new token.

    Values grow beside the old ones; a window's keys too, as both are replaced only after both have grown, or, in a
    static cache, rolled.
    """
    keys, values = (cached_heads * size * run.itemsize for size in (mixer.head_dim, mixer.v_head_dim))
    if not run.decode:
        return 0
    if mixer.window_tokens is not None:
        return keys + values if run.room is None or run.overflows else 0
    return values if run.room is None else 0


def _scores(need: Need, heads: int, run: _Run) -> _Form:
    """Eager scores: B·heads·q·L of each dtype (softmax in fp32: of bf16 2 + 4 + 4 bytes; of fp16 2 + 4 + 2)."""
    cast = 0 if run.itemsize == 4 else run.itemsize if run.fused_softmax else 4
    return _Form(pairs=heads * (need.w * run.itemsize + need.w32 * 4 + need.w_cast * cast))


def _sdpa_inputs(run: _Run, repeated: int, window_tokens: int | None, *, wide: bool = False) -> _Form:
    """A mask's additive copy; with a mask or wide heads, in prefill, K and V for all heads (sdpa_attention.py)."""
    masked = run.padded or (window_tokens is not None and run.windowed) or (run.decode and run.room is not None)
    copies = _Form(context=repeated if (masked or wide) and not run.decode else 0)
    if not masked:
        return copies
    return copies + (_Form(pairs=run.itemsize) if run.padded else _Form(shared=run.itemsize))


def _math_kernel(run: _Run, mixer: Attention) -> Iterator[_Form]:
    """Attention in fp32 that keeps all scores (ATen native/transformers/attention.cpp), of one key and value head.

    Queries, keys and values have fp32 copies, and scaled ones; the products copy keys, then values to all heads.
    """
    is_half = run.itemsize != 4
    queries, keys, values = 4 * mixer.heads * mixer.head_dim, 4 * mixer.head_dim, 4 * mixer.v_head_dim
    mask = 4 if not run.decode and not run.padded else 0
    copies = _Form(tokens=queries * (1 + is_half), context=is_half * (keys + values), shared=mask)
    copies += _Form(pairs=run.itemsize * run.padded)
    scores = mixer.heads * 4
    yield copies + _Form(context=keys + mixer.heads * keys, pairs=scores)
    # the scores, their softmax, and where they are -inf
    yield copies + _Form(context=keys, pairs=2 * scores + mixer.heads)
    converted = is_half * mixer.heads * run.itemsize
    output = 4 * mixer.heads * mixer.v_head_dim
    yield copies + _Form(context=keys + mixer.heads * values, pairs=scores + converted, tokens=output)


def _held_weights(family: Family, run: _Run, heads: int) -> int:
    return family.eager_held * heads * run.itemsize if run.eager else 0


def _weights_held(family: Family, run: _Run, layer: Layer) -> _Form:
    """Attention weights that the layer's frame keeps in a variable it does not use."""
    mixer = layer.mixer
    heads = mixer.heads if isinstance(mixer, (Attention, LatentAttention)) else 0
    return _Form(pairs=_held_weights(family, run, heads))


def _latent_attention(geometry: Geometry, run: _Run, mixer: LatentAttention) -> Iterator[_Form]:
    """DeepSeek's: queries thrice, the expanded latent and the keys over the whole context (expand_kv)."""
    e = run.itemsize
    queries = mixer.heads * (mixer.qk_nope_head_dim + mixer.qk_rope_head_dim) * e
    expanded = mixer.heads * (mixer.qk_nope_head_dim + mixer.v_head_dim) * e
    latent = (mixer.kv_lora_rank + mixer.qk_rope_head_dim) * e
    rotated = mixer.heads * mixer.qk_rope_head_dim * e
    kept = _Form(tokens=2 * queries + latent + rotated, context=queries + expanded)
    output = mixer.heads * mixer.v_head_dim * e
    if run.eager:
        yield kept + _scores(Need(w=1, w_cast=1, w32=1), mixer.heads, run)
        yield kept + _Form(context=queries) + _scores(Need(w=1), mixer.heads, run)  # matmul copies the expanded keys
    else:
        yield kept + _Form(tokens=output + 4 * mixer.heads) + _sdpa_inputs(run, 0, None)
    yield kept + _Form(tokens=output + geometry.hidden_size * e)


def _recurrent(geometry: Geometry, family: Family, run: _Run, mixer: Recurrent) -> _Form:
    """The chunked scan of a prefill in fp32, as plain torch runs it (without mamba-ssm or flash-linear-attention)."""
    if mixer.heads is None or mixer.chunk_tokens is None:
        raise UllageError(
            f"no activation model for the {mixer.kind} layers of model_type {geometry.model_type!r}",
            hint="`ullage models` lists models of the known families",
        )
    if run.decode:
        return _Form(rows=4 * 3 * mixer.state_elements + 2 * run.itemsize * mixer.conv_channels * mixer.conv_kernel)
    heads, inner, state = mixer.heads, mixer.inner_size, mixer.state_elements
    scores = 3 * heads * mixer.chunk_tokens
    step = heads * mixer.chunk_tokens * (inner // heads)
    if mixer.kind == "mamba2":  # per head: scores thrice; B, C and their product; the stream seven times
        wide = scores + 3 * heads * (state // inner) + 7 * inner + 4 * heads
        return _Form(
            tokens=4 * wide + run.itemsize * (inner + 2 * mixer.conv_channels + heads), rows=4 * (step + state)
        )
    masked = geometry.hidden_size * run.itemsize * run.padded  # apply_mask_to_padding_states
    projected = family.recurrent_projections * (mixer.conv_channels + inner)
    wide = scores + 5 * inner + 5 * heads * (state // inner) + 6 * heads
    return _Form(
        tokens=4 * wide + run.itemsize * (mixer.conv_channels + inner + projected) + masked, rows=4 * (2 * step + state)
    )


def _feed_forward(geometry: Geometry, family: Family, run: _Run, layer: Layer) -> Iterator[tuple[str, _Form]]:
    weights = _weights_held(family, run, layer)
    if isinstance(layer.feed_forward, FeedForward):
        yield "mlp", weights + _Form(tokens=_wide(family.ff, layer.feed_forward.intermediate_size, run))
    elif isinstance(layer.feed_forward, MixtureOfExperts):
        for form in _experts(geometry, family, run, layer.feed_forward):
            yield "experts", form if family.routing_frees_weights else form + weights
        if layer.feed_forward.shared_intermediate_size:
            yield "experts", weights + _shared_experts(geometry, family, run, layer.feed_forward)


def _wide(need: Need, intermediate_size: int, run: _Run) -> int:
    return intermediate_size * (need.i * run.itemsize + need.i32 * 4 + need.i_bool)


def _experts(geometry: Geometry, family: Family, run: _Run, moe: MixtureOfExperts) -> Iterator[_Form]:
    """grouped_mm in prefill, batched_mm with copied weights in decode (integrations/moe.py)."""
    e, hidden = run.itemsize, geometry.hidden_size * run.itemsize
    routed = _routed(run, moe)
    pair = moe.experts_per_token * hidden
    inner = moe.experts_per_token * _wide(family.expert, moe.intermediate_size, run)
    if family.every_expert:  # all tokens pass all experts, zeroed (models/llama4)
        inner = moe.intermediate_size * e
        for every in (hidden + 4 * inner, 2 * hidden + 3 * inner):  # gate beside its activation; the result
            yield _Form(tokens=moe.experts * every + routed)
        return
    weighted = moe.experts_per_token * geometry.hidden_size * (4 if family.router32 else e)
    shared = hidden * family.shared_first if moe.shared_intermediate_size else 0
    if run.decode:
        matrices = 3 if moe.gated else 2
        copied = moe.experts_per_token * matrices * moe.intermediate_size * hidden
        yield _Form(tokens=copied + pair + moe.experts_per_token * moe.intermediate_size * e + routed + shared)
    else:
        yield _Form(tokens=pair + inner + routed + shared)
        yield _Form(tokens=(2 + family.expert_bias) * pair + 2 * weighted + routed + shared)


def _shared_experts(geometry: Geometry, family: Family, run: _Run, moe: MixtureOfExperts) -> _Form:
    after = 0 if family.shared_first else geometry.hidden_size * run.itemsize + _routed(run, moe)
    return _Form(tokens=after + _wide(family.ff, moe.shared_intermediate_size, run))


def _routed(run: _Run, moe: MixtureOfExperts) -> int:
    """Router logits and what sorts the pairs of token and expert."""
    return moe.experts * run.itemsize + moe.experts_per_token * 32


def _logits(geometry: Geometry, family: Family, run: _Run) -> Iterator[_Form]:
    """The output projection beside the last hidden state, then generate's fp32 copy (generation/utils.py)."""
    ids = _ids(geometry, run)
    row = geometry.vocab_size * run.itemsize
    yield ids + _Form(tokens=geometry.hidden_size * run.itemsize, rows=family.logits * row)
    yield ids + _Form(rows=row + 4 * geometry.vocab_size)

"""What each family of transformers' modelling code holds at its peaks: rows of small integers, read and measured.

A :class:`Need` counts multiples of a layer's sizes that are live together. ``before_attention`` and ``before_ff`` are
the residual streams ([B,S,H] tensors) that callers' frames keep: Llama's layer input and normed input, then also the
residual in the middle. ``embeds`` are kept by the model's own frame for the whole forward.
"""

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Multiples of sizes live at one moment; per query token unless said otherwise. e is the model dtype's itemsize."""

    h: int = 0
    """hidden_size x e."""
    h32: int = 0
    """hidden_size x 4."""
    i: int = 0
    """intermediate_size x e."""
    i32: int = 0
    """intermediate_size x 4."""
    i_bool: int = 0
    """intermediate_size bytes."""
    q: int = 0
    """heads x head_dim x e."""
    k: int = 0
    """kv_heads x head_dim x e."""
    v: int = 0
    """kv_heads x v_head_dim x e."""
    o: int = 0
    """heads x v_head_dim x e."""
    q_rot: int = 0
    """The rotated part of a query x e."""
    k_rot: int = 0
    """The rotated part of a key x e."""
    q32: int = 0
    """Queries in fp32."""
    q_cast: int = 0
    """An fp32 copy of the queries: nothing where the model is fp32."""
    k32: int = 0
    """Keys in fp32."""
    k_cast: int = 0
    """An fp32 copy of the keys: nothing where the model is fp32."""
    w: int = 0
    """Attention scores or weights, heads x context x e."""
    w32: int = 0
    """Attention scores in fp32."""
    w_cast: int = 0
    """An fp32 copy of the scores: nothing where the model is fp32."""
    lse: int = 0
    """A fused kernel's logsumexp: heads x 4."""
    new_v: int = 0
    """The values of the whole context, concatenated and not yet in the cache."""
    o_wide: int = 0
    """A memory-efficient kernel's fp32 sums, heads x v_head_dim x 4: only of heads wider than 256, not in fp32."""
    p: int = 0
    """per_layer_input_size x e."""
    p32: int = 0
    """per_layer_input_size x 4."""

    def __add__(self, other: "Need") -> "Need":
        return Need(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How one family's code differs from Llama's (the defaults)."""

    embeds: int = 1
    """[B,S,H] tensors that the model's forward holds throughout (token and position embeddings)."""
    before_attention: int = 2
    """Residual streams beside them during attention."""
    before_ff: int = 3
    """Residual streams beside them during the feed-forward."""
    first_layer_reuses: int = 1
    """Streams of the first layer that are the embeddings themselves."""
    ff: Need = Need(i=3)
    """A dense feed-forward at its widest line."""
    attention: tuple[Need, ...] = ()
    """Projections and rotation, until the keys and values are cached."""
    kept: Need = Need(q=1)
    """What attention holds around its kernel beside keys, values and output."""
    kernel: Need = Need(o=1, lse=1, o_wide=1)
    """A fused kernel's outputs."""
    output: Need = Need(o=1, h=1)
    """The output projection."""
    eager: Need = Need(w=1, w_cast=1, w32=1)
    """Eager attention at its widest line, beside ``kept``, the mask and repeated keys and values."""
    eager_repeats: bool = True
    """Whether eager attention repeats keys and values to all heads (else it broadcasts)."""
    keys32: bool = False
    """Whether eager attention casts the whole context's keys to fp32."""
    eager_held: int = 1
    """Attention weights [B,h,S,L] that eager attention leaves alive during the feed-forward: its own, and those of the
    layer before where layers return them."""
    norm: Need = Need(h32=2)
    """Temporaries of a norm over the residual stream."""
    before_norm: int = 2
    """Residual streams beside the embeddings in the norm before the feed-forward."""
    rope_tables: int = 2
    """cos and sin."""
    rope_by_kind: bool = False
    """Whether full and sliding layers have tables of their own."""
    rope_itemsize: int | None = None
    """Bytes an element of these tables; None is the model's dtype."""
    rope_fraction: float = 1.0
    """Share of a head that is rotated (the family's usual value)."""
    repeats_rope_table: bool = False
    """Whether attention repeats the fp32 table of all positions for every sequence."""
    sdpa: bool = True
    """Whether the family can use fused attention; else it runs eager."""
    sdpa_broadcasts: bool = False
    """Whether fused attention gets a single key and value head as it is, which none but the math kernel takes."""
    unused_mask: bool = False
    """Whether a mask of sliding layers, with a window of no token, is made for a model that has none."""
    logits: int = 1
    """Copies of [B,V] in the model's dtype as the logits are scaled or capped."""
    router32: bool = False
    """Whether routing weights are fp32, which makes the experts' weighted outputs fp32."""
    expert: Need = Need(i=4)
    """Between the experts' two projections, beside their input (i is one expert's width): gate and up, act, product."""
    expert_bias: bool = False
    """Whether experts have biases, gathered for every pair of token and expert."""
    shared_first: int = 0
    """[B,S,H] tensors that shared experts leave alive while the routed ones run."""
    routing_frees_weights: bool = False
    """Whether routing takes over the variable that keeps eager attention's weights."""
    every_expert: bool = False
    """Whether every token passes every expert."""
    recurrent_projections: int = 0
    """Input projections of a recurrent mixer that its split leaves alive."""
    per_layer: Need = Need()
    """What the making of per-layer inputs, where a model has them, leaves alive (in the multimodal class)."""
    embedding: Need = Need()
    """The embeddings while those inputs are made."""
    tolerance_fraction: float = 0.03
    """Largest error against traces of real runs (tests/test_activations.py)."""


ROTATE = (Need(q=4, k=1, v=1), Need(q=2, k=4, v=1), Need(q=1, k=1, v=1, new_v=1))
"""Separate projections, all of a head rotated: q rotates beside q, k, v; then k; then values are cached."""
ROTATE32 = (Need(q=1, k=1, v=1, q32=3), Need(q=2, k=1, v=1, k32=3), Need(q=1, k=1, v=1, new_v=1))
"""As ROTATE with fp32 tables, so that the products are fp32."""
QK_NORM = (Need(q=1, q32=1, q_cast=1, lse=2), Need(q=1, k=1, k32=1, k_cast=1))
"""RMS norms of each head of q and k, before they are rotated."""
NORM_LATE = (Need(q=1, k=1, v=1, q32=1, q_cast=1, lse=2),)
"""The same once all three are projected (Gemma 3)."""
QKV_NORM = (Need(q=1, q32=1, q_cast=1, lse=2), Need(q=4), Need(q=1, k=1, v=1, k32=1, k_cast=1), Need(q=1, k=4, v=1))
"""Queries are projected, normed and rotated before keys, and values normed after both (Gemma 4)."""
PARTIAL = (Need(q=2, k=2, v=1, q_rot=1, k_rot=1, new_v=1),)
"""Only part of a head rotated: projections stay alive as views of the other part."""
PLAIN = (Need(q=1, k=1, v=1, new_v=1),)
"""No rotation."""
FUSED = (Need(q=2, k=2, v=1, new_v=1),)
"""One q, k, v projection that its views keep alive, beside rotated queries and keys."""

GELU = Need(i=2)
"""One projection and its activation."""
GELU_NEW = Need(i=4)
"""activations.py NewGELU: its input and three products."""

LLAMA = Family(attention=ROTATE)
MOE = LLAMA
LAYER_NORM = Need(h=1)
GEMMA4 = replace(
    MOE,
    attention=QKV_NORM + PLAIN,
    before_norm=3,
    rope_by_kind=True,
    logits=3,
    router32=True,
    shared_first=2,
    routing_frees_weights=True,
    per_layer=Need(h=1, p=2),
    embedding=Need(h=2, p=2, p32=2),
)
GLM = replace(
    LLAMA,
    ff=Need(i=4),
    attention=PARTIAL,
    kernel=Need(o=2, lse=1),
    rope_fraction=0.5,
)
PHI = replace(
    LLAMA,
    ff=GELU_NEW,
    attention=PARTIAL,
    kept=Need(q=2, k=1, q_rot=1),
    kernel=Need(o=2),
    rope_fraction=0.5,
    norm=LAYER_NORM,
)
GPT2 = Family(
    embeds=2,
    first_layer_reuses=0,
    ff=GELU_NEW,
    attention=PLAIN,
    kept=Need(q=1, k=1, v=1),
    rope_tables=0,
    norm=LAYER_NORM,
    eager=Need(w=2),
    before_ff=4,
)

FALCON = Family(
    before_attention=3,
    before_ff=4,
    ff=GELU,
    attention=(Need(q=8, k=1, v=1), Need(q=2, k=1, v=1, new_v=1)),
    tolerance_fraction=0.05,
    kept=Need(q=2, k=1, v=1),
    eager=Need(w=4),
    eager_repeats=False,
    norm=LAYER_NORM,
    sdpa_broadcasts=True,
)
GPTJ = Family(
    ff=GELU_NEW,
    attention=PARTIAL,
    kept=Need(q=3, q32=1),
    keys32=True,
    eager_held=2,
    rope_fraction=0.25,
    repeats_rope_table=True,
    norm=LAYER_NORM,
    eager=Need(w=1, w32=2),
    eager_repeats=False,
    rope_tables=0,
    sdpa=False,
)
BLOOM = Family(
    ff=Need(i=5),
    attention=PLAIN,
    kept=Need(q=1, k=1, v=1),
    norm=LAYER_NORM,
    eager=Need(w=3, w_cast=1, w32=1),
    eager_repeats=False,
    rope_tables=0,
    sdpa=False,
    eager_held=2,
)
NEMOTRON_H = Family(attention=PLAIN, ff=Need(i=2), expert=Need(i=2), rope_tables=0, router32=True)

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "mistral": LLAMA,
    "smollm3": LLAMA,
    "hunyuan_v1_dense": LLAMA,
    "seed_oss": LLAMA,
    "gemma": LLAMA,
    "arcee": LLAMA,
    "lfm2": LLAMA,
    "granite": replace(LLAMA, logits=2),
    "gemma2": replace(LLAMA, sdpa=False, logits=3),
    "gemma3_text": replace(LLAMA, attention=NORM_LATE + ROTATE, rope_by_kind=True),
    "gemma4_text": GEMMA4,
    "qwen3": replace(LLAMA, attention=QK_NORM + ROTATE),
    "starcoder2": replace(LLAMA, ff=GELU, norm=LAYER_NORM),
    "nemotron": replace(LLAMA, attention=PARTIAL, norm=LAYER_NORM, rope_fraction=0.5),
    "olmo": replace(LLAMA, attention=ROTATE32, rope_itemsize=4),
    "olmo2": replace(LLAMA, attention=ROTATE32, rope_itemsize=4, before_attention=1, before_ff=2),
    "olmo3": replace(LLAMA, attention=ROTATE32, rope_itemsize=4, before_attention=1, before_ff=2),
    "cohere": replace(LLAMA, logits=2, attention=(*ROTATE32, Need(q=1, k=1, v=1, q32=3, q_cast=1, k_cast=1))),
    "ernie4_5": replace(LLAMA, attention=ROTATE32, rope_itemsize=4),
    "apertus": replace(LLAMA, ff=Need(i=5, i_bool=1)),
    "phi3": replace(LLAMA, ff=Need(i=4), attention=FUSED, kept=Need(q=2, k=1, v=1)),
    "phi": PHI,
    "glm": GLM,
    "glm4": GLM,
    "stablelm": replace(PHI, ff=Need(i=3), rope_fraction=0.25, before_ff=5),
    "gpt2": GPT2,
    "opt": replace(GPT2, ff=GELU, kept=Need(q=1), before_ff=2, eager=Need(w=1, w_cast=1, w32=1)),
    "gpt_neox": Family(
        ff=GELU,
        attention=FUSED,
        kept=Need(q=2, k=1, v=1),
        kernel=Need(o=2, lse=1),
        norm=LAYER_NORM,
    ),
    "mixtral": MOE,
    "olmoe": replace(MOE, attention=QK_NORM + ROTATE),
    "qwen3_moe": replace(MOE, attention=QK_NORM + ROTATE),
    "qwen2_moe": replace(MOE, shared_first=1, unused_mask=True),
    "granitemoe": replace(MOE, logits=2),
    "deepseek_v2": replace(MOE, router32=True, tolerance_fraction=0.04),
    "deepseek_v3": replace(MOE, router32=True, tolerance_fraction=0.04),
    "glm4_moe": replace(GLM, router32=True, ff=Need(i=3)),
    "minimax_m2": replace(MOE, router32=True),
    "phimoe": replace(MOE, norm=LAYER_NORM),
    "llama4_text": replace(MOE, every_expert=True, before_ff=4, rope_tables=1, rope_itemsize=4, eager=Need(w=3)),
    "falcon": FALCON,
    "bloom": BLOOM,
    "gptj": GPTJ,
    "qwen3_next": replace(MOE, attention=QK_NORM + PARTIAL, rope_fraction=0.25, recurrent_projections=1),
    "qwen3_5_text": replace(LLAMA, attention=QK_NORM + PARTIAL, rope_fraction=0.25),
    "qwen3_5_moe_text": replace(MOE, attention=QK_NORM + PARTIAL, rope_fraction=0.25),
    "nemotron_h": NEMOTRON_H,
    "gpt_oss": replace(MOE, sdpa=False, eager=Need(w=3), expert=Need(i=9), expert_bias=True),
}

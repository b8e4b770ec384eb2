"""What is alive at the widest lines of vLLM's profiling pass: rows of small integers a model type, eager and compiled.

The pass runs without a KV cache, so attention itself allocates its output and no more. A :class:`Need` counts multiples
of a layer's sizes on one rank, in elements of the serving dtype a token; all of them were recorded from vLLM 0.33
(``tests/record_vllm_peaks.py``), whose model files explain them: llama.py keeps the residual, the normed stream and the
output of attention while the feed-forward has its two projections (in one) and their product.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Multiples of sizes that are alive together, in elements a token; those marked * are split over ranks."""

    h: float = 0
    """The residual stream."""
    i: float = 0
    """* The intermediate size of a dense feed-forward."""
    q: float = 0
    """* Queries: heads x head size."""
    k: float = 0
    """* Keys, and as many values."""
    o: float = 0
    """* The output of attention: heads x value head size."""
    latent: float = 0
    """The latent and its rotated key, as one projection makes them."""
    normed: float = 0
    """The latent alone."""
    rope: float = 0
    """The rotated key of a latent attention, or a row of a rotary table made in the pass: one rotated head."""
    q_lora: float = 0
    """Queries' latent."""
    s: float = 0
    """* Inner size of the shared experts."""
    routed_i: float = 0
    """* Inner size of the experts of one token."""
    routed_h: float = 0
    """The residual stream once for every expert of a token."""
    context: float = 0
    """Keys and values that are expanded for a context of several requests (`mla_attention.py`, forward_impl)."""
    inner: float = 0
    """* The hidden stream of a recurrent mixer, the layer's own or that of the layers before."""
    conv: float = 0
    """* Channels of its convolution."""
    heads: float = 0
    """* Its heads."""
    one: float = 0
    """Single elements."""

    def __add__(self, other: "Need") -> "Need":
        return Need(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """The widest lines of one way of running a model's layers; None where a model has no such layer."""

    attention: Need | None = None
    mlp: Need | None = None
    """A dense feed-forward."""
    recurrent: Need | None = None
    """A recurrent mixer."""
    shared: Need | None = None
    """Shared experts, beside the routed ones' workspace."""
    experts: Need | None = None
    """Routed experts, beside their workspace; None where attention beside it is always wider."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One model type."""

    eager: Moments
    compiled: Moments | None = None
    """None where a compiled run was not recorded; the eager one stands for it, with a wider interval."""
    norms_embedding: bool = True
    """Whether the first layer norms what it gets, which a compiled kernel does as it gathers the embedding."""
    tuning_fraction: float = 0
    """By how much a first start needs more than a copy of the embedding and its streams, which was not explained."""
    checkpoints: bool = False
    """Whether a recurrent mixer keeps states along a prefill, for the prefix cache (gdn/qwen_gdn_linear_attn.py)."""
    padded_experts: tuple[int, int] = (1, 1)
    """What the experts' inner size and the stream are a multiple of inside Marlin's kernel."""
    narrows_rotary: bool = False
    """Whether an eager pass replaces the rotary table, which was loaded in float32, by one in the serving dtype."""


QKV = Need(q=1, k=2)
"""One projection makes queries, keys and values."""
GATED = Need(i=3)
"""Gate and up in one, and their product."""


def _dense(streams: float, *, mlp: Need = GATED, attention: Need | None = None, **more: float) -> Moments:
    own = Need(h=streams, **more)
    return Moments(mlp=mlp + own, attention=QKV + Need(o=1, h=3) if attention is None else attention)


COMPILED = _dense(2, o=1)
"""A compiled pass runs in pieces between attention, whose output the caller of a piece keeps."""
LLAMA = Family(eager=_dense(3), compiled=COMPILED)
QK_NORM = QKV + Need(q=1, k=1, o=1, h=3)
QWEN3 = Family(eager=_dense(4, attention=QK_NORM), compiled=_dense(2, o=1, attention=QK_NORM))
GEMMA = Family(eager=_dense(5), compiled=COMPILED)
LATENT = Need(context=1, q=1, o=1, h=2, latent=1, normed=1, q_lora=1)
LATENT_COMPILED = Need(context=1, q=1, o=1, h=1, normed=1, rope=1)
DEEPSEEK = Family(
    eager=Moments(attention=LATENT, mlp=GATED + Need(h=3)),
    compiled=Moments(attention=LATENT_COMPILED, mlp=GATED + Need(h=3)),
)

GATED_ATTENTION = QKV + Need(q=5, k=1, o=1, h=4, one=16)
"""Queries come with gates, both are copied as keys are, and the output is gated."""
GATED_COMPILED = QKV + Need(q=4, k=1, o=1, conv=1, inner=1, h=2, one=16)
"""A compiled pass keeps what the recurrent layers before projected."""
GPT_OSS_ATTENTION = QKV + Need(o=1, h=3, one=192)
"""The experts' output is 192 elements wider than the stream where Marlin runs them."""
ROTATED32 = QKV + Need(q=3, k=7, o=0, h=2)
"""OLMo: normed queries and keys, and both rotated in float32, the keys last."""

FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "phi3": LLAMA,
    "qwen2": Family(eager=_dense(4), compiled=COMPILED),
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "gemma2": Family(eager=GEMMA.eager, compiled=_dense(2, o=1, one=2)),
    "gemma3_text": Family(eager=GEMMA.eager, compiled=_dense(2, o=1, one=2)),
    "granite": Family(eager=_dense(4), compiled=COMPILED),
    "cohere": Family(eager=_dense(5), compiled=_dense(3, o=1)),
    "stablelm": Family(eager=_dense(5)),
    "falcon": Family(eager=_dense(3, mlp=Need(i=2))),
    "bloom": Family(eager=_dense(3, mlp=Need(i=2))),
    "gpt2": Family(eager=_dense(6, mlp=Need(i=2))),
    "apertus": Family(eager=_dense(3, mlp=Need(i=5.5)), compiled=_dense(3, o=1, mlp=Need(i=1))),
    "starcoder2": Family(eager=_dense(4, mlp=Need(i=2), rope=2), compiled=_dense(3, o=1, mlp=Need(i=1), rope=2)),
    "glm": Family(eager=_dense(4, mlp=Need(i=4), rope=1), compiled=_dense(2, o=1, rope=1)),
    "seed_oss": Family(eager=_dense(4, rope=2), compiled=_dense(2, o=1, rope=2)),
    "smollm3": Family(eager=_dense(4, rope=2), compiled=_dense(2, o=1, rope=2)),
    "hunyuan_v1_dense": Family(eager=_dense(4, rope=2), compiled=_dense(2, o=1, rope=2)),
    "olmo2": Family(
        norms_embedding=False,
        eager=_dense(4, rope=4, attention=ROTATED32 + Need(rope=4)),
        compiled=_dense(2, o=1, rope=4),
    ),
    "olmo3": Family(norms_embedding=False, eager=_dense(4, rope=8, attention=ROTATED32 + Need(rope=8))),
    "phi": Family(eager=_dense(4, mlp=Need(i=4), rope=0.8)),
    "opt": Family(eager=_dense(4, mlp=Need(i=2))),
    "gptj": Family(eager=_dense(3, mlp=Need(i=2))),
    "gpt_neox": Family(eager=_dense(4, mlp=Need(i=2), attention=QKV + Need(q=2, k=3, h=4, one=64))),
    "mixtral": Family(
        eager=Moments(attention=QKV + Need(o=1, h=3)),
        compiled=Moments(attention=QKV + Need(q=1, k=1, o=1, h=3)),
    ),
    "phimoe": Family(
        eager=Moments(attention=QKV + Need(q=1, k=1, o=1, h=4)),
        compiled=Moments(attention=QKV + Need(q=1, k=1, o=1, h=3)),
    ),
    "llama4_text": Family(
        tuning_fraction=0.3,
        eager=Moments(attention=QKV + Need(q=5, h=2)),
        compiled=Moments(attention=QKV + Need(q=5, h=2), shared=Need(s=3, h=4, one=16)),
    ),
    "qwen3_moe": Family(
        eager=Moments(attention=QK_NORM),
        compiled=Moments(attention=QKV + Need(q=2, k=1, o=1, h=2)),
    ),
    "deepseek_v2": DEEPSEEK,
    "glm4_moe": Family(eager=_dense(3), compiled=_dense(2, o=1, attention=QKV + Need(q=2, k=1, o=1, h=2))),
    "minimax_m2": Family(
        eager=Moments(attention=QKV + Need(q=6, k=2, h=2, one=4)),
        compiled=Moments(attention=QKV + Need(q=2, k=1, o=1, h=2)),
    ),
    "gpt_oss": Family(
        narrows_rotary=True,
        padded_experts=(128, 256),
        eager=Moments(attention=GPT_OSS_ATTENTION, experts=Need(routed_i=1, routed_h=1, h=4, one=55)),
        compiled=Moments(attention=GPT_OSS_ATTENTION, experts=Need(routed_i=1, routed_h=1, q=1, h=4, one=55)),
    ),
    "qwen3_next": Family(
        checkpoints=True,
        eager=Moments(attention=GATED_ATTENTION, recurrent=Need(conv=3, inner=4, h=5, one=144)),
        compiled=Moments(attention=GATED_ATTENTION, recurrent=Need(conv=2, inner=5, h=2, one=80)),
    ),
    "qwen3_5_text": Family(
        checkpoints=True,
        eager=Moments(attention=GATED_ATTENTION, mlp=GATED + Need(h=5, one=16)),
        compiled=Moments(attention=GATED_COMPILED, mlp=GATED + Need(conv=1, inner=1, h=3, one=16)),
    ),
    "qwen3_5_moe_text": Family(
        checkpoints=True,
        eager=Moments(attention=GATED_ATTENTION),
        compiled=Moments(attention=GATED_COMPILED),
    ),
    "nemotron_h": Family(
        eager=Moments(
            attention=QKV + Need(o=1, h=3),
            mlp=Need(i=2, h=2),
            recurrent=Need(inner=6, conv=1, heads=1, h=2, one=32),
        ),
        compiled=Moments(
            attention=QKV + Need(o=1, h=3),
            mlp=Need(i=2, h=2),
            recurrent=Need(inner=4, conv=2, heads=2, h=3),
        ),
    ),
    "deepseek_v3": DEEPSEEK,
}
"""By the text model's type."""

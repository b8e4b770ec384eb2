"""A published config.json as a Geometry, without torch: one row of FAMILIES a model type.

The rows follow what the configuration classes of transformers 5.23 compute in ``__post_init__``
(``models/*/configuration_*.py``) and which modules the modeling files then build.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from analytic.errors import UllageError
from analytic.models.config_keys import Config, config_classes, reject
from analytic.models.geometry import (
    Attention,
    FeedForward,
    Geometry,
    LatentAttention,
    Layer,
    MixtureOfExperts,
    Recurrent,
)

FULL, SLIDING, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"
CONV, HYBRID, MLP, MOE = "conv", "hybrid", "mlp", "moe"

ALIASES: Mapping[str, str] = {"kimi_k2": "deepseek_v3"}
"""Model types of checkpoints with remote code that transformers serves with another family's classes."""

_LEGACY_KINDS: Mapping[str, str] = {
    "attention": FULL,
    "mamba": LINEAR,
    "sparse": FULL,
    "short_conv": CONV,
}
"""Layer names of older files (``configuration_utils.remap_legacy_layer_types``)."""

FLOAT32_BYTES = 4


# -- what kind each layer is --------------------------------------------------------------------------------------------


def _uniform(config: Config) -> list[str]:
    """No ``layer_types``: the cache slides wherever the config has a window (``cache_utils.get_layer_types_and_kwargs``)."""
    kind = SLIDING if config.get("sliding_window") is not None else FULL
    return [kind] * config.size("num_hidden_layers")


def _uniform_if_used(config: Config) -> list[str]:
    return _uniform(config) if config.flag("use_sliding_window") else [FULL] * config.size("num_hidden_layers")


def _all_full(config: Config) -> list[str]:
    return [FULL] * config.size("num_hidden_layers")


def _all_hybrid(config: Config) -> list[str]:
    return [HYBRID] * config.size("num_hidden_layers")


def _all_linear(config: Config) -> list[str]:
    return [LINEAR] * config.size("num_hidden_layers")


def _every(interval: int | str, kind: str = SLIDING, default: int = 0) -> Callable[[Config], list[str]]:
    """Full attention in every ``interval``-th layer, ``kind`` between."""

    def kinds(config: Config) -> list[str]:
        step = interval if isinstance(interval, int) else config.optional_size(interval) or default
        return [kind if (index + 1) % step else FULL for index in range(config.size("num_hidden_layers"))]

    return kinds


def _exaone(config: Config) -> list[str]:
    return _all_full(config) if config.get("sliding_window") is None else _every("sliding_window_pattern")(config)


def _sliding_from(*, gated: bool) -> Callable[[Config], list[str]]:
    """Sliding from ``max_window_layers`` up; where ``gated``, only with ``use_sliding_window``."""

    def kinds(config: Config) -> list[str]:
        slides = config.get("sliding_window") is not None and (config.flag("use_sliding_window") or not gated)
        first = config.count("max_window_layers")
        return [SLIDING if slides and index >= first else FULL for index in range(config.size("num_hidden_layers"))]

    return kinds


def _alternate_below(config: Config) -> list[str]:
    slides, last = config.flag("use_sliding_window"), config.count("max_window_layers")
    return [
        SLIDING if slides and index < last and index % 2 == 0 else FULL
        for index in range(config.size("num_hidden_layers"))
    ]


def _rotated(config: Config) -> list[bool]:
    """Which layers rotate, in configs with ``no_rope_layers`` (1 means that the layer *does* rotate)."""
    given = config.per_layer("no_rope_layers")
    if given:
        return [bool(item) for item in given]
    step = config.size("no_rope_layer_interval")
    return [bool((index + 1) % step) for index in range(config.size("num_hidden_layers"))]


def _smollm(config: Config) -> list[str]:
    slides = config.flag("use_sliding_window") and config.get("sliding_window") is not None
    return [SLIDING if slides and not rotated else FULL for rotated in _rotated(config)]


def _llama4(config: Config) -> list[str]:
    return [CHUNKED if rotated else FULL for rotated in _rotated(config)]


def _lightning(config: Config) -> list[str]:
    return [LINEAR if index % 2 else FULL for index in range(config.size("num_hidden_layers"))]


def _conv_between(config: Config) -> list[str]:
    layers = config.size("num_hidden_layers")
    attends = config.indices("full_attn_idxs") if config.get("full_attn_idxs") is not None else frozenset(range(layers))
    return [FULL if index in attends else CONV for index in range(layers)]


def _jamba(config: Config) -> list[str]:
    period, offset = config.size("attn_layer_period"), config.count("attn_layer_offset")
    return [FULL if index % period == offset else LINEAR for index in range(config.size("num_hidden_layers"))]


def _bamba(config: Config) -> list[str]:
    attends = config.indices("attn_layer_indices")
    return [FULL if index in attends else LINEAR for index in range(config.size("num_hidden_layers"))]


_NEMOTRON_LETTERS: Mapping[str, str] = {"M": LINEAR, "E": MOE, "*": FULL, "-": MLP}


def _nemotron(config: Config) -> list[str]:
    pattern = config.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or not pattern or set(pattern) - set(_NEMOTRON_LETTERS):
        config.reject("hybrid_override_pattern", pattern)
    return [_NEMOTRON_LETTERS[letter] for letter in pattern]


# -- token mixers -------------------------------------------------------------------------------------------------------


def _window(config: Config, kind: str) -> int | None:
    if kind == CHUNKED:
        return config.size("attention_chunk_size")
    if kind != SLIDING:
        return None
    window = config.size("sliding_window")
    return window // 2 + 1 if config.flag("use_bidirectional_attention") else window


def _kv_heads(config: Config, heads: int) -> int:
    return config.optional_size("num_key_value_heads") or heads


def _divided_head_dim(config: Config) -> int:
    """hidden_size / heads, as the families without a ``head_dim`` key have it."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if hidden < heads:
        config.reject("num_attention_heads", heads)
    return hidden // heads


def _head_dim(config: Config) -> int:
    return config.optional_size("head_dim") or _divided_head_dim(config)


def _attention(config: Config, kind: str, index: int, *, rotary: bool = True) -> Attention:
    heads, head_dim = config.size("num_attention_heads"), _head_dim(config)
    kv_heads = _kv_heads(config, heads)
    if heads % kv_heads:
        config.reject("num_key_value_heads", kv_heads)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        window_tokens=_window(config, kind),
        chunked=kind == CHUNKED,
        rotary=rotary,
    )


def _unrotated(config: Config, kind: str, index: int) -> Attention:
    return _attention(config, kind, index, rotary=False)


def _rotated_by_layer(config: Config, kind: str, index: int) -> Attention:
    return _attention(config, kind, index, rotary=_rotated(config)[index])


def _rotated_if_sliding(config: Config, kind: str, index: int) -> Attention:
    """Global layers without rotation (``models/cohere2``, ``models/exaone4`` with a window)."""
    return _attention(config, kind, index, rotary=kind == SLIDING or config.get("sliding_window") is None)


def _bigcode(config: Config, kind: str, index: int) -> Attention:
    heads, size = config.size("num_attention_heads"), _divided_head_dim(config)
    kv_heads = 1 if config.flag("multi_query") else heads
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=size, v_head_dim=size, rotary=False)


def _falcon(config: Config, kind: str, index: int) -> Attention:
    """Three decoders: 7B (one key head), 40B and 180B (grouped, but cached expanded), RW (all heads, ALiBi)."""
    heads, size = config.size("num_attention_heads"), _divided_head_dim(config)
    new = config.flag("new_decoder_architecture")
    own_heads = config.optional_size("num_kv_heads") or heads
    return Attention(
        heads=heads,
        kv_heads=own_heads if new or not config.flag("multi_query") else 1,
        head_dim=size,
        v_head_dim=size,
        rotary=not config.flag("alibi"),
        cached_heads=heads if new else None,
    )


def _latent(config: Config, kind: str, index: int) -> LatentAttention:
    return LatentAttention(
        heads=config.size("num_attention_heads"),
        q_lora_rank=config.optional_size("q_lora_rank"),
        kv_lora_rank=config.size("kv_lora_rank"),
        qk_nope_head_dim=config.size("qk_nope_head_dim"),
        qk_rope_head_dim=config.size("qk_rope_head_dim"),
        v_head_dim=config.size("v_head_dim"),
    )


def _mamba(*, expand: str, state: str, kernel: str) -> Callable[[Config], Recurrent]:
    """Mamba: state [inner, state_size], convolution over the inner stream."""

    def recurrent(config: Config) -> Recurrent:
        inner = config.size(expand) * config.size("hidden_size")
        return Recurrent(
            kind="mamba",
            conv_channels=inner,
            conv_kernel=config.size(kernel),
            state_elements=inner * config.size(state),
            state_itemsize=FLOAT32_BYTES,
            inner_size=inner,
        )

    return recurrent


def _mamba2(inner: int, *, heads: int, head_dim: int, groups: int, state: int, kernel: int) -> Recurrent:
    """Mamba 2: state [heads, head_dim, state_size], convolution over the inner stream, B and C."""
    return Recurrent(
        kind="mamba2",
        conv_channels=inner + 2 * groups * state,
        conv_kernel=kernel,
        state_elements=heads * head_dim * state,
        state_itemsize=FLOAT32_BYTES,
        inner_size=inner,
    )


def _mamba2_plain(config: Config) -> Recurrent:
    return _mamba2(
        config.size("expand") * config.size("hidden_size"),
        heads=config.size("num_heads"),
        head_dim=config.size("head_dim"),
        groups=config.size("n_groups"),
        state=config.size("state_size"),
        kernel=config.size("conv_kernel"),
    )


def _mamba2_nemotron(config: Config) -> Recurrent:
    heads, head_dim = config.size("mamba_num_heads"), config.size("mamba_head_dim")
    return _mamba2(
        heads * head_dim,
        heads=heads,
        head_dim=head_dim,
        groups=config.size("n_groups"),
        state=config.size("ssm_state_size"),
        kernel=config.size("conv_kernel"),
    )


def _mamba2_hybrid(config: Config) -> Recurrent:
    inner = config.optional_size("mamba_d_ssm") or config.size("mamba_expand") * config.size("hidden_size")
    heads = config.size("mamba_n_heads")
    head_dim = inner // heads if config.get("mamba_d_head") == "auto" else config.size("mamba_d_head")
    return _mamba2(
        inner,
        heads=heads,
        head_dim=head_dim,
        groups=config.size("mamba_n_groups"),
        state=config.size("mamba_d_state"),
        kernel=config.size("mamba_d_conv"),
    )


def _gated_delta_net(config: Config) -> Recurrent:
    """State [value heads, key dim, value dim], convolution over queries, keys and values."""
    key_dim, value_dim = config.size("linear_key_head_dim"), config.size("linear_value_head_dim")
    value_heads = config.size("linear_num_value_heads")
    inner = value_heads * value_dim
    return Recurrent(
        kind="gated_delta_net",
        conv_channels=2 * config.size("linear_num_key_heads") * key_dim + inner,
        conv_kernel=config.size("linear_conv_kernel_dim"),
        state_elements=inner * key_dim,
        state_itemsize=FLOAT32_BYTES,
        inner_size=inner,
    )


def _lightning_attention(config: Config) -> Recurrent:
    """State [heads, head_dim, head_dim] and no convolution (``models/minimax``)."""
    heads, head_dim = config.size("num_attention_heads"), _head_dim(config)
    return Recurrent(
        kind="lightning",
        conv_channels=0,
        conv_kernel=0,
        state_elements=heads * head_dim * head_dim,
        state_itemsize=None,
        inner_size=heads * head_dim,
    )


def _short_convolution(config: Config) -> Recurrent:
    """A gated convolution and no state (``models/lfm2``)."""
    hidden = config.size("hidden_size")
    return Recurrent(
        kind="short_conv",
        conv_channels=hidden,
        conv_kernel=config.size("conv_L_cache"),
        state_elements=0,
        state_itemsize=None,
        inner_size=hidden,
    )


# -- feed-forwards ------------------------------------------------------------------------------------------------------

FeedForwardKind = FeedForward | MixtureOfExperts | None


def _dense(
    key: str = "intermediate_size", *, gated: bool = True, fused: bool = False, times_hidden: int | None = None
) -> Callable[[Config, str, int], FeedForwardKind]:
    """One width for every layer, ``times_hidden`` × hidden_size where the key is null."""

    def feed_forward(config: Config, kind: str, index: int) -> FeedForward:
        width = config.optional_size(key) if times_hidden else config.size(key)
        return FeedForward(
            intermediate_size=width or (times_hidden or 0) * config.size("hidden_size"), gated=gated, fused=fused
        )

    return feed_forward


def _bloom_mlp(config: Config, kind: str, index: int) -> FeedForward:
    return FeedForward(intermediate_size=4 * config.size("hidden_size"), gated=False)


def _mpt_mlp(config: Config, kind: str, index: int) -> FeedForward:
    return FeedForward(intermediate_size=config.size("expansion_ratio") * config.size("hidden_size"), gated=False)


def _lfm_mlp(config: Config, kind: str, index: int) -> FeedForward:
    """Width adjusted as ``models/lfm2/modeling_lfm2.py`` does."""
    width = config.size("intermediate_size")
    if config.flag("block_auto_adjust_ff_dim"):
        block = config.size("block_multiple_of")
        factor = config.get("block_ffn_dim_multiplier")
        width = int((1 if factor is None else factor) * (2 * width // 3))
        width = -(-width // block) * block
    return FeedForward(intermediate_size=width)


def _no_mlp(config: Config, kind: str, index: int) -> None:
    return None


def _experts(
    count: str = "num_local_experts",
    *,
    width: str = "intermediate_size",
    shared: Callable[[Config], int] = lambda _: 0,
    sparse: Callable[[Config, int], bool] = lambda _config, _index: True,
    dense_width: str = "intermediate_size",
    gated: bool = True,
    fused: bool = False,
) -> Callable[[Config, str, int], FeedForwardKind]:
    """Routed experts where ``sparse`` says so, a dense feed-forward elsewhere."""

    def feed_forward(config: Config, kind: str, index: int) -> FeedForward | MixtureOfExperts:
        if not config.count(count) or not sparse(config, index):
            return FeedForward(intermediate_size=config.size(dense_width), gated=gated, fused=fused)
        return MixtureOfExperts(
            experts=config.size(count),
            experts_per_token=config.size("num_experts_per_tok"),
            intermediate_size=config.size(width),
            shared_intermediate_size=shared(config),
            gated=gated,
        )

    return feed_forward


def _shared_size(key: str) -> Callable[[Config], int]:
    return lambda config: config.count(key)


def _shared_count(key: str) -> Callable[[Config], int]:
    """Shared experts as wide as the routed ones, in one feed-forward."""
    return lambda config: config.count(key) * config.size("moe_intermediate_size")


def _qwen_sparse(config: Config, index: int) -> bool:
    return index not in config.indices("mlp_only_layers") and (index + 1) % config.size("decoder_sparse_step") == 0


def _after_first(key: str) -> Callable[[Config, int], bool]:
    return lambda config, index: index >= config.count(key)


def _llama4_sparse(config: Config, index: int) -> bool:
    if config.get("moe_layers") is not None:
        return index in config.indices("moe_layers")
    return (index + 1) % config.size("interleave_moe_layer_step") == 0


def _jamba_sparse(config: Config, index: int) -> bool:
    period = config.size("expert_layer_period")
    return config.size("num_experts") > 1 and index % period == config.count("expert_layer_offset")


def _ernie_sparse(config: Config, index: int) -> bool:
    """``models/ernie4_5_moe``: -1 as the last index means the last layer."""
    last = config.get("moe_layer_end_index")
    end = config.size("num_hidden_layers") - 1 if last == -1 else config.count("moe_layer_end_index")
    on_step = (index + 1) % config.size("moe_layer_interval") == 0
    return on_step and config.count("moe_layer_start_index") <= index <= end


def _nemotron_mlp(config: Config, kind: str, index: int) -> FeedForwardKind:
    """A layer is a mixer, or a feed-forward, or experts: never two of them; squared ReLU, so no gate."""
    if kind == MOE:
        shared = _shared_size("moe_shared_expert_intermediate_size")
        experts = _experts("n_routed_experts", width="moe_intermediate_size", shared=shared, gated=False)
        return experts(config, kind, index)
    return _dense(gated=False)(config, kind, index) if kind == MLP else None


# -- the families -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How one model type's layers follow from its keys."""

    kinds: Callable[[Config], list[str]] = _uniform
    """Layer kinds where the file has no ``layer_types``."""
    attention: Callable[[Config, str, int], Attention | LatentAttention] = _attention
    recurrent: Callable[[Config], Recurrent] | None = None
    """Mixer of the linear, conv and hybrid layers."""
    feed_forward: Callable[[Config, str, int], FeedForwardKind] = _dense()
    parallel: Callable[[Config], bool] = lambda _: False
    listed: bool = True
    """Whether the class reads ``layer_types`` from the file."""


def _always(_: Config) -> bool:
    return True


def _if_parallel_residual(config: Config) -> bool:
    return config.flag("use_parallel_residual")


def _falcon_parallel(config: Config) -> bool:
    return config.flag("new_decoder_architecture") or config.flag("parallel_attn")


_LLAMA = Family(kinds=_all_full, listed=False)
_MISTRAL = Family(listed=False)
_QWEN_WINDOW = _sliding_from(gated=True)
_QWEN_EXPERTS = _experts("num_experts", width="moe_intermediate_size", sparse=_qwen_sparse)
_QWEN_SHARED = _experts(
    "num_experts",
    width="moe_intermediate_size",
    sparse=_qwen_sparse,
    shared=_shared_size("shared_expert_intermediate_size"),
)
_QWEN35_EXPERTS = _experts(
    "num_experts", width="moe_intermediate_size", shared=_shared_size("shared_expert_intermediate_size")
)
_DEEPSEEK_EXPERTS = _experts(
    "n_routed_experts",
    width="moe_intermediate_size",
    shared=_shared_count("n_shared_experts"),
    sparse=_after_first("first_k_dense_replace"),
)
_ERNIE_EXPERTS = _experts(
    "num_experts", width="moe_intermediate_size", shared=_shared_count("moe_num_shared_experts"), sparse=_ernie_sparse
)
_GRANITE_SHARED = _experts(
    shared=_shared_size("shared_intermediate_size"), dense_width="shared_intermediate_size", fused=True
)
_GPT2_MLP = _dense("n_inner", gated=False, times_hidden=4)
_NEXT_KINDS = _every("full_attention_interval", LINEAR, default=4)
_UNGATED = Family(kinds=_all_full, feed_forward=_dense(gated=False), listed=False)


def _granite_attention(config: Config, kind: str, index: int) -> Attention:
    return _attention(config, kind, index, rotary=config.get("position_embedding_type") == "rope")


FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "ministral": Family(),
    "ministral3": _MISTRAL,
    "mixtral": Family(feed_forward=_experts(), listed=False),
    "qwen2": Family(kinds=_QWEN_WINDOW),
    "qwen2_moe": Family(kinds=_alternate_below, feed_forward=_QWEN_SHARED),
    "qwen2_vl_text": Family(kinds=_QWEN_WINDOW),
    "qwen2_5_vl_text": Family(kinds=_QWEN_WINDOW),
    "qwen3": Family(kinds=_QWEN_WINDOW),
    "qwen3_moe": Family(kinds=_uniform_if_used, feed_forward=_QWEN_EXPERTS, listed=False),
    "qwen3_vl_text": _LLAMA,
    "qwen3_next": Family(kinds=_NEXT_KINDS, recurrent=_gated_delta_net, feed_forward=_QWEN_SHARED),
    "qwen3_5_text": Family(kinds=_NEXT_KINDS, recurrent=_gated_delta_net),
    "qwen3_5_moe_text": Family(kinds=_NEXT_KINDS, recurrent=_gated_delta_net, feed_forward=_QWEN35_EXPERTS),
    "gemma": _LLAMA,
    "gemma2": Family(kinds=_every(2)),
    "gemma3_text": Family(kinds=_every("sliding_window_pattern", default=6)),
    "phi": Family(kinds=_all_full, feed_forward=_dense(gated=False), parallel=_always, listed=False),
    "phi3": Family(feed_forward=_dense(fused=True), listed=False),
    "phimoe": Family(feed_forward=_experts(), listed=False),
    "deepseek_v2": Family(kinds=_all_full, attention=_latent, feed_forward=_DEEPSEEK_EXPERTS, listed=False),
    "deepseek_v3": Family(kinds=_all_full, attention=_latent, feed_forward=_DEEPSEEK_EXPERTS, listed=False),
    "gpt_oss": Family(kinds=_every(2), feed_forward=_experts()),
    "glm": Family(kinds=_all_full, feed_forward=_dense(fused=True), listed=False),
    "glm4": Family(kinds=_all_full, feed_forward=_dense(fused=True), listed=False),
    "glm4_moe": Family(kinds=_all_full, feed_forward=_DEEPSEEK_EXPERTS, listed=False),
    "dots1": Family(kinds=_sliding_from(gated=False), feed_forward=_DEEPSEEK_EXPERTS),
    "falcon": Family(
        kinds=_all_full,
        attention=_falcon,
        feed_forward=_dense("ffn_hidden_size", gated=False, times_hidden=4),
        parallel=_falcon_parallel,
        listed=False,
    ),
    "bloom": Family(kinds=_all_full, attention=_unrotated, feed_forward=_bloom_mlp, listed=False),
    "opt": Family(kinds=_all_full, attention=_unrotated, feed_forward=_dense("ffn_dim", gated=False), listed=False),
    "gpt2": Family(kinds=_all_full, attention=_unrotated, feed_forward=_GPT2_MLP, listed=False),
    "gptj": Family(kinds=_all_full, feed_forward=_GPT2_MLP, parallel=_always, listed=False),
    "gpt_neox": Family(kinds=_all_full, feed_forward=_dense(gated=False), parallel=_if_parallel_residual, listed=False),
    "gpt_bigcode": Family(kinds=_all_full, attention=_bigcode, feed_forward=_GPT2_MLP, listed=False),
    "mpt": Family(kinds=_all_full, attention=_unrotated, feed_forward=_mpt_mlp, listed=False),
    "starcoder2": Family(feed_forward=_dense(gated=False), listed=False),
    "smollm3": Family(kinds=_smollm, attention=_rotated_by_layer),
    "granite": _LLAMA,
    "granitemoe": Family(kinds=_all_full, feed_forward=_experts(), listed=False),
    "granitemoeshared": Family(
        kinds=_all_full, feed_forward=_experts(shared=_shared_size("shared_intermediate_size")), listed=False
    ),
    "granitemoehybrid": Family(
        kinds=_all_linear, attention=_granite_attention, recurrent=_mamba2_hybrid, feed_forward=_GRANITE_SHARED
    ),
    "nemotron": _UNGATED,
    "nemotron_h": Family(kinds=_nemotron, attention=_unrotated, recurrent=_mamba2_nemotron, feed_forward=_nemotron_mlp),
    "arcee": _UNGATED,
    "apertus": _UNGATED,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": Family(kinds=_every(4)),
    "olmoe": Family(kinds=_all_full, feed_forward=_experts("num_experts"), listed=False),
    "cohere": Family(kinds=_all_full, parallel=_always, listed=False),
    "cohere2": Family(
        kinds=_every("sliding_window_pattern", default=4), attention=_rotated_if_sliding, parallel=_always
    ),
    "stablelm": Family(kinds=_all_full, parallel=_if_parallel_residual, listed=False),
    "llama4_text": Family(
        kinds=_llama4,
        attention=_rotated_by_layer,
        feed_forward=_experts(
            shared=_shared_size("intermediate_size"), sparse=_llama4_sparse, dense_width="intermediate_size_mlp"
        ),
    ),
    "jamba": Family(
        kinds=_jamba,
        attention=_unrotated,
        recurrent=_mamba(expand="mamba_expand", state="mamba_d_state", kernel="mamba_d_conv"),
        feed_forward=_experts("num_experts", sparse=_jamba_sparse),
        listed=False,
    ),
    "mamba": Family(
        kinds=_all_linear,
        recurrent=_mamba(expand="expand", state="state_size", kernel="conv_kernel"),
        feed_forward=_no_mlp,
        listed=False,
    ),
    "falcon_mamba": Family(
        kinds=_all_linear,
        recurrent=_mamba(expand="expand", state="state_size", kernel="conv_kernel"),
        feed_forward=_no_mlp,
        listed=False,
    ),
    "mamba2": Family(kinds=_all_linear, recurrent=_mamba2_plain, feed_forward=_no_mlp, listed=False),
    "bamba": Family(kinds=_bamba, recurrent=_mamba2_hybrid, listed=False),
    "falcon_h1": Family(kinds=_all_hybrid, recurrent=_mamba2_hybrid, listed=False),
    "seed_oss": _LLAMA,
    "internlm3": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "ernie4_5": _LLAMA,
    "ernie4_5_moe": Family(kinds=_all_full, feed_forward=_ERNIE_EXPERTS, listed=False),
    "minimax": Family(kinds=_lightning, recurrent=_lightning_attention, feed_forward=_experts()),
    "minimax_m2": Family(kinds=_all_full, feed_forward=_experts(), listed=False),
    "exaone4": Family(kinds=_exaone, attention=_rotated_if_sliding),
    "lfm2": Family(kinds=_conv_between, recurrent=_short_convolution, feed_forward=_lfm_mlp),
    "lfm2_moe": Family(
        kinds=_all_full,
        recurrent=_short_convolution,
        feed_forward=_experts("num_experts", width="moe_intermediate_size", sparse=_after_first("num_dense_layers")),
    ),
}
"""Every text model type that is understood."""

WRAPPERS = (
    *("gemma3", "kimi_k25", "llama4", "llava", "mistral3"),
    *("qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl"),
)
"""Model types whose text model is nested under ``text_config`` (or, in some older files, lies flat beside it)."""


def read_geometry(config: Mapping[str, object]) -> Geometry:
    """The geometry of the text model that a raw config.json describes."""
    text = _text_config(config)
    kinds = _kinds(text)
    shared: dict[Layer, Layer] = {}
    layers = tuple(_layer(text, kind, index, shared) for index, kind in enumerate(kinds))
    return Geometry(
        model_type=text.model_type,
        hidden_size=text.size("hidden_size"),
        vocab_size=text.size("vocab_size"),
        max_position_embeddings=text.optional_size("max_position_embeddings"),
        layers=layers,
    )


def _text_config(config: Mapping[str, object]) -> Config:
    """The text model's keys: the config itself, or what a multimodal one nests."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or ALIASES.get(model_type, model_type) not in {*FAMILIES, *WRAPPERS}:
        raise UllageError(
            f"config.json: model_type {str(model_type)[:60]!r} is not known to ullage",
            hint="use a model of a known family, or profile it: `ullage profile` needs no family",
        )
    if model_type in WRAPPERS:
        return _text_config(_nested(config, model_type))
    base = config_classes()[ALIASES.get(model_type, model_type)]
    return Config(model_type=ALIASES.get(model_type, model_type), given=config, base=base)


def _nested(config: Mapping[str, object], model_type: str) -> Mapping[str, object]:
    text_type = config_classes()[model_type].text_config
    nested = config.get("text_config")
    if nested is None and "hidden_size" in config:
        nested = {**config, "model_type": text_type}
    if not isinstance(nested, Mapping):
        reject(model_type, "text_config", nested)
    return {"model_type": text_type, **nested}


def _kinds(config: Config) -> list[str]:
    family = FAMILIES[config.model_type]
    listed = config.get("layer_types") if family.listed else None
    if listed is None:
        return family.kinds(config)
    if config.model_type != "nemotron_h":
        listed = config.per_layer("layer_types") or ()
    if not listed or not isinstance(listed, list | tuple):
        config.reject("layer_types", listed)
    return [_known_kind(config, _LEGACY_KINDS.get(str(kind), str(kind))) for kind in listed]


def _known_kind(config: Config, kind: str) -> str:
    recurrent = FAMILIES[config.model_type].recurrent is not None
    if kind in (FULL, SLIDING, CHUNKED) or (recurrent and kind in (LINEAR, CONV, HYBRID, MLP, MOE)):
        return kind
    config.reject("layer_types", kind)


def _layer(config: Config, kind: str, index: int, shared: dict[Layer, Layer]) -> Layer:
    """The layer at an index, as the one object that stands for all layers like it."""
    family = FAMILIES[config.model_type]
    recurrent = family.recurrent(config) if family.recurrent and kind in (LINEAR, CONV, HYBRID) else None
    attention = family.attention(config, kind, index) if kind in (FULL, SLIDING, CHUNKED, HYBRID) else None
    layer = Layer(
        mixer=attention or recurrent,
        feed_forward=family.feed_forward(config, kind, index),
        parallel=family.parallel(config),
        recurrent=recurrent if kind == HYBRID else None,
    )
    return shared.setdefault(layer, layer)

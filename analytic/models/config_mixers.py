"""Token mixers (attention, latent attention, recurrent) from a family's keys."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from analytic.models.config_keys import Config, checked_size
from analytic.models.config_kinds import CHUNKED, FULL, INDEXED, SLIDING, rotated_layers, shares_cache
from analytic.models.geometry import Attention, LatentAttention, Recurrent

FLOAT32_BYTES = 4

GEMMA4_GLOBAL_HEAD_DIM = 512
"""What ``configuration_gemma4.py`` assumes; no field of the class holds it."""


def window_tokens(config: Config, kind: str) -> int | None:
    """Tokens of a layer's window or chunk."""
    if kind == CHUNKED:
        return config.size("attention_chunk_size")
    if kind != SLIDING:
        return None
    window = config.size("sliding_window")
    return window // 2 + 1 if config.get("use_bidirectional_attention") in (True, "all") else window


def key_heads(config: Config, heads: int) -> int:
    """``num_key_value_heads`` where the class has it, or a key head a query head."""
    return (config.has("num_key_value_heads") and config.optional_size("num_key_value_heads")) or heads


def divided_head_dim(config: Config) -> int:
    """hidden_size / heads, as the families without a ``head_dim`` key have it."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if hidden < heads:
        config.reject("num_attention_heads", heads)
    return hidden // heads


def head_size(config: Config) -> int:
    """``head_dim`` where given, else hidden_size / heads."""
    return config.optional_size("head_dim") or divided_head_dim(config)


def attention(config: Config, kind: str, index: int, *, rotary: bool = True) -> Attention:
    """Grouped-query attention as Llama has it."""
    heads, head_dim = config.size("num_attention_heads"), head_size(config)
    kv_heads = key_heads(config, heads)
    if heads % kv_heads:
        config.reject("num_key_value_heads", kv_heads)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        window_tokens=window_tokens(config, kind),
        chunked=kind == CHUNKED,
        rotary=rotary,
    )


def unrotated(config: Config, kind: str, index: int) -> Attention:
    """Attention without rotary positions."""
    return attention(config, kind, index, rotary=False)


def rotated_by_layer(config: Config, kind: str, index: int) -> Attention:
    """Rotation as ``no_rope_layers`` says."""
    return attention(config, kind, index, rotary=rotated_layers(config)[index])


def rotated_if_sliding(config: Config, kind: str, index: int) -> Attention:
    """Global layers without rotation (``models/cohere2``, ``models/exaone4`` with a window)."""
    return attention(config, kind, index, rotary=kind == SLIDING or config.get("sliding_window") is None)


def shared_at_end(config: Config, kind: str, index: int) -> Attention:
    """The last ``num_kv_shared_layers`` read the cache of an earlier layer of their kind (``models/gemma3n``)."""
    return replace(attention(config, kind, index), cached_heads=0 if shares_cache(config, index) else None)


def mimo(config: Config, kind: str, index: int) -> Attention:
    """Values narrower than keys, and twice the key heads where the window slides (``models/mimo_v2_flash``)."""
    plain = attention(config, kind, index)
    kv_heads = plain.kv_heads * (2 if kind == SLIDING else 1)
    return replace(plain, kv_heads=kv_heads, v_head_dim=config.size("v_head_dim"))


def gemma4(config: Config, kind: str, index: int) -> Attention:
    """Global layers have larger heads, and fewer where keys serve as values; the last layers may share a cache."""
    plain = attention(config, kind, index)
    wide = _gemma4_global(config, index) if kind == FULL else {}
    head_dim, kv_heads = wide.get("head_dim", plain.head_dim), wide.get("num_key_value_heads", plain.kv_heads)
    cached_heads = 0 if shares_cache(config, index) else None
    return replace(plain, head_dim=head_dim, v_head_dim=head_dim, kv_heads=kv_heads, cached_heads=cached_heads)


def _gemma4_global(config: Config, index: int) -> dict[str, int]:
    """What a global layer overrides: written out per layer by newer files, by two keys in the published ones."""
    written = config.get("per_layer_config")
    if isinstance(written, Mapping):
        own = {int(layer): sizes for layer, sizes in written.items()}.get(index, {})
        return {key: checked_size(config.model_type, key, size) for key, size in own.items()}
    sizes = {"head_dim": config.optional_size("global_head_dim") or GEMMA4_GLOBAL_HEAD_DIM}
    kv_heads = config.optional_size("num_global_key_value_heads") if config.flag("attention_k_eq_v") else None
    return sizes if kv_heads is None else {**sizes, "num_key_value_heads": kv_heads}


def bigcode(config: Config, kind: str, index: int) -> Attention:
    """Multi-query attention, or a key head a query head."""
    heads, size = config.size("num_attention_heads"), divided_head_dim(config)
    kv_heads = 1 if config.flag("multi_query") else heads
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        v_head_dim=size,
        window_tokens=window_tokens(config, kind),
        rotary=False,
    )


def falcon(config: Config, kind: str, index: int) -> Attention:
    """Three decoders: 7B (one key head), 40B and 180B (grouped, but cached expanded), RW (all heads, ALiBi)."""
    heads, size = config.size("num_attention_heads"), divided_head_dim(config)
    new = config.flag("new_decoder_architecture")
    own_heads = config.optional_size("num_kv_heads") or heads
    return Attention(
        heads=heads,
        kv_heads=own_heads if new or not config.flag("multi_query") else 1,
        head_dim=size,
        v_head_dim=size,
        window_tokens=window_tokens(config, kind),
        rotary=not config.flag("alibi"),
        cached_heads=heads if new else None,
    )


def latent(config: Config, kind: str, index: int) -> LatentAttention:
    """Multi-head latent attention, never windowed."""
    if kind != FULL:
        config.reject("sliding_window", config.get("sliding_window"))
    return LatentAttention(
        heads=config.size("num_attention_heads"),
        q_lora_rank=config.optional_size("q_lora_rank"),
        kv_lora_rank=config.size("kv_lora_rank"),
        qk_nope_head_dim=config.size("qk_nope_head_dim"),
        qk_rope_head_dim=config.size("qk_rope_head_dim"),
        v_head_dim=config.size("v_head_dim"),
    )


def latent_dense(config: Config, kind: str, index: int) -> LatentAttention:
    """Latent attention whose values are as wide as hidden_size / heads where the file does not say (MiniCPM 3)."""
    if config.get("v_head_dim") is not None:
        return latent(config, kind, index)
    filled = {**config.given, "v_head_dim": divided_head_dim(config)}
    return latent(replace(config, given=filled), kind, index)


def latent_indexed(config: Config, kind: str, index: int) -> LatentAttention:
    """Latent attention to the tokens that an indexer picks, where the layer has one of its own."""
    if kind != INDEXED:
        config.reject("layer_types", kind)
    own = has_indexer(config, index)
    return replace(latent(config, FULL, index), index_head_dim=config.size("index_head_dim") if own else None)


def has_indexer(config: Config, index: int) -> bool:
    """Whether a layer indexes for itself; else it reads an earlier one's choice (``configuration_glm_moe_dsa.py``)."""
    listed = config.per_layer("indexer_types")
    if listed is not None:
        return bool(listed[index] != "shared")
    pattern = config.per_layer("index_topk_pattern")
    if pattern is not None:
        return pattern[index] in ("F", "full")
    if not config.has("indexer_types"):
        return True
    step = config.optional_size("index_topk_freq") or 1
    offset = config.get("index_skip_topk_offset")
    return max(index - (2 if offset is None else config.count("index_skip_topk_offset")) + 1, 0) % step == 0


def mamba(*, expand: str, state: str, kernel: str) -> Callable[[Config], Recurrent]:
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


DELTA_CHUNK_TOKENS = 64
"""Chunk of a gated delta rule (``models/qwen3_next``, torch_chunk_gated_delta_rule)."""


def mamba2(inner: int, *, heads: int, head_dim: int, groups: int, state: int, kernel: int, chunk: int) -> Recurrent:
    """Mamba 2: state [heads, head_dim, state_size], convolution over the inner stream, B and C."""
    return Recurrent(
        kind="mamba2",
        conv_channels=inner + 2 * groups * state,
        conv_kernel=kernel,
        state_elements=heads * head_dim * state,
        state_itemsize=FLOAT32_BYTES,
        inner_size=inner,
        heads=heads,
        chunk_tokens=chunk,
    )


def mamba2_plain(config: Config) -> Recurrent:
    """Mamba 2 by its own model's keys."""
    return mamba2(
        config.size("expand") * config.size("hidden_size"),
        heads=config.size("num_heads"),
        head_dim=config.size("head_dim"),
        groups=config.size("n_groups"),
        state=config.size("state_size"),
        kernel=config.size("conv_kernel"),
        chunk=config.size("chunk_size"),
    )


def mamba2_nemotron(config: Config) -> Recurrent:
    """Mamba 2 by Nemotron H's keys."""
    heads, head_dim = config.size("mamba_num_heads"), config.size("mamba_head_dim")
    return mamba2(
        heads * head_dim,
        heads=heads,
        head_dim=head_dim,
        groups=config.size("n_groups"),
        state=config.size("ssm_state_size"),
        kernel=config.size("conv_kernel"),
        chunk=config.size("chunk_size"),
    )


def mamba2_hybrid(config: Config) -> Recurrent:
    """Mamba 2 by the keys of Bamba, Falcon H1 and Granite 4."""
    inner = config.optional_size("mamba_d_ssm") or config.size("mamba_expand") * config.size("hidden_size")
    heads = config.size("mamba_n_heads")
    head_dim = inner // heads if config.get("mamba_d_head") == "auto" else config.size("mamba_d_head")
    return mamba2(
        inner,
        heads=heads,
        head_dim=head_dim,
        groups=config.size("mamba_n_groups"),
        state=config.size("mamba_d_state"),
        kernel=config.size("mamba_d_conv"),
        chunk=config.size("mamba_chunk_size"),
    )


def gated_delta_net(config: Config) -> Recurrent:
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
        heads=value_heads,
        chunk_tokens=DELTA_CHUNK_TOKENS,
    )


def kimi_delta(config: Config) -> Recurrent:
    """State [heads, head dim, head dim] in float32, convolution over queries, keys and values (``models/kimi_linear``).

    Published files nest the sizes under ``linear_attn_config``.
    """
    nested = config.get("linear_attn_config")
    given = nested if isinstance(nested, Mapping) else {}

    def size(inside: str, key: str) -> int:
        return checked_size(config.model_type, inside, given[inside]) if inside in given else config.size(key)

    return _delta(
        size("num_heads", "linear_num_heads"),
        size("head_dim", "linear_head_dim"),
        size("short_conv_kernel_size", "linear_conv_kernel_dim"),
    )


def bailing_delta(config: Config) -> Recurrent:
    """The same by the keys of Ling's hybrids (``models/bailing_hybrid``)."""
    head_dim = config.optional_size("linear_head_dim") or config.size("head_dim")
    return _delta(config.size("num_attention_heads"), head_dim, config.size("short_conv_kernel_size"))


def _delta(heads: int, head_dim: int, kernel: int) -> Recurrent:
    inner = heads * head_dim
    return Recurrent(
        kind="kimi_delta",
        conv_channels=3 * inner,
        conv_kernel=kernel,
        state_elements=inner * head_dim,
        state_itemsize=FLOAT32_BYTES,
        inner_size=inner,
        heads=heads,
        chunk_tokens=DELTA_CHUNK_TOKENS,
    )


def gated_delta_net_from_heads(config: Config) -> Recurrent:
    """A gated delta net whose sizes follow from the attention's where not given (``models/olmo_hybrid``)."""
    heads = config.size("num_attention_heads")
    sizes = {key: config.optional_size(key) or heads for key in ("linear_num_key_heads", "linear_num_value_heads")}
    key_dim = config.optional_size("linear_key_head_dim") or 3 * config.size("hidden_size") // (
        4 * sizes["linear_num_key_heads"]
    )
    value_dim = config.optional_size("linear_value_head_dim") or 2 * key_dim
    sizes |= {"linear_key_head_dim": key_dim, "linear_value_head_dim": value_dim}
    return gated_delta_net(replace(config, given={**config.given, **sizes}))


def lightning_attention(config: Config) -> Recurrent:
    """State [heads, head_dim, head_dim] and no convolution (``models/minimax``)."""
    heads, head_dim = config.size("num_attention_heads"), head_size(config)
    return Recurrent(
        kind="lightning",
        conv_channels=0,
        conv_kernel=0,
        state_elements=heads * head_dim * head_dim,
        state_itemsize=None,
        inner_size=heads * head_dim,
    )


def short_convolution(config: Config) -> Recurrent:
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

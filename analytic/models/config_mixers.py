"""Softmax token mixers (attention, latent attention) from a family's keys."""

from collections.abc import Mapping
from dataclasses import replace

from analytic.models.config_keys import Config, checked_size
from analytic.models.config_kinds import CHUNKED, FULL, INDEXED, SLIDING, rotated_layers, shares_cache
from analytic.models.geometry import Attention, LatentAttention

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

"""The metadata of a GGUF file as the config.json that it was converted from.

Keys are those that llama.cpp's converters write (``gguf`` 0.19 ``constants.py``, Keys; ``convert_hf_to_gguf.py``). What
a family leaves to llama.cpp's code (which layers slide) is what the family's own class has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from analytic.errors import UllageError
from analytic.models.gguf import GgufHeader, Value

_HINT = "give the model that it was converted from, or convert it with a newer llama.cpp"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metadata:
    """The metadata of one architecture, each key without its prefix."""

    architecture: str
    values: Mapping[str, Value]

    def get(self, key: str) -> Any:
        return self.values.get(f"{self.architecture}.{key}")

    def number(self, key: str) -> int:
        """A whole number, of an array its only value."""
        value = self.get(key)
        if isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if type(value) is not int or value < 0:
            self.reject(key, value)
        return int(value)

    def optional(self, key: str) -> int | None:
        return None if self.get(key) is None else self.number(key)

    def per_layer(self, key: str, layers: int) -> tuple[int, ...]:
        """A number of each layer, whether it is written once or as an array."""
        value = self.get(key)
        values = value if isinstance(value, tuple) else (value,) * layers
        if len(values) != layers or not all(type(item) in (int, bool) and item >= 0 for item in values):
            self.reject(key, value)
        return tuple(map(int, values))

    def reject(self, key: str, value: object) -> NoReturn:
        raise UllageError(f"GGUF metadata: {self.architecture}.{key} cannot be {repr(value)[:60]}", hint=_HINT)


_COMMON = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "feed_forward_length": "intermediate_size",
    "attention.sliding_window": "sliding_window",
}
"""What most families name alike."""

_HEADS = {"attention.key_length": "head_dim"}

_Adjust = Callable[[_Metadata, int], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """How one architecture's metadata becomes a config."""

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)
    """Beside the common ones; an empty name drops one."""
    adjust: _Adjust = lambda *_: {}
    """What follows from several keys, of the metadata and the number of layers."""


def _experts(count: str, width: str = "moe_intermediate_size", **more: str) -> dict[str, str]:
    return {
        "expert_count": count,
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": width,
        **more,
    }


_DEEPSEEK = _experts(
    "n_routed_experts", expert_shared_count="n_shared_experts", leading_dense_block_count="first_k_dense_replace"
)


def _latent(metadata: _Metadata, _: int) -> dict[str, Any]:
    """MLA: newer files give the expanded sizes under ``_mla``, older ones as the only ones."""
    rotary = metadata.number("rope.dimension_count")
    key = metadata.optional("attention.key_length_mla") or metadata.number("attention.key_length")
    value = metadata.optional("attention.value_length_mla") or metadata.number("attention.value_length")
    return {
        "q_lora_rank": metadata.optional("attention.q_lora_rank"),
        "kv_lora_rank": metadata.number("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotary,
        "qk_nope_head_dim": key - rotary,
        "v_head_dim": value,
        "num_key_value_heads": metadata.number("attention.head_count"),
    }


def _llama(metadata: _Metadata, _: int) -> dict[str, Any]:
    """Mixtral is a Llama with experts."""
    if not metadata.optional("expert_count"):
        return {}
    experts = {"num_local_experts": metadata.number("expert_count")}
    return {"model_type": "mixtral", **experts, "num_experts_per_tok": metadata.number("expert_used_count")}


def _falcon(metadata: _Metadata, _: int) -> dict[str, Any]:
    """One key head is 7B's decoder, several are that of 11B, 40B and 180B; that of RW has other positions."""
    heads, own = metadata.number("attention.head_count"), metadata.number("attention.head_count_kv")
    if own >= heads:
        metadata.reject("attention.head_count_kv", own)
    return {
        "multi_query": True,
        "parallel_attn": True,
        "alibi": False,
        "bias": False,
        "new_decoder_architecture": own > 1,
        "num_kv_heads": own if own > 1 else heads,
    }


def _gated_delta(metadata: _Metadata, _: int) -> dict[str, Any]:
    """Qwen3-Next and 3.5: value heads are the time step's rank, key heads the groups."""
    heads, state = metadata.number("ssm.time_step_rank"), metadata.number("ssm.state_size")
    return {
        "linear_conv_kernel_dim": metadata.number("ssm.conv_kernel"),
        "linear_key_head_dim": state,
        "linear_value_head_dim": metadata.number("ssm.inner_size") // heads,
        "linear_num_key_heads": metadata.number("ssm.group_count"),
        "linear_num_value_heads": heads,
        **_if_given(metadata, "full_attention_interval", "full_attention_interval"),
    }


def _if_given(metadata: _Metadata, key: str, name: str) -> dict[str, Any]:
    return {} if metadata.get(key) is None else {name: metadata.number(key)}


def _short_convolution(metadata: _Metadata, layers: int) -> dict[str, Any]:
    """Layers without key/value heads are convolutions."""
    heads = metadata.per_layer("attention.head_count_kv", layers)
    return {
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "num_key_value_heads": max(heads),
        "conv_L_cache": metadata.number("shortconv.l_cache"),
    }


def _mamba(metadata: _Metadata, _: int) -> dict[str, Any]:
    hidden, inner = metadata.number("embedding_length"), metadata.number("ssm.inner_size")
    return {
        "expand": inner // hidden,
        "state_size": metadata.number("ssm.state_size"),
        "conv_kernel": metadata.number("ssm.conv_kernel"),
    }


def _mamba2(metadata: _Metadata, layers: int) -> dict[str, Any]:
    heads = metadata.number("ssm.time_step_rank")
    return {
        **_mamba(metadata, layers),
        "num_heads": heads,
        "head_dim": metadata.number("ssm.inner_size") // heads,
        "n_groups": metadata.number("ssm.group_count"),
    }


def _mamba_inside(metadata: _Metadata) -> dict[str, Any]:
    """Mamba 2 layers by the keys of Falcon H1 and Granite 4."""
    inner, heads = metadata.number("ssm.inner_size"), metadata.number("ssm.time_step_rank")
    return {
        "mamba_d_ssm": inner,
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_n_groups": metadata.number("ssm.group_count"),
        "mamba_d_state": metadata.number("ssm.state_size"),
        "mamba_d_conv": metadata.number("ssm.conv_kernel"),
        "mamba_expand": max(1, inner // metadata.number("embedding_length")),
    }


def _granite_hybrid(metadata: _Metadata, layers: int) -> dict[str, Any]:
    heads = metadata.per_layer("attention.head_count_kv", layers)
    return {
        **_mamba_inside(metadata),
        "layer_types": ["attention" if count else "mamba" for count in heads],
        "num_key_value_heads": max(heads),
        **_if_given(metadata, "expert_shared_feed_forward_length", "shared_intermediate_size"),
        "num_local_experts": metadata.optional("expert_count") or 0,
        **_if_given(metadata, "expert_used_count", "num_experts_per_tok"),
    }


def _nemotron_hybrid(metadata: _Metadata, layers: int) -> dict[str, Any]:
    """Attention where there are key/value heads, a feed-forward where it has a width, Mamba 2 elsewhere."""
    heads = metadata.per_layer("attention.head_count_kv", layers)
    widths = metadata.per_layer("feed_forward_length", layers)
    routed = "E" if metadata.optional("expert_count") else "-"
    pattern = ("*" if count else routed if width else "M" for count, width in zip(heads, widths, strict=True))
    inner, mamba = metadata.number("ssm.inner_size"), metadata.number("ssm.time_step_rank")
    return {
        "hybrid_override_pattern": "".join(pattern),
        "num_key_value_heads": max(heads),
        "num_attention_heads": max(metadata.per_layer("attention.head_count", layers)),
        "intermediate_size": max(widths),
        "mamba_num_heads": mamba,
        "mamba_head_dim": inner // mamba,
        "n_groups": metadata.number("ssm.group_count"),
        "ssm_state_size": metadata.number("ssm.state_size"),
        "conv_kernel": metadata.number("ssm.conv_kernel"),
        **_if_given(metadata, "expert_count", "n_routed_experts"),
        **_if_given(metadata, "expert_used_count", "num_experts_per_tok"),
        **_if_given(metadata, "expert_feed_forward_length", "moe_intermediate_size"),
        **_if_given(metadata, "expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size"),
    }


def _gemma4(metadata: _Metadata, layers: int) -> dict[str, Any]:
    """Sliding layers by the pattern; their heads are the smaller ones."""
    slides = metadata.per_layer("attention.sliding_window_pattern", layers)
    heads = metadata.per_layer("attention.head_count_kv", layers)
    wide = [count for count, sliding in zip(heads, slides, strict=True) if not sliding]
    narrow = [count for count, sliding in zip(heads, slides, strict=True) if sliding]
    return {
        "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in slides],
        "head_dim": metadata.number("attention.key_length_swa"),
        "global_head_dim": metadata.number("attention.key_length"),
        "num_key_value_heads": (narrow or wide)[0],
        **({"num_global_key_value_heads": wide[0], "attention_k_eq_v": True} if wide and wide[0] != narrow[0] else {}),
        "intermediate_size": max(metadata.per_layer("feed_forward_length", layers)),
        **_if_given(metadata, "attention.shared_kv_layers", "num_kv_shared_layers"),
        **_if_given(metadata, "embedding_length_per_layer_input", "hidden_size_per_layer_input"),
    }


_QWEN_EXPERTS = _experts("num_experts", expert_shared_feed_forward_length="shared_expert_intermediate_size")

_ROWS: Mapping[str, _Row] = {
    "llama": _Row(model_type="llama", keys=_HEADS, adjust=_llama),
    "llama4": _Row(
        model_type="llama4_text",
        keys={
            **_HEADS,
            **_experts("num_local_experts", "intermediate_size"),
            "feed_forward_length": "intermediate_size_mlp",
        },
    ),
    "mistral3": _Row(model_type="ministral3", keys=_HEADS),
    "qwen2": _Row(model_type="qwen2"),
    "qwen2vl": _Row(model_type="qwen2"),
    "qwen2moe": _Row(model_type="qwen2_moe", keys=_QWEN_EXPERTS),
    "qwen3": _Row(model_type="qwen3", keys=_HEADS),
    "qwen3vl": _Row(model_type="qwen3", keys=_HEADS),
    "qwen3moe": _Row(model_type="qwen3_moe", keys={**_HEADS, **_QWEN_EXPERTS}),
    "qwen3next": _Row(model_type="qwen3_next", keys={**_HEADS, **_QWEN_EXPERTS}, adjust=_gated_delta),
    "qwen35": _Row(model_type="qwen3_5_text", keys=_HEADS, adjust=_gated_delta),
    "qwen35moe": _Row(model_type="qwen3_5_moe_text", keys={**_HEADS, **_QWEN_EXPERTS}, adjust=_gated_delta),
    "gemma": _Row(model_type="gemma", keys=_HEADS),
    "gemma2": _Row(model_type="gemma2", keys=_HEADS),
    "gemma3": _Row(model_type="gemma3_text", keys=_HEADS),
    "gemma4": _Row(
        model_type="gemma4_text",
        keys={"attention.head_count_kv": "", "feed_forward_length": ""},
        adjust=_gemma4,
    ),
    "phi2": _Row(model_type="phi"),
    "phi3": _Row(model_type="phi3"),
    "phimoe": _Row(model_type="phimoe", keys=_experts("num_local_experts", "intermediate_size")),
    "starcoder2": _Row(model_type="starcoder2"),
    "stablelm": _Row(model_type="stablelm"),
    "gpt2": _Row(model_type="gpt2", keys={"feed_forward_length": "n_inner", "attention.head_count_kv": ""}),
    "gptneox": _Row(model_type="gpt_neox", keys={"attention.head_count_kv": ""}),
    "falcon": _Row(
        model_type="falcon",
        keys={"attention.head_count_kv": "", "feed_forward_length": "ffn_hidden_size"},
        adjust=_falcon,
    ),
    "command-r": _Row(model_type="cohere"),
    "cohere2": _Row(model_type="cohere2", keys=_HEADS),
    "olmo": _Row(model_type="olmo"),
    "olmo2": _Row(model_type="olmo2"),
    "olmoe": _Row(model_type="olmoe", keys=_experts("num_experts", "intermediate_size")),
    "granite": _Row(model_type="granite"),
    "granitemoe": _Row(model_type="granitemoe", keys=_experts("num_local_experts", "intermediate_size")),
    "granitehybrid": _Row(model_type="granitemoehybrid", keys={"attention.head_count_kv": ""}, adjust=_granite_hybrid),
    "deepseek2": _Row(model_type="deepseek_v3", keys={**_DEEPSEEK, "attention.head_count_kv": ""}, adjust=_latent),
    "glm4": _Row(model_type="glm4", keys=_HEADS),
    "glm4moe": _Row(model_type="glm4_moe", keys={**_HEADS, **_DEEPSEEK}),
    "gpt-oss": _Row(
        model_type="gpt_oss",
        keys={**_HEADS, **_experts("num_local_experts", "intermediate_size"), "feed_forward_length": ""},
    ),
    "smollm3": _Row(model_type="smollm3"),
    "nemotron": _Row(model_type="nemotron", keys=_HEADS),
    "nemotron_h": _Row(
        model_type="nemotron_h",
        keys={**_HEADS, "attention.head_count_kv": "", "attention.head_count": "", "feed_forward_length": ""},
        adjust=_nemotron_hybrid,
    ),
    "nemotron_h_moe": _Row(
        model_type="nemotron_h",
        keys={**_HEADS, "attention.head_count_kv": "", "attention.head_count": "", "feed_forward_length": ""},
        adjust=_nemotron_hybrid,
    ),
    "mamba": _Row(
        model_type="mamba", keys=dict.fromkeys(_COMMON, "") | {"embedding_length": "hidden_size"}, adjust=_mamba
    ),
    "mamba2": _Row(
        model_type="mamba2", keys=dict.fromkeys(_COMMON, "") | {"embedding_length": "hidden_size"}, adjust=_mamba2
    ),
    "falcon-h1": _Row(model_type="falcon_h1", keys=_HEADS, adjust=lambda metadata, _: _mamba_inside(metadata)),
    "lfm2": _Row(model_type="lfm2", keys={"attention.head_count_kv": ""}, adjust=_short_convolution),
    "lfm2moe": _Row(
        model_type="lfm2_moe",
        keys={**_experts("num_experts", leading_dense_block_count="num_dense_layers"), "attention.head_count_kv": ""},
        adjust=_short_convolution,
    ),
    "exaone4": _Row(model_type="exaone4", keys=_HEADS),
    "seed_oss": _Row(model_type="seed_oss", keys=_HEADS),
    "hunyuan-dense": _Row(model_type="hunyuan_v1_dense", keys=_HEADS),
    "ernie4_5": _Row(model_type="ernie4_5", keys=_HEADS),
    "minimax-m2": _Row(
        model_type="minimax_m2",
        keys={**_HEADS, **_experts("num_local_experts", "intermediate_size"), "feed_forward_length": ""},
    ),
    "dots1": _Row(model_type="dots1", keys={**_HEADS, **_DEEPSEEK}),
    "arcee": _Row(model_type="arcee", keys=_HEADS),
    "apertus": _Row(model_type="apertus", keys=_HEADS),
}
"""Every GGUF architecture that is understood."""


def config_of(header: GgufHeader) -> dict[str, Any]:
    """The config.json that a GGUF file's metadata stand for.

    Raises:
        UllageError: an architecture that is not known, or metadata that cannot be.
    """
    name = header.architecture
    if name not in _ROWS:
        raise UllageError(f"GGUF architecture {name[:60]!r} is not known to ullage", hint=f"known: {', '.join(_ROWS)}")
    row, metadata = _ROWS[name], _Metadata(architecture=name, values=header.metadata)
    layers = metadata.number("block_count") - (metadata.optional("nextn_predict_layers") or 0)
    keys = {key: to for key, to in {**_COMMON, **row.keys}.items() if to and metadata.get(key) is not None}
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    if "token_embd.weight" not in shapes:
        raise UllageError("the GGUF file holds no token_embd.weight", hint="is it a vision tower or an adapter?")
    return {
        "model_type": row.model_type,
        "num_hidden_layers": layers,
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        **{to: metadata.number(key) for key, to in keys.items()},
        **row.adjust(metadata, layers),
        "quantization_config": {"quant_method": "gguf"},
    }

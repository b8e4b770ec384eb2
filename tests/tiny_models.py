"""A tiny raw config.json a model type: four layers, and sizes that differ enough to be told apart."""

from typing import Any

from analytic.models.config_keys import config_classes

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
    "shared_intermediate_size": 40,
}
"""Set wherever the configuration class has the key, under the family's own name for it."""

_LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_INDEXED = {**_LATENT, "index_n_heads": 2, "index_head_dim": 24, "index_topk": 4}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8}
_DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
_HALF_SLIDES = {"use_sliding_window": True, "max_window_layers": 2}

SPECIAL: dict[str, dict[str, Any]] = {
    "afmoe": {"num_dense_layers": 1, "num_shared_experts": 2},
    "bailing_hybrid": {
        **_LATENT,
        "head_dim": 24,
        "layer_group_size": 2,
        "num_experts_per_token": 2,
        "num_experts": 4,
        "num_expert_group": 1,
    },
    "bamba": {"attn_layer_indices": [1], **_MAMBA2},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _INDEXED,
    "dots1": {"max_window_layers": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "ernie4_5_moe": {"moe_layer_end_index": 3},
    "exaone_moe": {"n_group": 1, "topk_group": 1},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
    "falcon_mamba": {"state_size": 8},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 16,
        "intermediate_size": [96, 96, 80, 80],
        "laurel_rank": 8,
    },
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "global_head_dim": 64,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 1,
        "enable_moe_block": True,
        "top_k_experts": 2,
        "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": 64,
    },
    "gemma4_unified_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "global_head_dim": 64,
    },
    "glm4_moe": {"first_k_dense_replace": 1},
    "glm4_moe_lite": {key: value for key, value in _LATENT.items() if key != "head_dim"},
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 2],
        }
    },
    "glm4v_text": _MROPE,
    "glm_moe_dsa": {**_INDEXED, "indexer_types": ["full", "full", "shared", "shared"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "gptj": {"rotary_dim": 16},
    "codegen": {"rotary_dim": 16},
    "helium": {"head_dim": 16},
    "hunyuan_v1_moe": {"moe_topk": [2, 2, 1, 1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"], **_MAMBA2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"], "num_dense_layers": 1},
    "llama4_text": {"interleave_moe_layer_step": 2, "intermediate_size_mlp": 80},
    "kimi_linear": {
        **_LATENT,
        "q_lora_rank": None,
        "linear_attn_config": {
            "full_attn_layers": [2, 4],
            "kda_layers": [1, 3],
            "head_dim": 24,
            "num_heads": 2,
            "short_conv_kernel_size": 4,
        },
        "num_experts_per_token": 2,
        "num_experts": 4,
        "num_expert_group": 1,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 8},
    "mellum": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]},
    "mimo_v2_flash": {"head_dim": 32, "v_head_dim": 24, "n_group": 1, "topk_group": 1},
    "minicpm3": {key: value for key, value in _LATENT.items() if key != "v_head_dim"},
    "mistral4": {key: value for key, value in _LATENT.items() if key != "head_dim"},
    "nemotron_h": {
        "hybrid_override_pattern": "ME*-M",
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "ssm_state_size": 8,
        "moe_shared_expert_intermediate_size": 40,
    },
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen2": _HALF_SLIDES,
    "olmo_hybrid": {"linear_key_head_dim": None},
    "qwen2_5_vl_text": _MROPE,
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 3},
    "qwen2_vl_text": _MROPE,
    "qwen3": _HALF_SLIDES,
    "qwen3_5_moe_text": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_moe": {"use_sliding_window": True, "mlp_only_layers": [0]},
    "qwen3_next": _DELTA,
    "qwen3_vl_moe_text": _MROPE,
    "smollm3": {"use_sliding_window": True},
    "youtu": {key: value for key, value in _LATENT.items() if key != "head_dim"},
}
"""What a family needs beside, or instead of, the common keys."""

IGNORED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
"""Special tokens inside the tiny vocabulary."""


def tiny_config(model_type: str) -> dict[str, Any]:
    """A raw config of the model type."""
    row = config_classes()[model_type]
    common = {row.attribute_map.get(key, key): value for key, value in COMMON.items()}
    known = {key: value for key, value in common.items() if key in row.defaults}
    return {"model_type": model_type, **known, **SPECIAL.get(model_type, {})}


def tiny_hf_config(model_type: str) -> Any:
    """The same as a configuration object of transformers."""
    from transformers import AutoConfig

    raw = {key: value for key, value in tiny_config(model_type).items() if key != "model_type"}
    return AutoConfig.for_model(model_type, **raw, **IGNORED)

"""Tiny configs of real architectures, small enough to load and run on a CPU in an instant."""

from typing import Any

_BASE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

TINY: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32},
    "mistral": {"architectures": ["MistralForCausalLM"]},
    "gemma2": {"architectures": ["Gemma2ForCausalLM"], "head_dim": 24},
    "gemma3_text": {"architectures": ["Gemma3ForCausalLM"], "head_dim": 24},
    "gemma4": {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "text_config": {
            **_BASE,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 48,
        },
        "vision_config": {
            "standardize": True,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
    },
    "phi3": {"architectures": ["Phi3ForCausalLM"], "pad_token_id": 0},
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "vocab_size": 384,
    },
    "opt": {
        "architectures": ["OPTForCausalLM"],
        "ffn_dim": 160,
        "word_embed_proj_dim": 64,
        "pad_token_id": 1,
    },
    "falcon": {"architectures": ["FalconForCausalLM"], "new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt_neox": {"architectures": ["GPTNeoXForCausalLM"]},
    "mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4},
    "qwen3_moe": {"architectures": ["Qwen3MoeForCausalLM"], "head_dim": 32, **_MOE},
    "deepseek_v3": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 32,
        "q_lora_rank": 48,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"],
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
    },
}
"""What differs from a small Llama, by model type; keys of other families do no harm."""


def tiny_config(model_type: str) -> dict[str, Any]:
    """A published-looking config of ``model_type``."""
    own = TINY[model_type]
    base = {"vocab_size": 384, "dtype": "bfloat16"} if model_type == "gpt2" else _BASE
    return {**base, **own, "model_type": model_type}

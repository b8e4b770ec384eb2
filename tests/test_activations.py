"""The truth is a real CPU run whose storages are followed from birth to death (live_bytes.py)."""

import logging
from functools import cache
from itertools import chain, repeat
from typing import Any

import pytest
import torch
import transformers
from live_bytes import Peak as Truth
from live_bytes import measure

from analytic.engines.transformers.activation_families import FAMILIES
from analytic.engines.transformers.activations import Peak, decode_peak, prefill_peak
from analytic.errors import UllageError
from analytic.models.config_reader import read_geometry
from analytic.models.geometry import Geometry

LLAMA: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "intermediate_size": 896,
    "max_position_embeddings": 2048,
}
MOE: dict[str, Any] = LLAMA | {
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 192,
}
ALL_HEADS = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
GPT2 = {"vocab_size": 640, "n_embd": 320, "n_layer": 3, "n_head": 10, "n_positions": 2048}
LATENT = MOE | {
    "num_key_value_heads": 10,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 96,
    "q_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 48,  # as wide as a key, so that the CPU too has a fused kernel for it
    "n_group": 1,
    "topk_group": 1,
}
DELTA = MOE | {
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "shared_expert_intermediate_size": 256,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
NEMOTRON_H = MOE | {
    "layers_block_type": ["mamba", "attention", "moe"],
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 32,
    "n_groups": 2,
    "conv_kernel": 4,
    "head_dim": 32,
    "n_shared_experts": 1,
    "moe_shared_expert_intermediate_size": 256,
    "n_group": 1,
    "topk_group": 1,
}
HALF_SLIDE = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 4096}
GEMMA4 = {
    "head_dim": 32,
    "global_head_dim": 64,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 0,
}
GEMMA4_PER_LAYER = GEMMA4 | {
    "num_hidden_layers": 6,
    "num_key_value_heads": 1,
    "layer_types": 2 * GEMMA4["layer_types"],
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 640,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"head_dim": 64},
    "mistral": LLAMA | {"sliding_window": 4096},
    "gemma": LLAMA | {"head_dim": 64},
    "gemma2": LLAMA | {"head_dim": 64},
    "gemma3_text": LLAMA | HALF_SLIDE | {"head_dim": 64},
    "gemma4_text": MOE
    | GEMMA4
    | {"enable_moe_block": True, "top_k_experts": 2, "attention_k_eq_v": True, "num_global_key_value_heads": 2},
    "gemma4_text/wide": LLAMA | GEMMA4 | {"num_attention_heads": 4, "num_key_value_heads": 2, "global_head_dim": 288},
    "gemma4/per_layer": {"text_config": LLAMA | GEMMA4_PER_LAYER, "vision_config": VISION},
    "phi": LLAMA,
    "phi3": LLAMA | {"pad_token_id": 0},
    "gpt2": GPT2,
    "gptj": GPT2 | {"rotary_dim": 8},
    "gpt_neox": ALL_HEADS,
    "opt": ALL_HEADS | {"ffn_dim": 896, "word_embed_proj_dim": 320, "pad_token_id": 1},
    "bloom": {"vocab_size": 640, "hidden_size": 320, "n_layer": 3, "n_head": 10},
    "falcon": ALL_HEADS | {"new_decoder_architecture": True, "num_kv_heads": 5},
    "mixtral": MOE,
    "phimoe": MOE,
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 256},
    "qwen3_moe": MOE | {"head_dim": 64},
    "llama4_text": LLAMA
    | {"head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
    | {"attention_chunk_size": 2048, "intermediate_size": 192, "intermediate_size_mlp": 896},
    "deepseek_v2": LATENT | {"topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "gpt_oss": MOE | {"head_dim": 32, "sliding_window": 128},
    "glm4": LLAMA | {"head_dim": 32, "pad_token_id": 0},
    "glm4_moe": MOE
    | {"head_dim": 32, "pad_token_id": 0, "first_k_dense_replace": 1, "n_shared_experts": 1}
    | {"n_group": 1, "topk_group": 1},
    "minimax_m2": MOE | {"head_dim": 32, "rotary_dim": 16},
    "granite": LLAMA,
    "smollm3": LLAMA | {"pad_token_id": 0},
    "olmo2": LLAMA,
    "cohere": LLAMA,
    "starcoder2": LLAMA,
    "stablelm": LLAMA,
    "qwen3_next": DELTA,
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": DELTA,
    "nemotron_h": NEMOTRON_H,
    "nemotron": LLAMA,
    "olmo": LLAMA | {"pad_token_id": 0},
    "olmo3": LLAMA | {"pad_token_id": 0, "sliding_window": 4096},
    "olmoe": MOE | {"pad_token_id": 0, "intermediate_size": 192},
    "granitemoe": MOE | {"intermediate_size": 192},
    "hunyuan_v1_dense": LLAMA | {"pad_token_id": 0, "head_dim": 32},
    "seed_oss": LLAMA | {"head_dim": 32},
    "arcee": LLAMA,
    "apertus": LLAMA | {"pad_token_id": 0},
    "ernie4_5": LLAMA | {"head_dim": 32},
    "lfm2": LLAMA,
    "glm": LLAMA | {"head_dim": 32, "pad_token_id": 0},
}
"""By model type, with a variant's name after a slash."""

EAGER_ONLY = {"bloom", "gemma2", "gptj", "gpt_oss"}
"""Classes that refuse sdpa; asking for it is asking for eager."""

RUNS = [  # attention, dtype, batch, prompt, padded
    ("sdpa", "bfloat16", 1, 384, False),
    ("eager", "bfloat16", 3, 128, False),
    ("sdpa", "float32", 2, 128, True),
]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Any:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def _sums_of_wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the output, as CUDA's memory-efficient kernel keeps them (ATen mem_eff_attention/kernel_forward.h)."""
    fused = torch.nn.functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        wide = query.shape[-1] > 256 and query.dtype != torch.float32
        sums = torch.empty_like(query, dtype=torch.float32) if wide else None
        output = fused(query, *args, **kwargs)
        del sums
        return output

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)


def built(model_type: str, attention: str, dtype: str) -> Any:
    config = transformers.AutoConfig.for_model(model_type.partition("/")[0], **CONFIGS[model_type])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, dtype), attn_implementation="eager" if model_type in EAGER_ONLY else attention
    ).eval()
    if "num_experts" in CONFIGS[model_type] and model_type != "qwen3_5_text":
        run_experts_as_on_cuda(model)
    return model


def run_experts_as_on_cuda(model: Any) -> None:
    """Grouped in prefill, batched in decode (generation/utils.py)."""
    ways = chain(["grouped_mm"], repeat("batched_mm"))
    model.register_forward_pre_hook(lambda *_: model.set_experts_implementation(next(ways)))


def measured(model_type: str, run: tuple[str, str, int, int, bool]) -> tuple[Truth, Truth]:
    attention, dtype, batch, prompt, padded = run
    return measure(built(model_type, attention, dtype), batch_size=batch, prompt_tokens=prompt, padded=padded)


def estimated(model_type: str, run: tuple[str, str, int, int, bool]) -> tuple[Peak, Peak]:
    attention, dtype, batch, prompt, padded = run
    geometry = geometry_of(model_type)
    common: dict[str, Any] = {
        "batch_size": batch,
        "itemsize": getattr(torch, dtype).itemsize,
        "attention": attention,
        "padded": padded,
    }
    prefill = prefill_peak(geometry, prompt_tokens=prompt, **common)
    return prefill, decode_peak(geometry, context_tokens=prompt + 1, **common)


@cache
def geometry_of(model_type: str) -> Geometry:
    return read_geometry(CONFIGS[model_type] | {"model_type": model_type.partition("/")[0]})


@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(map(str, run)))
@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_closed_form_is_within_its_bounds_of_a_real_run(
    model_type: str, run: tuple[str, str, int, int, bool]
) -> None:
    for phase, truth, peak in zip(
        ("prefill", "decode"), measured(model_type, run), estimated(model_type, run), strict=True
    ):
        error = peak.bytes / truth.activation_bytes - 1
        assert peak.low_bytes <= truth.activation_bytes <= peak.high_bytes, f"{phase} {error:+.1%} ({peak.moment})"


def test_every_family_is_held_to_a_run_and_most_to_three_percent() -> None:
    assert set(FAMILIES) == {geometry_of(name).model_type for name in CONFIGS}
    tight = [name for name, family in FAMILIES.items() if family.tolerance_fraction <= 0.03]
    assert len(tight) >= 30


def test_llama_prefill_is_six_times_the_intermediate_and_eight_times_the_hidden_size_a_token() -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
    }
    peak = prefill_peak(read_geometry(config), batch_size=1, prompt_tokens=2048, itemsize=2, attention="sdpa")
    assert peak.moment == "mlp"
    assert abs(peak.bytes / (2048 * (6 * 11008 + 8 * 4096)) - 1) < 0.006  # ids and rotary tables besides


def test_a_family_without_a_row_is_named() -> None:
    geometry = Geometry(
        model_type="no_such",
        hidden_size=8,
        vocab_size=8,
        max_position_embeddings=None,
        layers=geometry_of("llama").layers,
    )
    with pytest.raises(UllageError, match="no_such"):
        prefill_peak(geometry, batch_size=1, prompt_tokens=8, itemsize=2, attention="sdpa")

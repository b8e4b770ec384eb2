import json
from typing import Any

import pytest
import torch

from analytic.errors import UllageError
from analytic.models import catalog
from analytic.models.config_reader import FAMILIES, read_geometry
from analytic.models.geometry import Attention, FeedForward, LatentAttention, MixtureOfExperts, Recurrent
from profiler.config_defaults import PATH, fresh_defaults, rendered
from tests.tiny_models import tiny_config, tiny_hf_config

Shapes = dict[str, tuple[int, ...]]

ABSENT = (-1,)
"""Expected shape of a parameter that must not exist."""

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}


def attention(**changes: Any) -> Attention:
    return Attention(**{"heads": 4, "kv_heads": 4, "head_dim": 16, "v_head_dim": 16, **changes})


def test_shipped_defaults_are_what_the_installed_classes_give():
    assert PATH.read_text("utf-8") == rendered(fresh_defaults())


def test_file_keys_win_over_class_defaults():
    geometry = read_geometry({**LLAMA, "num_key_value_heads": 2, "intermediate_size": 96})
    assert geometry.layers[0].mixer == attention(kv_heads=2)
    assert geometry.layers[0].feed_forward == FeedForward(intermediate_size=96)
    assert geometry.max_position_embeddings == 2048  # LlamaConfig


def test_explicit_null_is_not_replaced_by_the_default():
    lite = {"model_type": "deepseek_v2", "q_lora_rank": None, "num_hidden_layers": 1, "num_experts_per_tok": 6}
    mixer = read_geometry(lite).layers[0].mixer
    assert isinstance(mixer, LatentAttention)
    assert mixer.q_lora_rank is None
    assert mixer.kv_lora_rank == 512


def test_identical_layers_are_one_object():
    geometry = read_geometry({**LLAMA, "num_hidden_layers": 94})
    assert len({id(layer) for layer in geometry.layers}) == 1
    assert geometry.groups == ((geometry.layers[0], 94),)


def test_llama4_chunks_three_layers_of_four_from_omitted_keys():
    text = {"model_type": "llama4_text", "num_hidden_layers": 48, "max_position_embeddings": 10485760}
    geometry = read_geometry({"model_type": "llama4", "text_config": text})
    assert [count for _, count in geometry.groups] == [36, 12]  # 48 * 3 / 4
    chunked, full = (layer.mixer for layer, _ in geometry.groups)
    assert chunked == Attention(heads=40, kv_heads=8, head_dim=128, v_head_dim=128, window_tokens=8192, chunked=True)
    assert full == Attention(heads=40, kv_heads=8, head_dim=128, v_head_dim=128, rotary=False)


def test_gemma3_slides_five_layers_of_six_from_omitted_keys():
    geometry = read_geometry({"model_type": "gemma3", "text_config": {"num_hidden_layers": 34, "sliding_window": 1024}})
    windows = [layer.mixer.window_tokens for layer in geometry.layers if isinstance(layer.mixer, Attention)]
    assert windows.count(None) == 5  # 34 // 6
    assert windows[:6] == [1024] * 5 + [None]
    assert geometry.model_type == "gemma3_text"


def test_gemma4_widens_the_heads_of_global_layers():
    text = {"model_type": "gemma4_text", "attention_k_eq_v": True, "num_global_key_value_heads": 2}
    geometry = read_geometry({"model_type": "gemma4", "text_config": text})
    local, wide = (layer.mixer for layer, _ in geometry.groups)
    assert local == Attention(heads=8, kv_heads=4, head_dim=256, v_head_dim=256, window_tokens=512)
    assert wide == Attention(heads=8, kv_heads=2, head_dim=512, v_head_dim=512)
    assert [count for _, count in geometry.groups] == [25, 5]


def test_llama4_empty_list_of_layers_means_the_default():
    text = {"num_hidden_layers": 4, "no_rope_layers": []}
    assert [count for _, count in read_geometry({"model_type": "llama4_text", **text}).groups] == [3, 1]


def test_mistral3_takes_the_nested_model_type():
    text = {"model_type": "ministral3", "num_hidden_layers": 2, "head_dim": 64}
    geometry = read_geometry({"model_type": "mistral3", "text_config": text, "vision_config": {"hidden_size": 1}})
    assert (geometry.model_type, geometry.hidden_size) == ("ministral3", 4096)


def test_flat_qwen2_vl_config_is_its_own_text_model():
    flat = {"model_type": "qwen2_vl", "hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2}
    assert read_geometry(flat).model_type == "qwen2_vl_text"


@pytest.mark.parametrize(
    ("keys", "kv_heads", "cached_heads"),
    [
        pytest.param({"multi_query": True}, 1, None, id="7b"),
        pytest.param({"new_decoder_architecture": True, "num_kv_heads": 8}, 8, 128, id="40b"),
        pytest.param({"multi_query": False, "alibi": True}, 128, None, id="rw"),
    ],
)
def test_falcon_has_three_decoders(keys: dict[str, Any], kv_heads: int, cached_heads: int | None):
    falcon = {"model_type": "falcon", "hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 1, **keys}
    mixer = read_geometry(falcon).layers[0].mixer
    rotary = "alibi" not in keys
    heads = {"heads": 128, "kv_heads": kv_heads, "cached_heads": cached_heads}
    assert mixer == attention(**heads, head_dim=64, v_head_dim=64, rotary=rotary)


def test_older_falcon_and_bloom_names_are_read():
    falcon = {"model_type": "falcon", "n_embed": 128, "n_layer": 3, "n_head": 2, "multi_query": True}
    assert (read_geometry(falcon).hidden_size, len(read_geometry(falcon).layers)) == (128, 3)
    assert read_geometry({"model_type": "bloom", "n_embed": 1024, "num_attention_heads": 16}).hidden_size == 1024


def test_kimi_k2_is_read_as_deepseek_v3():
    kimi = {"model_type": "kimi_k2", "num_hidden_layers": 61, "first_k_dense_replace": 1, "n_routed_experts": 384}
    geometry = read_geometry(kimi)
    assert [count for _, count in geometry.groups] == [1, 60]
    assert geometry.groups[1][0].feed_forward == MixtureOfExperts(
        experts=384, experts_per_token=8, intermediate_size=2048, shared_intermediate_size=2048
    )


@pytest.mark.parametrize(
    "extra",
    [
        {"sliding_window": 8},
        {"attention_chunk_size": 8},
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "phi3", "gpt_bigcode", "falcon", "mixtral"])
def test_window_keys_count_even_where_the_class_has_none(model_type: str, extra: dict[str, Any]):
    from transformers import AutoConfig, DynamicCache

    cache = DynamicCache(config=AutoConfig.for_model(model_type, num_hidden_layers=2, **extra))
    geometry = read_geometry({"model_type": model_type, "num_hidden_layers": 2, **extra})
    windows = [layer.mixer.window_tokens for layer in geometry.layers if isinstance(layer.mixer, Attention)]
    assert windows == [getattr(layer, "sliding_window", None) for layer in cache.layers]


def test_unknown_model_type_is_named():
    with pytest.raises(UllageError, match="frobnicator") as error:
        read_geometry({"model_type": "frobnicator"})
    assert error.value.hint


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 7}, {"model_type": ["llama"]}])
def test_config_without_a_usable_model_type_is_refused(config: dict[str, object]):
    with pytest.raises(UllageError, match="model_type"):
        read_geometry(config)


def test_experts_behind_a_projection_are_refused_by_name() -> None:
    config = dict(catalog.load("nemotron-3-nano-30b-a3b").config)
    assert read_geometry(config)
    with pytest.raises(UllageError, match="moe_latent_size of 1024"):
        read_geometry({**config, "moe_latent_size": 1024})


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True, 10**9, [64]])
def test_size_that_cannot_be_meant_is_named(key: str, value: object):
    with pytest.raises(UllageError, match=key):
        read_geometry({**LLAMA, key: value})


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({**LLAMA, "hidden_size": None}, "hidden_size"),
        ({**LLAMA, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"model_type": "deepseek_v2", "num_hidden_layers": 1}, "num_experts_per_tok"),
        ({"model_type": "gemma3", "text_config": [1]}, "text_config"),
        ({"model_type": "gemma2", "layer_types": ["sliding_attention"]}, "layer_types"),
        ({"model_type": "gemma2", "layer_types": ["odd"] * 26}, "layer_types"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M?"}, "hybrid_override_pattern"),
        ({"model_type": "llama4_text", "attention_chunk_size": None}, "attention_chunk_size"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": "all"}, "mlp_only_layers"),
    ],
)
def test_missing_or_contradictory_key_is_named(config: dict[str, object], key: str):
    with pytest.raises(UllageError, match=key):
        read_geometry(config)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_raw_config_reads_as_the_configuration_object_does(model_type: str):
    as_class_sees_it = json.loads(json.dumps(tiny_hf_config(model_type).to_dict()))
    assert read_geometry(tiny_config(model_type)) == read_geometry(as_class_sees_it)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_geometry_agrees_with_the_modules_that_transformers_builds(model_type: str):
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(tiny_hf_config(model_type))
    geometry = read_geometry(tiny_config(model_type))
    modules = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    assert len(modules) == len(geometry.layers)
    assert geometry.hidden_size == model.config.hidden_size
    for layer, module in zip(geometry.layers, modules, strict=True):
        shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        for part in (layer.mixer, layer.recurrent, layer.feed_forward):
            assert part is None or verified(part, shapes)


def verified(part: object, shapes: Shapes) -> bool:
    """Whether each parameter that tells a size of this half of the layer tells the same; at least one must."""
    facts = [
        (shapes[name], expected)
        for suffix, expected in EXPECTED[type(part)](part, is_conv1d(shapes)).items()
        for name in shapes
        if f".{name}".endswith(f".{suffix}")
    ]
    assert all(shape[: len(expected)] == expected for shape, expected in facts), (part, facts)
    return bool(facts)


def attention_shapes(part: Attention, conv1d: bool) -> Shapes:
    fused = ((part.heads + 2 * part.kv_heads) * part.head_dim,)
    return {
        "k_proj.weight": (part.kv_heads * part.head_dim,),
        "v_proj.weight": (part.kv_heads * part.v_head_dim,),
        "o_proj.weight": (64, part.heads * part.v_head_dim),
        "query_key_value.weight": fused,
        "self_attn.qkv_proj.weight": fused,
        "attn.qkv_proj.weight": fused,
        "Wqkv.weight": fused,
        "attn.c_attn.weight": (64, *fused) if conv1d else fused,
    }


def is_conv1d(shapes: Shapes) -> bool:
    """GPT-2 keeps its weights as [in, out]; its offspring do not."""
    return shapes.get("attn.c_attn.weight", (0,))[0] == 64


def latent_shapes(part: LatentAttention, conv1d: bool) -> Shapes:
    return {
        "kv_a_proj_with_mqa.weight": (part.kv_lora_rank + part.qk_rope_head_dim,),
        "kv_b_proj.weight": (part.heads * (part.qk_nope_head_dim + part.v_head_dim), part.kv_lora_rank),
        "q_a_proj.weight": (part.q_lora_rank or 0,),
    }


def recurrent_shapes(part: Recurrent, conv1d: bool) -> Shapes:
    convolution = (part.conv_channels, 1, part.conv_kernel)
    state = {"A_log": (part.inner_size, part.state_elements // part.inner_size)} if part.kind == "mamba" else {}
    return {
        "conv1d.weight": convolution,
        "conv.conv.weight": convolution,
        "output_gate.weight": (part.inner_size,),
        **state,
    }


def dense_shapes(part: FeedForward, conv1d: bool) -> Shapes:
    width = (part.intermediate_size,)
    both = (2 * part.intermediate_size,) if part.fused else ABSENT
    return {
        "mlp.up_proj.weight": width if not part.fused else ABSENT,
        "mlp.gate_proj.weight": width if part.gated and not part.fused else ABSENT,
        "mlp.gate_up_proj.weight": both,
        "shared_mlp.input_linear.weight": both,
        "feed_forward.up_proj.weight": width,
        "feed_forward.gate_proj.weight": width if part.gated else ABSENT,
        "feed_forward.w1.weight": width,
        "mixer.up_proj.weight": width,
        "fc1.weight": width if not part.gated else ABSENT,
        "mlp.dense_h_to_4h.weight": width if not part.gated else ABSENT,
        "mlp.fc_in.weight": width if not part.gated else ABSENT,
        "ffn.up_proj.weight": width,
        "mlp.c_fc.weight": (64, *width) if conv1d else width,
    }


def expert_shapes(part: MixtureOfExperts, conv1d: bool) -> Shapes:
    shared = (part.shared_intermediate_size,)
    return {
        "experts.down_proj": (part.experts,),
        "experts.gate_up_proj": (part.experts,) if part.gated else ABSENT,
        "experts.up_proj": (part.experts, part.intermediate_size) if not part.gated else ABSENT,
        "shared_expert.up_proj.weight": shared,
        "shared_experts.up_proj.weight": shared,
        "shared_mlp.input_linear.weight": (2 * part.shared_intermediate_size,),
    }


EXPECTED: dict[type, Any] = {
    Attention: attention_shapes,
    LatentAttention: latent_shapes,
    Recurrent: recurrent_shapes,
    FeedForward: dense_shapes,
    MixtureOfExperts: expert_shapes,
}

"""A published config.json as a Geometry, without torch: one row of FAMILIES a model type.

The rows follow what the configuration classes of transformers 5.23 compute in ``__post_init__``
(``models/*/configuration_*.py``) and which modules the modeling files then build.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from analytic.errors import UllageError
from analytic.models import config_feed_forwards as mlp
from analytic.models import config_kinds as kinds
from analytic.models import config_mixers as mixers
from analytic.models.config_feed_forwards import FeedForwardKind
from analytic.models.config_keys import Config, config_classes, reject
from analytic.models.config_kinds import CHUNKED, CONV, FULL, HYBRID, LINEAR, MLP, MOE, SLIDING
from analytic.models.geometry import (
    Attention,
    Geometry,
    LatentAttention,
    Layer,
    Recurrent,
)

ALIASES: Mapping[str, str] = {"kimi_k2": "deepseek_v3"}
"""Model types of checkpoints with remote code that transformers serves with another family's classes."""

_LEGACY_KINDS: Mapping[str, str] = {
    "attention": FULL,
    "mamba": LINEAR,
}
"""Layer names of older files (``configuration_utils.remap_legacy_layer_types``)."""

_GATED = mlp.dense()


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How one model type's layers follow from its keys."""

    kinds: Callable[[Config], list[str]] = kinds.uniform
    """Layer kinds where the file has no ``layer_types``."""
    attention: Callable[[Config, str, int], Attention | LatentAttention] = mixers.attention
    recurrent: Callable[[Config], Recurrent] | None = None
    """Mixer of the linear, conv and hybrid layers."""
    feed_forward: Callable[[Config, str, int], FeedForwardKind] = _GATED
    parallel: Callable[[Config], bool] = lambda _: False
    listed: bool = True
    """Whether the cache follows ``layer_types`` of the file; not where the class computes it as a property."""


def _always(_: Config) -> bool:
    return True


def _if_parallel_residual(config: Config) -> bool:
    return config.flag("use_parallel_residual")


def _falcon_parallel(config: Config) -> bool:
    return config.flag("new_decoder_architecture") or config.flag("parallel_attn")


_LLAMA = Family()
_QWEN_WINDOW = kinds.sliding_from(gated=True)
_QWEN_EXPERTS = mlp.experts("num_experts", width="moe_intermediate_size", sparse=mlp.qwen_sparse)
_QWEN_SHARED = mlp.experts(
    "num_experts",
    width="moe_intermediate_size",
    sparse=mlp.qwen_sparse,
    shared=mlp.shared_size("shared_expert_intermediate_size"),
)
_QWEN35_EXPERTS = mlp.experts(
    "num_experts", width="moe_intermediate_size", shared=mlp.shared_size("shared_expert_intermediate_size")
)
_DEEPSEEK_EXPERTS = mlp.experts(
    "n_routed_experts",
    width="moe_intermediate_size",
    shared=mlp.shared_count("n_shared_experts"),
    sparse=mlp.after_first("first_k_dense_replace"),
)
_ERNIE_EXPERTS = mlp.experts(
    "num_experts",
    width="moe_intermediate_size",
    shared=mlp.shared_count("moe_num_shared_experts"),
    sparse=mlp.ernie_sparse,
)
_GRANITE_SHARED = mlp.experts(
    shared=mlp.shared_size("shared_intermediate_size"), dense_width="shared_intermediate_size", fused=True
)
_GPT2_MLP = mlp.dense("n_inner", gated=False, times_hidden=4)
_NEXT_KINDS = kinds.every("full_attention_interval", LINEAR, default=4)
_UNGATED = Family(feed_forward=mlp.dense(gated=False))


def _granite_attention(config: Config, kind: str, index: int) -> Attention:
    return mixers.attention(config, kind, index, rotary=config.get("position_embedding_type") == "rope")


FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral": Family(),
    "ministral3": _LLAMA,
    "mixtral": Family(feed_forward=mlp.experts()),
    "qwen2": Family(kinds=_QWEN_WINDOW),
    "qwen2_moe": Family(kinds=kinds.alternate_below, feed_forward=_QWEN_SHARED),
    "qwen2_vl_text": Family(kinds=_QWEN_WINDOW),
    "qwen2_5_vl_text": Family(kinds=_QWEN_WINDOW),
    "qwen3": Family(kinds=_QWEN_WINDOW),
    "qwen3_moe": Family(kinds=kinds.uniform_if_used, feed_forward=_QWEN_EXPERTS),
    "qwen3_vl_text": _LLAMA,
    "qwen3_next": Family(kinds=_NEXT_KINDS, recurrent=mixers.gated_delta_net, feed_forward=_QWEN_SHARED),
    "qwen3_5_text": Family(kinds=_NEXT_KINDS, recurrent=mixers.gated_delta_net),
    "qwen3_5_moe_text": Family(kinds=_NEXT_KINDS, recurrent=mixers.gated_delta_net, feed_forward=_QWEN35_EXPERTS),
    "gemma": _LLAMA,
    "gemma2": Family(kinds=kinds.every(2)),
    "gemma3_text": Family(kinds=kinds.every("sliding_window_pattern", default=6)),
    "gemma4_text": Family(kinds=kinds.gemma4, attention=mixers.gemma4, feed_forward=mlp.gemma4),
    "phi": Family(feed_forward=mlp.dense(gated=False), parallel=_always),
    "phi3": Family(feed_forward=mlp.dense(fused=True)),
    "phimoe": Family(feed_forward=mlp.experts()),
    "deepseek_v2": Family(attention=mixers.latent, feed_forward=_DEEPSEEK_EXPERTS),
    "deepseek_v3": Family(attention=mixers.latent, feed_forward=_DEEPSEEK_EXPERTS),
    "gpt_oss": Family(kinds=kinds.every(2), feed_forward=mlp.experts()),
    "glm": Family(feed_forward=mlp.dense(fused=True)),
    "glm4": Family(feed_forward=mlp.dense(fused=True)),
    "glm4_moe": Family(feed_forward=_DEEPSEEK_EXPERTS),
    "dots1": Family(kinds=kinds.sliding_from(gated=False), feed_forward=_DEEPSEEK_EXPERTS),
    "falcon": Family(
        attention=mixers.falcon,
        feed_forward=mlp.dense("ffn_hidden_size", gated=False, times_hidden=4),
        parallel=_falcon_parallel,
    ),
    "bloom": Family(attention=mixers.unrotated, feed_forward=mlp.quadruple),
    "opt": Family(attention=mixers.unrotated, feed_forward=mlp.dense("ffn_dim", gated=False)),
    "gpt2": Family(attention=mixers.unrotated, feed_forward=_GPT2_MLP),
    "gptj": Family(feed_forward=_GPT2_MLP, parallel=_always),
    "gpt_neox": Family(feed_forward=mlp.dense(gated=False), parallel=_if_parallel_residual),
    "gpt_bigcode": Family(attention=mixers.bigcode, feed_forward=_GPT2_MLP),
    "mpt": Family(attention=mixers.unrotated, feed_forward=mlp.quadruple),
    "starcoder2": Family(feed_forward=mlp.dense(gated=False)),
    "smollm3": Family(kinds=kinds.smollm, attention=mixers.rotated_by_layer),
    "granite": _LLAMA,
    "granitemoe": Family(feed_forward=mlp.experts()),
    "granitemoeshared": Family(feed_forward=mlp.experts(shared=mlp.shared_size("shared_intermediate_size"))),
    "granitemoehybrid": Family(
        kinds=kinds.all_linear,
        attention=_granite_attention,
        recurrent=mixers.mamba2_hybrid,
        feed_forward=_GRANITE_SHARED,
    ),
    "nemotron": _UNGATED,
    "nemotron_h": Family(
        kinds=kinds.nemotron,
        attention=mixers.unrotated,
        recurrent=mixers.mamba2_nemotron,
        feed_forward=mlp.nemotron_mlp,
    ),
    "arcee": _UNGATED,
    "apertus": _UNGATED,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": Family(kinds=kinds.every(4)),
    "olmoe": Family(feed_forward=mlp.experts("num_experts")),
    "cohere": Family(parallel=_always),
    "cohere2": Family(
        kinds=kinds.every("sliding_window_pattern", default=4), attention=mixers.rotated_if_sliding, parallel=_always
    ),
    "stablelm": Family(parallel=_if_parallel_residual),
    "llama4_text": Family(
        kinds=kinds.llama4,
        attention=mixers.rotated_by_layer,
        feed_forward=mlp.experts(
            shared=mlp.shared_size("intermediate_size"), sparse=mlp.llama4_sparse, dense_width="intermediate_size_mlp"
        ),
    ),
    "jamba": Family(
        kinds=kinds.jamba,
        attention=mixers.unrotated,
        recurrent=mixers.mamba(expand="mamba_expand", state="mamba_d_state", kernel="mamba_d_conv"),
        feed_forward=mlp.experts("num_experts", sparse=mlp.jamba_sparse),
        listed=False,
    ),
    "mamba": Family(
        kinds=kinds.all_linear,
        recurrent=mixers.mamba(expand="expand", state="state_size", kernel="conv_kernel"),
        feed_forward=mlp.no_mlp,
        listed=False,
    ),
    "falcon_mamba": Family(
        kinds=kinds.all_linear,
        recurrent=mixers.mamba(expand="expand", state="state_size", kernel="conv_kernel"),
        feed_forward=mlp.no_mlp,
        listed=False,
    ),
    "mamba2": Family(kinds=kinds.all_linear, recurrent=mixers.mamba2_plain, feed_forward=mlp.no_mlp, listed=False),
    "bamba": Family(kinds=kinds.bamba, recurrent=mixers.mamba2_hybrid, listed=False),
    "falcon_h1": Family(kinds=kinds.all_hybrid, recurrent=mixers.mamba2_hybrid, listed=False),
    "seed_oss": _LLAMA,
    "internlm3": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "ernie4_5": _LLAMA,
    "ernie4_5_moe": Family(feed_forward=_ERNIE_EXPERTS),
    "minimax": Family(kinds=kinds.lightning, recurrent=mixers.lightning_attention, feed_forward=mlp.experts()),
    "minimax_m2": Family(feed_forward=mlp.experts()),
    "exaone4": Family(kinds=kinds.exaone, attention=mixers.rotated_if_sliding),
    "lfm2": Family(kinds=kinds.conv_between, recurrent=mixers.short_convolution, feed_forward=mlp.lfm_mlp),
    "lfm2_moe": Family(
        kinds=kinds.all_full,
        recurrent=mixers.short_convolution,
        feed_forward=mlp.experts(
            "num_experts", width="moe_intermediate_size", sparse=mlp.after_first("num_dense_layers")
        ),
    ),
}
"""Every text model type that is understood."""

WRAPPERS = (
    *("gemma3", "gemma4", "kimi_k25", "llama4", "llava", "mistral3"),
    *("qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl"),
)
"""Model types whose text model is nested under ``text_config`` (or, in some older files, lies flat beside it)."""


def read_geometry(config: Mapping[str, object]) -> Geometry:
    """The geometry of the text model that a raw config.json describes."""
    text = _text_config(config)
    shared: dict[Layer, Layer] = {}
    layers = tuple(_layer(text, kind, index, shared) for index, kind in enumerate(_kinds(text)))
    return Geometry(
        model_type=text.model_type,
        hidden_size=text.size("hidden_size"),
        vocab_size=text.size("vocab_size"),
        max_position_embeddings=text.optional_size("max_position_embeddings"),
        layers=layers,
        per_layer_input_size=len(layers) * text.count("hidden_size_per_layer_input"),
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
    if kind not in (FULL, SLIDING, CHUNKED) and not (recurrent and kind in (LINEAR, CONV, HYBRID, MLP, MOE)):
        config.reject("layer_types", kind)
    return kind


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

"""How the layers of every text model type follow from its keys: a row a type.

The rows follow what the configuration classes of transformers 5.23 compute in ``__post_init__``
(``models/*/configuration_*.py``) and which modules the modeling files then build.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from analytic.models import config_feed_forwards as mlp
from analytic.models import config_kinds as kinds
from analytic.models import config_mixers as mixers
from analytic.models import config_recurrent as recurrent
from analytic.models.config_feed_forwards import FeedForwardKind
from analytic.models.config_keys import Config
from analytic.models.config_kinds import LINEAR
from analytic.models.geometry import Attention, LatentAttention, Recurrent

ALIASES: Mapping[str, str] = {"kimi_k2": "deepseek_v3"}
"""Model types of checkpoints with remote code that transformers serves with another family's classes."""

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


def _sparse_after(
    count: str = "num_experts",
    *,
    shared: str | None = None,
    otherwise: Callable[[Config, int], bool] | None = None,
    dense_layers: int = 0,
) -> Callable[[Config, str, int], FeedForwardKind]:
    """Experts where ``mlp_layer_types`` says so, or after ``first_k_dense_replace`` layers."""
    return mlp.experts(
        count,
        width="moe_intermediate_size",
        shared=mlp.shared_count(shared) if shared else lambda _: 0,
        sparse=mlp.listed_sparse(otherwise or mlp.after_first("first_k_dense_replace", dense_layers)),
    )


_LISTED_DEEPSEEK = _sparse_after("n_routed_experts", shared="n_shared_experts")
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
    "qwen3_next": Family(kinds=_NEXT_KINDS, recurrent=recurrent.gated_delta_net, feed_forward=_QWEN_SHARED),
    "qwen3_5_text": Family(kinds=_NEXT_KINDS, recurrent=recurrent.gated_delta_net),
    "qwen3_5_moe_text": Family(kinds=_NEXT_KINDS, recurrent=recurrent.gated_delta_net, feed_forward=_QWEN35_EXPERTS),
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
        recurrent=recurrent.mamba2_hybrid,
        feed_forward=_GRANITE_SHARED,
    ),
    "nemotron": _UNGATED,
    "nemotron_h": Family(
        kinds=kinds.nemotron,
        attention=mixers.unrotated,
        recurrent=recurrent.mamba2_nemotron,
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
        recurrent=recurrent.mamba(expand="mamba_expand", state="mamba_d_state", kernel="mamba_d_conv"),
        feed_forward=mlp.experts("num_experts", sparse=mlp.jamba_sparse),
        listed=False,
    ),
    "mamba": Family(
        kinds=kinds.all_linear,
        recurrent=recurrent.mamba(expand="expand", state="state_size", kernel="conv_kernel"),
        feed_forward=mlp.no_mlp,
        listed=False,
    ),
    "falcon_mamba": Family(
        kinds=kinds.all_linear,
        recurrent=recurrent.mamba(expand="expand", state="state_size", kernel="conv_kernel"),
        feed_forward=mlp.no_mlp,
        listed=False,
    ),
    "mamba2": Family(kinds=kinds.all_linear, recurrent=recurrent.mamba2_plain, feed_forward=mlp.no_mlp, listed=False),
    "bamba": Family(kinds=kinds.bamba, recurrent=recurrent.mamba2_hybrid, listed=False),
    "falcon_h1": Family(kinds=kinds.all_hybrid, recurrent=recurrent.mamba2_hybrid, listed=False),
    "seed_oss": _LLAMA,
    "internlm3": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "ernie4_5": _LLAMA,
    "ernie4_5_moe": Family(feed_forward=_ERNIE_EXPERTS),
    "minimax": Family(kinds=kinds.lightning, recurrent=recurrent.lightning_attention, feed_forward=mlp.experts()),
    "minimax_m2": Family(feed_forward=mlp.experts()),
    "exaone4": Family(kinds=kinds.exaone, attention=mixers.rotated_if_sliding),
    "exaone_moe": Family(
        kinds=kinds.exaone, attention=mixers.rotated_if_sliding, feed_forward=_sparse_after(shared="num_shared_experts")
    ),
    "afmoe": Family(
        kinds=kinds.every("global_attn_every_n_layers"),
        attention=mixers.rotated_if_sliding,
        feed_forward=mlp.experts(
            "num_experts",
            width="moe_intermediate_size",
            shared=mlp.shared_count("num_shared_experts"),
            sparse=mlp.after_first("num_dense_layers"),
        ),
    ),
    "bailing_hybrid": Family(
        kinds=kinds.every("layer_group_size", LINEAR),
        attention=mixers.latent,
        recurrent=recurrent.bailing_delta,
        feed_forward=_sparse_after("num_local_experts", shared="n_shared_experts"),
    ),
    "biogpt": Family(attention=mixers.unrotated, feed_forward=mlp.dense(gated=False)),
    "bitnet": _LLAMA,
    "codegen": Family(feed_forward=_GPT2_MLP, parallel=_always),
    "cwm": Family(kinds=kinds.every_from_first(4)),
    "deepseek_v32": Family(kinds=kinds.all_indexed, attention=mixers.latent_indexed, feed_forward=_LISTED_DEEPSEEK),
    "diffllama": _LLAMA,
    "flex_olmo": Family(feed_forward=mlp.experts("num_experts")),
    "gemma3n_text": Family(kinds=kinds.every(5), attention=mixers.shared_at_end, feed_forward=mlp.listed_width),
    "gemma4_unified_text": Family(kinds=kinds.gemma4, attention=mixers.gemma4, feed_forward=mlp.gemma4),
    "glm4_moe_lite": Family(
        attention=mixers.latent,
        feed_forward=_sparse_after("n_routed_experts", shared="n_shared_experts", otherwise=mlp.after_one),
    ),
    "glm4v_text": Family(feed_forward=mlp.dense(fused=True)),
    "glm4v_moe_text": Family(feed_forward=_DEEPSEEK_EXPERTS),
    "glm_moe_dsa": Family(kinds=kinds.all_indexed, attention=mixers.latent_indexed, feed_forward=_LISTED_DEEPSEEK),
    "gpt_neo": Family(attention=mixers.unrotated, feed_forward=mlp.dense(gated=False, times_hidden=4)),
    "granite_swa": Family(kinds=kinds.every_from_first(4)),
    "helium": _LLAMA,
    "hunyuan_v1_moe": Family(feed_forward=mlp.hunyuan),
    "hy_v3": Family(feed_forward=_sparse_after(shared="num_shared_experts", otherwise=mlp.after_one)),
    "jais2": _UNGATED,
    "kimi_linear": Family(
        kinds=kinds.kimi,
        attention=mixers.latent,
        recurrent=recurrent.kimi_delta,
        feed_forward=_sparse_after("num_local_experts", shared="n_shared_experts", dense_layers=1),
    ),
    "mellum": Family(feed_forward=_sparse_after()),
    "mimo_v2_flash": Family(
        kinds=kinds.mimo, attention=mixers.mimo, feed_forward=_sparse_after("n_routed_experts", otherwise=mlp.after_one)
    ),
    "minicpm3": Family(attention=mixers.latent_dense),
    "mistral4": Family(attention=mixers.latent, feed_forward=_DEEPSEEK_EXPERTS),
    "nanochat": _UNGATED,
    "olmo_hybrid": Family(kinds=kinds.every(4, LINEAR), recurrent=recurrent.gated_delta_net_from_heads),
    "persimmon": _UNGATED,
    "qwen3_vl_moe_text": Family(kinds=kinds.all_full, feed_forward=_QWEN_EXPERTS),
    "solar_open": Family(
        feed_forward=mlp.experts(
            "n_routed_experts", width="moe_intermediate_size", shared=mlp.shared_count("n_shared_experts")
        )
    ),
    "vaultgemma": Family(kinds=kinds.every(2)),
    "xglm": Family(attention=mixers.unrotated, feed_forward=mlp.dense("ffn_dim", gated=False)),
    "youtu": Family(attention=mixers.latent),
    "lfm2": Family(kinds=kinds.conv_between, recurrent=recurrent.short_convolution, feed_forward=mlp.lfm_mlp),
    "lfm2_moe": Family(
        kinds=kinds.all_full,
        recurrent=recurrent.short_convolution,
        feed_forward=mlp.experts(
            "num_experts", width="moe_intermediate_size", sparse=mlp.after_first("num_dense_layers")
        ),
    ),
}
"""Every text model type that is understood."""

WRAPPERS = (
    *("aya_vision", "cohere2_vision", "exaone4_5", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "glm4v"),
    *("glm4v_moe", "idefics3", "internvl", "kimi_k25", "lfm2_vl", "llama4", "llava", "llava_next"),
    *("llava_next_video", "llava_onevision", "mistral3", "paligemma", "qwen2_5_vl"),
    *("qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm"),
    *("video_llava", "vipllava"),
)
"""Model types whose text model is nested under ``text_config`` (or, in some older files, lies flat beside it)."""

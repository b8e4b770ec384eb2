"""A published config.json as its configuration class sees it: family key names, omitted defaults, checked sizes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NoReturn

from analytic.errors import UllageError

MAX_SIZE = 10**7
"""No dimension of a published model comes near; larger is a damaged config."""
MAX_LAYERS = 10_000
MAX_POSITIONS = 10**9

_LIMITS: Mapping[str, int] = {"num_hidden_layers": MAX_LAYERS, "max_position_embeddings": MAX_POSITIONS}

KEYS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "num_kv_heads", "head_dim", "v_head_dim"),
    *("multi_query", "new_decoder_architecture", "parallel_attn", "use_parallel_residual", "alibi"),
    *("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"),
    *("layer_types", "sliding_window", "use_sliding_window", "max_window_layers"),
    *("sliding_window_pattern", "use_bidirectional_attention", "attention_chunk_size", "full_attention_interval"),
    *("no_rope_layers", "no_rope_layer_interval", "position_embedding_type", "hybrid_override_pattern"),
    *("attn_layer_indices", "attn_layer_period", "attn_layer_offset", "full_attn_idxs"),
    *("intermediate_size", "intermediate_size_mlp", "n_inner", "ffn_dim", "ffn_hidden_size"),
    *("block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of"),
    *("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"),
    *("n_shared_experts", "shared_expert_intermediate_size", "shared_intermediate_size"),
    *("moe_num_shared_experts", "moe_shared_expert_intermediate_size", "moe_latent_size"),
    *("decoder_sparse_step", "mlp_only_layers", "first_k_dense_replace", "num_dense_layers"),
    *("moe_layers", "interleave_moe_layer_step", "expert_layer_period", "expert_layer_offset"),
    *("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
    *("expand", "state_size", "conv_kernel", "n_groups", "num_heads", "ssm_state_size"),
    *("mamba_expand", "mamba_d_state", "mamba_d_conv", "mamba_d_head", "mamba_d_ssm", "mamba_n_heads"),
    *("mamba_n_groups", "mamba_num_heads", "mamba_head_dim", "conv_L_cache", "chunk_size", "mamba_chunk_size"),
    *("linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim"),
    *("linear_num_key_heads", "linear_num_value_heads"),
    *("global_head_dim", "num_global_key_value_heads", "attention_k_eq_v", "num_kv_shared_layers", "per_layer_config"),
    *("enable_moe_block", "top_k_experts", "use_double_wide_mlp", "hidden_size_per_layer_input"),
    *("index_head_dim", "indexer_types", "index_topk_pattern", "index_topk_freq", "index_skip_topk_offset"),
    *("mlp_layer_types", "global_attn_every_n_layers", "num_shared_experts", "layer_group_size"),
    *("linear_attn_config", "linear_num_heads", "linear_head_dim", "short_conv_kernel_size"),
    *("num_decoder_layers", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "d_ff"),
    *("feed_forward_proj", "max_source_positions", "max_target_positions"),
)
"""Every key that a reader asks for; config_defaults.json holds the defaults of these and no others."""

LEGACY_KEYS: Mapping[tuple[str, str], str] = {
    ("bloom", "hidden_size"): "n_embed",
    ("falcon", "hidden_size"): "n_embed",
    ("falcon", "num_hidden_layers"): "n_layer",
    ("falcon", "num_attention_heads"): "n_head",
    ("falcon", "num_kv_heads"): "n_head_kv",
    ("lfm2", "intermediate_size"): "block_ff_dim",
    ("nemotron_h", "n_groups"): "mamba_n_groups",
    ("nemotron_h", "conv_kernel"): "mamba_d_conv",
}
"""(model type, key) to the older name of published files, which the configuration's ``__post_init__`` still takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigClass:
    """What the configuration class of a model type adds to a file: a row of config_defaults.json."""

    attribute_map: Mapping[str, str]
    """Common key to the family's own."""
    defaults: Mapping[str, Any]
    """Defaults by the family's own key, before the class computes anything."""
    text_config: str | None
    """Model type of the nested text model, None where the config is itself a text model's."""
    tie_word_embeddings: bool | None
    """Whether the output head is tied where the file does not say; None where the class itself does not say."""


@cache
def config_classes() -> Mapping[str, ConfigClass]:
    """The rows of config_defaults.json by model type."""
    rows = json.loads((files("analytic.models") / "config_defaults.json").read_text("utf-8"))
    return {model_type: ConfigClass(**row) for model_type, row in rows.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A text model's configuration: the keys of the file over the defaults of its class."""

    model_type: str
    given: Mapping[str, object]
    base: ConfigClass

    def get(self, key: str) -> Any:
        """Value of a key: the file's (even null), else the class default, else None."""
        assert key in KEYS, f"{key} is not listed in KEYS"
        own = self.base.attribute_map.get(key, key)
        for name in (LEGACY_KEYS.get((self.model_type, key)), own, key):
            if name is not None and name in self.given:
                return self.given[name]
        return self.base.defaults.get(own, self.base.defaults.get(key))

    def has(self, key: str) -> bool:
        """Whether the configuration class knows the key; one that it does not know changes nothing."""
        return self.base.attribute_map.get(key, key) in self.base.defaults

    def optional_size(self, key: str) -> int | None:
        """A positive integer, or None where the key is absent or null."""
        value = self.get(key)
        if value is None:
            return None
        return checked_size(self.model_type, key, value)

    def size(self, key: str) -> int:
        """A positive integer that must be there."""
        value = self.optional_size(key)
        if value is None:
            self.reject(key, None)
        return value

    def count(self, key: str) -> int:
        """A number of things, zero where the key is absent or null."""
        return 0 if self.get(key) in (None, 0) else self.size(key)

    def flag(self, key: str) -> bool:
        """Whether the key is set to a true value."""
        return bool(self.get(key))

    def indices(self, key: str) -> frozenset[int]:
        """A list of layer indices; empty where the key is absent or null."""
        value = self.get(key)
        if value is None:
            return frozenset()
        if not isinstance(value, list | tuple) or not all(isinstance(item, int) for item in value):
            self.reject(key, value)
        return frozenset(value)

    def per_layer(self, key: str) -> tuple[Any, ...] | None:
        """A list with an entry a layer; None where the key is absent or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) < self.size("num_hidden_layers"):
            self.reject(key, value)
        return tuple(value[: self.size("num_hidden_layers")])

    def reject(self, key: str, value: object) -> NoReturn:
        """Raise the error of a key whose value cannot be meant."""
        reject(self.model_type, key, value)


def checked_size(model_type: str, key: str, value: object) -> int:
    """The value as a positive integer of a sane magnitude."""
    limit = _LIMITS.get(key, MAX_SIZE)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
        reject(model_type, key, value)
    return value


def reject(model_type: str, key: str, value: object) -> NoReturn:
    """Raise the error of a key whose value cannot be meant."""
    shown = "is missing" if value is None else f"cannot be {repr(value)[:60]}"
    raise UllageError(
        f"config.json ({model_type}): {key} {shown}", hint="compare with the model's published config.json"
    )

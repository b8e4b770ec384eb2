"""What a tensor is for, from its name and the class of the module that owns it."""

import re

# First match wins. Names as transformers' model classes hold them (transformers/models/*/modeling_*.py).
_ROLES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("other", r"(^|\.)(vision|visual|audio|multi_modal|image_)"),
        ("output", r"(^|\.)(lm_head|embed_out|output_layer)\."),
        ("router", r"\.(gate|router|shared_expert_gate)\.(\w+\.)?(weight|bias|wg|e_score_correction_bias)$|\.router\."),
        ("expert", r"\.(experts|block_sparse_moe\.input_linear|block_sparse_moe\.output_linear)\b"),
        ("norm", r"norm|(^|[._])ln(_\w+|\d*)\."),
        ("embedding", r"embed|\.w[tp]e\."),
        ("ssm", r"\.(mamba|linear_attn|mixer\.(in_proj|out_proj|x_proj|dt_proj|conv1d|A_log|D$|dt_bias))"),
        ("attention", r"attn|attention|\.(q|k|v|o|qkv|query_key_value|kv_a|kv_b)_?(proj)?\b|sinks"),
        ("mlp", r"mlp|feed_forward|shared|\.fc\d|ffn|(gate|up|down)_proj|mixer"),
    )
)


def role_of(name: str, *, module: str, parameter: bool) -> str:
    """The role of the tensor ``name`` owned by a module of class ``module``; ``buffer`` unless a parameter."""
    if not parameter:
        return "buffer"
    if module == "Embedding":
        return "embedding"
    return next((role for role, pattern in _ROLES if pattern.search(name)), "other")

"""A model as the GGUF file that llama.cpp would make of it: its tensors renamed, split, and quantised.

The steps are those of ``convert_hf_to_gguf.py`` and ``llama-quantize`` (llama.cpp 0.5: ``conversion/``,
``gguf-py/gguf/tensor_mapping.py``). Vision and audio towers become a file of their own, which is not made here.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from analytic.errors import UllageError
from analytic.formats.ggml import BY_NAME, GgmlType
from analytic.formats.gguf_mixtures import Facts, Tensor, is_matrix, quantized
from analytic.models.geometry import Attention, LatentAttention, MixtureOfExperts, Recurrent
from analytic.models.gguf_model import group_tensors
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model

_SAME = (
    "apertus bloom falcon gemma gemma2 gpt2 granite llama nemotron_h olmo2 phi3 phimoe qwen2 qwen3 seed_oss smollm3 "
    "stablelm starcoder2"
)

ARCHITECTURES = {
    **{name: name for name in _SAME.split()},
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "glm": "chatglm",
    "glm4_moe": "glm4moe",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "hunyuan_v1_dense": "hunyuan-dense",
    "llama4_text": "llama4",
    "minimax_m2": "minimax-m2",
    "mistral": "llama",
    "mixtral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_5_text": "qwen35",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
}
"""GGUF's names of the text model types whose tensors are known here."""

_ROWS = {
    "token_embd": "embed_tokens wte word_embeddings embeddings embed_in",
    "position_embd": "wpe",
    "output": "lm_head embed_out",
    "output_norm": "norm norm_f ln_f final_layer_norm final_layernorm",
    "token_embd_norm": "word_embeddings_layernorm",
    "{}.attn_norm": "input_layernorm ln_1 ln_attn attention_layernorm {}.norm",
    "{}.attn_norm_2": "ln_mlp",
    "{}.attn_q_norm": "self_attn.q_norm self_attn.query_layernorm",
    "{}.attn_k_norm": "self_attn.k_norm self_attn.key_layernorm",
    "{}.attn_q_a_norm": "self_attn.q_a_layernorm",
    "{}.attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "{}.ssm_norm": "linear_attn.norm mixer.norm",
    "{}.ffn_norm": "post_attention_layernorm pre_feedforward_layernorm ln_2 feedforward_layernorm",
    "{}.pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "{}.post_ffw_norm": "post_feedforward_layernorm",
    "{}.post_ffw_norm_1": "post_feedforward_layernorm_1",
    "{}.post_ffw_norm_2": "post_feedforward_layernorm_2",
    "{}.layer_output_scale": "layer_scalar",
    "{}.attn_q": "self_attn.q_proj mixer.q_proj",
    "{}.attn_k": "self_attn.k_proj mixer.k_proj",
    "{}.attn_v": "self_attn.v_proj mixer.v_proj",
    "{}.attn_qkv": "self_attn.qkv_proj attn.c_attn attention.query_key_value self_attention.query_key_value "
    "linear_attn.in_proj_qkv",
    "{}.attn_output": "self_attn.o_proj mixer.o_proj self_attn.dense attn.c_proj attention.dense self_attention.dense",
    "{}.attn_sinks": "self_attn.sinks",
    "{}.attn_q_a": "self_attn.q_a_proj",
    "{}.attn_q_b": "self_attn.q_b_proj",
    "{}.attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "{}.attn_gate": "linear_attn.in_proj_z",
    "{}.ffn_gate": "mlp.gate_proj",
    "{}.ffn_up": "mlp.up_proj mlp.gate_up_proj mlp.c_fc mlp.fc1 mlp.dense_h_to_4h mixer.up_proj",
    "{}.ffn_down": "mlp.down_proj mlp.c_proj mlp.fc2 mlp.dense_4h_to_h mixer.down_proj",
    "{}.ffn_gate_inp": "mlp.gate mlp.router mixer.gate feed_forward.router router.proj",
    "{}.ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "{}.ffn_up_exps": "mixer.experts.up_proj",
    "{}.ffn_down_exps": "mlp.experts.down_proj mixer.experts.down_proj feed_forward.experts.down_proj "
    "experts.down_proj",
    "{}.ffn_gate_up_exps": "experts.gate_up_proj",
    "{}.ffn_gate_shexp": "mlp.shared_experts.gate_proj mlp.shared_expert.gate_proj "
    "feed_forward.shared_expert.gate_proj",
    "{}.ffn_up_shexp": "mlp.shared_experts.up_proj mlp.shared_expert.up_proj feed_forward.shared_expert.up_proj "
    "mixer.shared_experts.up_proj",
    "{}.ffn_down_shexp": "mlp.shared_experts.down_proj mlp.shared_expert.down_proj mixer.shared_experts.down_proj "
    "feed_forward.shared_expert.down_proj",
    "{}.ssm_in": "mixer.in_proj",
    "{}.ssm_out": "mixer.out_proj linear_attn.out_proj",
    "{}.ssm_conv1d": "mixer.conv1d linear_attn.conv1d",
    "{}.ssm_ba": "linear_attn.in_proj_ba",
    "{}.ssm_alpha": "linear_attn.in_proj_a",
    "{}.ssm_beta": "linear_attn.in_proj_b",
}
"""GGUF's name of a module, and transformers'; ``{}`` stands for the layer, which a name of ours has only where the same
stands outside the layers too."""

_NAMES = {name: gguf for gguf, names in _ROWS.items() for name in names.split()}

_WHOLE = {
    "{}.mixer.A_log": "{}.ssm_a",
    "{}.linear_attn.A_log": "{}.ssm_a",
    "{}.mixer.D": "{}.ssm_d",
    "{}.mixer.dt_bias": "{}.ssm_dt.bias",
    "{}.linear_attn.dt_bias": "{}.ssm_dt.bias",
    "{}.mlp.experts.down_proj_bias": "{}.ffn_down_exps.bias",
    "{}.router.per_expert_scale": "{}.ffn_down_exps.scale",
    "{}.router.scale": "{}.ffn_gate_inp.scale",
}
"""Names of tensors that do not follow from their module's."""

_OF_HEADS = ("{}.mixer.A_log", "{}.mixer.D")
"""Of Mamba 2, whose converter gives them a column (conversion/mamba.py, nemotron.py)."""

_NORMS_ITS_OUTPUT = frozenset(
    ("gemma2", "gemma3", "gemma4", "glm4moe", "gpt-oss", "olmo2", "qwen35", "qwen35moe", "qwen3next", "seed_oss")
)
"""Architectures whose ``post_attention_layernorm`` is not the feed-forward's own norm."""

_PREFIX = re.compile(r"^(?:.*\.(?=\{\}\.)|(?:(?:model|transformer|gpt_neox|language_model|decoder)\.)+)")

_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

_FLOAT32 = re.compile(r"_norm\.weight$|ffn_gate_inp(_shexp)?\.|ssm_conv1d\.|^position_embd\.|(?<!\.weight)$")
"""Matrices that the converter writes in F32, as it does every vector."""

_ELSEWHERE = re.compile(
    r"embed_scale$|act_fn\.\w+$|(^|\.)(vision|visual|audio|multi_modal|image_|embed_(vision|audio))"
)
"""Tensors that become metadata, or are no part of the language model."""

_GEMMA_3_TOKENS = 262_144
"""Of its tokenizer; rows of the embeddings beyond it are left out (conversion/gemma.py)."""

_Named = tuple[str, tuple[int, ...]]


def as_gguf(model: Model, mixture: str, *, dtype: str) -> tuple[TensorGroup, ...]:
    """The tensors of ``model`` in a GGUF file of ``mixture`` (one of `analytic.formats.gguf_mixtures.DEFAULTS`).

    ``dtype`` is that of the file before it is quantised.

    Raises:
        UllageError: the model's type, or a matrix of it, has no place in a GGUF file that is known here.
    """
    facts = facts_of(model)
    made = quantized(converted(model, dtype=dtype), mixture, facts)
    return tuple(group_tensors(made, layers=facts.layers))


def facts_of(model: Model) -> Facts:
    """What llama.cpp's rules look at.

    Raises:
        UllageError: the model's type is not known here.
    """
    layers, model_type = model.geometry.layers, model.geometry.model_type
    if model_type not in ARCHITECTURES:
        raise UllageError(
            f"how llama.cpp converts {model_type!r} is not known to ullage",
            hint=f"give the GGUF file itself; known: {', '.join(sorted(ARCHITECTURES))}",
        )
    experts = (layer.feed_forward.experts for layer in layers if isinstance(layer.feed_forward, MixtureOfExperts))
    return Facts(
        architecture=ARCHITECTURES[model_type],
        layers=len(layers),
        heads_per_kv_head=_heads_per_kv_head(model),
        experts=next(experts, 0),
    )


def _heads_per_kv_head(model: Model) -> int:
    """Of the first layer, as the file's metadata say: one number for all of a hybrid's layers, or one for each."""
    mixers = [layer.mixer for layer in model.geometry.layers]
    counts = mixers[:1] if model.geometry.model_type == "nemotron_h" else mixers
    first = next((mixer for mixer in counts if isinstance(mixer, Attention | LatentAttention)), None)
    if first is None:
        return 0
    return first.heads if isinstance(first, LatentAttention) else first.heads // first.kv_heads


def converted(model: Model, *, dtype: str) -> tuple[Tensor, ...]:
    """The tensors of the file that ``convert_hf_to_gguf.py`` makes of ``model``.

    Raises:
        UllageError: a matrix that it has no name for.
    """
    named = [
        (name.replace("{}", f"blk.{layer}"), shape)
        for group in model.tensors
        if group.persistent and not _ELSEWHERE.search(group.name)
        for name, shape in _renamed(model, group)
        for layer in group.layers or (-1,)
    ]
    return tuple(Tensor(name, shape, _type(name, shape, dtype)) for name, shape in (*named, *_generated(model)))


def _type(name: str, shape: tuple[int, ...], dtype: str) -> GgmlType:
    is_float32 = not is_matrix(shape) or _FLOAT32.search(name)
    return BY_NAME["F32" if is_float32 else _FLOATS[dtype]]


def _renamed(model: Model, group: TensorGroup) -> Iterator[_Named]:
    """Names (``{}`` for the layer) and shapes of what one tensor of the group becomes."""
    tail = _PREFIX.sub("", group.name)
    is_matrix_group = len(group.shape) > 1 and not tail.endswith("_bias")
    shape = (*group.shape[:-2], *group.matrix) if is_matrix_group else group.shape
    module, _, suffix = tail.rpartition(".")
    if suffix not in ("weight", "bias"):
        module, suffix = tail, "weight"
    if tail.endswith("e_score_correction_bias"):
        yield "{}.exp_probs_b.bias", shape
    elif tail in _WHOLE:
        yield _WHOLE[tail], (*shape, 1) if tail in _OF_HEADS else shape
    elif tail == "{}.mixer.norm.weight":
        yield "{}.ssm_norm.weight", _by_group(model, shape)
    elif module in _SPLITS:
        yield from _SPLITS[module](model, shape, suffix)
    elif (name := _name(module, ARCHITECTURES[model.geometry.model_type])) is not None:
        yield f"{name}.{suffix}", _trimmed(model, group, shape)
    elif is_matrix(shape):
        raise UllageError(
            f"how llama.cpp converts {group.name} of {model.geometry.model_type!r} is not known to ullage",
            hint="give the GGUF file itself",
        )
    else:
        yield tail, shape


def _name(module: str, architecture: str) -> str | None:
    own = module.removeprefix("{}.")
    if own == "post_attention_layernorm" and architecture in _NORMS_ITS_OUTPUT:
        return "{}.post_attention_norm"
    return _NAMES.get(module) or _NAMES.get(own)


def _trimmed(model: Model, group: TensorGroup, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, with embeddings squeezed and cut as the converter does."""
    if group.role == "embedding" and model.geometry.model_type == "gemma3_text":
        return (min(shape[0], _GEMMA_3_TOKENS), *shape[1:])
    return (shape[0], shape[2]) if len(shape) == 3 and shape[1] == 1 else shape


def _by_group(model: Model, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A Mamba 2 mixer's norm, a row for each group."""
    mixers = (mixer for layer in model.geometry.layers for mixer in (layer.mixer, layer.recurrent))
    mixer = next(mixer for mixer in mixers if isinstance(mixer, Recurrent))
    state = mixer.state_elements // mixer.inner_size
    groups = (mixer.conv_channels - mixer.inner_size) // (2 * state)
    return (groups, shape[0] // groups)


def _experts(_: Model, shape: tuple[int, ...], suffix: str) -> list[_Named]:
    """Gates and ups, which transformers stacks in one."""
    half = (shape[0], shape[1] // 2, *shape[2:])
    return [("{}.ffn_gate_exps." + suffix, half), ("{}.ffn_up_exps." + suffix, half)]


def _latent(model: Model, shape: tuple[int, ...], suffix: str) -> list[_Named]:
    """Keys and values head by head, the keys transposed."""
    mixer = next(layer.mixer for layer in model.geometry.layers if isinstance(layer.mixer, LatentAttention))
    keys = (mixer.heads, mixer.kv_lora_rank, mixer.qk_nope_head_dim)
    values = (mixer.heads, mixer.v_head_dim, mixer.kv_lora_rank)
    return [("{}.attn_k_b." + suffix, keys), ("{}.attn_v_b." + suffix, values)]


def _delta_net(model: Model, shape: tuple[int, ...], suffix: str) -> list[_Named]:
    """The gate apart from queries, keys and values."""
    gate = next(layer.mixer.inner_size for layer in model.geometry.layers if isinstance(layer.mixer, Recurrent))
    return [("{}.attn_qkv." + suffix, (shape[0] - gate, shape[1])), ("{}.attn_gate." + suffix, (gate, shape[1]))]


_SPLITS: Mapping[str, Callable[[Model, tuple[int, ...], str], list[_Named]]] = {
    "{}.mlp.experts.gate_up_proj": _experts,
    "{}.feed_forward.experts.gate_up_proj": _experts,
    "{}.mlp.experts.gate_up_proj_bias": lambda model, shape, _: _experts(model, shape, "bias"),
    "{}.self_attn.kv_b_proj": _latent,
    "{}.linear_attn.in_proj_qkvz": _delta_net,
}
"""Modules that become several tensors."""


def _generated(model: Model) -> list[_Named]:
    """Rotary tables that the converter computes: factors of each frequency."""
    text = model.config.get("text_config")
    config = text if isinstance(text, Mapping) else model.config
    given = config.get("rope_scaling") or config.get("rope_parameters")
    scaling: Mapping[str, object] = given if isinstance(given, Mapping) else {}
    kind, factors = scaling.get("rope_type") or scaling.get("type"), scaling.get("long_factor")
    if kind == "longrope" and isinstance(factors, list):
        return [("rope_factors_long.weight", (len(factors),)), ("rope_factors_short.weight", (len(factors),))]
    sizes = (layer.mixer.head_dim for layer in model.geometry.layers if isinstance(layer.mixer, Attention))
    is_scaled = kind == "llama3" or model.geometry.model_type in ("gemma4_text", "apertus")
    return [("rope_freqs.weight", (max(sizes) // 2,))] if is_scaled else []

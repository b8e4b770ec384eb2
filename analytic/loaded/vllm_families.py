"""What vLLM's model files do with weights beyond loading them: a row a model type, from vLLM 0.33.

A model type without a row is refused: vLLM's files are written one by one, and each may hold something of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from analytic.loaded.vllm_rotary import Rotary
from analytic.models.geometry import Attention, Geometry
from analytic.models.model import Model


@dataclass(frozen=True, kw_only=True, slots=True)
class Added:
    """Something that no checkpoint holds."""

    what: str
    bytes: Callable[[Model, Geometry, int], int]
    """From the model, what of its geometry the rank has, and the bytes of an element in the serving dtype."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What vLLM does with the weights of one text model type."""

    source: str
    """Under vllm/model_executor/models."""
    rotary: Rotary | None = None
    """None where positions are learned, or none."""
    float32: tuple[str, ...] = ()
    """Endings of the names of tensors that are held in float32."""
    dropped: tuple[str, ...] = ()
    """Names of tensors that are not loaded."""
    adds: tuple[Added, ...] = ()
    everywhere: tuple[str, ...] = ()
    """What every pipeline stage holds, though only the first or the last needs it: ``embedding``, ``norm``, ``output``
    by a tensor's role."""
    needs_experts: bool = False
    """Whether every pipeline stage must have experts, if any has."""
    repeats_keys: bool = True
    """Whether there may be more tensor-parallel ranks than key heads."""
    splits_shared: bool = False
    """Whether shared experts are split even where ranks share out the experts' tokens."""
    splits_head_norms: bool = False
    """Whether norms over all queries, or all keys, are split with the heads."""
    online_router: bool | None = None
    """Whether quantising while loading takes the router too; None where there is none, or it was not recorded."""


_ROTATES = Rotary()
_QUARTER, _HALF, _BY_KIND = Rotary(fraction=0.25), Rotary(fraction=0.5), Rotary(by_kind=True)
_ENDS, _ALL = ("embedding", "norm"), ("embedding", "norm", "output")
_BIAS = "e_score_correction_bias"
_NORMALIZER = Added(what="normalizer of the embedding", bytes=lambda model, geometry, itemsize: itemsize)
_SLOPES = Added(
    what="ALiBi slopes",
    bytes=lambda model, geometry, itemsize: 4 * sum(a.heads for a in _attentions(geometry) if not a.rotary),
)
_UNIT_NORM = Added(
    what="norm of queries and keys, without a weight in the checkpoint",
    bytes=lambda model, geometry, itemsize: (
        4 * sum(a.head_dim for a in _attentions(geometry) if a.rotary and _norms_qk(model))
    ),
)


def _attentions(geometry: Geometry) -> Iterator[Attention]:
    return (layer.mixer for layer in geometry.layers if isinstance(layer.mixer, Attention))


def _norms_qk(model: Model) -> bool:
    return bool(text_config(model).get("use_qk_norm", True))


def text_config(model: Model) -> Mapping[str, Any]:
    """The text model's part of the config."""
    nested = model.config.get("text_config")
    return nested if isinstance(nested, Mapping) else model.config


def _through_transformers(rotary: Rotary, *, dropped: tuple[str, ...] = ()) -> Family:
    """Of a class that vLLM 0.33 has no file for: it serves transformers' class, which keeps frequencies, no table."""
    return Family(source="transformers/", rotary=replace(rotary, table=False), dropped=dropped)


FAMILIES: Mapping[str, Family] = {
    "apertus": Family(source="apertus.py", rotary=_ROTATES),
    "bloom": Family(source="bloom.py", adds=(_SLOPES,), everywhere=_ENDS),
    "cohere": Family(source="commandr.py", rotary=_ROTATES, everywhere=_ENDS),
    "deepseek_v2": Family(source="deepseek_v2.py", rotary=_ROTATES, online_router=False),
    "deepseek_v3": Family(source="deepseek_v2.py", rotary=_ROTATES, float32=(_BIAS,)),
    "falcon": Family(source="falcon.py", rotary=_ROTATES, adds=(_SLOPES,), everywhere=_ENDS),
    "gemma": Family(source="gemma.py", rotary=_ROTATES, adds=(_NORMALIZER,), everywhere=_ENDS),
    "gemma2": Family(source="gemma2.py", rotary=_ROTATES, adds=(_NORMALIZER,), everywhere=_ENDS),
    "gemma3_text": Family(source="gemma3.py", rotary=_BY_KIND, adds=(_NORMALIZER,), everywhere=_ENDS),
    "glm": _through_transformers(_HALF),
    "glm4_moe": Family(
        source="glm4_moe.py", rotary=_HALF, float32=("mlp.gate.weight", _BIAS), splits_shared=True, needs_experts=True
    ),
    "gpt2": Family(source="gpt2.py", everywhere=_ENDS),
    "gpt_neox": _through_transformers(_QUARTER),
    "gpt_oss": Family(
        source="gpt_oss.py",
        rotary=Rotary(dtype="float32"),
        float32=("_proj_bias",),
        repeats_keys=False,
        everywhere=_ALL,
    ),
    "gptj": Family(source="gpt_j.py", rotary=_ROTATES, everywhere=_ALL),
    "granite": Family(source="granite.py", rotary=_ROTATES),
    "hunyuan_v1_dense": _through_transformers(_ROTATES),
    "llama": Family(source="llama.py", rotary=_ROTATES),
    "llama4_text": Family(source="llama4.py", rotary=_ROTATES, adds=(_UNIT_NORM,)),
    "minimax_m2": Family(
        source="minimax_m2.py", rotary=_HALF, float32=("mlp.gate.weight", _BIAS), splits_head_norms=True
    ),
    "mistral": Family(source="mistral.py", rotary=_ROTATES),
    "mixtral": Family(source="mixtral.py", rotary=_ROTATES, everywhere=_ALL, needs_experts=True),
    "nemotron_h": Family(source="nemotron_h.py", float32=("mixer.A_log", _BIAS), everywhere=_ALL, needs_experts=True),
    "olmo2": _through_transformers(_ROTATES),
    "olmo3": _through_transformers(_BY_KIND),
    "opt": Family(source="opt.py", everywhere=_ENDS),
    "phi": _through_transformers(_HALF, dropped=("lm_head.bias",)),
    "phi3": Family(source="phi3.py", rotary=_ROTATES),
    "phimoe": Family(source="phimoe.py", rotary=_ROTATES, everywhere=_ALL),
    "qwen2": Family(source="qwen2.py", rotary=_ROTATES),
    "qwen3": Family(source="qwen3.py", rotary=_ROTATES),
    "qwen3_5_moe_text": Family(
        source="qwen3_5.py",
        rotary=_QUARTER,
        float32=("linear_attn.A_log",),
        everywhere=("embedding",),
        needs_experts=True,
    ),
    "qwen3_5_text": Family(
        source="qwen3_5.py", rotary=_QUARTER, float32=("linear_attn.A_log",), everywhere=("embedding",)
    ),
    "qwen3_moe": Family(
        source="qwen3_moe.py", rotary=_ROTATES, online_router=True, everywhere=_ALL, needs_experts=True
    ),
    "qwen3_next": Family(
        source="qwen3_next.py",
        rotary=_QUARTER,
        float32=("linear_attn.A_log",),
        everywhere=("embedding", "output"),
        needs_experts=True,
    ),
    "seed_oss": _through_transformers(_ROTATES),
    "smollm3": _through_transformers(_ROTATES),
    "stablelm": Family(source="stablelm.py", rotary=_QUARTER, everywhere=_ALL),
    "starcoder2": _through_transformers(_ROTATES),
}
"""By the text model's type. All were recorded."""


def _patches(vision: Mapping[str, Any]) -> int:
    return int(vision["image_size"] // vision["patch_size"]) ** 2


def _qwen_table(vision: Mapping[str, Any], itemsize: int) -> int:
    """8,192 positions, for half a head (qwen3_vl.py)."""
    return 8192 * int(vision["hidden_size"] // vision["num_heads"] // 2) * itemsize


def _llama_table(vision: Mapping[str, Any], _: int) -> int:
    """A complex64 for each two elements of a head, a row for each patch and the class (llama4_vision_rope.py)."""
    return 8 * (_patches(vision) + 1) * int(vision["hidden_size"] // vision["num_attention_heads"] // 2)


WRAPPERS: Mapping[str, tuple[str, Callable[[Mapping[str, Any], int], int]]] = {
    "gemma3": ("indices of the vision tower's patches", lambda vision, _: 8 * _patches(vision)),  # siglip.py
    "llama4": ("rotary table of the vision tower", _llama_table),
    "qwen3_5": ("rotary table of the vision tower", _qwen_table),
    "qwen3_5_moe": ("rotary table of the vision tower", _qwen_table),
}
"""Multimodal model types: what the modules beside the text model add, from ``vision_config`` and bytes an element."""

"""Which type llama.cpp gives to each tensor when it quantises a GGUF file: ``Q4_K_M`` is a mixture, not a type.

The rules are those of ``llama-quantize`` without options (llama.cpp 0.5, ``src/llama-quant.cpp``), with an importance
matrix where it refuses to work without one.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from analytic.formats.ggml import BY_NAME, GgmlType

_BY_THEIR_TYPE = (
    "F32 F16 BF16 Q8_0 Q6_K Q5_1 Q5_0 Q4_1 Q4_0 IQ4_NL IQ4_XS IQ3_S IQ3_XXS Q2_K IQ2_XS IQ2_XXS IQ1_M IQ1_S TQ2_0 TQ1_0"
)

DEFAULTS: Mapping[str, str] = {
    **{name: name for name in _BY_THEIR_TYPE.split()},
    **dict.fromkeys(("Q5_K_M", "Q5_K_S"), "Q5_K"),
    **dict.fromkeys(("Q4_K_M", "Q4_K_S"), "Q4_K"),
    **dict.fromkeys(("Q3_K_L", "Q3_K_M", "Q3_K_S"), "Q3_K"),
    **dict.fromkeys(("IQ3_M", "IQ3_XS"), "IQ3_S"),
    **{"Q2_K_S": "Q2_K", "IQ2_M": "IQ2_S", "IQ2_S": "IQ2_XS", "MXFP4_MOE": "MXFP4"},
}
"""Mixtures, and the type that most tensors of each have."""

ALIASES: Mapping[str, tuple[str, ...]] = {"Q3_K_M": ("Q3_K",), "Q4_K_M": ("Q4_K",), "Q5_K_M": ("Q5_K",)}
"""Other names that ``llama-quantize`` takes."""

# First match wins (tensor_get_category).
_CATEGORIES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (category, re.compile(pattern))
    for category, pattern in (
        ("output", r"^output\.weight$"),
        ("embedding", r"^(per_layer_)?token_embd\.weight$"),
        ("value", r"attn_(qkv|kv_b|v)\.weight"),
        ("key", r"attn_k\.weight"),
        ("query", r"attn_q\.weight"),
        ("attention_output", r"attn_output\.weight"),
        ("up", r"ffn_up"),
        ("gate", r"ffn_gate"),
        ("down", r"ffn_down"),
    )
)

_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|altup|laurel|per_layer_model_proj|^(position_embd|token_types)\.weight"
    r"|ssm_conv1d|shortconv\.conv\.weight|attn_rel_b\.weight|indexer\.[kq]_proj\.weight|(?<!weight)$"
)
"""Matrices that stay as the file has them, as every vector does (tensor_allows_quantization)."""

_LAYER = re.compile(r"^blk\.(\d+)\.")


class Tensor(NamedTuple):
    """A tensor of a GGUF file that is not quantised yet."""

    name: str
    shape: tuple[int, ...]
    """Columns last."""
    type: GgmlType


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the rules look at of a model."""

    architecture: str
    """As GGUF names it."""
    layers: int
    heads_per_kv_head: int
    """Of the first layer; 0 where it has none."""
    experts: int

    @property
    def is_70b(self) -> bool:
        """What llama.cpp takes for a 70B model: 80 layers of a few architectures."""
        is_65b = self.architecture == "llama" and self.heads_per_kv_head == 1
        return self.layers == 80 and self.architecture in ("llama", "qwen2", "olmo") and not is_65b


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a tensor stands among those of its category."""

    ordinal: int
    """How many came before it."""
    index: int
    """Its layer where there are experts, else the same."""
    count: int
    facts: Facts


def _is_any(_: _Place) -> bool:
    return True


def _is_more(place: _Place) -> bool:
    """The first and last eighth, and every third between (use_more_bits)."""
    eighth = place.count // 8
    return place.index < eighth or place.index >= 7 * place.count // 8 or (place.index - eighth) % 3 == 2


def _is_grouped(place: _Place) -> bool:
    return place.facts.heads_per_kv_head >= 4


def _is_grouped_or_routed(place: _Place) -> bool:
    return _is_grouped(place) or place.facts.experts >= 4


def _is_mixtral(place: _Place) -> bool:
    return place.facts.experts == 8


def _is_falcon(place: _Place) -> bool:
    return place.facts.architecture == "falcon"


def _is_first_eighth(place: _Place) -> bool:
    return place.index < place.count // 8


def _is_first_sixteenth(place: _Place) -> bool:
    return place.index < place.count // 16


_Rule = tuple[str, Callable[[_Place], bool], str | None]

_TINY, _SMALL = "IQ2_XXS IQ2_XS IQ1_S IQ1_M", "IQ2_S IQ2_M"
_LOW = f"{_TINY} {_SMALL}"
_HIGH = " ".join(name for name in DEFAULTS if name not in _LOW.split())
_MIXTRAL_OUTPUT = "Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS"

# (mixtures, where, type; None for the mixture's own): the first that holds wins (llama_tensor_get_type_impl).
_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "output": (
        ("MXFP4_MOE Q8_0", _is_any, "Q8_0"),
        (" ".join(DEFAULTS), _is_falcon, "Q8_0"),
        (f"{_LOW} IQ3_XXS", _is_any, "Q5_K"),
        (" ".join(DEFAULTS), _is_any, "Q6_K"),
    ),
    "embedding": (
        (_TINY, _is_any, "Q2_K"),
        (f"{_SMALL} IQ3_XXS", _is_any, "IQ3_S"),
        ("TQ1_0 TQ2_0", _is_any, "Q4_K"),
    ),
    "value": (
        (_LOW, _is_grouped_or_routed, "Q4_K"),
        (_SMALL, _is_any, "IQ3_S"),
        (_TINY, _is_any, "Q2_K"),
        (_HIGH, _is_mixtral, "Q8_0"),
        ("Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S", _is_grouped, "Q4_K"),
        ("Q2_K", _is_any, "Q3_K"),
        ("IQ3_M", _is_any, "Q4_K"),
        ("Q3_K_M", lambda place: place.ordinal >= 2, "Q4_K"),
        ("Q3_K_M Q3_K_L", _is_any, "Q5_K"),
        ("IQ4_NL IQ4_XS", _is_grouped, "Q5_K"),
        ("Q4_K_M Q5_K_M", _is_more, "Q6_K"),
        ("Q4_K_S", lambda place: place.ordinal < 4, "Q5_K"),
    ),
    "key": (
        (_LOW, _is_mixtral, "Q4_K"),
        (_HIGH, _is_mixtral, "Q8_0"),
        ("IQ3_XS", _is_any, "IQ3_XXS"),
        ("IQ3_XXS", _is_any, "IQ2_S"),
    ),
    "query": (
        ("IQ3_XS", _is_any, "IQ3_XXS"),
        ("IQ3_XXS", _is_any, "IQ2_S"),
    ),
    "attention_output": (
        (_LOW, _is_mixtral, "Q5_K"),
        ("IQ1_S IQ1_M", _is_any, "IQ2_XXS"),
        (_SMALL, _is_any, "IQ3_S"),
        ("Q3_K_L", _is_falcon, "Q4_K"),
        (_HIGH, _is_falcon, None),
        (_MIXTRAL_OUTPUT, _is_mixtral, "Q5_K"),
        (_HIGH, _is_mixtral, None),
        ("Q2_K", _is_any, "Q3_K"),
        ("IQ3_XXS", _is_any, "IQ3_S"),
        ("Q3_K_M IQ3_M", _is_any, "Q4_K"),
        ("Q3_K_L", _is_any, "Q5_K"),
    ),
    "gate": (("IQ3_XS", lambda place: place.count // 8 <= place.index < 7 * place.count // 8, "IQ3_XXS"),),
    "up": (("IQ3_XS", lambda place: place.count // 8 <= place.index < 7 * place.count // 8, "IQ3_XXS"),),
    "down": (
        (_SMALL, lambda place: place.ordinal < place.count // 8, "IQ3_S"),
        (_TINY, lambda place: place.ordinal < place.count // 8, "Q2_K"),
        ("Q2_K", _is_any, "Q3_K"),
        ("Q2_K_S", _is_first_eighth, "Q4_K"),
        ("Q3_K_M", _is_first_sixteenth, "Q5_K"),
        ("Q3_K_M", lambda place: not _is_falcon(place) or _is_more(place), "Q4_K"),
        ("IQ3_M", lambda place: _is_first_eighth(place) or (_is_mixtral(place) and _is_more(place)), "Q4_K"),
        ("Q3_K_L", _is_falcon, "Q4_K"),
        ("Q3_K_L", _is_any, "Q5_K"),
        ("Q4_K_M", lambda place: _is_falcon(place) and not _is_first_sixteenth(place) and _is_more(place), "Q5_K"),
        ("Q4_K_M", lambda place: _is_falcon(place) and not _is_first_sixteenth(place), None),
        ("Q4_K_M", _is_falcon, "Q6_K"),
        ("Q4_K_M Q5_K_M", _is_more, "Q6_K"),
        ("IQ4_NL IQ4_XS", _is_first_eighth, "Q5_K"),
        ("Q4_K_S", lambda place: _is_first_eighth(place) and not _is_falcon(place), "Q5_K"),
    ),
    "other": (),
}

_FALLBACKS = {
    **dict.fromkeys(["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"], "IQ4_NL"),
    **dict.fromkeys(["Q2_K", "Q3_K", "TQ1_0", "TQ2_0"], "Q4_0"),
    **{"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
}
"""What takes the place of a type whose blocks do not divide a row (tensor_type_fallback); where that fails too, F16."""


def quantized(tensors: Iterable[Tensor], mixture: str, facts: Facts) -> tuple[Tensor, ...]:
    """The tensors in the types that ``mixture`` (one of `DEFAULTS`) gives them."""
    ordered = sorted(tensors, key=lambda tensor: (_layer(tensor.name), tensor.name))
    categories = [_category(tensor.name) for tensor in ordered]
    is_tied, values = "output" not in categories, categories.count("value")
    seen: Counter[str] = Counter()
    made = []
    for tensor, category in zip(ordered, categories, strict=True):
        if not is_matrix(tensor.shape) or _KEPT.search(tensor.name):
            made.append(tensor)
            continue
        place = _Place(
            ordinal=seen[category],
            index=_layer(tensor.name) if facts.experts > 1 and category != "value" else seen[category],
            count=values if category == "value" else facts.layers,
            facts=facts,
        )
        chosen = _chosen(tensor, "output" if is_tied and category == "embedding" else category, mixture, place)
        made.append(tensor._replace(type=BY_NAME[_fitting(chosen, tensor.shape[-1])]))
        seen[category] += 1
    return tuple(made)


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether ggml counts more than one dimension: a single row is a vector to it."""
    return len(shape) > 1 and max(shape[:-1]) > 1


def _layer(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _category(name: str) -> str:
    return next((category for category, pattern in _CATEGORIES if pattern.search(name)), "other")


def _chosen(tensor: Tensor, category: str, mixture: str, place: _Place) -> str:
    default = DEFAULTS[mixture]
    if BY_NAME[default].block_elements == 1:
        return default
    if category == "output" and tensor.shape[-1] % BY_NAME[default].block_elements:
        return "Q8_0"
    if category != "output" and mixture == "MXFP4_MOE":
        return "MXFP4" if len(tensor.shape) == 3 else "Q8_0"
    rule = next((rule for rule in _RULES[category] if mixture in rule[0].split() and rule[1](place)), None)
    chosen = default if rule is None or rule[2] is None else rule[2]
    if category == "value" and place.facts.is_70b and mixture in _HIGH.split() and chosen in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return chosen


def _fitting(chosen: str, columns: int) -> str:
    for name in (chosen, _FALLBACKS.get(chosen, "F16")):
        if columns % BY_NAME[name].block_elements == 0:
            return name
    return "F16"

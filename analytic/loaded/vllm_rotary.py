"""The tables of cosines and sines that vLLM keeps on the GPU: a row a position, whatever ``--max-model-len`` is.

After ``get_rope`` of vLLM 0.33 (``model_executor/layers/rotary_embedding/__init__.py``), which gives layers with the
same parameters one table. No checkpoint holds them, and "Model loading took" counts them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from analytic.errors import UllageError
from analytic.models.geometry import Attention, Geometry, LatentAttention

_FRACTIONS = ("partial_rotary_factor", "rotary_pct")
_HINT = "compare rope_parameters (rope_scaling in older files) with the model's published config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotary:
    """How a family's layers rotate."""

    fraction: float = 1.0
    """Share of a head that is rotated where the config does not say (``partial_rotary_factor`` of the config class)."""
    by_kind: bool = False
    """Whether full attention and sliding windows have parameters of their own, and so each a table."""
    dtype: str | None = None
    """Of the table; None for the serving dtype."""
    table: bool = True
    """False where only the frequencies are kept."""


class Table(NamedTuple):
    """One table."""

    positions: int
    elements: int
    """A position: as many cosines as sines."""


def rotary_tables(config: Mapping[str, Any], geometry: Geometry, rotary: Rotary) -> frozenset[tuple[str, Table]]:
    """The tables of a text model's raw ``config``, each with the kind of layer that it is for.

    Raises:
        UllageError: a scaling that is not known, or that lacks a number.
    """
    if config.get("dual_chunk_attention_config"):
        raise UllageError("what vLLM holds for dual chunk attention is not known", hint=_HINT)
    heads = {
        (_kind(layer.mixer) if rotary.by_kind else "full_attention", layer.mixer.head_dim)
        for layer in geometry.layers
        if isinstance(layer.mixer, Attention) and layer.mixer.rotary
    }
    latent = {
        ("full_attention", layer.mixer.qk_rope_head_dim)
        for layer in geometry.layers
        if isinstance(layer.mixer, LatentAttention)
    }
    return frozenset(
        {(kind, _table(config, geometry, kind, _rotated(config, kind, head, rotary))) for kind, head in heads}
        | {(kind, _table(config, geometry, kind, head)) for kind, head in latent}
    )


def _kind(mixer: Attention) -> str:
    return "full_attention" if mixer.window_tokens is None else "sliding_attention"


def _parameters(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Of one kind of layer. A ``rope_scaling`` of older files is the full attention's."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise UllageError(f"config.json: rope_parameters cannot be {repr(given)[:60]}", hint=_HINT)
    if kind in given:
        return given[kind] or {}
    return given if kind == "full_attention" or "rope_parameters" in config else {}


def _rotated(config: Mapping[str, Any], kind: str, head_dim: int, rotary: Rotary) -> int:
    if isinstance(config.get("rotary_dim"), int):
        return int(config["rotary_dim"])
    parameters = _parameters(config, kind)
    if parameters.get("rope_type") == "proportional":  # rotates a part, but the table has the whole head
        return head_dim
    named = (part[key] for part in (parameters, config) for key in _FRACTIONS if part.get(key) is not None)
    fraction = next(named, None)
    return int(head_dim * (rotary.fraction if fraction is None else fraction))


def _table(config: Mapping[str, Any], geometry: Geometry, kind: str, elements: int) -> Table:
    parameters = _parameters(config, kind)
    scaling = str(parameters.get("rope_type", parameters.get("type", "default")))
    if scaling not in _POSITIONS:
        raise UllageError(f"config.json: rope_type {scaling[:40]!r} is not known of vLLM 0.33", hint=_HINT)
    longest = geometry.max_position_embeddings
    if longest is None:
        raise UllageError(f"config.json ({geometry.model_type}): max_position_embeddings is missing", hint=_HINT)
    return Table(_POSITIONS[scaling](longest, {**config, **parameters}), elements)


def _number(parameters: Mapping[str, Any], key: str) -> float:
    value = parameters.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UllageError(f"config.json: {key} of rope_parameters cannot be {repr(value)[:60]}", hint=_HINT)
    return value


def _scaled(longest: int, parameters: Mapping[str, Any]) -> int:
    return int(longest * _number(parameters, "factor"))


def _scaled_original(longest: int, parameters: Mapping[str, Any]) -> int:
    return int(_number(parameters, "original_max_position_embeddings") * _number(parameters, "factor"))


def _both(longest: int, parameters: Mapping[str, Any]) -> int:
    return longest + int(_number(parameters, "original_max_position_embeddings"))


_POSITIONS: Mapping[str, Callable[[int, Mapping[str, Any]], int]] = {
    "default": lambda longest, _: longest,  # base.py
    "llama3": lambda longest, _: longest,  # llama3_rope.py
    "proportional": lambda longest, _: longest,  # gemma4_rope.py
    "dynamic": lambda longest, _: longest,  # dynamic_ntk_scaling_rope.py
    "linear": _scaled,  # linear_scaling_rope.py
    "yarn": _scaled_original,  # yarn_scaling_rope.py, deepseek_scaling_rope.py
    "longrope": _both,  # phi3_long_rope_scaled_rope.py: a table of short factors before one of long ones
    "su": _both,  # older name of longrope
}
"""Rows of a table by ``rope_type``: from max_position_embeddings and the parameters."""

"""A twin: the first layers of a model. It loads nearly the same kernels as the whole, so its overheads transfer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from analytic.errors import UsageError
from analytic.models.model import Model

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def twin(model: Model, *, layers: int) -> Model:
    """The first ``layers`` layers of ``model``, with its embedding, final norm and head.

    Raises:
        UsageError: it has fewer layers.
    """
    config = twin_config(model.config, layers=layers)
    kept = (
        replace(group, layers=tuple(i for i in group.layers if i < layers))
        if group.layers is not None and model.is_decoder(group)
        else group
        for group in model.tensors
    )
    return replace(model, config=config, tensors=tuple(group for group in kept if group.count))


def twin_config(config: Mapping[str, Any], *, layers: int) -> dict[str, Any]:
    """``config`` with ``layers`` layers: lists and patterns with an item a layer are cut too.

    Raises:
        UsageError: it names no number of layers, or fewer.
    """
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        return {**config, "text_config": twin_config(nested, layers=layers)}
    key = next((key for key in _LAYER_KEYS if isinstance(config.get(key), int)), None)
    if key is None:
        raise UsageError("the config names no number of layers", hint=f"known keys: {', '.join(_LAYER_KEYS)}")
    whole = config[key]
    if not 0 < layers <= whole:
        raise UsageError(f"--twin-layers: {layers} of {whole} layers", hint=f"from 1 to {whole}")
    cut = {name: value[:layers] for name, value in config.items() if _has_one_a_layer(value, whole)}
    kinds = cut.get("layer_types", ["full_attention"])
    if str(config.get("model_type")).startswith("gemma4") and kinds[-1] != "full_attention":
        raise UsageError(
            f"--twin-layers: layer {layers} is no full attention, with which a Gemma 4 must end",
            hint=f"{config['layer_types'].index('full_attention') + 1} layers would do",
        )
    return {**config, **cut, key: layers}


def _has_one_a_layer(value: Any, layers: int) -> bool:
    return isinstance(value, list | str) and len(value) == layers > 1

"""A published config.json as a Geometry, without torch, by the row of its model type (``config_families``)."""

from collections.abc import Mapping

from analytic.errors import UllageError
from analytic.models.config_decoders import ENCODER_DECODERS, read_decoder
from analytic.models.config_families import ALIASES, FAMILIES, WRAPPERS
from analytic.models.config_keys import Config, config_classes, reject
from analytic.models.config_kinds import CHUNKED, CONV, FULL, HYBRID, INDEXED, LINEAR, MLP, MOE, SLIDING
from analytic.models.geometry import Geometry, Layer

__all__ = ["ALIASES", "ENCODER_DECODERS", "FAMILIES", "WRAPPERS", "read_geometry"]

_LEGACY_KINDS: Mapping[str, str] = {
    "attention": FULL,
    "mamba": LINEAR,
}
"""Layer names of older files (``configuration_utils.remap_legacy_layer_types``)."""

_ATTENDS = (FULL, SLIDING, CHUNKED, INDEXED, HYBRID)


def read_geometry(config: Mapping[str, object]) -> Geometry:
    """The geometry of the text model, or of an encoder-decoder's decoder, that a raw config.json describes."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in ENCODER_DECODERS:
        return read_decoder(config, model_type)
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
    if kind not in (FULL, SLIDING, CHUNKED, INDEXED) and not (recurrent and kind in (LINEAR, CONV, HYBRID, MLP, MOE)):
        config.reject("layer_types", kind)
    return kind


def _layer(config: Config, kind: str, index: int, shared: dict[Layer, Layer]) -> Layer:
    """The layer at an index, as the one object that stands for all layers like it."""
    family = FAMILIES[config.model_type]
    recurrent = family.recurrent(config) if family.recurrent and kind in (LINEAR, CONV, HYBRID) else None
    attention = family.attention(config, kind, index) if kind in _ATTENDS else None
    layer = Layer(
        mixer=attention or recurrent,
        feed_forward=family.feed_forward(config, kind, index),
        parallel=family.parallel(config),
        recurrent=recurrent if kind == HYBRID else None,
    )
    return shared.setdefault(layer, layer)

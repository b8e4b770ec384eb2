"""The decoders of encoder-decoder models from a published config: a row a model type.

The rows follow ``models/{t5,bart,whisper,t5gemma,…}/`` of transformers 5.23, where a decoder's sizes have keys of their
own beside the encoder's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from analytic.models import config_kinds as kinds
from analytic.models.config_keys import Config, config_classes, reject
from analytic.models.config_mixers import attention
from analytic.models.geometry import Attention, FeedForward, Geometry, Layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """How one model type's decoder follows from its keys."""

    layers: str = "decoder_layers"
    """Key of the number of decoder layers; where null, the encoder's."""
    heads: str = "decoder_attention_heads"
    width: str = "decoder_ffn_dim"
    gated: Callable[[Config], bool] = lambda _: False
    positions: str | None = "max_position_embeddings"
    """Key of the longest output; None where positions are relative."""
    encoder_tokens: str | None = None
    """Key of the number of tokens that the encoder always hands on."""
    own_head_dim: bool = False
    """Whether ``head_dim`` has a key of its own; else it is hidden_size / heads."""
    nested: str | None = None
    """Where the file nests the decoder's config, which then has a decoder-only model's keys."""


def _gated_by_name(config: Config) -> bool:
    return str(config.get("feed_forward_proj")).startswith("gated-")


_BART = Decoder()
_T5 = Decoder(
    layers="num_decoder_layers",
    heads="num_attention_heads",
    width="d_ff",
    gated=_gated_by_name,
    positions=None,
    own_head_dim=True,
)

ENCODER_DECODERS: Mapping[str, Decoder] = {
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "longt5": _T5,
    "bart": _BART,
    "mbart": _BART,
    "pegasus": _BART,
    "marian": _BART,
    "m2m_100": _BART,
    "blenderbot": _BART,
    "whisper": Decoder(positions="max_target_positions", encoder_tokens="max_source_positions"),
    "t5gemma": Decoder(nested="decoder"),
}
"""Every encoder-decoder model type that is understood."""


def read_decoder(config: Mapping[str, object], model_type: str) -> Geometry:
    """The geometry of the decoder that a raw config.json of an encoder-decoder model describes.

    Raises:
        UllageError: a key that is missing or cannot be meant, by name.
    """
    row = ENCODER_DECODERS[model_type]
    given = config if row.nested is None else config.get(row.nested)
    if not isinstance(given, Mapping):
        reject(model_type, str(row.nested), given)
    text = Config(model_type=model_type, given=given, base=config_classes()[model_type])
    return Geometry(
        model_type=model_type,
        hidden_size=text.size("hidden_size"),
        vocab_size=text.size("vocab_size"),
        max_position_embeddings=None if row.positions is None else text.optional_size(row.positions),
        layers=_layers(text) if row.nested else _flat_layers(text, row),
        encoder_tokens=None if row.encoder_tokens is None else text.size(row.encoder_tokens),
    )


def _flat_layers(config: Config, row: Decoder) -> tuple[Layer, ...]:
    """Equal layers, whose attention to the encoder is as wide as that to themselves."""
    heads = config.size(row.heads)
    head_dim = config.size("head_dim") if row.own_head_dim else _divided(config, row.heads, heads)
    mixer = Attention(heads=heads, kv_heads=heads, head_dim=head_dim, v_head_dim=head_dim, rotary=False)
    layer = Layer(
        mixer=mixer,
        feed_forward=FeedForward(intermediate_size=config.size(row.width), gated=row.gated(config)),
        cross=mixer,
    )
    return (layer,) * (config.optional_size(row.layers) or config.size("num_hidden_layers"))


def _divided(config: Config, key: str, heads: int) -> int:
    hidden = config.size("hidden_size")
    if hidden < heads:
        config.reject(key, heads)
    return hidden // heads


def _layers(config: Config) -> tuple[Layer, ...]:
    """Layers of Gemma 2's kinds, each of which attends to all of the encoder's tokens (``models/t5gemma``)."""
    listed = config.per_layer("layer_types") or kinds.every(2)(config)
    full = attention(config, kinds.FULL, 0, rotary=False)
    own = {kind: attention(config, kind, 0) for kind in (kinds.FULL, kinds.SLIDING)}
    if unknown := set(listed) - set(own):
        config.reject("layer_types", unknown.pop())
    feed_forward = FeedForward(intermediate_size=config.size("intermediate_size"))
    made = {kind: Layer(mixer=mixer, feed_forward=feed_forward, cross=full) for kind, mixer in own.items()}
    return tuple(made[kind] for kind in listed)

"""The sequence state by layer kind, in the field's words."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from analytic.models.geometry import Attention, Geometry, LatentAttention, Layer, Recurrent
from analytic.state import caches, sequence_state_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRow:
    """Layers that keep the same of a token, as transformers' dynamic cache does."""

    kind: str
    layers: int
    heads: str
    """Heads and sizes, in words."""
    bytes_per_token: int
    """That one more token adds to a sequence of ``tokens``, over all these layers."""
    bytes: int
    """Of ``sequences`` sequences of ``tokens``."""


_RECURRENT = {
    "mamba": "Mamba",
    "mamba2": "Mamba 2",
    "gated_delta_net": "gated delta net",
    "kimi_delta": "Kimi delta attention",
    "lightning": "lightning attention",
    "short_conv": "short convolution",
}


def kind_of(mixer: Attention | LatentAttention | Recurrent) -> tuple[str, str]:
    """A mixer's name in the field's words, and what it keeps."""
    if isinstance(mixer, Recurrent):
        state = f"{mixer.state_elements:,} elements" if mixer.state_elements else "no state"
        convolution = f", convolution {mixer.conv_channels:,} x {mixer.conv_kernel}" if mixer.conv_kernel else ""
        return _RECURRENT.get(mixer.kind, mixer.kind), state + convolution
    if isinstance(mixer, LatentAttention):
        return "latent attention (MLA)", f"latent {mixer.kv_lora_rank} + rotary {mixer.qk_rope_head_dim}"
    heads = mixer.kv_heads if mixer.cached_heads is None else mixer.cached_heads
    kept = f"{heads} x ({mixer.head_dim} + {mixer.v_head_dim})"
    if mixer.cached_heads == 0:
        return "shared cache", "reads an earlier layer's"
    if mixer.window_tokens is not None:
        return f"{'chunked' if mixer.chunked else 'sliding'} window {mixer.window_tokens:,}", kept
    grouping = "MHA" if heads == mixer.heads else "MQA" if heads == 1 else "GQA"
    return f"full attention ({grouping})", kept


def cache_rows(geometry: Geometry, tokens: int, sequences: int, size: int) -> Iterator[CacheRow]:
    """What transformers' dynamic cache holds of ``sequences`` of ``tokens`` each; ``size`` is bytes an element."""
    rows: dict[tuple[str, str], CacheRow] = {}
    for layer, count in geometry.groups:
        for mixer in (layer.mixer, layer.recurrent):
            if mixer is None:
                continue
            alone = replace(geometry, layers=(Layer(mixer=mixer, feed_forward=None),))
            (kind, kept), own = kind_of(mixer), caches(alone.layers[0])
            row = CacheRow(
                kind=kind,
                layers=count,
                heads=kept,
                bytes_per_token=count * sum(cache.bytes_per_token(tokens=tokens, itemsize=size) for cache in own),
                bytes=count * decoded_state(alone, tokens, sequences, size),
            )
            rows[kind, kept] = _added(rows.get((kind, kept)), row)
    yield from rows.values()


def _added(one: CacheRow | None, other: CacheRow) -> CacheRow:
    if one is None:
        return other
    return replace(
        one,
        layers=one.layers + other.layers,
        bytes_per_token=one.bytes_per_token + other.bytes_per_token,
        bytes=one.bytes + other.bytes,
    )


def decoded_state(geometry: Geometry, tokens: int, sequences: int, size: int, room: int | None = None) -> int:
    """State of sequences that were decoded up to ``tokens``."""
    return sequence_state_bytes(
        geometry,
        prompt_tokens=max(tokens - 1, 1),
        total_tokens=tokens,
        sequences=sequences,
        itemsize=size,
        room_tokens=room,
    )

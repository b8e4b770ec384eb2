"""Caches that keep most tokens quantised (``QuantizedCache``, cache_utils.py of transformers 5.23).

HQQ: the prompt is quantised at once; later tokens are kept as they are until there are ``RESIDUAL_TOKENS`` of them,
whereupon all is quantised anew. Groups of ``GROUP_ELEMENTS`` run over the whole tensor, along axis 0 as transformers
has it by default, so their number depends on its elements alone. FP8: every token is cast, under one scale a tensor.
Quanto packs in its own way, which is not modelled.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from analytic.errors import UllageError, UsageError
from analytic.models.geometry import Attention, Geometry, LatentAttention
from analytic.quantity import round_up
from analytic.state.kinds import FullCache, LatentCache, for_layer

RESIDUAL_TOKENS = 128
"""``residual_length``: tokens in the dtype of the run are always fewer."""

GROUP_ELEMENTS = 64
"""``q_group_size``: elements that share a scale and a zero point."""

GROUP_BYTES = {8: 64, 4: 32, 3: 28, 2: 16, 1: 8}
"""Packed bytes of a group (hqq 0.2.8 core/bitpack.py): bytes, but for 3 bits, of which a 32-bit word holds ten."""

SCALE_BYTES = 4
"""One float32 a tensor (``Fp8QuantizedLayer._quantize``)."""

BITS: Mapping[str, int] = {f"int{bits}": bits for bits in GROUP_BYTES}
"""Bits of an element of the formats that HQQ makes."""

FORMATS: tuple[str, ...] = (*BITS, "fp8")
"""What a quantised cache can be asked to hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedCache:
    """Keys and values of one layer with full attention, quantised."""

    heads: int
    head_dim: int
    v_head_dim: int
    format: str

    def storages(self, *, prompt_tokens: int, total_tokens: int, sequences: int, itemsize: int) -> tuple[int, ...]:
        """Bytes of each storage alive when the cache holds ``total_tokens``, of which the prompt came at once.

        Args:
            prompt_tokens: quantised at the first step, whatever their number.
            total_tokens: of the prompt and every step after it.
            sequences: equal ones.
            itemsize: of the dtype of the run, in which scales, zero points and the residual are.

        Raises:
            UllageError: HQQ cannot divide such a tensor into its groups.
        """
        kept = 0 if self.format == "fp8" else (total_tokens - prompt_tokens) % RESIDUAL_TOKENS
        quantized = total_tokens - kept
        found: list[int] = []
        for size in (self.head_dim, self.v_head_dim):
            row = sequences * self.heads * size
            found += [*self._quantized(row * quantized, itemsize), row * kept * itemsize]
        return tuple(size for size in found if size)

    def _quantized(self, elements: int, itemsize: int) -> tuple[int, ...]:
        if self.format == "fp8":
            return elements, SCALE_BYTES
        groups, left = divmod(elements, GROUP_ELEMENTS)
        if left:
            raise UllageError(
                f"hqq cannot quantise {elements:,} cached elements in groups of {GROUP_ELEMENTS}",
                hint="head dimensions, heads, sequences and tokens must multiply to a multiple of it",
            )
        return groups * GROUP_BYTES[BITS[self.format]], groups * itemsize, groups * itemsize


def quantized_state_bytes(
    geometry: Geometry,
    *,
    format: str,
    prompt_tokens: int,
    total_tokens: int,
    sequences: int,
    itemsize: int,
    rounded: bool = False,
) -> int:
    """Bytes of a quantised cache of ``sequences`` sequences that hold ``total_tokens`` tokens each.

    Raises:
        UllageError: an unknown format, or a layer that is not full attention, which transformers refuses too.
    """
    if format not in FORMATS:
        raise UsageError(f"a quantised cache of {format!r} is not known", hint=f"one of {', '.join(FORMATS)}")
    total_bytes = 0
    for layer, count in geometry.groups:
        cache = _quantized(layer.mixer, geometry.model_type, format)
        if layer.recurrent is not None or layer.cross is not None:
            raise _refusal(geometry.model_type)
        storages = cache.storages(
            prompt_tokens=prompt_tokens, total_tokens=total_tokens, sequences=sequences, itemsize=itemsize
        )
        total_bytes += count * sum(map(round_up, storages) if rounded else storages)
    return total_bytes


def _quantized(mixer: object, model_type: str, format: str) -> QuantizedCache:
    cache = for_layer(mixer) if isinstance(mixer, Attention | LatentAttention) else None
    if type(cache) is LatentCache:
        sizes = {"heads": 1, "head_dim": cache.kv_lora_rank, "v_head_dim": cache.qk_rope_head_dim}
    elif isinstance(cache, FullCache) and cache.heads:
        sizes = {"heads": cache.heads, "head_dim": cache.head_dim, "v_head_dim": cache.v_head_dim}
    else:
        raise _refusal(model_type)
    return QuantizedCache(format=format, **sizes)


def _refusal(model_type: str) -> UllageError:
    return UllageError(
        f"transformers' quantised cache takes only full attention, which not every layer of {model_type!r} has",
        hint="--cache-implementation dynamic or static",
    )

"""Weights to the byte: the format that each tensor is served in, and what each stays out of."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from analytic.errors import UllageError
from analytic.formats.table import FORMATS, NATIVE_FORMATS, Format, find_format, itemsize
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model
from analytic.quantity import round_up

DTYPES = ("float32", "float16", "bfloat16")
"""Dtypes that a model can be served in."""

QUANTIZATIONS = ("bnb-nf4", "bnb-fp4", "bnb-int8")
"""What transformers quantises to while it loads."""

_KEPT_IN_FLOAT32 = {"float32-unless-float64": ("float16", "bfloat16"), "float32-if-float16": ("float16",)}
"""Tensors that transformers upcasts, and the serving dtypes in which it does so (modeling_utils.py)."""

# Bytes an element that caching_allocator_warmup counts (quantizers/quantizer_*.py, quantized_element_size).
_WARMUP_HALVES = {"bnb-nf4": 1, "bnb-fp4": 1, "bnb-nf4-dq": 1, "bnb-fp4-dq": 1, "bnb-int8": 2, "fp8-128x128": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedGroup:
    """A tensor group in the format it is served in."""

    group: TensorGroup
    format: Format
    each_bytes: int
    """Bytes of one tensor with all that stands beside it."""
    rounded_bytes: int
    """The same as the caching allocator counts it: every tensor rounded up to 512 bytes."""

    @property
    def bytes(self) -> int:
        """Bytes of all tensors of the group."""
        return self.each_bytes * self.group.count


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """All weights of one model in one precision."""

    served: tuple[ServedGroup, ...]
    bytes: int
    """Parameters and persistent buffers with their quantisation state, as stored."""
    rounding_bytes: int
    """What 512-byte rounding adds, rotary tables included."""
    warmup_bytes: int
    """What transformers allocates and frees in one piece before it loads (caching_allocator_warmup)."""
    staging_bytes: int
    """The most that lives beside the finished weights while one tensor is converted."""
    by_format: dict[str, int]
    by_role: dict[str, int]
    unconverted_bytes: int
    """Bytes of matrices that a requested quantisation leaves in the serving dtype."""
    unconverted: tuple[str, ...]
    """Their names, largest first."""


@lru_cache(maxsize=4096)
def weigh(model: Model, *, dtype: str, quantization: str | None) -> Weights:
    """The weights of ``model`` served in ``dtype`` under ``quantization`` (a format name, or None for as published).

    Raises:
        UllageError: the model is already quantised and would have to be quantised again.
    """
    if quantization in FORMATS and quantization not in NATIVE_FORMATS and model.native_format is not None:
        raise UllageError(
            f"{model.id} is published in {model.native_format}, which transformers does not quantise again",
            hint="leave --quantization out, or serve it dequantised with --quantization none",
        )
    served = tuple(_serve(model, dtype, quantization))
    persistent = [s for s in served if s.group.persistent]
    left = sorted((s for s in served if _left_out(s, quantization)), key=lambda s: -s.bytes)
    stored = sum(s.bytes for s in persistent)
    return Weights(
        served=served,
        bytes=stored,
        rounding_bytes=sum(s.rounded_bytes * s.group.count for s in served) - stored,
        warmup_bytes=sum(_warmup(s) for s in served),
        staging_bytes=max((_staging(s, dtype) for s in served), default=0),
        by_format=_sums((s.format.name, s.bytes) for s in persistent),
        by_role=_sums((s.group.role, s.bytes) for s in persistent),
        unconverted_bytes=sum(s.bytes for s in left),
        unconverted=tuple(s.group.name for s in left),
    )


def served_format(group: TensorGroup, *, dtype: str, quantization: str | None) -> str:
    """The format name that ``group`` is served in. ``quantization`` "none" dequantises a quantised checkpoint."""
    if quantization not in (None, "none") and group.converts:
        return str(quantization)
    if group.stored in _KEPT_IN_FLOAT32:
        return "float32" if dtype in _KEPT_IN_FLOAT32[group.stored] else dtype
    if group.stored == "model" or (quantization == "none" and group.stored in NATIVE_FORMATS):
        return dtype
    return group.stored


def _serve(model: Model, dtype: str, quantization: str | None) -> Iterator[ServedGroup]:
    for group in model.tensors:
        row = find_format(served_format(group, dtype=dtype, quantization=quantization))
        allocations = row.allocations(group.shape)
        yield ServedGroup(
            group=group,
            format=row,
            each_bytes=sum(allocations),
            rounded_bytes=sum(round_up(a) for a in allocations),
        )


def _left_out(served: ServedGroup, quantization: str | None) -> bool:
    """A matrix (or a stack of them) that quantisation passes over."""
    return (
        quantization not in (None, "none")
        and not served.group.converts
        and len(served.group.shape) > 1
        and served.group.role not in ("embedding", "buffer", "norm")
    )


def _warmup(served: ServedGroup) -> int:
    halves = _WARMUP_HALVES.get(served.format.name)
    elements = served.group.elements * served.group.count
    return served.bytes if halves is None else elements * halves // 2


def _staging(served: ServedGroup, dtype: str) -> int:
    """The unquantised tensor on the device while its quantised form is made (integrations/bitsandbytes.py)."""
    elements = served.group.elements
    if served.format.name.startswith("bnb-int8"):
        return elements * (itemsize(dtype) + itemsize("float16"))
    if served.format.name.startswith("bnb-"):
        return elements * itemsize(dtype)
    return 0


def _sums(pairs: Iterator[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for key, count in pairs:
        sums[key] = sums.get(key, 0) + count
    return dict(sorted(sums.items(), key=lambda item: -item[1]))

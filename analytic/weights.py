"""Weights to the byte: the format that each tensor is served in, and what each stays out of."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from analytic.errors import UllageError
from analytic.formats.dtypes import DTYPE_BITS
from analytic.formats.registry import find_method, find_preset
from analytic.formats.scheme import Serving
from analytic.formats.table import FORMATS, find_format, itemsize
from analytic.models.as_gguf import as_gguf
from analytic.models.inventory import Piece, TensorGroup
from analytic.models.model import Model
from analytic.models.packing import pack
from analytic.quantity import round_up

DTYPES = ("float32", "float16", "bfloat16")
"""Dtypes that a model can be served in."""

QUANTIZATIONS = ("bnb-nf4", "bnb-fp4", "bnb-int8")
"""What transformers quantises to while it loads."""

_KEPT_IN_FLOAT32 = {"float32-unless-float64": ("float16", "bfloat16"), "float32-if-float16": ("float16",)}
"""Tensors that transformers upcasts, and the serving dtypes in which it does so (modeling_utils.py)."""

STACKED_AT_LOAD = dict.fromkeys(
    ("deepseek_v2", "deepseek_v3", "glm4_moe", "nemotron_h", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next"), 1.0
) | dict.fromkeys(("minimax_m2", "mixtral", "phimoe"), 0.5)
"""Text model types whose published checkpoints hold each expert's matrices by themselves, which transformers stacks on
the device (transformers/conversion_mapping.py), and the share of the stacked gates and ups that stands beside the whole
model then: half where ``w2`` follows ``w1`` by name; ``down_proj`` precedes ``gate_proj``."""

# Bytes an element that caching_allocator_warmup counts (quantizers/quantizer_*.py, quantized_element_size).
_WARMUP_HALVES = {"bnb-nf4": 1, "bnb-fp4": 1, "bnb-nf4-dq": 1, "bnb-fp4-dq": 1, "bnb-int8": 2, "fp8-128x128": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedGroup:
    """A tensor group in the format it is served in. Sizes are of one tensor with all that stands beside it."""

    group: TensorGroup
    format: str
    """Name of the format."""
    each_bytes: int
    rounded_bytes: int
    """As the caching allocator counts: every tensor of it rounded up to 512 bytes."""
    warmup_bytes: int
    """What transformers counts of it for the block that it allocates and frees before loading."""
    staging_bytes: int
    """What stands beside it while it is converted, when all before it is loaded."""
    leftover_bytes: int
    """Segments of its conversion that stay cached after loading."""
    decompressed_bytes: int = 0
    """What takes its place at the first forward pass, where transformers decompresses it then; else 0."""

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
    by_format: dict[str, int]
    by_role: dict[str, int]
    unconverted: dict[str, int]
    """Bytes of matrices that the requested quantisation leaves in the serving dtype, by name, largest first."""


@lru_cache(maxsize=4096)
def weigh(model: Model, *, dtype: str, quantization: str | None) -> Weights:
    """The weights of ``model`` served in ``dtype`` under ``quantization`` (a format's name, or None for as published).

    Raises:
        UllageError: the model is already quantised and would have to be quantised again, or cannot be.
    """
    if (
        quantization not in (None, "none")
        and model.native_format is not None
        and not _is_converted(model, quantization)
    ):
        raise UllageError(
            f"{model.id} is published in {model.native_format}, which transformers does not quantise again",
            hint="leave --quantization out, or serve it dequantised with --quantization none",
        )
    method = None if model.native_format is None else find_method(model.native_format)
    if quantization == "none" and method is not None and not method.dequantizes:
        raise UllageError(
            f"{model.id} is published in {model.native_format}, which transformers does not dequantise",
            hint="leave --quantization out to serve it as published",
        )
    tensors, serving = model.tensors, method.transformers if method else Serving()
    before = tensors
    if is_packing(quantization):
        preset, method = find_preset(str(quantization))
        serving = method.transformers
        if preset.mixture:
            tensors = as_gguf(model, preset.mixture, dtype=dtype)
        else:
            tensors = pack(before, preset, decoder=filter(model.is_decoder, before))
        if preset.beforehand:
            before = tensors
    stacked = STACKED_AT_LOAD.get(model.geometry.model_type, 0.0)
    served = tuple(
        _serve(group, dtype, quantization, serving, stacked, converted=group is not loaded)
        for group, loaded in zip(tensors, before, strict=True)
    )
    persistent = [s for s in served if s.group.persistent]
    return Weights(
        served=served,
        bytes=sum(s.bytes for s in persistent),
        by_format=_sums((s.format, s.bytes) for s in persistent),
        by_role=_sums((s.group.role, s.bytes) for s in persistent),
        unconverted=_sums((s.group.name, s.bytes) for s in persistent if _left_out(s, quantization)),
    )


def _is_converted(model: Model, quantization: str | None) -> bool:
    """Whether a tool dequantises the checkpoint first: llama.cpp's converter does, from fp8."""
    return model.native_format == "fp8" and is_packing(quantization) and bool(find_preset(str(quantization))[0].mixture)


def is_packing(quantization: str | None) -> bool:
    """Whether a quantisation is a packed format (`analytic.formats`), not one of bitsandbytes'."""
    return quantization not in (None, "none") and not str(quantization).startswith("bnb-")


def served_format(group: TensorGroup, *, dtype: str, quantization: str | None) -> str:
    """The format name that ``group`` is served in. ``quantization`` "none" dequantises a quantised checkpoint."""
    if quantization not in (None, "none") and group.converts and not is_packing(quantization):
        return str(quantization)
    if group.stored in _KEPT_IN_FLOAT32:
        return "float32" if dtype in _KEPT_IN_FLOAT32[group.stored] else dtype
    is_packed = bool(group.pieces) or (group.stored in FORMATS and FORMATS[group.stored].is_packed)
    if group.stored == "model" or (quantization == "none" and is_packed):
        return dtype
    return group.stored


def _allocations(group: TensorGroup, name: str, dtype: str) -> tuple[tuple[int, int], ...]:
    """(bytes, how many) of the tensors that hold one tensor of the group."""
    if group.pieces and name != dtype:
        return tuple((piece.bytes, piece.count) for piece in group.pieces)
    shape = group.matrix if group.converts else group.shape
    return tuple((size, 1) for size in find_format(name).allocations(shape))


def _decompressed_bytes(group: TensorGroup, dtype: str, serving: Serving) -> int:
    """A matrix in the serving dtype, and what stays beside it."""
    kept = (piece for piece in group.pieces if piece.suffix in serving.keeps)
    return group.elements * itemsize(dtype) + sum(
        piece.bytes * piece.count * (itemsize(dtype) if _is_widened(piece, serving) else 1) for piece in kept
    )


def _is_widened(piece: Piece, serving: Serving) -> bool:
    return piece.suffix in serving.widens and DTYPE_BITS[piece.dtype] == 8


def _serve(
    group: TensorGroup, dtype: str, quantization: str | None, serving: Serving, stacked: float, *, converted: bool
) -> ServedGroup:
    name = served_format(group, dtype=dtype, quantization=quantization)
    allocations = _allocations(group, name, dtype)
    each = sum(size * count for size, count in allocations)
    staged = _staging(group, name, dtype) if converted or group.converts else 0
    leftover = staged
    if stacked and group.role == "expert" and len(group.shape) == 3 and name == dtype:
        is_joined = "gate_up" in group.name  # the experts' own, then two stacks, then both in one
        staged, leftover = int(stacked * each), (1 + is_joined) * each
    halves = _WARMUP_HALVES.get(name)
    decompresses = bool(group.pieces) and name != dtype and serving.decompresses
    return ServedGroup(
        group=group,
        format=name,
        each_bytes=each,
        rounded_bytes=sum(round_up(size) * count for size, count in allocations),
        warmup_bytes=each if halves is None else group.elements * halves // 2,
        staging_bytes=staged,
        leftover_bytes=leftover,
        decompressed_bytes=_decompressed_bytes(group, dtype, serving) if decompresses else 0,
    )


def _left_out(served: ServedGroup, quantization: str | None) -> bool:
    """A matrix (or a stack of them) that quantisation passes over."""
    return (
        quantization not in (None, "none")
        and not served.group.converts
        and not served.group.pieces
        and served.group.stored == "model"
        and len(served.group.shape) > 1
        and served.group.role not in ("buffer", "norm")
    )


def _staging(group: TensorGroup, name: str, dtype: str) -> int:
    """The tensor as loaded, and for int8 its float16 copy, on the device (bitsandbytes nn/modules.py)."""
    if name == "bnb-int8":
        return group.elements * (itemsize(dtype) + itemsize("float16"))
    return 0 if name == dtype else group.elements * itemsize(dtype)


def _sums(pairs: Iterator[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for key, count in pairs:
        sums[key] = sums.get(key, 0) + count
    return dict(sorted(sums.items(), key=lambda item: -item[1]))

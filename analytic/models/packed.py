"""Checkpoints that are already quantised: packed tensors, what stands beside them, and the parameters behind both."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from analytic.errors import UllageError
from analytic.models.safetensors import StoredTensor

FORMAT_OF_DTYPE = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8",
    "F8_E5M2": "float8",
    "F8_E8M0": "float8",
    "I8": "int8",
    "U8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
}
"""Format row of a safetensors dtype."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes that transformers casts to the one that the model is served in."""

# Tensors that stand beside packed weights; they are no parameters.
_SIDE = re.compile(
    r"(\.(scales|qzeros|g_idx|SCB|weight_format|absmax|quant_map|nested_\w+|quant_state\.\w+)"
    r"|\.weight_(shape|g_idx|zero_point)|\.(weight|input|output|[kqv])(_global|_block)?_scale(_2)?|_scale_inv)$"
)
_OWNER = re.compile(r"(\.weight)?\.(quant_state\.)?[^.]+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """One tensor of a checkpoint as it is served."""

    name: str
    shape: tuple[int, ...]
    """Of the weight behind a format with sides, else as stored."""
    stored: str
    """``model`` where transformers casts it to the serving dtype; else a format."""
    parameters: int
    """What it stands for; 0 for what only stands beside another."""
    bytes: int
    """In the file."""
    file: str
    side: bool = False
    """Whether it only stands beside a packed tensor."""


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ``quantization_config`` of a config or of its text part; None without one.

    Raises:
        UllageError: it is not an object, or names no method.
    """
    nested = config.get("text_config")
    parts = (config, nested) if isinstance(nested, Mapping) else (config,)
    native = next((p["quantization_config"] for p in parts if p.get("quantization_config") is not None), None)
    if native is None:
        return None
    if not isinstance(native, Mapping):
        raise UllageError(f"config.json: quantization_config cannot be {repr(native)[:60]}", hint=_COMPARE)
    if not isinstance(native.get("quant_method"), str):
        raise UllageError("config.json: quantization_config names no quant_method", hint=_COMPARE)
    return native


_COMPARE = "compare with the model's published config.json"


def unpack(stored: Iterable[StoredTensor], native: Mapping[str, Any] | None) -> Iterator[Unpacked]:
    """The tensors of a checkpoint, each packed one with what it stands for.

    Raises:
        UllageError: a quantisation method, width or dtype that is not known.
    """
    if native is None:
        yield from map(_plain, stored)
        return
    method = str(native["quant_method"])
    if method not in _BITS:
        raise UllageError(
            f"config.json: quantization_config: {method!r} is not known to ullage", hint=f"known: {', '.join(_BITS)}"
        )
    by_name = {tensor.name: tensor for tensor in stored}
    bits = _BITS[method](native)
    pair = _PAIRS.get(method) if native.get("weight_block_size", [128, 128]) == [128, 128] else None
    rest = []
    for tensor in by_name.values():
        paired = pair(tensor, by_name) if pair else None
        if paired is None:
            rest.append(tensor)
        else:
            yield from paired
    packed = {_owner(tensor.name) for tensor in rest if tensor.dtype not in FLOATS}
    for tensor in rest:
        beside = _owner(tensor.name) in packed or _SIDE.search(tensor.name)
        yield _as_stored(tensor, bits) if beside else _plain(tensor)


def _owner(name: str) -> str:
    """The module that a weight, or what stands beside it, belongs to."""
    return _OWNER.sub("", name)


def _plain(tensor: StoredTensor) -> Unpacked:
    stored = "model" if tensor.dtype in FLOATS else _format(tensor)
    return _unpacked(tensor, stored=stored, parameters=prod(tensor.shape))


def _as_stored(tensor: StoredTensor, bits: int | None) -> Unpacked:
    side = _SIDE.search(tensor.name) is not None
    packs = {"I32": 32, "U8": 8}.get(tensor.dtype)
    parameters = prod(tensor.shape) * packs // bits if packs and bits else prod(tensor.shape)
    return _unpacked(tensor, stored=_format(tensor), parameters=0 if side else parameters, side=side)


def _unpacked(tensor: StoredTensor, *, stored: str, parameters: int, side: bool = False) -> Unpacked:
    return Unpacked(
        name=tensor.name,
        shape=tensor.shape,
        stored=stored,
        parameters=parameters,
        bytes=tensor.bytes,
        file=tensor.file,
        side=side,
    )


def _format(tensor: StoredTensor) -> str:
    if tensor.dtype not in FORMAT_OF_DTYPE:
        raise UllageError(
            f"{tensor.file}: {tensor.name} is {tensor.dtype}, which is not served yet",
            hint=f"known: {', '.join(FORMAT_OF_DTYPE)}",
        )
    return FORMAT_OF_DTYPE[tensor.dtype]


_Pair = Callable[[StoredTensor, Mapping[str, StoredTensor]], tuple[Unpacked, ...] | None]


def _fp8_tiles(tensor: StoredTensor, by_name: Mapping[str, StoredTensor]) -> tuple[Unpacked, ...] | None:
    """A weight with one scale a tile of 128 × 128, as one; nothing for the scale itself."""
    if tensor.name.endswith("_scale_inv") and tensor.name.removesuffix("_scale_inv") in by_name:
        return ()
    scales = by_name.get(f"{tensor.name}_scale_inv")
    if scales is None:
        return None
    *stack, rows, columns = tensor.shape if len(tensor.shape) > 1 else (0, 0)
    if tensor.dtype != "F8_E4M3" or scales.shape != (*stack, -(-rows // 128), -(-columns // 128)):
        raise _mismatch(tensor, scales, "one scale a tile of 128 x 128")
    return (_joined(tensor, scales, name=tensor.name, shape=tensor.shape, stored="fp8-128x128"),)


def _mxfp4_blocks(tensor: StoredTensor, by_name: Mapping[str, StoredTensor]) -> tuple[Unpacked, ...] | None:
    """Blocks of 32 elements in 16 bytes with their scales, as one; nothing for the scales themselves."""
    base, _, kind = tensor.name.rpartition("_")
    if kind == "scales" and f"{base}_blocks" in by_name:
        return ()
    scales = by_name.get(f"{base}_scales") if kind == "blocks" else None
    if scales is None:
        return None
    if tensor.dtype != "U8" or tensor.shape != (*scales.shape, 16) or not scales.shape:
        raise _mismatch(tensor, scales, "one scale for each 16 bytes")
    *rows, blocks = scales.shape
    return (_joined(tensor, scales, name=base, shape=(*rows, blocks * 32), stored="mxfp4"),)


def _bnb_state(tensor: StoredTensor, by_name: Mapping[str, StoredTensor]) -> tuple[Unpacked, ...] | None:
    """What bitsandbytes reads and drops; of a double quantised weight's state the offset stays, a float32."""
    weight, state, _ = tensor.name.partition(".quant_state.")
    if not state:
        return () if tensor.name.endswith(".weight_format") else None
    if f"{weight}.nested_absmax" not in by_name:
        return ()
    offset = replace(tensor, name=f"{weight}.nested_offset", dtype="F32", shape=(1,), bytes=4)
    return (_unpacked(offset, stored="float32", parameters=0, side=True),)


_PAIRS: dict[str, _Pair] = {"fp8": _fp8_tiles, "mxfp4": _mxfp4_blocks, "bitsandbytes": _bnb_state}


def _joined(tensor: StoredTensor, scales: StoredTensor, *, name: str, shape: tuple[int, ...], stored: str) -> Unpacked:
    size = tensor.bytes + scales.bytes
    return Unpacked(name=name, shape=shape, stored=stored, parameters=prod(shape), bytes=size, file=tensor.file)


def _mismatch(tensor: StoredTensor, scales: StoredTensor, rule: str) -> UllageError:
    return UllageError(
        f"{tensor.file}: {tensor.name} is {tensor.dtype} of shape {list(tensor.shape)}, its scales are of shape "
        f"{list(scales.shape)}: not {rule}",
        hint="the files do not belong together, or quantization_config says another method",
    )


def _given_bits(native: Mapping[str, Any]) -> int:
    return _checked_bits(native.get("bits"), "bits")


def _bnb_bits(native: Mapping[str, Any]) -> int:
    return 4 if native.get("load_in_4bit") else 8


def _modelopt_bits(native: Mapping[str, Any]) -> int | None:
    return None if native.get("quant_algo") == "FP8" else 4


def _compressed_bits(native: Mapping[str, Any]) -> int | None:
    """The one width of all groups that are packed into integers; None where none is."""
    groups = native.get("config_groups")
    values = groups.values() if isinstance(groups, Mapping) else ()
    rows = [row.get("weights") for row in values if isinstance(row, Mapping)]
    packed = [row for row in rows if isinstance(row, Mapping) and _is_packed(row)]
    widths = {_checked_bits(row.get("num_bits"), "num_bits") for row in packed}
    if len(widths) > 1:
        raise UllageError(f"config.json: quantization_config packs weights in several widths: {sorted(widths)}")
    return widths.pop() if widths else None


def _is_packed(row: Mapping[str, Any]) -> bool:
    return row.get("type") == "int" or row.get("num_bits") == 4


def _checked_bits(bits: object, key: str) -> int:
    if type(bits) is not int or not 1 <= bits <= 8:
        raise UllageError(f"config.json: quantization_config: {key} cannot be {repr(bits)[:60]}", hint=_COMPARE)
    return bits


_BITS: dict[str, Callable[[Mapping[str, Any]], int | None]] = {
    "fp8": lambda _: None,
    "fbgemm_fp8": lambda _: None,
    "mxfp4": lambda _: 4,
    "gptq": _given_bits,
    "awq": _given_bits,
    "auto-round": _given_bits,
    "bitsandbytes": _bnb_bits,
    "compressed-tensors": _compressed_bits,
    "modelopt": _modelopt_bits,
}
"""Bits of one weight in the packed integers of a method; None where nothing is packed."""


def weight_bits(native: Mapping[str, Any]) -> int:
    """Bits of one weight of a published ``quantization_config``; what is not packed has eight.

    Raises:
        UllageError: a width that cannot be meant.
    """
    return _BITS[str(native["quant_method"])](native) or 8

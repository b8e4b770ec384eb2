"""Safetensors headers: every tensor's name, dtype, shape and size, without reading a weight.

A file is an 8-byte little-endian length, a JSON header of that length, then the tensors back to back. The checks are
those of the format's own library and a few stricter: what loads there may be refused here, never the other way round.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from analytic.errors import UllageError
from analytic.models.configfile import CONFIG, parse_object, read_bounded, reading, require_file

DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of one element, by the format's name of the dtype (``safetensors/src/tensor.rs``, enum Dtype, 0.8)."""

LENGTH_BYTES = 8
"""Of the length that opens a file."""
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit (MAX_HEADER_SIZE)."""
MAX_TENSOR_BYTES = 1 << 50
"""One PiB: a larger tensor is a corrupt header."""
MAX_RANK = 64
"""Dimensions that a torch tensor can have."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("pytorch_model*.bin", "consolidated*.pth", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Weights that only unpickling can read, which may run code."""

_OFFSET_LIMIT = 1 << 63
_LFS = b"version https://git-lfs"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,9})-of-(?P<total>\d{1,9})\.safetensors")
_PLAIN_NAME = re.compile(r"[^/\\:\x00-\x1f]+\.safetensors")
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


class StoredTensor(NamedTuple):
    """One tensor as a safetensors file stores it: a tuple, as a large checkpoint has 100,000."""

    name: str
    """Name in the checkpoint."""
    dtype: str
    """A key of DTYPE_BITS."""
    shape: tuple[int, ...]
    """In elements, also where several share a byte; () is a scalar."""
    bytes: int
    """Size in the file."""
    file: str
    """Name of the file that holds it, without its directory."""


def parse_header(blob: bytes, *, data_bytes: int | None, where: str) -> tuple[StoredTensor, ...]:
    """The tensors that a header describes, in file order; ``where`` names the file.

    ``blob`` is the JSON alone, without the length before it; ``data_bytes`` is what follows it, None if unknown.
    """
    if not blob.startswith(b"{"):
        raise UllageError(f"{where}: the header does not start with '{{'", hint="is it a safetensors file?")
    entries = parse_object(blob, f"{where} (header)", limit_bytes=MAX_HEADER_BYTES, quotes=_quotes)
    _check_metadata(entries.pop("__metadata__", {}), where)
    file = where.replace("\\", "/").rpartition("/")[2]
    spans = sorted(_parse_entry(name, entry, file, where) for name, entry in entries.items())
    _check_cover(spans, data_bytes, where)
    return tuple(tensor for _, _, tensor in spans)


def parse_length(prefix: bytes, where: str) -> int:
    """Length of the header in bytes, from the first LENGTH_BYTES (or more) of a file."""
    if prefix[:LENGTH_BYTES] == _LFS[:LENGTH_BYTES]:
        raise UllageError(f"{where}: a Git LFS pointer, not the weights", hint="run `git lfs pull` in the checkout")
    if len(prefix) < LENGTH_BYTES:
        raise UllageError(f"{where}: {len(prefix)} bytes long, too short for a safetensors file")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        message = f"{where}: claims a header of {length:,} bytes; the format allows {MAX_HEADER_BYTES:,}"
        raise UllageError(message, hint="is it a safetensors file?")
    return length


def stored_bytes(dtype: str, shape: tuple[int, ...], where: str) -> int:
    """Bytes of a tensor; ``where`` names it in errors. Unknown dtypes and sizes that cannot be raise."""
    if dtype not in DTYPE_BITS:
        raise UllageError(f"{where}: unknown dtype {dtype!r}", hint=f"known are {', '.join(sorted(DTYPE_BITS))}")
    if len(shape) > MAX_RANK:
        raise UllageError(f"{where}: {len(shape)} dimensions; a tensor has at most {MAX_RANK}")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits > 8 * MAX_TENSOR_BYTES:
        raise UllageError(f"{where}: shape {list(shape)} of {dtype} is not a possible number of bytes")
    return bits // 8


def read_file(path: str | Path) -> tuple[StoredTensor, ...]:
    """The tensors in a safetensors file, from its header alone."""
    path = Path(path)
    require_file(path)
    with reading(path), path.open("rb") as stream:
        length = parse_length(stream.read(LENGTH_BYTES), str(path))
        blob = stream.read(length)
        data_bytes = stream.seek(0, 2) - LENGTH_BYTES - length
    if len(blob) < length:
        raise UllageError(f"{path}: cut short inside its header", hint="copy or download it again")
    return parse_header(blob, data_bytes=data_bytes, where=str(path))


def read_directory(path: str | Path) -> tuple[StoredTensor, ...] | None:
    """The tensors of the model in a directory; None where it holds a ``config.json`` and no weights."""
    path = Path(path)
    if not path.is_dir():
        raise UllageError(f"{path}: no such directory")
    with reading(path):
        names = {entry.name for entry in path.iterdir()}
    if INDEX in names:
        where = str(path / INDEX)
        weight_map = parse_index(read_bounded(path / INDEX, limit_bytes=MAX_HEADER_BYTES), where)
        require_shards(weight_map, names, where)
        return join_shards({name: read_file(path / name) for name in shard_names(weight_map)}, weight_map, where)
    if files := unindexed_files(names, str(path)):
        return join_shards({name: read_file(path / name) for name in files}, {}, str(path))
    _require_bare_config(names, str(path))
    return None


def parse_index(raw: bytes, where: str) -> dict[str, str]:
    """The weight map of a sharded checkpoint's index: tensor name to file name."""
    weight_map = parse_object(raw, where, limit_bytes=MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UllageError(f"{where}: no weight_map, so it does not say which file holds which tensor")
    plain: set[str] = set()
    for tensor, file in weight_map.items():
        if isinstance(file, str) and file in plain:
            continue
        if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file):
            raise UllageError(f"{where}: {tensor!r} is said to be in {file!r}, not the name of a safetensors file")
        plain.add(file)
    return weight_map


def shard_names(weight_map: Mapping[str, str]) -> tuple[str, ...]:
    """The files that an index names, in order."""
    return tuple(sorted(set(weight_map.values())))


def require_shards(weight_map: Mapping[str, str], names: Collection[str], where: str) -> None:
    """Refuse an index that names files which are not among ``names``."""
    if missing := [shard for shard in shard_names(weight_map) if shard not in names]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UllageError(f"{where}: missing shard {missing[0]!r}{more}", hint="complete the copy or download")


def unindexed_files(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The safetensors files that make up a model without an index: the single one, a complete numbered set, or all."""
    files = sorted(name for name in names if _PLAIN_NAME.fullmatch(name))
    if SINGLE in files:
        return (SINGLE,)
    numbered = [match for match in map(_NUMBERED.fullmatch, files) if match]
    return _complete_set(numbered, where) if numbered else tuple(files)


def join_shards(
    shards: Mapping[str, tuple[StoredTensor, ...]], weight_map: Mapping[str, str], where: str
) -> tuple[StoredTensor, ...]:
    """The tensors of all shards, each once and where the index (if any) says."""
    tensors = tuple(chain.from_iterable(shards.values()))
    held = {tensor.name: tensor.file for tensor in tensors}
    if len(held) < len(tensors):
        (twice, _), *_ = Counter(tensor.name for tensor in tensors).most_common(1)
        files = ", ".join(tensor.file for tensor in tensors if tensor.name == twice)
        raise UllageError(f"{where}: tensor {twice!r} is in several files: {files}", hint="remove stale files")
    for name, file in weight_map.items() if held != weight_map else ():
        if held.get(name) != file:
            raise UllageError(
                f"{where}: tensor {name!r} is not in its shard {file!r}", hint="the files do not belong together"
            )
    return tensors


def _require_bare_config(names: Collection[str], where: str) -> None:
    pickles = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PICKLES))
    if pickles:
        raise UllageError(
            f"{where}: weights only as pickle ({pickles[0]!r}), which ullage never opens: unpickling can run code",
            hint="convert them with save_pretrained(), which writes safetensors, or pass config.json alone",
        )
    if CONFIG not in names:
        raise UllageError(f"{where}: neither {CONFIG} nor safetensors files", hint="name a model's directory")


def _complete_set(numbered: list[re.Match[str]], where: str) -> tuple[str, ...]:
    sets = {(match["stem"], int(match["total"])) for match in numbered}
    if len(sets) > 1:
        raise UllageError(f"{where}: several sets of shards: {sorted(sets)}", hint=f"keep one, or add {INDEX}")
    (stem, total), numbers = sets.pop(), {int(match["number"]) for match in numbered}
    if len(numbered) != total or numbers != set(range(1, total + 1)):
        missing = next((n for n in range(1, total + 1) if n not in numbers), total + 1)
        raise UllageError(f"{where}: shard {missing} of {total} of {stem!r} is missing or misnumbered")
    return tuple(match[0] for match in numbered)


def _quotes(entries: Mapping[str, Any]) -> int:
    """Of a name, three keys and a dtype an entry; of a key and a value each of the metadata."""
    metadata = entries.get("__metadata__")
    return 10 * len(entries) + (4 * len(metadata) - 8 if isinstance(metadata, Mapping) else 0)


def _check_metadata(metadata: object, where: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UllageError(f"{where}: __metadata__ is not a map from text to text")


def _parse_entry(name: str, entry: object, file: str, where: str) -> tuple[int, int, StoredTensor]:
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        raise UllageError(f"{_named(where, name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    begin, end = offsets if isinstance(offsets, list) and len(offsets) == 2 else (None, None)
    if not isinstance(dtype, str) or not _are_sizes(shape) or type(begin) is not int or type(end) is not int:
        raise UllageError(f"{_named(where, name)} has a dtype, shape or data_offsets of the wrong type")
    sizes = tuple(shape)
    size = _KNOWN_BYTES.get((dtype, sizes))
    if size is None:
        size = _KNOWN_BYTES[dtype, sizes] = stored_bytes(dtype, sizes, _named(where, name))
    if end - begin != size:
        raise UllageError(f"{_named(where, name)} spans {end - begin} bytes, but {dtype} of shape {shape} takes {size}")
    return begin, end, StoredTensor(name, dtype, sizes, size, file)


_KNOWN_BYTES: dict[tuple[str, tuple[int, ...]], int] = {}
"""Sizes of shapes that were seen; experts are many, and alike."""


def _named(where: str, name: str) -> str:
    return f"{where}: tensor {name!r}"


def _are_sizes(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110  # all() of a generator takes twice as long, 200,000 times
        if type(item) is not int or not 0 <= item < _OFFSET_LIMIT:
            return False
    return True


def _check_cover(spans: list[tuple[int, int, StoredTensor]], data_bytes: int | None, where: str) -> None:
    position = 0
    for begin, end, tensor in spans:
        if begin != position:
            kind = "overlaps the one before it" if begin < position else f"leaves a hole of {begin - position} bytes"
            raise UllageError(f"{where}: tensor {tensor.name!r} {kind}", hint="the header is corrupt")
        position = end
    if data_bytes is not None and position != data_bytes:
        kind, hint = (
            ("cut short", "copy or download it again") if data_bytes < position else ("longer than its tensors", "")
        )
        raise UllageError(
            f"{where}: {kind}: {data_bytes:,} bytes of data, the header describes {position:,}", hint=hint
        )

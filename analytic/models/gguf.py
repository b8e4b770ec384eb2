"""GGUF headers: metadata and every tensor's name, type, shape and size, without reading a weight.

A file is a magic word, a version, counts, metadata, tensor descriptions, padding, then the tensors, each at a multiple
of the alignment (``docs/gguf.md`` of ggml; ``ggml/src/gguf.cpp`` for what is refused). The tokenizer makes headers
large: they are read in pieces, and long arrays are passed over.
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from analytic.errors import UllageError
from analytic.formats.ggml import TYPES, GgmlType, tensor_bytes
from analytic.models.configfile import reading, require_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_TENSORS = 1 << 17
MAX_PAIRS = 1 << 16
MAX_STRING_BYTES = 1 << 24
MAX_ARRAY = 1 << 24
MAX_NAME_BYTES = 512
MAX_HEADER_BYTES = 1 << 28
MAX_DIMENSION = 1 << 40
KEPT_ARRAY = 4096
"""Entries up to which an array of numbers is kept; of longer ones, and of texts, only the length."""
MAX_PARTS = 10_000

_CHUNK, _LARGEST_CHUNK = 1 << 16, 1 << 23
_LFS = b"version https://git-lfs"
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf")

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Skipped:
    """An array that was passed over."""

    length: int


Value = int | float | bool | str | tuple[int | float | bool, ...] | Skipped


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """One tensor as a GGUF file stores it."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    """Rows before columns, as torch has it: the reverse of the file's order."""
    bytes: int
    file: str
    """Name of the file that holds it, without its directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """What a GGUF file, or a complete set of split files, says before its data."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """``general.architecture``.

        Raises:
            UllageError: there is none.
        """
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise UllageError("the GGUF file names no general.architecture", hint="convert the model again")
        return name


def read_gguf(path: str | Path) -> GgufHeader:
    """The header of a file, and of all files of its set where it is split.

    Raises:
        UllageError: it cannot be read, is damaged or of a version that is not known, or a part is missing.
    """
    path = Path(path)
    return join_parts(path.name, lambda name: _read_file(path.parent / name))


def join_parts(name: str, read: Callable[[str], GgufHeader]) -> GgufHeader:
    """The header of file ``name`` with those of the other parts of its set, which ``read`` gives by name.

    Raises:
        UllageError: parts that do not belong together, or that ``read`` cannot give.
    """
    first = read(name)
    total = first.metadata.get("split.count", 1)
    if total in (0, 1):
        return first
    match = _PART.fullmatch(name)
    if type(total) is not int or not 1 < total <= MAX_PARTS or match is None or int(match["total"]) != total:
        raise UllageError(
            f"{name}: says that it is a part of {total}, which its name does not",
            hint="name the first file of the set, as it was published: NAME-00001-of-0000N.gguf",
        )
    names = [f"{match['stem']}-{number:05d}-of-{total:05d}.gguf" for number in range(1, total + 1)]
    parts = [first if own == name else read(own) for own in names]
    for number, (own, part) in enumerate(zip(names, parts, strict=True)):
        if part.metadata.get("split.no") != number or part.metadata.get("split.count") != total:
            raise UllageError(f"{own}: not part {number + 1} of {total} by its own metadata", hint="download it again")
    tensors = tuple(chain.from_iterable(part.tensors for part in parts))
    said = parts[0].metadata.get("split.tensors.count", len(tensors))
    _require_unique([tensor.name for tensor in tensors], name)
    if said != len(tensors):
        raise UllageError(f"{name}: the set holds {len(tensors)} tensors, its first part says {said}")
    return replace(parts[0], tensors=tensors)


def _read_file(path: Path) -> GgufHeader:
    require_file(path)
    with reading(path), path.open("rb") as stream:
        size = stream.seek(0, 2)

        def read(first: int, length: int) -> bytes:
            stream.seek(first)
            return stream.read(length)

        return parse_gguf(read, size=size, where=str(path))


def parse_gguf(read: Callable[[int, int], bytes], *, size: int | None, where: str) -> GgufHeader:
    """The header of a file of ``size`` bytes (None if unknown); ``read(first, length)`` gives its bytes.

    Raises:
        UllageError: what is wrong with the file, which ``where`` names.
    """
    cursor = _Cursor(read, size, where)
    version = _version(cursor)
    tensors, pairs = cursor.count(MAX_TENSORS, "tensors"), cursor.count(MAX_PAIRS, "metadata entries")
    metadata: dict[str, Value] = {}
    for _ in range(pairs):
        key = cursor.text(MAX_NAME_BYTES, "a key")
        if key in metadata:
            raise cursor.error(f"metadata key {key!r} twice")
        metadata[key] = _value(cursor, cursor.number("I"), key)
    described = [_described(cursor) for _ in range(tensors)]
    _require_unique([name for name, *_ in described], where)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise cursor.error(f"general.alignment cannot be {alignment!r}")
    start = _padded(cursor.position, alignment)
    return GgufHeader(
        version=version,
        metadata=metadata,
        tensors=_placed(described, alignment, None if size is None else size - start, where),
    )


def _version(cursor: "_Cursor") -> int:
    magic = cursor.take(4)
    if magic == _LFS[:4]:
        raise UllageError(f"{cursor.where}: a Git LFS pointer, not the weights", hint="run `git lfs pull`")
    if magic != MAGIC:
        raise UllageError(f"{cursor.where}: does not start with GGUF", hint="is it a GGUF file? Older GGML is not read")
    version = cursor.number("I")
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "big"), "little") in (1, *VERSIONS):
        raise UllageError(f"{cursor.where}: a big-endian GGUF file", hint="convert it on a little-endian machine")
    hint = "convert it with a newer llama.cpp" if version == 1 else "update ullage"
    raise UllageError(f"{cursor.where}: GGUF version {version}; known are 2 and 3", hint=hint)


def _value(cursor: "_Cursor", kind: int, key: str) -> Value:
    if kind == _STRING:
        return cursor.text(MAX_STRING_BYTES, f"the text of {key!r}")
    if kind == _ARRAY:
        return _array(cursor, key)
    if kind not in _NUMBERS:
        raise cursor.error(f"metadata {key!r} is of unknown type {kind}")
    value: int | float | bool = cursor.number(_NUMBERS[kind])
    return value


def _array(cursor: "_Cursor", key: str) -> Value:
    kind, length = cursor.number("I"), cursor.count(MAX_ARRAY, f"entries of {key!r}")
    if kind == _STRING:
        for _ in range(length):
            cursor.skip(cursor.count(MAX_STRING_BYTES, f"bytes in an entry of {key!r}"))
        return Skipped(length)
    if kind not in _NUMBERS:
        raise cursor.error(f"metadata {key!r} is an array of unknown type {kind}")
    width = struct.calcsize(f"<{_NUMBERS[kind]}")
    if length > KEPT_ARRAY:
        cursor.skip(length * width)
        return Skipped(length)
    return struct.unpack(f"<{length}{_NUMBERS[kind]}", cursor.take(length * width))


def _described(cursor: "_Cursor") -> tuple[str, tuple[int, ...], GgmlType, int]:
    """Name, shape, type and offset of the next tensor."""
    name = cursor.text(MAX_NAME_BYTES, "a tensor's name")
    dimensions = cursor.number("I")
    if not 1 <= dimensions <= 4:
        raise cursor.error(f"tensor {name!r} has {dimensions} dimensions; ggml has 1 to 4")
    sizes = tuple(cursor.number("Q") for _ in range(dimensions))
    if not all(0 < size <= MAX_DIMENSION for size in sizes):
        raise cursor.error(f"tensor {name!r} has an impossible shape {list(sizes)}")
    kind = cursor.number("I")
    if kind not in TYPES:
        raise cursor.error(f"tensor {name!r} is of unknown type {kind}", hint="update ullage, or convert it again")
    return name, sizes[::-1], TYPES[kind], cursor.number("Q")


def _placed(
    described: list[tuple[str, tuple[int, ...], GgmlType, int]], alignment: int, room: int | None, where: str
) -> tuple[GgufTensor, ...]:
    """The tensors, each where the one before it ends."""
    expected, end, placed = 0, 0, []
    file = where.replace("\\", "/").rpartition("/")[2]
    for name, shape, kind, offset in described:
        if offset != expected:
            raise UllageError(
                f"{where}: tensor {name!r} is said to be at {offset:,}, the one before it ends at {expected:,}",
                hint="the header is corrupt: download the file again",
            )
        size = tensor_bytes(kind, shape, f"{where}: tensor {name!r}")
        end, expected = offset + size, _padded(offset + size, alignment)
        placed.append(GgufTensor(name=name, type=kind, shape=shape, bytes=size, file=file))
    if room is not None and room < end and placed:
        raise UllageError(
            f"{where}: cut short: {max(room, 0):,} bytes of data, the header describes {end:,}",
            hint="copy or download it again",
        )
    return tuple(placed)


def _require_unique(names: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UllageError(f"{where}: tensor {name!r} twice", hint="the files do not belong together")
        seen.add(name)


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


class _Cursor:
    """A place in a file whose bytes come in growing pieces."""

    def __init__(self, read: Callable[[int, int], bytes], size: int | None, where: str) -> None:
        self.position = 0
        self.where = where
        self._read, self._size = read, size
        self._held, self._first, self._chunk = b"", 0, _CHUNK

    def error(self, said: str, hint: str = "the header is corrupt: download the file again") -> UllageError:
        return UllageError(f"{self.where}: {said}", hint=hint)

    def take(self, length: int) -> bytes:
        """The next bytes."""
        self._require(length)
        begin = self.position - self._first
        if begin < 0 or begin + length > len(self._held):
            self._fetch(length)
            begin = 0
        self.position += length
        return self._held[begin : begin + length]

    def skip(self, length: int) -> None:
        """Past bytes that nobody needs."""
        self._require(length)
        self.position += length

    def number(self, kind: str) -> int:
        """The next number, of a letter of `struct`."""
        value: int
        (value,) = struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))
        return value

    def count(self, most: int, what: str) -> int:
        """The next 64-bit count."""
        value = self.number("Q")
        if value > most:
            raise self.error(f"{value:,} {what}; at most {most:,} can be meant")
        return value

    def text(self, most: int, what: str) -> str:
        """The next length and text."""
        raw = self.take(self.count(most, f"bytes in {what}"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8") from None

    def _require(self, length: int) -> None:
        end = self.position + length
        if self._size is not None and end > self._size:
            raise UllageError(f"{self.where}: cut short inside its header", hint="copy or download it again")
        if end > MAX_HEADER_BYTES:
            raise self.error(f"a header of more than {MAX_HEADER_BYTES:,} bytes")

    def _fetch(self, length: int) -> None:
        wanted = max(length, self._chunk)
        if self._size is not None:
            wanted = min(wanted, self._size - self.position)
        self._held, self._first = self._read(self.position, wanted), self.position
        self._chunk = min(2 * self._chunk, _LARGEST_CHUNK)
        if len(self._held) < length:
            raise UllageError(f"{self.where}: cut short inside its header", hint="copy or download it again")

"""Files of plain data that are not trusted: nothing in them is executed, every field is looked at before use."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import pickletools
import zlib
from typing import TYPE_CHECKING, Any

from analytic.errors import UllageError
from profiler.virtual.alloc_conf import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MOST_BYTES = 2**29
"""Of a file, unzipped: half a gibibyte."""


class MalformedError(ValueError):
    """What is wrong with a file, said of one part of it."""


def read_plain(path: Path) -> Any:
    """What a file holds: JSON, or a pickle of builtin containers and scalars; either may be gzipped.

    Raises:
        MalformedError: it holds anything else, or is damaged.
        UllageError: it cannot be read, or is larger than `MOST_BYTES`.
    """
    return _decoded(_content(path))


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise MalformedError("it is not a file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(data)) as unzipped:
                data = unzipped.read(MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise MalformedError(f"its gzip data is damaged ({error})") from error
    except OSError as error:
        raise UllageError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise UllageError(
            f"{path}: larger than {MOST_BYTES // MIB} MiB",
            hint="record without stacks: torch.cuda.memory._record_memory_history(context=None)",
        )
    return data


def _decoded(data: bytes) -> Any:
    if data.startswith(b"\x80"):
        return _unpickled(data)
    if not data.lstrip().startswith(b"{"):
        raise MalformedError("neither a pickle nor a JSON object")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise MalformedError("its JSON is nested too deeply") from error
    except ValueError as error:
        raise MalformedError(f"its JSON is damaged ({error})") from error


def _unpickled(data: bytes) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except MalformedError:
        raise
    except (MemoryError, RecursionError) as error:
        raise MalformedError("its pickle asks for too much memory") from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise MalformedError(f"its pickle is damaged ({type(error).__name__}: {error})") from error


_PLAIN = (
    *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
)
"""Opcodes of builtin containers and scalars: none imports, calls, or allocates more than it reads."""


class _Plain(dict[int, "Callable[[Any], None]"]):
    """What executes each admitted opcode; any other is refused by its name."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        name = next((op.name for op in pickletools.opcodes if ord(op.code) == code), f"opcode {code}")
        raise MalformedError(f"its pickle holds more than plain data ({name})")


class _PlainUnpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, whose memo is a dict that no index can blow up."""

    dispatch = _Plain(
        {ord(getattr(pickle, name)): pickle._Unpickler.dispatch[ord(getattr(pickle, name))] for name in _PLAIN}
    )


def row_of(value: Any) -> dict[str, Any]:
    """``value``, an object."""
    if not isinstance(value, dict):
        raise MalformedError(f"a {type(value).__name__} where an object is expected")
    return value


def rows_in(row: dict[str, Any], name: str) -> Sequence[Any]:
    """A list."""
    value = row.get(name)
    if not isinstance(value, list | tuple):
        raise MalformedError(f"no list {name!r}")
    return value


def count_in(row: dict[str, Any], name: str) -> int:
    """A whole number of at most 64 bits."""
    value = row.get(name)
    if type(value) is not int or not -(2**63) <= value < 2**64:
        raise MalformedError(f"no whole number {name!r}")
    return value


def size_in(row: dict[str, Any], name: str) -> int:
    """A whole number that is not negative."""
    if (value := count_in(row, name)) < 0:
        raise MalformedError(f"{name!r} is negative")
    return value


def text_in(row: dict[str, Any], name: str) -> str:
    """A text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise MalformedError(f"no text {name!r}")
    return value


def each_row(rows: Sequence[Any], what: str, use: Callable[[int, dict[str, Any]], None]) -> None:
    """Use each row; an error names the row that it was in."""
    number = 0
    try:
        for number, row in enumerate(rows):
            use(number, row_of(row))
    except MalformedError as error:
        raise MalformedError(f"{what} {number}: {error}") from error


def flag_in(row: dict[str, Any], name: str) -> bool:
    """True or false."""
    value = row.get(name)
    if not isinstance(value, bool):
        raise MalformedError(f"{name!r} is neither true nor false")
    return value


def fraction_in(row: dict[str, Any], name: str) -> float:
    """A number from 0 to less than 1."""
    value = row.get(name)
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise MalformedError(f"{name!r} is no fraction")
    return float(value)

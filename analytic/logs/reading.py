"""Lines of a log file, which is untrusted text: bounded, decoded, freed of colours, and apart where prefixes tell."""

import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analytic.errors import UllageError

FILE_BYTES = 16 * 2**20
"""Engines print what they allocate at their start: later parts are left out."""
LINE_CHARACTERS = 2**15
"""vLLM's line of settings has some 10,000."""
SHORTEST = 12
LINES = 20_000
"""Of interest; a start has some hundreds."""
SHOWN = 500

_COLOUR = re.compile(r"\x1b\[[0-9;?]{0,16}[A-Za-z]|\[[0-9;]{1,12}m")
"""Also what is left of one where the escape character was lost in copying."""
_SOURCES = (
    re.compile(r"(\[pod/[^\]\s]{1,200}\]) "),
    re.compile(r"([\w.-]{1,64}) {0,40}\| "),
    re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d ([\w.-]{1,64} [\w.@-]{1,64})(?:\[\d{1,9}\])?: "),
    re.compile(r"(\[\d{2,7}\]) (?=\d+\.\d\d\.\d{3})"),
)
"""kubectl logs --prefix; docker compose; journald (a unit's processes share a source); llama-server as a router."""
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]{8,20}(?:Z|[+-]\d\d:?\d\d) ")
"""docker logs --timestamps, and Kubernetes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line, without prefixes of what collected it."""

    number: int
    text: str
    is_cut: bool = False
    """The last of a file that ends within a line, or within its bound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogText:
    """The lines of each source, as their prefixes name it, and what of the file was not read."""

    sources: dict[str, list[Line]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_text(path: str | os.PathLike[str], hints: Sequence[str]) -> LogText:
    """The lines of the file at ``path`` that have one of ``hints`` in them.

    Raises:
        UllageError: there is no such file, it is empty, or not text.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise UllageError(
            f"{name}: {error.strerror or error}", hint="give the file that the engine's log is in"
        ) from error
    notes = []
    if len(content) > FILE_BYTES:
        content = content[:FILE_BYTES]
        notes.append(f"the file is larger than {FILE_BYTES // 2**20} MiB: the rest was not read")
    text = _decoded(content, name)
    if not text.strip():
        raise UllageError(f"{name} is empty", hint="engines write to the error stream: redirect it too (2>&1)")
    sources: dict[str, list[Line]] = {}
    long = 0
    for count, (source, line) in enumerate(_lines(text, hints), start=1):
        long += len(line.text) == LINE_CHARACTERS
        sources.setdefault(source, []).append(line)
        if count == LINES:
            notes.append(f"more than {LINES} lines are of interest: those after were not read")
            break
    if long:
        notes.append(f"{long} lines are longer than {LINE_CHARACTERS} characters: the rest of them was not read")
    return LogText(sources=sources, notes=tuple(notes))


def _decoded(content: bytes, name: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    if b"\0" in content:
        raise UllageError(
            f"{name} is not text",
            hint="unpack it first; text in UTF-16 needs its byte order mark",
        )
    return content.decode("utf-8-sig", errors="replace")


def _lines(text: str, hints: Sequence[str]) -> Iterator[tuple[str, Line]]:
    """A carriage return within a line begins what a terminal shows instead: progress bars, and what is logged after."""
    for number, row in enumerate(io.StringIO(text, newline="\n"), start=1):
        if len(row) < SHORTEST or not any(hint in row for hint in hints):
            continue
        is_last = not row.endswith("\n")
        pieces = [piece for piece in row[: 2 * LINE_CHARACTERS].rstrip("\n").split("\r") if piece]
        for piece in pieces:
            source, plain = _without_prefix(_COLOUR.sub("", piece))
            yield source, Line(number=number, text=plain[:LINE_CHARACTERS], is_cut=is_last and piece is pieces[-1])


def _without_prefix(text: str) -> tuple[str, str]:
    if text.startswith('{"log":'):
        text = _docker_json(text)
    for pattern in _SOURCES:
        if match := pattern.match(text):
            text = text[match.end() :]
            stamp = _STAMP.match(text)
            return match[1], text[stamp.end() :] if stamp else text
    stamp = _STAMP.match(text)
    return "", text[stamp.end() :] if stamp else text


def _docker_json(text: str) -> str:
    """A line of docker's json-file driver."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _COLOUR.sub("", entry["log"].rstrip("\r\n")) if isinstance(entry.get("log"), str) else text

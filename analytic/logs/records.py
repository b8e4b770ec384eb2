"""What was read from a log: figures, with the resolution that they were printed with, and the runs they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Engine = Literal["vllm", "llamacpp", "sglang"]
Setting = str | int | float | bool | None | Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One printed figure: either bytes, between the least and the most that are printed so, or a count."""

    name: str
    """Of the engine's table of lines, such as ``weights`` or ``kv_cache_tokens``."""
    place: str
    """Rank or device as the line names it (``TP1``, ``DP0 TP1``, ``pid 521``, ``CUDA0``); empty: the engine."""
    bytes: int | None = None
    low_bytes: int | None = None
    high_bytes: int | None = None
    count: int | float | None = None
    line: int
    """Counted from 1."""
    text: str
    """The line, without colours and cut to `analytic.logs.reading.SHOWN` characters."""

    def contradicts(self, other: "Fact") -> bool:
        """Whether no value is printed as both."""
        if self.low_bytes is None or other.high_bytes is None or self.high_bytes is None or other.low_bytes is None:
            return self.count != other.count
        return self.low_bytes > other.high_bytes or other.low_bytes > self.high_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRun:
    """One start of an engine."""

    engine: Engine
    version: str | None
    """As printed; llama.cpp's is its build number."""
    model: str | None
    settings: Mapping[str, Setting]
    """Only what the log says: an absent name is not known."""
    facts: tuple[Fact, ...]
    """In the order of the lines."""
    notes: tuple[str, ...]
    """What is missing, partial or contradictory, and why."""

    def of(self, name: str, place: str | None = None) -> tuple[Fact, ...]:
        """The facts of a name, at one place or at all."""
        return tuple(fact for fact in self.facts if fact.name == name and place in (None, fact.place))
